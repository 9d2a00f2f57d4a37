"""Layout of pages, measured in headless Chromium without a driver: a script writes its measures into the DOM."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

WIDTHS = (390, 1280)

_SCRIPT = """
const pages = %s, widths = %s, problems = [];
const label = element => element.tagName.toLowerCase() + (element.className.baseVal ?? element.className ? '.' : '')
  + (element.className.baseVal ?? element.className) + ' "' + element.textContent.trim().slice(0, 40) + '"';
function check(name, width, view) {
  const root = view.document.documentElement, say = text => problems.push(`${name} at ${width}: ${text}`);
  if (view.innerWidth !== width) say(`is ${view.innerWidth} pixels wide`);
  if (root.scrollWidth > width) say(`the page is ${root.scrollWidth} pixels wide`);
  for (const details of view.document.querySelectorAll('details')) details.open = true;
  for (const element of view.document.body.querySelectorAll('*')) {
    const box = element.getBoundingClientRect(), style = view.getComputedStyle(element);
    const plot = element.closest('svg'), scroller = element.closest('.scroll');
    if (element === plot && (box.width < Math.min(240, width / 2) || box.height < 60)) say('tiny plot');
    if (plot && element.tagName === 'use') {
      const frame = plot.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        say(`text of the plot "${plot.getAttribute('aria-label').slice(0, 40)}" is cut`);
    }
    if (plot && element !== plot) continue;
    if ((!scroller || element === scroller) && (box.right > width + 1 || box.left < -1)) say(`${label(element)} is outside`);
    if (element === scroller && element.scrollWidth > element.clientWidth && (element.tabIndex !== 0 || style.overflowX !== 'auto'))
      say(`${label(element)} cannot be scrolled by keyboard`);
    if (element !== scroller && style.overflowX !== 'visible' && element.scrollWidth > element.clientWidth + 1)
      say(`${label(element)} is cut`);
    if (element.matches('caption span, .stack i') && element.scrollWidth > Math.min(element.clientWidth + 1, width))
      say(`${label(element)} is cut`);
  }
}
const jobs = Object.entries(pages).flatMap(([name, text]) => widths.map(width => new Promise(done => {
  const frame = document.createElement('iframe');
  Object.assign(frame.style, {width: width + 'px', height: '900px', border: 0});
  frame.srcdoc = text;
  frame.onload = () => { check(name, width, frame.contentWindow); frame.remove(); done(); };
  document.body.append(frame);
})));
Promise.all(jobs).then(() => {
  document.body.innerHTML = '<pre id="measured"></pre>';
  document.getElementById('measured').textContent = JSON.stringify(problems);
});
"""


def chromium() -> str:
    """The program; the test is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium on this machine; apt-get install chromium")


def layout_problems(pages: Mapping[str, str], directory: Path) -> list[str]:
    """What is cut, outside the window or unreachable at each of WIDTHS, by page name, width and element.

    Args:
        pages: HTML by name.
        directory: a fresh directory for the measuring page and the browser's profile.
    """
    script = _SCRIPT % (json.dumps(pages).replace("</", "<\\/").replace("<!--", "<\\!--"), json.dumps(WIDTHS))
    (directory / "measure.html").write_text(f"<!DOCTYPE html><meta charset=utf-8><body><script>{script}</script>", "utf-8")
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={directory / 'profile'}",
        "--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom", (directory / "measure.html").as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    measured = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    assert measured is not None, "the measuring script did not finish"
    return json.loads(html.unescape(measured[1]))
