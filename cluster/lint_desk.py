"""Rules for the desk's manifests: one server on one volume, TLS on the way to it, and no way out."""

from __future__ import annotations

import contextlib
import io

from lint_manifests import Manifest, Pods, Violations

from psyco_ray.cli.main import build_parser

_FIELD = "spec.template.spec"


def pods_of(deployment: Manifest) -> Pods:
    """The pods of a deployment."""
    return Pods("deployment", "spec", deployment["spec"])


def one_server(deployment: Manifest, _: list[Manifest]) -> Violations:
    """There is never a second pod: SQLite has one server."""
    spec = deployment["spec"]
    if spec.get("replicas") != 1:
        yield "spec.replicas", "is not 1; a desk has one server"
    if (spec.get("strategy") or {}).get("type") != "Recreate":
        yield "spec.strategy.type", "is not Recreate, so an update would start a second server; set it"


def volume(deployment: Manifest, manifests: list[Manifest]) -> Violations:
    """The desk is on a claim that one pod at a time can mount."""
    claims = {m["metadata"]["name"]: m["spec"] for m in manifests if m.get("kind") == "PersistentVolumeClaim"}
    mounted = [
        v["persistentVolumeClaim"] for v in pods_of(deployment).pod.get("volumes") or [] if "persistentVolumeClaim" in v
    ]
    if not mounted:
        yield f"{_FIELD}.volumes", "have no claim, so the desk ends with its pod; mount one"
    for claim in mounted:
        if claims.get(claim["claimName"], {}).get("accessModes") != ["ReadWriteOncePod"]:
            yield (
                f"{_FIELD}.volumes",
                f"name {claim['claimName']}, which is no claim with [ReadWriteOncePod]; make it one",
            )


def read_only(deployment: Manifest, _: list[Manifest]) -> Violations:
    """Only mounted volumes can be written."""
    for field, container in pods_of(deployment).containers:
        if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
            yield (
                f"{field}.securityContext.readOnlyRootFilesystem",
                "is not true; the desk writes into its volumes alone",
            )


def service_account(deployment: Manifest, _: list[Manifest]) -> Violations:
    """The pod has no access to the Kubernetes API."""
    if pods_of(deployment).pod.get("automountServiceAccountToken") is not False:
        yield f"{_FIELD}.automountServiceAccountToken", "is not false; the desk does not need the token"


def probes(deployment: Manifest, _: list[Manifest]) -> Violations:
    """Kubernetes probes the server."""
    for name in ("readinessProbe", "livenessProbe"):
        if not pods_of(deployment).pod["containers"][0].get(name):
            yield f"{_FIELD}.containers[0].{name}", "is missing; probe /healthz"


def command(deployment: Manifest, manifests: list[Manifest]) -> Violations:
    """The command is valid, and the server answers to the names of the ingress."""
    container = pods_of(deployment).pod["containers"][0]
    program, *words = [*(container.get("command") or []), *(container.get("args") or [])]
    field, stderr = f"{_FIELD}.containers[0].args", io.StringIO()
    if program != "psyco-ray" or words[:2] != ["desk", "serve"]:
        yield field, "do not run psyco-ray desk serve"
        return
    try:
        with contextlib.redirect_stderr(stderr):
            options = build_parser().parse_args(words)
    except SystemExit:
        yield field, f"are refused: {stderr.getvalue().splitlines()[-1]}"
        return
    ingresses = [m["spec"] for m in manifests if m.get("kind") == "Ingress"]
    hosts = {rule.get("host") for spec in ingresses for rule in spec.get("rules") or []}
    if not options.behind_proxy or set(options.host_name) != hosts:
        yield (
            field,
            f"need --behind-proxy and --host-name with the ingress's hosts ({', '.join(map(str, sorted(hosts)))})",
        )


def no_way_out(deployment: Manifest, manifests: list[Manifest]) -> Violations:
    """No policy lets the desk reach anybody, and some policy selects it."""
    labels = pods_of(deployment).labels.items()
    policies = [m["spec"] for m in manifests if m.get("kind") == "NetworkPolicy"]
    own = [p for p in policies if ((p.get("podSelector") or {}).get("matchLabels") or {}).items() <= labels]
    if not own or any(policy.get("egress") for policy in own):
        yield (
            "spec.template.metadata.labels",
            "are selected by no NetworkPolicy without egress; nothing may leave a desk",
        )


def encrypted(ingress: Manifest) -> Violations:
    """Each host of an ingress has a certificate."""
    covered = {
        host for tls in ingress["spec"].get("tls") or [] if tls.get("secretName") for host in tls.get("hosts") or []
    }
    for k, rule in enumerate(ingress["spec"].get("rules") or []):
        if rule.get("host") not in covered:
            yield f"spec.rules[{k}].host", f"{rule.get('host')} has no secret in tls; passphrases would go in the clear"


RULES = (one_server, volume, read_only, service_account, probes, command, no_way_out)
