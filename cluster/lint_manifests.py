"""Reads manifests from files and kustomize directories, and finds the pods in them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
Violations = Iterator[tuple[str, str]]
"""What a rule yields: the field, and one sentence with the way out."""

ROLE = "psyco-ray/role"
ROLES = ("rollout", "scorer", "learner", "data")
LOCAL = "config.kubernetes.io/local-config"
_UNITS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_KNOWN = {"apiVersion", "kind", "namespace", "resources", "patches", "replacements", "configMapGenerator"}


@dataclass(frozen=True)
class Pods:
    """The pods of one group, and the field of the manifest that describes them."""

    name: str  # of the worker group, or `head`, `submitter` or `deployment`
    field: str
    spec: Manifest  # of the group
    template: str = "template"

    @property
    def metadata(self) -> Manifest:
        """The pods' metadata."""
        return (self.spec.get(self.template) or {}).get("metadata") or {}

    @property
    def pod(self) -> Manifest:
        """The pods' specification."""
        return (self.spec.get(self.template) or {}).get("spec") or {}

    @property
    def containers(self) -> list[tuple[str, Manifest]]:
        """The field and specification of each container."""
        return [
            (f"{self.field}.{self.template}.spec.{kind}[{k}]", container)
            for kind in ("containers", "initContainers")
            for k, container in enumerate(self.pod.get(kind) or [])
        ]

    @property
    def labels(self) -> Manifest:
        """The pods' labels, with those that the operator adds."""
        node = {"head": {"ray.io/node-type": "head"}, "submitter": {}, "deployment": {}}.get(
            self.name, {"ray.io/node-type": "worker"}
        )
        return {**(self.metadata.get("labels") or {}), **(self.spec.get("labels") or {}), **node}

    def has(self, resource: str) -> float:
        """Logical CPUs (``cpu``) or GPUs (``nvidia.com/gpu``) of the Ray node in each pod."""
        parameter = {"cpu": "num-cpus", "nvidia.com/gpu": "num-gpus"}[resource]
        declared = (self.spec.get("rayStartParams") or {}).get(parameter)
        limits = (self.pod["containers"][0].get("resources") or {}).get("limits") or {}
        return quantity(limits.get(resource, 0) if declared is None else declared)


def workers(cluster: Manifest) -> list[Pods]:
    """The worker groups of a cluster's specification."""
    groups = cluster.get("workerGroupSpecs") or []
    return [Pods(g.get("groupName", f"#{k}"), f"workerGroupSpecs[{k}]", g) for k, g in enumerate(groups)]


def nodes(cluster: Manifest) -> list[Pods]:
    """Head and worker groups of a cluster's specification."""
    return [Pods("head", "headGroupSpec", cluster.get("headGroupSpec") or {}), *workers(cluster)]


def autoscales(cluster: Manifest) -> bool:
    """Whether the cluster runs autoscaler v2."""
    options = cluster.get("autoscalerOptions") or {}
    return bool(cluster.get("enableInTreeAutoscaling")) and options.get("version") == "v2"


def quantity(text: Any) -> float:
    """Converts a Kubernetes quantity to a number, such as ``500m`` to 0.5."""
    match = re.fullmatch(r"([0-9.]+)(m|k|M|G|T|Ki|Mi|Gi|Ti|)", str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a Kubernetes quantity such as 500m or 16Gi")
    return float(match[1]) * _UNITS[match[2]]


def read(path: Path) -> list[Manifest]:
    """Reads the manifests of a file, or renders those of a kustomize directory.

    Raises:
        ValueError: the path is missing, is not YAML, or cannot be rendered.
    """
    if path.is_dir():
        return _kubectl(path) if shutil.which("kubectl") else rendered(path)
    return _parsed(_text(path), path)


def rendered(directory: Path) -> list[Manifest]:
    """Renders a directory as ``kubectl kustomize`` does; supports only the fields that this project uses.

    Raises:
        ValueError: a file is missing, or the directory uses another field.
    """
    return [m for m in _merged(directory) if LOCAL not in (m["metadata"].get("annotations") or {})]


def _merged(directory: Path) -> list[Manifest]:
    kustomization = _parsed(_text(directory / "kustomization.yaml"), directory)[0]
    if unknown := set(kustomization) - _KNOWN:
        raise ValueError(f"{directory} has {', '.join(sorted(unknown))}, which only kustomize renders; install kubectl")
    manifests: dict[tuple[str, str], Manifest] = {}
    for name in kustomization.get("resources", []):
        path = directory / name
        for manifest in _merged(path) if path.is_dir() else _parsed(_text(path), path):
            manifests[manifest["kind"], manifest["metadata"]["name"]] = manifest
    for generated in kustomization.get("configMapGenerator", []):
        data = {Path(name).name: _text(directory / name) for name in generated["files"]}
        metadata = {"name": generated["name"], "labels": generated["options"]["labels"]}
        manifests["ConfigMap", generated["name"]] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": data,
        }
    for patch in kustomization.get("patches", []):
        for manifest in manifests.values():
            if manifest["kind"] == patch["target"]["kind"]:
                _merge(manifest, yaml.safe_load(patch["patch"]))
    for replacement in kustomization.get("replacements", []):
        source = replacement["source"]
        value = manifests[source["kind"], source["name"]][source["fieldPath"]]
        for target in replacement["targets"]:
            for field in target["fieldPaths"]:
                _put(manifests[target["select"]["kind"], target["select"]["name"]], field, value)
    for manifest in manifests.values():
        if "namespace" in kustomization and manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = kustomization["namespace"]
    return list(manifests.values())


def _merge(target: Manifest, patch: Manifest) -> None:
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _put(target: Manifest, field: str, value: Any) -> None:
    *parents, last = field.split(".")
    for key in parents:
        target = target.setdefault(key, {})
    target[last] = value


def _kubectl(directory: Path) -> list[Manifest]:
    result = subprocess.run(["kubectl", "kustomize", str(directory)], capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"{directory} cannot be rendered: {' '.join(result.stderr.split())}")
    return _parsed(result.stdout, directory)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _parsed(text: str, path: Path) -> list[Manifest]:
    try:
        manifests = [m for m in yaml.safe_load_all(text) if m is not None]
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not manifests or not all(isinstance(m, dict) for m in manifests):
        raise ValueError(f"{path} contains no manifests")
    return manifests
