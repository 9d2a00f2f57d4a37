"""Rules of this project for its manifests: security, bounds, and a cluster that holds the job's actors."""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lint_manifests import ROLE, ROLES, Manifest, Pods, Violations, autoscales, nodes, quantity, workers

from psyco_ray.cli.main import build_parser
from psyco_ray.config import job_file
from psyco_ray.config.resources import Actors, PoolConfig
from psyco_ray.config.training import Job

CALLER = "caller"  # role of the nodes that call APIs
KEYS = "psyco-ray-keys"  # secret of the APIs' keys
ROOT = Path(__file__).resolve().parent.parent
IN_IMAGE = "/opt/psyco-ray/"  # the checkout in the images
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_SECRET = re.compile(r".*(KEY|TOKEN|SECRET|PASSWORD)", re.IGNORECASE)
_ASSIGNED_KEY = re.compile(r"://[^/\s@]+:[^/\s@]+@|(KEY|TOKEN|SECRET|PASSWORD)['\"]?\s*[:=]\s*\S", re.IGNORECASE)


# --- a Ray cluster, alone or in a job


def token(cluster: Manifest) -> Violations:
    """The cluster uses token authentication: without it, network access is enough to run code."""
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield (
            "authOptions.mode",
            "is not token, so network access to the dashboard is enough to run code; set it to token",
        )


def autoscaler(cluster: Manifest) -> Violations:
    """Autoscaler v2, which knows node labels, runs in a container without privileges."""
    if not autoscales(cluster):
        yield "autoscalerOptions.version", "is not v2 with enableInTreeAutoscaling: true; label selectors need both"
    options = cluster.get("autoscalerOptions") or {}
    if (options.get("securityContext") or {}).get("allowPrivilegeEscalation") is not False:
        yield "autoscalerOptions.securityContext", "allows privileges; copy the Ray container's"


def roles(cluster: Manifest) -> Violations:
    """Either each role has a group labelled for it, or no group has a role label.

    Rollouts need none: those of a colocated job are where the learner is; `fits` checks the others.
    """
    group_roles = [(pods.spec.get("labels") or {}).get(ROLE) for pods in workers(cluster)]
    if not any(group_roles):
        return
    for pods, role in zip(workers(cluster), group_roles, strict=True):
        if role not in (*ROLES, CALLER):
            yield f"{pods.field}.labels", f"has {ROLE}: {role}; placement knows {', '.join((*ROLES, CALLER))}"
    for role in ROLES:
        if role not in (*group_roles, "rollout"):
            yield "workerGroupSpecs", f"has no group labelled {ROLE}: {role}, so its actors would wait forever; add one"


def callers(cluster: Manifest) -> Violations:
    """The pods that call APIs, and no others, have the keys. The driver on the head checks keys and sends batches."""
    for pods in nodes(cluster):
        calls = (pods.spec.get("labels") or {}).get(ROLE) == CALLER
        if pods.name == "head" and not calls:
            yield f"{pods.field}.labels", f"lacks {ROLE}: {CALLER}; the driver calls APIs, so label the head with it"
        for field, container in () if calls else pods.containers:
            if KEYS in _secrets(container):
                yield f"{field}.envFrom", f"has {KEYS}, but no call is made in this group; leave it out"


def _secrets(container: Manifest) -> set[str]:
    """The secrets that a container's environment comes from."""
    sources = [(source.get("secretRef") or {}).get("name") for source in container.get("envFrom") or []]
    values = [variable.get("valueFrom") or {} for variable in container.get("env") or []]
    return {*sources, *((value.get("secretKeyRef") or {}).get("name") for value in values)}


def bounds(cluster: Manifest) -> Violations:
    """Groups start within finite bounds, and the learner group has a fixed size."""
    for pods in workers(cluster):
        low, high = pods.spec.get("minReplicas", 0), pods.spec.get("maxReplicas")
        count = pods.spec.get("replicas", low)
        if high is None:
            yield f"{pods.field}.maxReplicas", "is missing, so the group's cost has no bound; give a number"
            continue
        if not low <= count <= high:
            yield f"{pods.field}.replicas", f"{count} is not between minReplicas {low} and maxReplicas {high}"
        if (pods.spec.get("labels") or {}).get(ROLE) == "learner" and not low == count == high:
            yield f"{pods.field}.maxReplicas", f"{high} lets the learner group change; set all three to {count}"


def head(cluster: Manifest) -> Violations:
    """The head runs the driver and no actors."""
    pods = nodes(cluster)[0]
    if pods.has("cpu") and (pods.spec.get("resources") or {}).get("CPU") != "0":
        yield f"{pods.field}.rayStartParams.num-cpus", 'allows actors on the head; set it to "0"'


def probes(cluster: Manifest) -> Violations:
    """Kubernetes probes each Ray node, so a hung node is replaced."""
    for pods in nodes(cluster):
        for name in ("readinessProbe", "livenessProbe"):
            if not pods.pod["containers"][0].get(name):
                yield f"{pods.field}.template.spec.containers[0].{name}", "is missing; probe /api/healthz on port 52365"


def service_account(cluster: Manifest) -> Violations:
    """Workers have no access to the Kubernetes API; only the head's autoscaler needs it."""
    for pods in workers(cluster):
        if pods.pod.get("automountServiceAccountToken") is not False:
            yield (
                f"{pods.field}.template.spec.automountServiceAccountToken",
                "is not false; workers do not need the token",
            )


# --- pods of any kind


def not_root(pods: Pods) -> Violations:
    """No container is or can become root, or has access to its host."""
    user, spec_field = pods.pod.get("securityContext") or {}, f"{pods.field}.{pods.template}.spec"
    if user.get("runAsNonRoot") is not True or user.get("runAsUser") == 0:
        yield f"{spec_field}.securityContext.runAsNonRoot", "is not true; the images run as user 1000"
    if any(pods.pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield (
            f"{spec_field}.hostNetwork",
            "gives the pod access to its host; leave hostNetwork, hostPID and hostIPC out",
        )
    for k, volume in enumerate(pods.pod.get("volumes") or []):
        if "hostPath" in volume:
            yield f"{spec_field}.volumes[{k}].hostPath", "gives the pod access to its host; use a claim or an emptyDir"
    for field, container in pods.containers:
        own = container.get("securityContext") or {}
        if own.get("privileged") or own.get("runAsUser") == 0 or own.get("runAsNonRoot") is False:
            yield f"{field}.securityContext", "makes the container root; leave it out"
        dropped = (own.get("capabilities") or {}).get("drop") or []
        if own.get("allowPrivilegeEscalation") is not False or "ALL" not in dropped:
            yield f"{field}.securityContext", "needs allowPrivilegeEscalation: false and capabilities: {drop: [ALL]}"


def limits(pods: Pods) -> Violations:
    """Every container has requests and limits for CPU and memory."""
    for field, container in pods.containers:
        resources = container.get("resources") or {}
        for name in ("cpu", "memory"):
            low, high = ((resources.get(kind) or {}).get(name) for kind in ("requests", "limits"))
            if low is None or high is None:
                yield f"{field}.resources", f"lacks {name} in requests or limits; give both"
            elif quantity(low) > quantity(high):
                yield f"{field}.resources.requests.{name}", f"{low} is above the limit {high}; lower it"


def images(pods: Pods) -> Violations:
    """Images are pinned by digest, unless they are loaded into the node and never pulled."""
    for field, container in pods.containers:
        image = str(container.get("image", ""))
        if container.get("imagePullPolicy") != "Never" and not DIGEST.search(image):
            yield (
                f"{field}.image",
                f"{image!r} is not pinned; give it the digest of the image that you pushed (@sha256:…)",
            )


def literal_secrets(pods: Pods) -> Violations:
    """Environment variables take keys from secrets by reference."""
    for field, container in pods.containers:
        for variable in container.get("env") or []:
            if _SECRET.fullmatch(variable["name"]) and "value" in variable:
                yield f"{field}.env", f"contains {variable['name']}; take it from the secret psyco-ray-keys"


# --- a Ray job


@dataclass(frozen=True)
class Command:
    """The command that a job runs."""

    name: str
    job: Any
    resume: bool


def command(job: Manifest) -> Command:
    """Parses the entrypoint as psyco-ray parses its command line.

    Raises:
        ValueError: the entrypoint is not a psyco-ray command, or its job file is invalid.
    """
    words = shlex.split(job.get("entrypoint") or "")
    words = words[1:] if words[:1] == ["psyco-ray"] else words[3:] if words[1:3] == ["-m", "psyco_ray.cli"] else []
    if not words:
        raise ValueError("does not begin with psyco-ray or python -m psyco_ray.cli")
    words = [re.sub(f"^{IN_IMAGE}", f"{ROOT}/", word) for word in words]
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            arguments, rest = build_parser().parse_known_args(words)
    except SystemExit:
        raise ValueError(f"is refused: {stderr.getvalue().splitlines()[-1]}") from None
    if arguments.kind is None:
        raise ValueError(f"runs {words[0]}, which takes no job file; name a command that does")
    path = Path(arguments.job) if Path(arguments.job).is_absolute() else ROOT / arguments.job
    loaded = job_file.load_as(arguments.kind, path, [*arguments.overrides, *rest])
    return Command(words[0], loaded, getattr(arguments, "resume", True))


def entrypoint(job: Manifest) -> Violations:
    """The command and its job file are valid, and a retry resumes the run."""
    try:
        parsed = command(job)
    except ValueError as error:
        yield "entrypoint", str(error)
        return
    if job.get("backoffLimit") and not parsed.resume:
        yield "entrypoint", "lacks --resume, so a retry would be refused its run_dir; add it"


def keys(job: Manifest) -> Violations:
    """A job's specification contains no key: the dashboard shows it."""
    for field in ("entrypoint", "runtimeEnvYAML"):
        if _ASSIGNED_KEY.search(str(job.get(field))):
            yield field, "contains a key; take it from the secret psyco-ray-keys"


def shared(job: Manifest) -> Violations:
    """run_dir outlives the pods: a shared volume or an object store."""
    run_dir = _job(job).run_dir
    for pods in () if "://" in run_dir else nodes(job["rayClusterSpec"]):
        claims = {v["name"] for v in pods.pod.get("volumes") or [] if "persistentVolumeClaim" in v}
        mounts = pods.pod["containers"][0].get("volumeMounts") or []
        if not any(Path(run_dir).is_relative_to(m["mountPath"]) for m in mounts if m["name"] in claims):
            yield (
                f"rayClusterSpec.{pods.field}.template.spec.containers[0].volumeMounts",
                f"do not contain run_dir {run_dir}; mount the shared volume there, or use a run_dir on s3://",
            )


def fits(job: Manifest) -> Violations:
    """The groups have room for the job's actors, at the start and after the pools have grown."""
    parsed = command(job)
    for role, name, actors, count in _demand(parsed) if isinstance(parsed.job, Job) else ():
        groups = [g for g in workers(job["rayClusterSpec"]) if (g.spec.get("labels") or {}).get(ROLE, role) == role]
        limit = max(count, actors.autoscale.max if isinstance(actors, PoolConfig) and actors.autoscale else 0)
        for bound, needed in (("replicas", count), ("maxReplicas", limit)):
            room = sum(_replicas(g, bound) * _actors_in(g, actors) for g in groups)
            if not groups and needed:
                yield (
                    "rayClusterSpec.workerGroupSpecs",
                    f"has no group labelled {ROLE}: {role} for {name}; add one, or set colocated: true in the job",
                )
                break
            if room < needed:
                yield (
                    f"rayClusterSpec.{groups[0].field}.{bound}",
                    f"has room for {room:g} of {needed} {name} ({actors.cpus:g} CPUs, {actors.gpus:g} GPUs each); "
                    f"raise it, or lower {name} in the job",
                )


def submitter_image(job: Manifest) -> Violations:
    """The submitter runs the head's image, so both have the same Ray."""
    if job.get("submitterPodTemplate"):
        own, heads = (p.pod["containers"][0].get("image") for p in (submitter(job), nodes(job["rayClusterSpec"])[0]))
        if own != heads:
            yield "submitterPodTemplate.spec.containers[0].image", f"{own} is not the head's {heads}; use the head's"


def submitter(job: Manifest) -> Pods:
    """The pod that submits a job and follows its log."""
    return Pods("submitter", "spec", job, "submitterPodTemplate")


def _job(job: Manifest) -> Any:
    return command(job).job


def _demand(parsed: Command) -> list[tuple[str, str, Actors, int]]:
    """Role, job key, size and number of the actors that a command starts."""
    job = parsed.job
    models = {"demo": 2, "train-reward": 1}.get(parsed.name, 0)
    demand = [("learner", "reward.learners.actors", job.reward.learners, models * job.reward.learners.actors)]
    demand += [("data", "data.cpus", Actors(cpus=job.data.cpus), 1)]
    if parsed.name != "train-reward":
        demand += [("scorer", "scorers.actors", job.scorers, job.scorers.actors)]
        if job.colocated:  # each GPU has both
            both = Actors(cpus=job.rollouts.cpus + job.learners.cpus, gpus=job.rollouts.gpus + job.learners.gpus)
            demand += [("learner", "learners.actors", both, job.learners.actors)]
        else:
            demand += [("rollout", "rollouts.actors", job.rollouts, job.rollouts.actors)]
            demand += [("learner", "learners.actors", job.learners, job.learners.actors)]
    return demand


def _replicas(pods: Pods, bound: str) -> float:
    count = pods.spec.get(bound)
    return count if count is not None else math.inf if bound == "maxReplicas" else pods.spec.get("minReplicas", 0)


def _actors_in(pods: Pods, actors: Actors) -> float:
    """Number of these actors that fit into a pod."""
    needs = [("cpu", actors.cpus), ("nvidia.com/gpu", actors.gpus)]
    return min((math.floor(pods.has(name) / need + 1e-9) for name, need in needs if need), default=math.inf)


# --- manifests beside the cluster


def disruption(manifest: Manifest, all_pods: list[Pods]) -> Violations:
    """A disruption budget has a form that Kubernetes supports for RayCluster pods, and selects enough pods."""
    low = manifest["spec"].get("minAvailable")
    if type(low) is not int:
        yield (
            "spec.minAvailable",
            "is not a number; a RayCluster has no scale subresource for maxUnavailable or percentages",
        )
        return
    selected = [p for p in all_pods if _selects(manifest["spec"]["selector"], p)]
    if sum(p.spec.get("replicas", 1) for p in selected) < low:
        yield "spec.selector", f"selects fewer pods than minAvailable {low}; use labels of the groups"


def network(manifest: Manifest) -> Violations:
    """A network policy restricts both directions."""
    if set(manifest["spec"].get("policyTypes") or []) != {"Ingress", "Egress"}:
        yield "spec.policyTypes", "must be [Ingress, Egress]; other directions stay open"


def closed(pods: Pods, policies: list[Manifest]) -> Violations:
    """A network policy selects every pod."""
    if not any(_selects(policy["spec"]["podSelector"], pods) for policy in policies):
        yield f"{pods.field}.{pods.template}.metadata.labels", "match no NetworkPolicy; add part-of: psyco-ray"


def secret(manifest: Manifest) -> Violations:
    """Secrets are created in the cluster, never in files."""
    for name in ("data", "stringData"):
        if manifest.get(name):
            yield name, "contains a secret in a file; make it with kubectl create secret"


def _selects(selector: Manifest, pods: Pods) -> bool:
    return (selector.get("matchLabels") or {}).items() <= pods.labels.items()


CLUSTER = (token, autoscaler, roles, callers, bounds, head, probes, service_account)
PODS = (not_root, limits, images, literal_secrets)
JOB = (shared, fits, submitter_image)
