"""Python files of released versions of a package, from its wheel or source archive, without an installation.

They are kept below `PSYCO_RAY_WHEELS` (default `~/.cache/psyco-ray/wheels`), a few MB a version; an archive is removed
once its Python files are out. Without a package index the tests that want them are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

CACHE = Path(os.environ.get("PSYCO_RAY_WHEELS") or "~/.cache/psyco-ray/wheels").expanduser()
_LIMIT_S = 900


def pinned(requirements: list[str], package: str) -> SpecifierSet:
    """The range of a package among requirements."""
    [found] = [r for r in map(Requirement, requirements) if r.name == package]
    return found.specifier


@cache
def released(package: str, versions: SpecifierSet) -> list[Version]:
    """The first release of a range, the first of its middle minor version, and the last one."""
    listed = _pip("index", "versions", package)
    everything = sorted(
        map(Version, re.findall(r"\d[\w.]*", listed.partition("Available versions:")[2].splitlines()[0]))
    )
    inside = [version for version in everything if version in versions]
    assert inside, f"no release of {package} is in {versions}"
    minors = sorted({version.release[:2] for version in inside})
    of_minor = {minor: [version for version in inside if version.release[:2] == minor] for minor in minors}
    chosen = {of_minor[minors[0]][0], of_minor[minors[len(minors) // 2]][0], of_minor[minors[-1]][-1]}
    return sorted(chosen)


def sources(package: str, version: Version) -> Path:
    """The directory with the Python files of a version."""
    directory = CACHE / f"{package}-{version}"
    if not directory.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            _pip("download", "--no-deps", "--no-build-isolation", "--dest", temporary, f"{package}=={version}")
            [archive] = [path for path in Path(temporary).iterdir() if path.is_file()]
            _extract(archive, package, Path(temporary) / "files")
            shutil.move(Path(temporary) / "files", directory)
    return directory


def _extract(archive: Path, package: str, target: Path) -> None:
    """Copy the Python files of a package's own directory out of an archive."""
    wanted = re.compile(rf"(?:[^/]+/)?({package}/.+\.py)")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if match := re.fullmatch(rf"({package}/.+\.py)", name):
                    _write(target / match[1], wheel.read(name))
        return
    with tarfile.open(archive) as files:
        for member in files:
            if (match := wanted.fullmatch(member.name)) and (content := files.extractfile(member)) is not None:
                _write(target / match[1], content.read())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        pytest.skip(f"pip {arguments[0]} {arguments[-1]}: {reason}")
    return done.stdout
