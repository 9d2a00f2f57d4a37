"""Lint for what runs psyco_ray on a cluster: ``python cluster/lint.py PATH…``.

A path is a file of manifests, a kustomize directory, or a file for ``ray up``. Each finding is one sentence with file,
object, field and way out. The exit code is 2 where there are any.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lint_launcher
import lint_operator
import lint_promises
from lint_manifests import Found, Manifest, Pods, nodes, read


@dataclass(frozen=True)
class Finding:
    """Something that does not do."""

    file: str
    thing: str
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.thing}: {self.field} {self.text}"


def lint(path: Path) -> list[Finding]:
    """All findings in a file or directory.

    Raises:
        ValueError: it cannot be read.
    """
    return check(read(path), str(path))


def check(manifests: list[Manifest], file: str) -> list[Finding]:
    """All findings in manifests that belong together."""
    found: list[Finding] = []
    everywhere = [pods for m in manifests if _sound(m) for pods in _pods(m)]
    policies = [m for m in manifests if m.get("kind") == "NetworkPolicy"]
    for manifest in manifests:
        thing = f"{manifest.get('kind', 'ray up')}/{(manifest.get('metadata') or manifest).get('name', '')}"
        if "cluster_name" in manifest:
            thing = f"ray up/{manifest['cluster_name']}"
        found += [Finding(file, thing, *one) for one in _findings(manifest, everywhere, policies)]
    return found


def _findings(manifest: Manifest, everywhere: list[Pods], policies: list[Manifest]) -> Iterator[tuple[str, str]]:
    match manifest.get("kind"):
        case None if "cluster_name" in manifest:
            for rule in lint_launcher.RULES:
                yield from rule(manifest)
        case "RayCluster" | "RayJob" as kind:
            yield from lint_operator.name_of(manifest)
            yield from _of_job(manifest["spec"]) if kind == "RayJob" else _of_cluster(manifest["spec"], "spec.")
            for pods in _pods(manifest) if _sound(manifest) else ():
                prefix = {"submitter": ""}.get(pods.name, "spec.rayClusterSpec." if kind == "RayJob" else "spec.")
                for rule_of_pods in lint_promises.PODS:
                    yield from _at(prefix, rule_of_pods(pods))
                yield from _at(prefix, lint_promises.closed(pods, policies))
        case "PodDisruptionBudget":
            yield from lint_promises.disruption(manifest, everywhere)
        case "NetworkPolicy":
            yield from lint_promises.network(manifest)
        case "Secret":
            yield from lint_promises.secret(manifest)


def _of_cluster(cluster: Manifest, prefix: str) -> Found:
    empty = list(lint_operator.containers(cluster))
    yield from _at(prefix, iter(empty))
    for rule in () if empty else (*lint_operator.CLUSTER, *lint_promises.CLUSTER):
        yield from _at(prefix, rule(cluster))


def _of_job(job: Manifest) -> Found:
    yield from _at("spec.", lint_operator.cluster_of_job(job))
    for rule in lint_operator.JOB:
        yield from _at("spec.", rule(job))
    yield from _at("spec.", lint_promises.keys(job))
    unread = list(lint_promises.entrypoint(job))
    yield from _at("spec.", iter(unread))
    if cluster := job.get("rayClusterSpec"):
        yield from _of_cluster(cluster, "spec.rayClusterSpec.")
        for rule in () if unread or list(lint_operator.containers(cluster)) else lint_promises.JOB:
            yield from _at("spec.", rule(job))


def _pods(manifest: Manifest) -> list[Pods]:
    """The pods that a manifest brings."""
    spec = manifest["spec"]
    if manifest["kind"] == "RayCluster":
        return nodes(spec)
    own = [lint_promises.submitter(spec)] if spec.get("submitterPodTemplate") else []
    return [*own, *(nodes(spec["rayClusterSpec"]) if spec.get("rayClusterSpec") else [])]


def _sound(manifest: Manifest) -> bool:
    """Whether a manifest brings pods, and each has a container."""
    return manifest.get("kind") in ("RayCluster", "RayJob") and all(p.pod.get("containers") for p in _pods(manifest))


def _at(prefix: str, found: Found) -> Found:
    for field, text in found:
        yield prefix + field, text


def main(paths: list[str]) -> int:
    """Print the findings in all paths; returns the exit code."""
    if not paths:
        print("lint: name files or directories, as cluster/k8s/overlays/multi-node/job", file=sys.stderr)
        return 2
    try:
        found = [one for path in paths for one in lint(Path(path))]
    except ValueError as error:
        print(f"lint: {error}", file=sys.stderr)
        return 2
    for one in found:
        print(one)
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
