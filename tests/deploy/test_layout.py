"""The import layers in pyproject.toml: lint-imports accepts the package and names a planted wrong import."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """A copy of the package beside a copy of pyproject.toml."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "psyco_ray", tmp_path / "psyco_ray", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def lint_imports(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120)


def test_lint_imports_accepts_the_package(copied_package: Path) -> None:
    done = lint_imports(copied_package)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_an_import_from_a_higher_layer_fails_and_is_named(copied_package: Path) -> None:
    with (copied_package / "psyco_ray/config/errors.py").open("a") as file:
        file.write("\nfrom psyco_ray.run import ledger\n")
    done = lint_imports(copied_package)
    assert done.returncode == 1
    assert "psyco_ray.config is not allowed to import psyco_ray.run" in done.stdout
    assert "psyco_ray.config.errors -> psyco_ray.run.ledger" in done.stdout


def test_an_import_cycle_within_a_package_fails_and_is_named(copied_package: Path) -> None:
    for name, other in (("first", "second"), ("second", "first")):
        (copied_package / f"psyco_ray/judge/{name}.py").write_text(f"from psyco_ray.judge import {other}\n")
    done = lint_imports(copied_package)
    assert done.returncode == 1
    assert "allowed in psyco_ray.judge." in done.stdout
    assert ".second -> .first" in done.stdout


def test_rooms_on_one_line_do_not_import_each_other(copied_package: Path) -> None:
    with (copied_package / "psyco_ray/files/cells.py").open("a") as file:
        file.write("\nfrom psyco_ray.screening import languages\n")
    done = lint_imports(copied_package)
    assert done.returncode == 1
    assert "psyco_ray.files.cells -> psyco_ray.screening.languages" in done.stdout


def test_no_two_test_files_have_one_name() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in names if names.count(name) > 1] == [], "pytest imports test files by their names alone"
