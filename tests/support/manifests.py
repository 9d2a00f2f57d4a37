"""The cluster files, and changes to a manifest."""

import re
from pathlib import Path
from typing import Any

from support.paths import ROOT

CLUSTER = ROOT / "cluster"
SHAPES = ("kind-cpu", "1-node-8gpu", "multi-node")
OVERLAYS = [CLUSTER / "k8s/overlays" / name / job for name in SHAPES for job in ("", "job")]
DESK = CLUSTER / "k8s/desk"
DIRECTORIES = [*OVERLAYS, CLUSTER / "k8s/monitoring", DESK]
FILES = [*DIRECTORIES, CLUSTER / "k8s/object-store.yaml"]
LAUNCHERS = [CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"]

HEAD = "spec.rayClusterSpec.headGroupSpec"
WORKERS = "spec.rayClusterSpec.workerGroupSpecs"
ROLLOUT = f"{WORKERS}[0]"
RAY = "template.spec.containers[0]"
DELETED = object()


def relative(path: object) -> str:
    """The test id of a path."""
    return str(path.relative_to(CLUSTER)) if isinstance(path, Path) else str(path)


def set_field(manifest: Any, field: str, value: object) -> None:
    """Sets a field such as ``spec.groups[0].name``, or removes it if the value is `DELETED`."""
    *parents, last = re.findall(r"[^.\[\]]+", field)
    for key in parents:
        manifest = manifest[int(key)] if isinstance(manifest, list) else manifest.setdefault(key, {})
    if value is DELETED:
        del manifest[last]
    else:
        manifest[int(last) if isinstance(manifest, list) else last] = value
