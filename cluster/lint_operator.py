"""Rules of the KubeRay operator (1.7) and of Ray's autoscaler. Some violations show only when a pod or job starts."""

from __future__ import annotations

import re

import yaml
from lint_manifests import Manifest, Violations, autoscales, nodes, workers

_LABEL = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_V2 = "RAY_enable_autoscaler_v2"


# --- a Ray cluster, alone or in a job


def containers(cluster: Manifest) -> Violations:
    """Each group of pods has a container."""
    for pods in nodes(cluster):
        if not pods.pod.get("containers"):
            yield f"{pods.field}.template.spec.containers", "is empty; the first container is the Ray node"


def resources_once(cluster: Manifest) -> Violations:
    """A Ray node's resources are declared in one place."""
    for pods in nodes(cluster):
        duplicated = {"num-cpus", "num-gpus", "memory", "resources"} & set(pods.spec.get("rayStartParams") or {})
        if duplicated and pods.spec.get("resources"):
            yield f"{pods.field}.resources", f"duplicates rayStartParams {', '.join(sorted(duplicated))}; keep one"


def ray_labels(cluster: Manifest) -> Violations:
    """Ray node labels are labels of the group and valid Kubernetes labels."""
    for pods in nodes(cluster):
        if "labels" in (pods.spec.get("rayStartParams") or {}):
            yield f"{pods.field}.rayStartParams.labels", "is refused by the operator; move them to the group's labels"
        for key, value in (pods.spec.get("labels") or {}).items():
            if not _LABEL.fullmatch(str(key)) or not _VALUE.fullmatch(str(value)):
                yield (
                    f"{pods.field}.labels",
                    f"has {key}: {value}, which is not a Kubernetes label; use a-z, 0-9, - and .",
                )


def replicas(cluster: Manifest) -> Violations:
    """Each group has 0 ≤ minReplicas ≤ maxReplicas."""
    for pods in workers(cluster):
        low, high = pods.spec.get("minReplicas", 0), pods.spec.get("maxReplicas", 2**31 - 1)
        for name, count in (("minReplicas", low), ("maxReplicas", high)):
            if not isinstance(count, int) or count < 0:
                yield f"{pods.field}.{name}", f"is {count!r}; give a number of pods, 0 or more"
        if isinstance(low, int) and isinstance(high, int) and low > high:
            yield f"{pods.field}.minReplicas", f"{low} is above maxReplicas {high}; lower it or raise maxReplicas"


def group_names(cluster: Manifest) -> Violations:
    """Group names are valid and unique."""
    seen = set[str]()
    for pods in workers(cluster):
        if pods.name in seen or not _NAME.fullmatch(pods.name):
            yield (
                f"{pods.field}.groupName",
                f"{pods.name!r} is invalid or used twice; give a unique name of a-z, 0-9 and -",
            )
        seen.add(pods.name)


def restart_policy(cluster: Manifest) -> Violations:
    """Kubernetes restarts no container: autoscaler v2 replaces the pods."""
    for pods in nodes(cluster) if autoscales(cluster) else ():
        if pods.pod.get("restartPolicy", "Never") != "Never":
            yield f"{pods.field}.template.spec.restartPolicy", "must be Never with autoscaler v2; leave it out"


def version_two_only(cluster: Manifest) -> Violations:
    """Some settings of groups need autoscaler v2."""
    for pods in () if autoscales(cluster) else workers(cluster):
        for name in ("idleTimeoutSeconds", "priority"):
            if pods.spec.get(name):
                yield f"{pods.field}.{name}", "needs autoscaler v2; set autoscalerOptions.version: v2"


def autoscaler_version(cluster: Manifest) -> Violations:
    """The autoscaler's version is set in one place."""
    head = nodes(cluster)[0]
    names = [variable.get("name") for variable in head.pod["containers"][0].get("env") or []]
    if _V2 in names and (cluster.get("autoscalerOptions") or {}).get("version"):
        yield f"{head.field}.template.spec.containers[0].env", f"sets {_V2} beside autoscalerOptions.version; remove it"


def token_version(cluster: Manifest) -> Violations:
    """Ray is recent enough for token authentication."""
    if (cluster.get("authOptions") or {}).get("mode") == "token":
        parts = re.match(r"(\d+)\.(\d+)", str(cluster.get("rayVersion", "")))
        if parts is None or (int(parts[1]), int(parts[2])) < (2, 52):
            version = cluster.get("rayVersion", "missing")
            yield "rayVersion", f"is {version}; token authentication needs 2.52.0 or later; give the image's version"


# --- a Ray job


def cluster_of_job(job: Manifest) -> Violations:
    """A job defines a cluster or selects one."""
    if job.get("rayClusterSpec") and job.get("clusterSelector"):
        yield "clusterSelector", "excludes rayClusterSpec; keep one of them"
    if not job.get("rayClusterSpec") and not (job.get("clusterSelector") or {}).get("ray.io/cluster"):
        yield (
            "rayClusterSpec",
            "is missing, and clusterSelector has no ray.io/cluster; if a kustomization adds it, lint the directory",
        )


def deletion(job: Manifest) -> Violations:
    """A job's deletion is configured in one place."""
    rules = (job.get("deletionStrategy") or {}).get("deletionRules") or []
    if rules and job.get("shutdownAfterJobFinishes"):
        yield "deletionStrategy.deletionRules", "exclude shutdownAfterJobFinishes; keep one of them"
    for k, rule in enumerate(rules):
        if rule.get("policy") == "DeleteWorkers" and (job.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling"):
            field = f"deletionStrategy.deletionRules[{k}].policy"
            yield field, "DeleteWorkers is refused with autoscaling; use DeleteCluster"
    if job.get("ttlSecondsAfterFinished") and not job.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished", "has no effect and is refused without shutdownAfterJobFinishes: true; add that"
    if job.get("suspend") and not job.get("shutdownAfterJobFinishes"):
        yield "suspend", "is refused without shutdownAfterJobFinishes: true; add that"


def retries(job: Manifest) -> Violations:
    """The operator retries a job only when it creates the cluster and submits the job itself."""
    limit = job.get("backoffLimit", 0)
    if limit < 0:
        yield "backoffLimit", f"is {limit}; give a number, 0 or more"
    elif limit and (job.get("clusterSelector") or job.get("submissionMode") == "InteractiveMode"):
        yield "backoffLimit", "is refused with clusterSelector and in InteractiveMode; leave it out"


def sidecar(job: Manifest) -> Violations:
    """In SidecarMode the submitter runs in the head's pod and has no template."""
    if job.get("submissionMode") == "SidecarMode":
        for name in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if job.get(name):
                yield name, "is refused in SidecarMode; leave it out, or use K8sJobMode"


def deadlines(job: Manifest) -> Violations:
    """Deadlines are positive numbers of seconds."""
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if job.get(name, 1) <= 0:
            yield name, f"is {job[name]}; give a number of seconds above 0 or leave it out"


def runtime_env(job: Manifest) -> Violations:
    """The runtime environment is valid YAML and names no local files: the operator uploads none."""
    try:
        env = yaml.safe_load(job.get("runtimeEnvYAML") or "{}")
    except yaml.YAMLError as error:
        yield "runtimeEnvYAML", f"is not YAML ({' '.join(str(error).split())}); write keys and values"
        return
    if not isinstance(env, dict):
        yield "runtimeEnvYAML", "contains no keys and values such as env_vars: {NAME: text}"
        return
    for name in ("working_dir", "py_modules"):
        for path in [env[name]] if isinstance(env.get(name), str) else env.get(name) or []:
            if "://" not in path:
                yield "runtimeEnvYAML", f"{name} {path} is local and cannot be uploaded; put it in the image"


def name_of(manifest: Manifest) -> Violations:
    """Names leave room for the suffixes that the operator adds."""
    name, longest = str(manifest["metadata"].get("name")), {"RayCluster": 53, "RayJob": 47}[manifest["kind"]]
    if len(name) > longest or not _NAME.fullmatch(name):
        yield "metadata.name", f"{name!r} is invalid; give up to {longest} of a-z, 0-9 and -, beginning with a letter"


CLUSTER = (resources_once, ray_labels, replicas, group_names, restart_policy, version_two_only, autoscaler_version)
CLUSTER += (token_version,)
JOB = (deletion, retries, sidecar, deadlines, runtime_env)
