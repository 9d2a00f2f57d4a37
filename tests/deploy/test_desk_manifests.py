"""The desk's manifests: what the lint refuses, and what README and manifests say of each other."""

import copy
import json

import lint
import lint_desk
import pytest
from lint_manifests import rendered
from support.manifests import CLUSTER, DELETED, DESK, set_field

POD = "spec.template.spec"
CONTAINER = f"{POD}.containers[0]"
SERVE = ["desk", "serve", "/data/desk", "--host", "0.0.0.0"]

CASES = [
    ("one_server", "Deployment", "spec.replicas", 2, None),
    ("one_server", "Deployment", "spec.strategy", DELETED, "spec.strategy.type"),
    ("volume", "PersistentVolumeClaim", "spec.accessModes", ["ReadWriteMany"], f"{POD}.volumes"),
    ("volume", "Deployment", f"{POD}.volumes", [{"name": "data", "emptyDir": {}}], None),
    ("read_only", "Deployment", f"{CONTAINER}.securityContext.readOnlyRootFilesystem", False, None),
    ("read_only", "Deployment", f"{POD}.initContainers[0].securityContext.readOnlyRootFilesystem", DELETED, None),
    ("service_account", "Deployment", f"{POD}.automountServiceAccountToken", True, None),
    ("probes", "Deployment", f"{CONTAINER}.livenessProbe", DELETED, None),
    ("command", "Deployment", f"{CONTAINER}.command", ["python"], f"{CONTAINER}.args"),
    ("command", "Deployment", f"{CONTAINER}.args", [*SERVE, "--hostname", "desk.example.com"], None),
    ("command", "Deployment", f"{CONTAINER}.args", [*SERVE, "--host-name", "desk.example.com"], None),
    ("command", "Ingress", "spec.rules[0].host", "other.example.com", f"{CONTAINER}.args"),
    ("no_way_out", "NetworkPolicy", "spec.egress", [{}], "spec.template.metadata.labels"),
    ("no_way_out", "NetworkPolicy", "spec.podSelector.matchLabels", {"app": "x"}, "spec.template.metadata.labels"),
    ("encrypted", "Ingress", "spec.tls", [], "spec.rules[0].host"),
    ("not_root", "Deployment", f"{POD}.securityContext", {}, f"{POD}.securityContext.runAsNonRoot"),
    ("limits", "Deployment", f"{CONTAINER}.resources", {}, None),
    ("images", "Deployment", f"{CONTAINER}.image", "psyco-ray:0.1.0-cpu", None),
    ("containers", "Deployment", f"{POD}.containers", [], None),
]


@pytest.fixture(scope="module")
def desk() -> list[dict]:
    return json.loads(json.dumps(rendered(DESK)))


@pytest.mark.parametrize(("rule", "kind", "field", "value", "reported"), CASES, ids=[case[0] for case in CASES])
def test_a_wrong_manifest_is_reported(rule, kind, field, value, reported, desk) -> None:
    manifests = copy.deepcopy(desk)
    set_field(next(m for m in manifests if m["kind"] == kind), field, value)
    assert (reported or field) in {finding.field for finding in lint.check(manifests, "desk")}


def test_every_rule_has_a_case() -> None:
    assert {rule.__name__ for rule in (*lint_desk.RULES, lint_desk.encrypted)} <= {case[0] for case in CASES}


def test_the_ingress_reaches_the_server_through_the_service_and_the_policy(desk) -> None:
    """Names, ports and labels of four manifests have to agree."""
    by_kind = {manifest["kind"]: manifest["spec"] for manifest in desk if "spec" in manifest}
    backend = by_kind["Ingress"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    service, pods = by_kind["Service"], by_kind["Deployment"]["template"]
    [port] = pods["spec"]["containers"][0]["ports"]
    assert backend["port"]["name"] == service["ports"][0]["name"]
    assert service["ports"][0]["targetPort"] == port["name"]
    assert service["selector"].items() <= pods["metadata"]["labels"].items()
    assert by_kind["NetworkPolicy"]["ingress"][0]["ports"] == [{"port": port["containerPort"]}]
    arguments = pods["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--port") + 1] == str(port["containerPort"])
    assert str(port["containerPort"]) in (CLUSTER / "README.md").read_text()
