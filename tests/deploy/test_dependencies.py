"""Every package that psyco_ray imports is one that it declares."""

import ast
import importlib.metadata
import re
import sys
import tomllib

from support.paths import ROOT

IMPLIED = {
    "huggingface_hub": "transformers",
    "safetensors": "transformers",
    "fsspec": "ray",
    "httpx": "openai",
    "markupsafe": "jinja2",
    "spacy": "presidio-analyzer",
    "starlette": "fastapi",
    "tokenizers": "transformers",
    "yaml": "pyyaml",
}
"""Modules that come with a declared package, which names them in its own interface."""


def imported() -> dict[str, str]:
    """The top modules that the package imports from elsewhere, each with a file that does."""
    found: dict[str, str] = {}
    for path in (ROOT / "psyco_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            found |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names and name != "psyco_ray"}


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["presidio"]]
    declared = {re.split(r"[\[<>=~ ]", line)[0].lower() for line in lines}
    modules = importlib.metadata.packages_distributions()
    undeclared = {
        name: path
        for name, path in imported().items()
        if IMPLIED.get(name) not in declared
        and not {distribution.lower().replace("_", "-") for distribution in [name, *modules.get(name, [])]} & declared
    }
    assert undeclared == {}


def test_every_implied_module_comes_with_a_declared_package() -> None:
    assert set(IMPLIED) >= {"yaml", "safetensors"}
    assert len(imported()) > 20
