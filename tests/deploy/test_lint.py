"""The lint reports every way in which a manifest or launcher file can be wrong."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import lint
import lint_launcher
import lint_operator
import lint_policy
import pytest
import yaml
from support.manifests import CLUSTER, DELETED, HEAD, LAUNCHERS, RAY, ROLLOUT, WORKERS, relative, set_field

SUBMITTER = "spec.submitterPodTemplate.spec"
LEARNER = f"{WORKERS}[2]"


@dataclass(frozen=True)
class Case:
    """A change to a valid job, the rule that it breaks, and the field that the finding names (default: the changed)."""

    rule: str
    field: str
    value: object
    reported: str | None = None
    kind: str = "RayJob"
    also: dict[str, object] = field(default_factory=dict)  # further changes that this one needs


def entrypoint(text: str, reported: str | None = None, rule: str = "entrypoint") -> Case:
    return Case(rule, "spec.entrypoint", text, reported)


def environment(rule: str, text: str) -> Case:
    return Case(rule, "spec.runtimeEnvYAML", text)


CASES = [
    Case("name_of", "metadata.name", "a" * 48),
    Case("name_of", "metadata.name", "Psyco_Ray"),
    Case("containers", f"{ROLLOUT}.template.spec.containers", []),
    Case("resources_once", f"{ROLLOUT}.resources", {"GPU": "1"}, also={f"{ROLLOUT}.rayStartParams": {"num-gpus": "1"}}),
    Case(
        "ray_labels",
        f"{ROLLOUT}.rayStartParams",
        {"labels": "psyco-ray/role=rollout"},
        f"{ROLLOUT}.rayStartParams.labels",
    ),
    Case("ray_labels", f"{HEAD}.labels", {"psyco_ray/role": "head"}),
    Case("ray_labels", f"{HEAD}.labels", {"zone": "here and there"}),
    Case("replicas", f"{ROLLOUT}.minReplicas", 23),
    Case("replicas", f"{ROLLOUT}.minReplicas", -1),
    Case("group_names", f"{ROLLOUT}.groupName", "scorer", f"{WORKERS}[1].groupName"),
    Case("restart_policy", f"{ROLLOUT}.template.spec.restartPolicy", "Always"),
    Case(
        "version_two_only",
        f"{ROLLOUT}.idleTimeoutSeconds",
        60,
        also={"spec.rayClusterSpec.autoscalerOptions.version": "v1"},
    ),
    Case("autoscaler_version", f"{HEAD}.{RAY}.env", [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]),
    Case("token_version", "spec.rayClusterSpec.rayVersion", DELETED),
    Case("token_version", "spec.rayClusterSpec.rayVersion", "2.51.1"),
    Case("cluster_of_job", "spec.rayClusterSpec", DELETED),
    Case("cluster_of_job", "spec.clusterSelector", {"ray.io/cluster": "one"}),
    Case(
        "deletion",
        "spec.deletionStrategy",
        {"deletionRules": [{"policy": "DeleteCluster"}]},
        "spec.deletionStrategy.deletionRules",
    ),
    Case(
        "deletion",
        "spec.deletionStrategy",
        {"deletionRules": [{"policy": "DeleteWorkers"}]},
        "spec.deletionStrategy.deletionRules[0].policy",
        also={"spec.shutdownAfterJobFinishes": False},
    ),
    Case("deletion", "spec.shutdownAfterJobFinishes", DELETED, "spec.ttlSecondsAfterFinished"),
    Case("deletion", "spec.suspend", True, also={"spec.shutdownAfterJobFinishes": DELETED}),
    Case("retries", "spec.backoffLimit", -1),
    Case("retries", "spec.submissionMode", "InteractiveMode", "spec.backoffLimit"),
    Case("sidecar", "spec.submissionMode", "SidecarMode", "spec.submitterPodTemplate"),
    Case("deadlines", "spec.preRunningDeadlineSeconds", 0),
    environment("runtime_env", "working_dir: ."),
    environment("runtime_env", "py_modules: [./mine]"),
    environment("runtime_env", "{pip"),
    environment("runtime_env", "pip"),
    Case("token", "spec.rayClusterSpec.authOptions", DELETED, "spec.rayClusterSpec.authOptions.mode"),
    Case(
        "autoscaler",
        "spec.rayClusterSpec.enableInTreeAutoscaling",
        False,
        "spec.rayClusterSpec.autoscalerOptions.version",
    ),
    Case("autoscaler", "spec.rayClusterSpec.autoscalerOptions.securityContext", {}),
    Case("roles", f"{ROLLOUT}.labels", {"psyco-ray/role": "rollouts"}),
    Case("roles", f"{ROLLOUT}.labels", DELETED),
    Case("roles", f"{WORKERS}[1].labels", DELETED, WORKERS),
    Case("bounds", f"{ROLLOUT}.maxReplicas", DELETED),
    Case("bounds", f"{ROLLOUT}.replicas", 40),
    Case("bounds", f"{LEARNER}.maxReplicas", 2),
    Case("head", f"{HEAD}.rayStartParams", {}, f"{HEAD}.rayStartParams.num-cpus"),
    Case("probes", f"{ROLLOUT}.{RAY}.livenessProbe", DELETED),
    Case("service_account", f"{ROLLOUT}.template.spec.automountServiceAccountToken", DELETED),
    Case(
        "not_root",
        f"{ROLLOUT}.template.spec.securityContext",
        DELETED,
        f"{ROLLOUT}.template.spec.securityContext.runAsNonRoot",
    ),
    Case("not_root", f"{SUBMITTER}.securityContext.runAsUser", 0, f"{SUBMITTER}.securityContext.runAsNonRoot"),
    Case("not_root", f"{HEAD}.{RAY}.securityContext.privileged", True, f"{HEAD}.{RAY}.securityContext"),
    Case("not_root", f"{HEAD}.{RAY}.securityContext.capabilities", DELETED, f"{HEAD}.{RAY}.securityContext"),
    Case("not_root", f"{ROLLOUT}.template.spec.hostNetwork", True),
    Case(
        "not_root",
        f"{ROLLOUT}.template.spec.volumes[1]",
        {"name": "ray-logs", "hostPath": {"path": "/tmp"}},
        f"{ROLLOUT}.template.spec.volumes[1].hostPath",
    ),
    Case("limits", f"{ROLLOUT}.{RAY}.resources.limits.memory", DELETED, f"{ROLLOUT}.{RAY}.resources"),
    Case("limits", f"{SUBMITTER}.containers[0].resources.requests.cpu", "1500m"),
    Case("images", f"{ROLLOUT}.{RAY}.image", "registry:5000/psyco-ray"),
    Case("images", f"{HEAD}.{RAY}.image", "registry.example.com/psyco-ray:0.1.0-cuda"),
    Case("callers", f"{HEAD}.labels", {}),
    Case("callers", f"{ROLLOUT}.{RAY}.envFrom", [{"secretRef": {"name": "psyco-ray-keys", "optional": True}}]),
    Case(
        "callers",
        f"{LEARNER}.{RAY}.env",
        [{"name": "OPENAI_API_KEY", "valueFrom": {"secretKeyRef": {"name": "psyco-ray-keys", "key": "a"}}}],
        f"{LEARNER}.{RAY}.envFrom",
    ),
    Case("literal_secrets", f"{ROLLOUT}.{RAY}.env", [{"name": "OPENAI_API_KEY", "value": "sk-1"}]),
    environment("keys", "env_vars: {HF_TOKEN: hf_1}"),
    entrypoint("psyco-ray iterate jobs/psyco-llama3-8b.yaml run_dir=s3://me:key@bucket/run --resume", rule="keys"),
    entrypoint("python train.py"),
    entrypoint("psyco-ray improve jobs/demo.yaml --resume"),
    entrypoint("psyco-ray iterate jobs/none.yaml --resume"),
    entrypoint("psyco-ray demo jobs/demo.yaml sed=1 --resume"),
    entrypoint("psyco-ray status /shared/runs/demo"),
    entrypoint("psyco-ray iterate jobs/psyco-llama3-8b-32gpu.yaml"),
    Case("shared", f"{ROLLOUT}.{RAY}.volumeMounts", [{"name": "ray-logs", "mountPath": "/shared"}]),
    entrypoint(
        "psyco-ray iterate jobs/psyco-llama3-8b-32gpu.yaml run_dir=runs/x --resume",
        f"{HEAD}.{RAY}.volumeMounts",
        rule="shared",
    ),
    Case("fits", f"{ROLLOUT}.replicas", 10, also={f"{ROLLOUT}.minReplicas": 10}),
    Case("fits", f"{ROLLOUT}.maxReplicas", 14),
    Case("fits", f"{ROLLOUT}.labels", {"psyco-ray/role": "data"}, "spec.rayClusterSpec.workerGroupSpecs"),
    Case("fits", f"{LEARNER}.{RAY}.resources.limits.cpu", "30", f"{LEARNER}.replicas"),
    Case("submitter_image", f"{SUBMITTER}.containers[0].image", "psyco-ray:0.0.9-cuda"),
    Case("disruption", "spec.minAvailable", "50%", kind="PodDisruptionBudget"),
    Case("disruption", "spec.minAvailable", DELETED, kind="PodDisruptionBudget"),
    Case("disruption", "spec.selector.matchLabels", {"app": "other"}, "spec.selector", "PodDisruptionBudget"),
    Case("disruption", "spec.minAvailable", 2, "spec.selector", "PodDisruptionBudget"),
    Case("network", "spec.policyTypes", ["Ingress"], kind="NetworkPolicy"),
    Case("closed", f"{ROLLOUT}.template.metadata.labels", {}),
    Case("secret", "stringData", {"HF_TOKEN": "hf_1"}, kind="Namespace", also={"kind": "Secret"}),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.rule}-{k}" for k, case in enumerate(CASES)])
def test_a_wrong_manifest_is_reported(case: Case, multi_node_job: list[dict]) -> None:
    manifests = copy.deepcopy(multi_node_job)
    changed = next(m for m in manifests if m["kind"] == case.kind)
    for changed_field, value in (case.also | {case.field: case.value}).items():
        set_field(changed, changed_field, value)
    findings = lint.check(manifests, "job.yaml")
    assert (case.reported or case.field) in {finding.field for finding in findings}, findings
    assert all(str(finding).startswith("job.yaml: ") and "\n" not in finding.text for finding in findings)


def test_groups_without_role_labels_are_valid(multi_node_job: list[dict]) -> None:
    """Any group may then run any actor, as a colocated job needs it."""
    manifests = [m for m in copy.deepcopy(multi_node_job) if m["kind"] != "PodDisruptionBudget"]
    for group in next(m for m in manifests if m["kind"] == "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        del group["labels"]
    assert lint.check(manifests, "job.yaml") == []


TYPES = "available_node_types"
LAUNCHER_CASES = [
    Case("valid", f"{TYPES}.rollout.colour", "red", f"{TYPES}.rollout"),
    Case("valid", "head_node_type", "tail", TYPES),
    Case("groups", f"{TYPES}.rollout.labels", {}, TYPES),
    Case("groups", f"{TYPES}.rollout.labels", {"psyco-ray/role": "x"}),
    Case("groups", f"{TYPES}.learner.max_workers", 2),
    Case("groups", "max_workers", 26),
    Case("image", "docker.image", "registry.example.com/psyco-ray:0.1.0-cuda"),
    Case("token", "worker_start_ray_commands", ["ray start --address=$RAY_HEAD_IP:6379"]),
    Case("token", "file_mounts", {}),
    Case("no_keys", "setup_commands", ["export HF_TOKEN=hf_1"]),
]


@pytest.mark.parametrize("path", LAUNCHERS, ids=relative)
@pytest.mark.parametrize("name", ["head", "data"])
def test_a_launcher_file_that_opens_a_node_is_reported(path: Path, name: str) -> None:
    launcher = json.loads(json.dumps(yaml.safe_load(path.read_text())))
    key = {"aws": "SecurityGroupIds", "gcp": "networkInterfaces"}[launcher["provider"]["type"]]
    field = f"{TYPES}.{name}.node_config.{key}"
    set_field(launcher, field, DELETED)
    assert field in {finding.field for finding in lint.check([launcher], path.name)}


@pytest.mark.parametrize("path", LAUNCHERS, ids=relative)
@pytest.mark.parametrize("case", LAUNCHER_CASES, ids=[f"{case.rule}-{k}" for k, case in enumerate(LAUNCHER_CASES)])
def test_a_wrong_launcher_file_is_reported(path: Path, case: Case) -> None:
    launcher = json.loads(json.dumps(yaml.safe_load(path.read_text())))
    set_field(launcher, case.field, case.value)
    assert (case.reported or case.field) in {finding.field for finding in lint.check([launcher], path.name)}


def test_every_rule_has_a_case() -> None:
    rules = [*lint_operator.CLUSTER, *lint_operator.JOB, lint_operator.name_of, lint_operator.containers]
    rules += [lint_operator.cluster_of_job, *lint_policy.CLUSTER, *lint_policy.PODS, *lint_policy.JOB]
    rules += [lint_policy.keys, lint_policy.entrypoint, lint_policy.disruption, lint_policy.network]
    rules += [lint_policy.closed, lint_policy.secret]
    assert {rule.__name__ for rule in rules} == {case.rule for case in CASES}
    assert {rule.__name__ for rule in lint_launcher.RULES} == {case.rule for case in LAUNCHER_CASES} | {"closed"}


def test_the_command_prints_one_line_per_finding(tmp_path: Path, capsys) -> None:
    assert lint.main([str(LAUNCHERS[0]), str(CLUSTER / "k8s/overlays/kind-cpu/job")]) == 0
    job = yaml.safe_load((CLUSTER / "k8s/overlays/kind-cpu/job/rayjob.yaml").read_text())
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert lint.main([str(tmp_path / "job.yaml")]) == 2
    expected = f"{tmp_path}/job.yaml: RayJob/psyco-ray: spec.rayClusterSpec is missing"
    assert any(line.startswith(expected) for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: {", "cannot be read as YAML"), ("[1, 2]", "contains no manifests"), (None, "cannot be read: No such file")],
)
def test_the_command_refuses_files_without_manifests(text: str | None, message: str, tmp_path: Path, capsys) -> None:
    if text is not None:
        (tmp_path / "file.yaml").write_text(text)
    assert lint.main([str(tmp_path / "file.yaml")]) == 2
    assert message in capsys.readouterr().err
