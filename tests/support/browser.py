"""Layout of pages, measured in headless Chromium without a driver: a script writes its measures into the DOM."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.paths import SUPPORT

WIDTHS = (390, 1280)
"""Pixels of a phone and of a desktop window."""


def chromium() -> str:
    """The browser's path; skips the test on a machine without one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine; install it with apt-get install chromium")


def layout_problems(pages: Mapping[str, str], directory: Path) -> list[str]:
    """Elements that are cut, outside the window or out of the keyboard's reach at one of WIDTHS.

    Args:
        pages: HTML by name.
        directory: a fresh directory for the measuring page and the browser's profile.
    """
    texts = json.dumps(pages).replace("<", "\\u003c")
    script = (SUPPORT / "measure_layout.js").read_text("utf-8")
    measuring = f"const pages = {texts}, widths = {json.dumps(WIDTHS)};\n{script}"
    path = directory / "measure.html"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><body><script>{measuring}</script>", "utf-8")
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={directory / 'profile'}",
        "--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    measured = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    assert measured is not None, "the measuring script did not finish"
    return json.loads(html.unescape(measured[1]))
