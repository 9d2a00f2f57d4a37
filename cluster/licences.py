"""Prints the licences of psyco_ray's dependencies: ``python cluster/licences.py [--all]``.

Reads the metadata of what is installed: psyco_ray's dependencies, those of the CPU build, and their dependencies.
Without `--all` it prints those whose licence is not permissive (copyleft, proprietary or not stated), which somebody
has to read before images with them are passed on.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
_PERMISSIVE = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|Python-2\.0|Zlib|Unlicense|HPND|CC0|Public Domain"
    r"|matplotlib)\b",
    re.IGNORECASE,
)
_NOT_PERMISSIVE = re.compile(r"GPL|MPL|Mozilla|EPL|EUPL|Proprietary|End User|EULA|NVIDIA|Commercial", re.IGNORECASE)


def dependencies() -> list[Distribution]:
    """The installed distributions that psyco_ray needs, by name."""
    pyproject = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))
    waiting = [*pyproject["project"]["dependencies"], *pyproject["dependency-groups"]["cpu"]]
    found: dict[str, Distribution] = {}
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found or not _applies(requirement):
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # vllm beside its CPU build, or an extra of a dependency
            continue
        waiting += found[name].requires or []
    return [found[name] for name in sorted(found)]


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def licence(of: Distribution) -> str:
    """The licence that a distribution states, or an empty text."""
    metadata = of.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [text.split(" :: ")[-1] for text in metadata.get_all("Classifier") or [] if "License ::" in text]
    own = (metadata.get("License") or "").strip().splitlines()[:1]
    return ", ".join(classifiers if classifiers and classifiers != ["OSI Approved"] else own)


def is_permissive(text: str) -> bool:
    """Whether a licence allows any use with attribution alone."""
    return bool(_PERMISSIVE.search(text)) and not _NOT_PERMISSIVE.search(text)


def main(arguments: list[str]) -> int:
    """Prints a line for each distribution and returns the exit code."""
    stated = {of.name: licence(of) for of in dependencies()}
    shown = {name: text for name, text in stated.items() if "--all" in arguments or not is_permissive(text)}
    for name, text in shown.items():
        print(f"{name}: {text or 'not stated'}")
    print(f"{len(stated)} dependencies, {sum(not is_permissive(text) for text in stated.values())} not permissive")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
