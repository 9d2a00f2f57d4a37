"""What the lint looks at: manifests as files and kustomize directories give them, and the parts of a Ray cluster."""

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
Found = Iterator[tuple[str, str]]
"""What a rule finds: the field, and one sentence with the way out."""

ROLE = "psyco-ray/role"
ROLES = ("rollout", "scorer", "learner", "data")
LOCAL = "config.kubernetes.io/local-config"
_UNITS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_KNOWN = {"apiVersion", "kind", "namespace", "resources", "patches", "replacements", "configMapGenerator"}


@dataclass(frozen=True)
class Pods:
    """Equal pods of a cluster or a job, and where in the manifest they are described."""

    name: str  # of the group; head and submitter are no worker groups
    field: str
    spec: Manifest  # the group
    template: str = "template"

    @property
    def metadata(self) -> Manifest:
        """Metadata of the pods."""
        return (self.spec.get(self.template) or {}).get("metadata") or {}

    @property
    def pod(self) -> Manifest:
        """Specification of a pod."""
        return (self.spec.get(self.template) or {}).get("spec") or {}

    @property
    def containers(self) -> list[tuple[str, Manifest]]:
        """All containers with their fields."""
        return [
            (f"{self.field}.{self.template}.spec.{kind}[{k}]", container)
            for kind in ("containers", "initContainers")
            for k, container in enumerate(self.pod.get(kind) or [])
        ]

    @property
    def labels(self) -> Manifest:
        """Labels of the pods: the operator adds those of the group and its own."""
        node = {"head": {"ray.io/node-type": "head"}, "submitter": {}}.get(self.name, {"ray.io/node-type": "worker"})
        return {**(self.metadata.get("labels") or {}), **(self.spec.get("labels") or {}), **node}

    def has(self, resource: str) -> float:
        """Logical CPUs or GPUs (``cpu``, ``nvidia.com/gpu``) of a Ray node in such a pod."""
        told = (self.spec.get("rayStartParams") or {}).get({"cpu": "num-cpus", "nvidia.com/gpu": "num-gpus"}[resource])
        limits = (self.pod["containers"][0].get("resources") or {}).get("limits") or {}
        return quantity(told if told is not None else limits.get(resource, 0))


def workers(cluster: Manifest) -> list[Pods]:
    """The worker groups of a cluster's specification."""
    groups = cluster.get("workerGroupSpecs") or []
    return [Pods(g.get("groupName", f"#{k}"), f"workerGroupSpecs[{k}]", g) for k, g in enumerate(groups)]


def nodes(cluster: Manifest) -> list[Pods]:
    """Head and worker groups of a cluster's specification."""
    return [Pods("head", "headGroupSpec", cluster.get("headGroupSpec") or {}), *workers(cluster)]


def autoscales(cluster: Manifest) -> bool:
    """Whether a cluster has autoscaler v2."""
    options = cluster.get("autoscalerOptions") or {}
    return bool(cluster.get("enableInTreeAutoscaling")) and options.get("version") == "v2"


def quantity(text: Any) -> float:
    """A Kubernetes quantity as a number, such as 0.5 for ``500m``."""
    match = re.fullmatch(r"([0-9.]+)(m|k|M|G|T|Ki|Mi|Gi|Ti|)", str(text))
    if match is None:
        raise ValueError(f"{text!r} is no quantity that Kubernetes knows, such as 500m or 16Gi")
    return float(match[1]) * _UNITS[match[2]]


def read(path: Path) -> list[Manifest]:
    """The manifests of a file or, rendered, of a kustomize directory.

    Raises:
        ValueError: it is missing, no YAML, or cannot be rendered.
    """
    if path.is_dir():
        return _kubectl(path) if shutil.which("kubectl") else rendered(path)
    return _parsed(_text(path), path)


def rendered(directory: Path) -> list[Manifest]:
    """What ``kubectl kustomize`` makes of a directory that asks for no more than ours do.

    Raises:
        ValueError: a file is missing, or the directory needs the real kustomize.
    """
    made = [m for m in _merged(directory) if LOCAL not in (m["metadata"].get("annotations") or {})]
    assert made, "a kustomization has resources"
    return made


def _merged(directory: Path) -> list[Manifest]:
    plan = _parsed(_text(directory / "kustomization.yaml"), directory)[0]
    if unknown := set(plan) - _KNOWN:
        raise ValueError(f"{directory} has {', '.join(sorted(unknown))}, which only kustomize renders; install kubectl")
    made: dict[tuple[str, str], Manifest] = {}
    for name in plan.get("resources", []):
        place = directory / name
        for manifest in _merged(place) if place.is_dir() else _parsed(_text(place), place):
            made[manifest["kind"], manifest["metadata"]["name"]] = manifest
    for generated in plan.get("configMapGenerator", []):
        data = {Path(name).name: _text(directory / name) for name in generated["files"]}
        metadata = {"name": generated["name"], "labels": generated["options"]["labels"]}
        made["ConfigMap", generated["name"]] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": data,
        }
    for patch in plan.get("patches", []):
        for manifest in made.values():
            if manifest["kind"] == patch["target"]["kind"]:
                _merge(manifest, yaml.safe_load(patch["patch"]))
    for step in plan.get("replacements", []):
        source = step["source"]
        value = made[source["kind"], source["name"]][source["fieldPath"]]
        for target in step["targets"]:
            for field in target["fieldPaths"]:
                _put(made[target["select"]["kind"], target["select"]["name"]], field, value)
    for manifest in made.values():
        if "namespace" in plan and manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = plan["namespace"]
    return list(made.values())


def _merge(into: Manifest, patch: Manifest) -> None:
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _put(into: Manifest, field: str, value: Any) -> None:
    *road, last = field.split(".")
    for key in road:
        into = into.setdefault(key, {})
    into[last] = value


def _kubectl(directory: Path) -> list[Manifest]:
    done = subprocess.run(["kubectl", "kustomize", str(directory)], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{directory} cannot be rendered: {' '.join(done.stderr.split())}")
    return _parsed(done.stdout, directory)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _parsed(text: str, path: Path) -> list[Manifest]:
    try:
        made = [m for m in yaml.safe_load_all(text) if m is not None]
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not made or not all(isinstance(m, dict) for m in made):
        raise ValueError(f"{path} holds no manifests")
    return made
