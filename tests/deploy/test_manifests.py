"""Manifests, launcher files, dashboard and README of the cluster agree with each other and pass the lint."""

import json
import re
import shutil
from pathlib import Path

import lint
import pytest
import yaml
from lint_manifests import nodes, quantity, read, rendered
from support.manifests import CLUSTER, DIRECTORIES, FILES, LAUNCHERS, OVERLAYS, SHAPES, relative
from support.paths import ROOT


@pytest.mark.parametrize("path", [*FILES, *LAUNCHERS], ids=relative)
def test_all_cluster_files_pass_the_lint(path: Path) -> None:
    assert lint.lint(path) == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl to compare with")
@pytest.mark.parametrize("path", DIRECTORIES, ids=relative)
def test_rendering_equals_that_of_kustomize(path: Path) -> None:
    assert {resource_name(m): m for m in rendered(path)} == {resource_name(m): m for m in read(path)}


def resource_name(manifest: dict) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def test_rendering_refuses_fields_that_it_does_not_support(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [a.yaml]\nnamePrefix: my-\n")
    with pytest.raises(ValueError, match="has namePrefix, which only kustomize renders"):
        rendered(tmp_path)


def test_quantities_are_those_of_kubernetes() -> None:
    assert [quantity(text) for text in ("500m", 2, "1.5", "2Ki", "3M")] == [0.5, 2, 1.5, 2048, 3e6]
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        quantity("2GB")


@pytest.mark.parametrize("path", OVERLAYS, ids=relative)
def test_an_overlay_defines_a_cluster_and_its_job_directory_a_job(path: Path) -> None:
    kinds = [manifest["kind"] for manifest in rendered(path)]
    assert ("RayJob" in kinds, "RayCluster" in kinds) == ((True, False) if path.name == "job" else (False, True))
    assert {"Namespace", "NetworkPolicy", "PodDisruptionBudget", "PersistentVolumeClaim"} < set(kinds)


def ray_cluster(shape: str) -> dict:
    return next(m for m in rendered(CLUSTER / "k8s/overlays" / shape) if m["kind"] == "RayCluster")["spec"]


@pytest.mark.parametrize("shape", SHAPES)
def test_clusters_run_the_ray_version_of_the_images(shape: str) -> None:
    cluster = ray_cluster(shape)
    constraints = (CLUSTER / "docker/constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in constraints
    assert len({container["image"] for pods in nodes(cluster) for _, container in pods.containers}) == 1


def secrets_of(pods) -> set[str]:
    return {source["secretRef"]["name"] for _, container in pods.containers for source in container["envFrom"]}


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_head_has_keys_and_reaches_the_internet(shape: str) -> None:
    manifests = rendered(CLUSTER / "k8s/overlays" / shape)
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    outside = [p for p in policies if any("ipBlock" in to for rule in p["egress"] for to in rule["to"])]
    pods = nodes(ray_cluster(shape))
    assert [p.name for p in pods if "psyco-ray-keys" in secrets_of(p)] == ["head"]
    assert all("psyco-ray-storage" in secrets_of(p) for p in pods)
    reaching = [p.name for p in pods for q in outside if q["podSelector"]["matchLabels"].items() <= p.labels.items()]
    assert reaching == ["head"]
    assert all(
        to["ipBlock"]["except"] == ["169.254.0.0/16"] for p in outside for rule in p["egress"] for to in rule["to"]
    )
    inside = {"app.kubernetes.io/part-of": "psyco-ray"}
    assert [p["podSelector"]["matchLabels"] for p in policies if p.get("ingress")] == [inside]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_readme_lists_every_port_that_pods_and_policies_name(shape: str) -> None:
    table = (CLUSTER / "README.md").read_text().split("| process |", 1)[1].split("\n\n", 1)[0]
    listed = {int(number) for number in re.findall(r"\b\d{4,5}\b", table)}
    containers = [container for pods in nodes(ray_cluster(shape)) for _, container in pods.containers]
    ports = {port["containerPort"] for container in containers for port in container["ports"]}
    ports |= {container["readinessProbe"]["httpGet"]["port"] for container in containers}
    policies = [m["spec"] for m in rendered(CLUSTER / "k8s/overlays" / shape) if m["kind"] == "NetworkPolicy"]
    opened = {p["port"] for q in policies for rule in q.get("ingress", []) for p in rule.get("ports", [])}
    assert len(ports) == 7
    assert opened < ports <= listed


@pytest.mark.parametrize("shape", ["1-node-8gpu", "multi-node"])
def test_clusters_of_several_machines_encrypt(shape: str) -> None:
    assert ray_cluster(shape)["tlsOptions"] == {"enabled": True}
    assert "RayClusterMTLS" in (CLUSTER / "README.md").read_text()
    assert " openssl " in (CLUSTER / "docker/Dockerfile.cuda").read_text(), "the operator's init container runs it"


@pytest.mark.parametrize("path", LAUNCHERS, ids=relative)
def test_launcher_files_define_the_groups_of_the_multi_node_cluster(path: Path) -> None:
    cluster = ray_cluster("multi-node")
    groups = {g["groupName"]: (g["minReplicas"], g["maxReplicas"], g["labels"]) for g in cluster["workerGroupSpecs"]}
    gpus = {pods.name: pods.has("nvidia.com/gpu") for pods in nodes(cluster)[1:]}
    types = yaml.safe_load(path.read_text())["available_node_types"]
    assert types.pop("head")["labels"] == cluster["headGroupSpec"]["labels"]
    assert {k: (t["min_workers"], t["max_workers"], t["labels"]) for k, t in types.items()} == groups
    assert {k: t["resources"].get("GPU", 0) for k, t in types.items()} == gpus


def test_the_dashboard_shows_the_documented_metrics() -> None:
    dashboard = json.loads((CLUSTER / "k8s/monitoring/psyco-ray.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    shown = {name for query in queries for name in re.findall(r"(\w+)\{", query)}
    [documented] = re.findall(r"ray_psyco_ray_\{([^}]+)\}", (ROOT / "psyco_ray/training/README.md").read_text())
    assert {f"ray_psyco_ray_{name}" for name in re.split(r",\s+", documented)} <= shown
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_readme_names_existing_files() -> None:
    names = set(re.findall(r"\b(?:cluster|jobs)/[\w./-]+", (CLUSTER / "README.md").read_text()))
    assert {"cluster/lint.py", "jobs/psyco-llama3-8b-32gpu.yaml"} <= names
    assert [name for name in names if not (ROOT / name).exists()] == []
