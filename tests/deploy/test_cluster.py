"""What runs on a cluster: manifests, launcher files, images, dashboard, and a lint that finds what is wrong."""

import copy
import json
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from support.paths import ROOT

CLUSTER = ROOT / "cluster"
sys.path.insert(0, str(CLUSTER))

import lint  # noqa: E402
import lint_launcher  # noqa: E402
import lint_operator  # noqa: E402
import lint_promises  # noqa: E402
from lint_manifests import nodes, quantity, read, rendered  # noqa: E402

SHAPES = ("kind-cpu", "1-node-8gpu", "multi-node")
OVERLAYS = [CLUSTER / "k8s/overlays" / name / job for name in SHAPES for job in ("", "job")]
DIRECTORIES = [*OVERLAYS, CLUSTER / "k8s/monitoring"]
LAUNCHERS = [CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"]
CRDS = os.environ.get("KUBERAY_CRDS")


def short(path: object) -> str:
    return str(path.relative_to(CLUSTER)) if isinstance(path, Path) else str(path)


@pytest.mark.parametrize("path", [*DIRECTORIES, *LAUNCHERS], ids=short)
def test_everything_passes_the_lint(path: Path) -> None:
    assert lint.lint(path) == []


@pytest.mark.parametrize("path", DIRECTORIES, ids=short)
def test_our_rendering_is_that_of_kustomize(path: Path) -> None:
    """Where there is no kubectl the rendering still shows that every file named is there."""
    ours = rendered(path)
    if shutil.which("kubectl"):
        assert {name(m): m for m in ours} == {name(m): m for m in read(path)}


def name(manifest: dict) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


@pytest.mark.parametrize("path", OVERLAYS, ids=short)
def test_an_overlay_is_a_cluster_and_its_job_is_a_job(path: Path) -> None:
    kinds = [manifest["kind"] for manifest in rendered(path)]
    assert ("RayJob" in kinds, "RayCluster" in kinds) == ((True, False) if path.name == "job" else (False, True))
    assert {"Namespace", "NetworkPolicy", "PodDisruptionBudget", "PersistentVolumeClaim"} < set(kinds)


# --- the lint finds what is wrong: a good manifest with one field changed


GONE = object()
HEAD = "spec.rayClusterSpec.headGroupSpec"
WORKERS = "spec.rayClusterSpec.workerGroupSpecs"
ROLLOUT = f"{WORKERS}[0]"
RAY = "template.spec.containers[0]"
SUBMITTER = "spec.submitterPodTemplate.spec"

# rule, what is changed (kind, field, value; several where one needs the other), the field that the finding names
BROKEN = [
    ("name_of", [("RayJob", "metadata.name", "a" * 48)], "metadata.name"),
    ("name_of", [("RayJob", "metadata.name", "Psyco_Ray")], "metadata.name"),
    ("containers", [("RayJob", f"{ROLLOUT}.template.spec.containers", [])], f"{ROLLOUT}.template.spec.containers"),
    (
        "resources_once",
        [("RayJob", f"{ROLLOUT}.rayStartParams", {"num-gpus": "1"}), ("RayJob", f"{ROLLOUT}.resources", {"GPU": "1"})],
        f"{ROLLOUT}.resources",
    ),
    (
        "ray_labels",
        [("RayJob", f"{ROLLOUT}.rayStartParams", {"labels": "psyco-ray/role=rollout"})],
        f"{ROLLOUT}.rayStartParams.labels",
    ),
    ("ray_labels", [("RayJob", f"{HEAD}.labels", {"psyco_ray/role": "head"})], f"{HEAD}.labels"),
    ("ray_labels", [("RayJob", f"{HEAD}.labels", {"zone": "here and there"})], f"{HEAD}.labels"),
    ("replicas", [("RayJob", f"{ROLLOUT}.minReplicas", 23)], f"{ROLLOUT}.minReplicas"),
    ("replicas", [("RayJob", f"{ROLLOUT}.minReplicas", -1)], f"{ROLLOUT}.minReplicas"),
    ("group_names", [("RayJob", f"{ROLLOUT}.groupName", "scorer")], f"{WORKERS}[1].groupName"),
    (
        "restart_policy",
        [("RayJob", f"{ROLLOUT}.template.spec.restartPolicy", "Always")],
        f"{ROLLOUT}.template.spec.restartPolicy",
    ),
    (
        "version_two_only",
        [
            ("RayJob", f"{ROLLOUT}.idleTimeoutSeconds", 60),
            ("RayJob", "spec.rayClusterSpec.autoscalerOptions.version", "v1"),
        ],
        f"{ROLLOUT}.idleTimeoutSeconds",
    ),
    (
        "autoscaler_version",
        [("RayJob", f"{HEAD}.{RAY}.env", [{"name": "RAY_enable_autoscaler_v2", "value": "1"}])],
        f"{HEAD}.{RAY}.env",
    ),
    ("token_version", [("RayJob", "spec.rayClusterSpec.rayVersion", GONE)], "spec.rayClusterSpec.rayVersion"),
    ("token_version", [("RayJob", "spec.rayClusterSpec.rayVersion", "2.51.1")], "spec.rayClusterSpec.rayVersion"),
    ("cluster_of_job", [("RayJob", "spec.rayClusterSpec", GONE)], "spec.rayClusterSpec"),
    ("cluster_of_job", [("RayJob", "spec.clusterSelector", {"ray.io/cluster": "one"})], "spec.clusterSelector"),
    (
        "deletion",
        [("RayJob", "spec.deletionStrategy", {"deletionRules": [{"policy": "DeleteCluster"}]})],
        "spec.deletionStrategy.deletionRules",
    ),
    (
        "deletion",
        [
            ("RayJob", "spec.shutdownAfterJobFinishes", False),
            ("RayJob", "spec.deletionStrategy", {"deletionRules": [{"policy": "DeleteWorkers"}]}),
        ],
        "spec.deletionStrategy.deletionRules[0].policy",
    ),
    ("deletion", [("RayJob", "spec.shutdownAfterJobFinishes", GONE)], "spec.ttlSecondsAfterFinished"),
    (
        "deletion",
        [("RayJob", "spec.shutdownAfterJobFinishes", GONE), ("RayJob", "spec.suspend", True)],
        "spec.suspend",
    ),
    ("retries", [("RayJob", "spec.backoffLimit", -1)], "spec.backoffLimit"),
    ("retries", [("RayJob", "spec.submissionMode", "InteractiveMode")], "spec.backoffLimit"),
    ("sidecar", [("RayJob", "spec.submissionMode", "SidecarMode")], "spec.submitterPodTemplate"),
    ("deadlines", [("RayJob", "spec.preRunningDeadlineSeconds", 0)], "spec.preRunningDeadlineSeconds"),
    ("runtime_env", [("RayJob", "spec.runtimeEnvYAML", "working_dir: .")], "spec.runtimeEnvYAML"),
    ("runtime_env", [("RayJob", "spec.runtimeEnvYAML", "py_modules: [./mine]")], "spec.runtimeEnvYAML"),
    ("runtime_env", [("RayJob", "spec.runtimeEnvYAML", "{pip")], "spec.runtimeEnvYAML"),
    ("runtime_env", [("RayJob", "spec.runtimeEnvYAML", "pip")], "spec.runtimeEnvYAML"),
    ("token", [("RayJob", "spec.rayClusterSpec.authOptions", GONE)], "spec.rayClusterSpec.authOptions.mode"),
    (
        "autoscaler",
        [("RayJob", "spec.rayClusterSpec.enableInTreeAutoscaling", False)],
        "spec.rayClusterSpec.autoscalerOptions.version",
    ),
    (
        "autoscaler",
        [("RayJob", "spec.rayClusterSpec.autoscalerOptions.securityContext", {})],
        "spec.rayClusterSpec.autoscalerOptions.securityContext",
    ),
    ("roles", [("RayJob", f"{ROLLOUT}.labels", {"psyco-ray/role": "rollouts"})], f"{ROLLOUT}.labels"),
    ("roles", [("RayJob", f"{ROLLOUT}.labels", GONE)], WORKERS),
    ("bounds", [("RayJob", f"{ROLLOUT}.maxReplicas", GONE)], f"{ROLLOUT}.maxReplicas"),
    ("bounds", [("RayJob", f"{ROLLOUT}.replicas", 40)], f"{ROLLOUT}.replicas"),
    ("bounds", [("RayJob", f"{WORKERS}[2].maxReplicas", 2)], f"{WORKERS}[2].maxReplicas"),
    ("head", [("RayJob", f"{HEAD}.rayStartParams", {})], f"{HEAD}.rayStartParams.num-cpus"),
    ("probes", [("RayJob", f"{ROLLOUT}.{RAY}.livenessProbe", GONE)], f"{ROLLOUT}.{RAY}.livenessProbe"),
    (
        "service_account",
        [("RayJob", f"{ROLLOUT}.template.spec.automountServiceAccountToken", GONE)],
        f"{ROLLOUT}.template.spec.automountServiceAccountToken",
    ),
    (
        "not_root",
        [("RayJob", f"{ROLLOUT}.template.spec.securityContext", GONE)],
        f"{ROLLOUT}.template.spec.securityContext.runAsNonRoot",
    ),
    (
        "not_root",
        [("RayJob", f"{SUBMITTER}.securityContext.runAsUser", 0)],
        f"{SUBMITTER}.securityContext.runAsNonRoot",
    ),
    ("not_root", [("RayJob", f"{HEAD}.{RAY}.securityContext.privileged", True)], f"{HEAD}.{RAY}.securityContext"),
    ("not_root", [("RayJob", f"{HEAD}.{RAY}.securityContext.capabilities", GONE)], f"{HEAD}.{RAY}.securityContext"),
    ("not_root", [("RayJob", f"{ROLLOUT}.template.spec.hostNetwork", True)], f"{ROLLOUT}.template.spec.hostNetwork"),
    (
        "not_root",
        [("RayJob", f"{ROLLOUT}.template.spec.volumes[1]", {"name": "ray-logs", "hostPath": {"path": "/tmp"}})],
        f"{ROLLOUT}.template.spec.volumes[1].hostPath",
    ),
    ("limits", [("RayJob", f"{ROLLOUT}.{RAY}.resources.limits.memory", GONE)], f"{ROLLOUT}.{RAY}.resources"),
    (
        "limits",
        [("RayJob", f"{SUBMITTER}.containers[0].resources.requests.cpu", "1500m")],
        f"{SUBMITTER}.containers[0].resources.requests.cpu",
    ),
    ("images", [("RayJob", f"{ROLLOUT}.{RAY}.image", "registry:5000/psyco-ray")], f"{ROLLOUT}.{RAY}.image"),
    ("images", [("RayJob", f"{HEAD}.{RAY}.image", "psyco-ray:latest")], f"{HEAD}.{RAY}.image"),
    (
        "literal_secrets",
        [("RayJob", f"{ROLLOUT}.{RAY}.env", [{"name": "OPENAI_API_KEY", "value": "sk-1"}])],
        f"{ROLLOUT}.{RAY}.env",
    ),
    ("keys", [("RayJob", "spec.runtimeEnvYAML", "env_vars: {HF_TOKEN: hf_1}")], "spec.runtimeEnvYAML"),
    (
        "keys",
        [
            (
                "RayJob",
                "spec.entrypoint",
                "psyco-ray iterate jobs/psyco-llama3-8b.yaml run_dir=s3://me:key@bucket/run --resume",
            )
        ],
        "spec.entrypoint",
    ),
    ("entrypoint", [("RayJob", "spec.entrypoint", "python train.py")], "spec.entrypoint"),
    ("entrypoint", [("RayJob", "spec.entrypoint", "psyco-ray improve jobs/demo.yaml --resume")], "spec.entrypoint"),
    ("entrypoint", [("RayJob", "spec.entrypoint", "psyco-ray iterate jobs/none.yaml --resume")], "spec.entrypoint"),
    ("entrypoint", [("RayJob", "spec.entrypoint", "psyco-ray demo jobs/demo.yaml sed=1 --resume")], "spec.entrypoint"),
    ("entrypoint", [("RayJob", "spec.entrypoint", "psyco-ray status /shared/runs/demo")], "spec.entrypoint"),
    (
        "entrypoint",
        [("RayJob", "spec.entrypoint", "psyco-ray iterate jobs/psyco-llama3-8b-32gpu.yaml")],
        "spec.entrypoint",
    ),
    (
        "shared",
        [("RayJob", f"{ROLLOUT}.{RAY}.volumeMounts", [{"name": "ray-logs", "mountPath": "/shared"}])],
        f"{ROLLOUT}.{RAY}.volumeMounts",
    ),
    (
        "shared",
        [("RayJob", "spec.entrypoint", "psyco-ray iterate jobs/psyco-llama3-8b-32gpu.yaml run_dir=runs/x --resume")],
        f"{HEAD}.{RAY}.volumeMounts",
    ),
    (
        "fits",
        [("RayJob", f"{ROLLOUT}.replicas", 12), ("RayJob", f"{ROLLOUT}.minReplicas", 12)],
        f"{ROLLOUT}.replicas",
    ),
    ("fits", [("RayJob", f"{ROLLOUT}.maxReplicas", 20)], f"{ROLLOUT}.maxReplicas"),
    ("fits", [("RayJob", f"{WORKERS}[2].{RAY}.resources.limits.cpu", "30")], f"{WORKERS}[2].replicas"),
    (
        "submitter_image",
        [("RayJob", f"{SUBMITTER}.containers[0].image", "psyco-ray:0.0.9-cuda")],
        f"{SUBMITTER}.containers[0].image",
    ),
    ("disruption", [("PodDisruptionBudget", "spec.minAvailable", "50%")], "spec.minAvailable"),
    ("disruption", [("PodDisruptionBudget", "spec.minAvailable", GONE)], "spec.minAvailable"),
    ("disruption", [("PodDisruptionBudget", "spec.selector.matchLabels", {"app": "other"})], "spec.selector"),
    ("disruption", [("PodDisruptionBudget", "spec.minAvailable", 2)], "spec.selector"),
    ("network", [("NetworkPolicy", "spec.policyTypes", ["Ingress"])], "spec.policyTypes"),
    ("closed", [("RayJob", f"{ROLLOUT}.template.metadata.labels", {})], f"{ROLLOUT}.template.metadata.labels"),
    ("secret", [("Namespace", "kind", "Secret"), ("Secret", "stringData", {"HF_TOKEN": "hf_1"})], "stringData"),
]


@pytest.fixture(scope="module")
def good() -> list[dict]:
    """A job whose parts are no aliases of each other."""
    return json.loads(json.dumps(rendered(CLUSTER / "k8s/overlays/multi-node/job")))


def change(manifest: dict, field: str, value: object) -> None:
    *road, last = re.findall(r"[^.\[\]]+", field)
    for key in road:
        manifest = manifest[int(key)] if isinstance(manifest, list) else manifest.setdefault(key, {})
    if value is GONE:
        del manifest[last]
    else:
        manifest[int(last) if isinstance(manifest, list) else last] = value


@pytest.mark.parametrize(("rule", "changes", "field"), BROKEN, ids=[f"{r}-{k}" for k, (r, *_) in enumerate(BROKEN)])
def test_the_lint_finds_what_is_wrong(rule: str, changes: list, field: str, good: list[dict]) -> None:
    broken = copy.deepcopy(good)
    for kind, where, value in changes:
        change(next(m for m in broken if m["kind"] == kind), where, value)
    found = lint.check(broken, "made.yaml")
    assert field in {one.field for one in found}, found
    assert all(str(one).startswith("made.yaml: ") and one.text.count("\n") == 0 for one in found)


def test_roles_may_share_all_machines(good: list[dict]) -> None:
    """Colocated: no group has a role, and any may hold any actor."""
    broken = [m for m in copy.deepcopy(good) if m["kind"] != "PodDisruptionBudget"]
    for group in next(m for m in broken if m["kind"] == "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        del group["labels"]
    assert lint.check(broken, "made.yaml") == []


BROKEN_LAUNCHERS = [
    ("valid", "available_node_types.rollout.colour", "red", "available_node_types.rollout"),
    ("valid", "head_node_type", "tail", "available_node_types"),
    ("groups", "available_node_types.rollout.labels", {}, "available_node_types"),
    ("groups", "available_node_types.rollout.labels", {"psyco-ray/role": "x"}, "available_node_types.rollout.labels"),
    ("groups", "available_node_types.learner.max_workers", 2, "available_node_types.learner.max_workers"),
    ("groups", "max_workers", 26, "max_workers"),
    ("image", "docker.image", "psyco-ray:latest", "docker.image"),
    ("token", "worker_start_ray_commands", ["ray start --address=$RAY_HEAD_IP:6379"], "worker_start_ray_commands"),
    ("token", "file_mounts", {}, "file_mounts"),
    ("no_keys", "setup_commands", ["export HF_TOKEN=hf_1"], "setup_commands"),
]


@pytest.mark.parametrize("path", LAUNCHERS, ids=short)
@pytest.mark.parametrize(("rule", "where", "value", "field"), BROKEN_LAUNCHERS)
def test_the_lint_finds_what_is_wrong_in_launcher_files(
    path: Path, rule: str, where: str, value: object, field: str
) -> None:
    launcher = json.loads(json.dumps(yaml.safe_load(path.read_text())))
    change(launcher, where, value)
    assert field in {one.field for one in lint.check([launcher], path.name)}


def test_each_rule_is_tried() -> None:
    rules = [*lint_operator.CLUSTER, *lint_operator.JOB, lint_operator.name_of, lint_operator.containers]
    rules += [lint_operator.cluster_of_job, *lint_promises.CLUSTER, *lint_promises.PODS, *lint_promises.JOB]
    rules += [lint_promises.keys, lint_promises.entrypoint, lint_promises.disruption, lint_promises.network]
    rules += [lint_promises.closed, lint_promises.secret]
    assert {rule.__name__ for rule in rules} == {rule for rule, *_ in BROKEN}
    assert {rule.__name__ for rule in lint_launcher.RULES} == {rule for rule, *_ in BROKEN_LAUNCHERS}


def test_the_command_says_each_finding_in_a_line(tmp_path: Path, capsys) -> None:
    assert lint.main([str(LAUNCHERS[0]), str(CLUSTER / "k8s/overlays/kind-cpu/job")]) == 0
    job = yaml.safe_load((CLUSTER / "k8s/overlays/kind-cpu/job/rayjob.yaml").read_text())
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert lint.main([str(tmp_path / "job.yaml")]) == 2
    said = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith(f"{tmp_path}/job.yaml: RayJob/psyco-ray: spec.rayClusterSpec is missing") for line in said
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a: {", "cannot be read as YAML"), ("[1, 2]", "holds no manifests"), (None, "cannot be read: No such file")],
)
def test_the_command_refuses_what_is_no_manifest(text: str | None, sentence: str, tmp_path: Path, capsys) -> None:
    if text is not None:
        (tmp_path / "it.yaml").write_text(text)
    assert lint.main([str(tmp_path / "it.yaml")]) == 2
    assert sentence in capsys.readouterr().err


def test_a_kustomization_that_only_kustomize_knows_is_not_half_rendered(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [a.yaml]\nnamePrefix: my-\n")
    with pytest.raises(ValueError, match="has namePrefix, which only kustomize renders"):
        rendered(tmp_path)


def test_quantities_are_those_of_kubernetes() -> None:
    assert [quantity(text) for text in ("500m", 2, "1.5", "2Ki", "3M")] == [0.5, 2, 1.5, 2048, 3e6]
    with pytest.raises(ValueError, match="no quantity"):
        quantity("2GB")


# --- against what others say


def strict(schema: dict) -> dict:
    """A CRD's schema as the API server would apply it with fields that it does not know refused."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    properties = made.get("properties")
    if isinstance(properties, dict) and "type" in made:
        if not made.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
        defaults = {key for key, value in properties.items() if isinstance(value, dict) and "default" in value}
        made["required"] = [key for key in made.get("required", []) if key not in defaults]
    return made


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict]:
    if CRDS is None:
        pytest.skip("KUBERAY_CRDS names no directory with KubeRay's ray.io_rayclusters.yaml and ray.io_rayjobs.yaml")
    found = {}
    for file, kind in (("ray.io_rayclusters.yaml", "RayCluster"), ("ray.io_rayjobs.yaml", "RayJob")):
        versions = yaml.safe_load((Path(CRDS) / file).read_text())["spec"]["versions"]
        found[kind] = strict(next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"])
        found[kind]["properties"]["metadata"] = {"type": "object"}
    return found


@pytest.mark.parametrize("path", OVERLAYS, ids=short)
def test_kuberay_knows_every_field(path: Path, schemas: dict[str, dict]) -> None:
    for manifest in rendered(path):
        if manifest["kind"] in schemas:
            jsonschema.validate(manifest, schemas[manifest["kind"]])


@pytest.mark.parametrize(
    ("field", "value"),
    [("spec.rayClusterSpec.autoscaler", {}), (f"{ROLLOUT}.replicas", "3"), (f"{HEAD}.{RAY}.imagePullpolicy", "Never")],
)
def test_the_schema_refuses_what_kuberay_does_not_know(
    field: str, value: object, good: list[dict], schemas: dict[str, dict]
) -> None:
    job = copy.deepcopy(next(m for m in good if m["kind"] == "RayJob"))
    change(job, field, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, schemas["RayJob"])


# --- what must agree


def pins() -> dict[str, str]:
    lines = (CLUSTER / "docker/constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_images_take_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    wanted = [Requirement(one) for one in [*project["dependencies"], *groups["cpu"]]]
    assert all(one.specifier.contains(pins()[one.name]) for one in wanted)
    for file in ("Dockerfile.cpu", "Dockerfile.cuda"):
        text = (CLUSTER / "docker" / file).read_text()
        assert f"torch=={pins()['torch']}" in text or f"TORCH={pins()['torch']}" in text
        assert re.search(r"^USER 1000$", text, re.MULTILINE)
        assert all(re.fullmatch(r"\S+:\S*\d\S*", image) for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("shape", SHAPES)
def test_clusters_have_the_ray_of_the_images(shape: str) -> None:
    cluster = next(m for m in rendered(CLUSTER / "k8s/overlays" / shape) if m["kind"] == "RayCluster")["spec"]
    assert cluster["rayVersion"] == pins()["ray"]
    assert len({container["image"] for pods in nodes(cluster) for _, container in pods.containers}) == 1


def test_launcher_files_have_the_groups_of_several_machines() -> None:
    cluster = next(m for m in rendered(CLUSTER / "k8s/overlays/multi-node") if m["kind"] == "RayCluster")["spec"]
    groups = {g["groupName"]: (g["minReplicas"], g["maxReplicas"], g["labels"]) for g in cluster["workerGroupSpecs"]}
    gpus = {pods.name: pods.has("nvidia.com/gpu") for pods in nodes(cluster)[1:]}
    for path in LAUNCHERS:
        types = yaml.safe_load(path.read_text())["available_node_types"]
        del types["head"]
        assert {k: (t["min_workers"], t["max_workers"], t["labels"]) for k, t in types.items()} == groups
        assert {k: t["resources"].get("GPU", 0) for k, t in types.items()} == gpus


def test_only_what_an_image_takes_is_sent_to_its_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    taken = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert [line for line in lines if not line.startswith(("!", "#"))] == ["*", "**/__pycache__"]
    for file in ("Dockerfile.cpu", "Dockerfile.cuda"):
        text = (CLUSTER / "docker" / file).read_text()
        copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()}
        assert copied == set(taken)
        assert all((ROOT / name).exists() for name in copied)


def test_the_dashboard_shows_every_metric() -> None:
    board = json.loads((CLUSTER / "k8s/monitoring/psyco-ray.json").read_text())
    shown = {name for panel in board["panels"] for t in panel.get("targets", []) for name in metrics_in(t["expr"])}
    live = "rollout_tokens_per_s groups_per_s queue_depth idle_share sync_seconds sync_bytes learner_tokens_per_s mfu"
    live += " reward response_tokens kl spend_usd"
    assert {f"ray_psyco_ray_{name}" for name in live.split()} <= shown
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def metrics_in(expression: str) -> list[str]:
    return re.findall(r"(\w+)\{", expression)


def test_the_page_names_files_that_are_there() -> None:
    page = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"\b(?:cluster|jobs)/[\w./-]+", page))
    assert {"cluster/lint.py", "cluster/aws.yaml", "jobs/psyco-llama3-8b-32gpu.yaml"} <= named
    assert [path for path in named if not (ROOT / path).exists()] == []
