"""Lint for the cluster files: ``python cluster/lint.py PATH…``.

A path is a file of manifests, a kustomize directory, or a file for ``ray up``. Each finding is one line with file,
object, field and way out. The exit code is 2 when there are findings.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lint_desk
import lint_launcher
import lint_operator
import lint_policy
from lint_manifests import Manifest, Pods, Violations, nodes, read


@dataclass(frozen=True)
class Finding:
    """A violated rule."""

    file: str
    object: str
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.object}: {self.field} {self.text}"


def lint(path: Path) -> list[Finding]:
    """Returns the findings in a file or directory.

    Raises:
        ValueError: the path cannot be read.
    """
    return check(read(path), str(path))


def check(manifests: list[Manifest], file: str) -> list[Finding]:
    """Returns the findings in manifests that are applied together."""
    findings: list[Finding] = []
    all_pods = [pods for m in manifests if _has_containers(m) for pods in _pods(m)]
    policies = [m for m in manifests if m.get("kind") == "NetworkPolicy"]
    for manifest in manifests:
        name = f"{manifest.get('kind', 'ray up')}/{(manifest.get('metadata') or manifest).get('name', '')}"
        if "cluster_name" in manifest:
            name = f"ray up/{manifest['cluster_name']}"
        found = [*_check_manifest(manifest, all_pods, policies), *_check_desk(manifest, manifests)]
        findings += [Finding(file, name, *violation) for violation in found]
    return findings


def _check_manifest(manifest: Manifest, all_pods: list[Pods], policies: list[Manifest]) -> Iterator[tuple[str, str]]:
    match manifest.get("kind"):
        case None if "cluster_name" in manifest:
            for rule in lint_launcher.RULES:
                yield from rule(manifest)
        case "RayCluster" | "RayJob" as kind:
            yield from lint_operator.name_of(manifest)
            yield from _check_job(manifest["spec"]) if kind == "RayJob" else _check_cluster(manifest["spec"], "spec.")
            for pods in _pods(manifest) if _has_containers(manifest) else ():
                prefix = {"submitter": ""}.get(pods.name, "spec.rayClusterSpec." if kind == "RayJob" else "spec.")
                for pod_rule in lint_policy.PODS:
                    yield from _at(prefix, pod_rule(pods))
                yield from _at(prefix, lint_policy.closed(pods, policies))
        case "PodDisruptionBudget":
            yield from lint_policy.disruption(manifest, all_pods)
        case "NetworkPolicy":
            yield from lint_policy.network(manifest)
        case "Secret":
            yield from lint_policy.secret(manifest)


def _check_desk(manifest: Manifest, manifests: list[Manifest]) -> Iterator[tuple[str, str]]:
    match manifest.get("kind"):
        case "Deployment" if not _has_containers(manifest):
            yield "spec.template.spec.containers", "is empty; the first container is the desk"
        case "Deployment":
            for rule in lint_desk.RULES:
                yield from rule(manifest, manifests)
            for pod_rule in lint_policy.PODS:
                yield from pod_rule(lint_desk.pods_of(manifest))
        case "Ingress":
            yield from lint_desk.encrypted(manifest)


def _check_cluster(cluster: Manifest, prefix: str) -> Violations:
    empty = list(lint_operator.containers(cluster))
    yield from _at(prefix, iter(empty))
    for rule in () if empty else (*lint_operator.CLUSTER, *lint_policy.CLUSTER):
        yield from _at(prefix, rule(cluster))


def _check_job(job: Manifest) -> Violations:
    yield from _at("spec.", lint_operator.cluster_of_job(job))
    for rule in lint_operator.JOB:
        yield from _at("spec.", rule(job))
    yield from _at("spec.", lint_policy.keys(job))
    unreadable = list(lint_policy.entrypoint(job))
    yield from _at("spec.", iter(unreadable))
    if cluster := job.get("rayClusterSpec"):
        yield from _check_cluster(cluster, "spec.rayClusterSpec.")
        for rule in () if unreadable or list(lint_operator.containers(cluster)) else lint_policy.JOB:
            yield from _at("spec.", rule(job))


def _pods(manifest: Manifest) -> list[Pods]:
    """The pods that a Ray cluster, a Ray job or a deployment starts."""
    spec = manifest["spec"]
    if manifest["kind"] == "Deployment":
        return [lint_desk.pods_of(manifest)]
    if manifest["kind"] == "RayCluster":
        return nodes(spec)
    submitter = [lint_policy.submitter(spec)] if spec.get("submitterPodTemplate") else []
    return [*submitter, *(nodes(spec["rayClusterSpec"]) if spec.get("rayClusterSpec") else [])]


def _has_containers(manifest: Manifest) -> bool:
    """Whether this starts pods and each of them has a container."""
    return manifest.get("kind") in ("RayCluster", "RayJob", "Deployment") and all(
        p.pod.get("containers") for p in _pods(manifest)
    )


def _at(prefix: str, violations: Violations) -> Violations:
    for field, text in violations:
        yield prefix + field, text


def main(paths: list[str]) -> int:
    """Prints the findings in all paths and returns the exit code."""
    if not paths:
        print("lint: name files or directories, such as cluster/k8s/overlays/multi-node/job", file=sys.stderr)
        return 2
    try:
        findings = [finding for path in paths for finding in lint(Path(path))]
    except ValueError as error:
        print(f"lint: {error}", file=sys.stderr)
        return 2
    for finding in findings:
        print(finding)
    return 2 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
