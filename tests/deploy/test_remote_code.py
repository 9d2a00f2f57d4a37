"""Code from model repositories: every call that loads a model says that it does not run it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from support.paths import ROOT

LOADERS = {"from_pretrained", "from_config", "LLM"}


def loading_calls(source: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) in LOADERS:
            yield node


def allows_code(call: ast.Call) -> bool:
    """Whether a call may run code from a repository without being told so by `allow_code`."""
    values = [keyword.value for keyword in call.keywords if keyword.arg == "trust_remote_code"]
    return not any(ast.unparse(value) in ("False", "allow_code") for value in values)


def test_every_loading_call_names_trust_remote_code() -> None:
    package = ROOT / "psyco_ray"
    calls = {
        f"{path.relative_to(ROOT)}:{call.lineno}": call
        for path in sorted(Path(package).rglob("*.py"))
        for call in loading_calls(path.read_text(encoding="utf-8"))
        if "Role" not in ast.unparse(call.func)  # fit.Role.from_config reads our own settings
    }
    assert len(calls) > 8, "the loading calls are found"
    assert [where for where, call in calls.items() if allows_code(call)] == []


def test_a_call_without_it_is_found() -> None:
    calls = list(
        loading_calls(
            "AutoModel.from_pretrained(path)\nLLM(path, trust_remote_code=True)\n"
            "AutoConfig.from_pretrained(path, trust_remote_code=False)\nLLM(path, trust_remote_code=allow_code)"
        )
    )
    assert [allows_code(call) for call in calls] == [True, True, False, False]
