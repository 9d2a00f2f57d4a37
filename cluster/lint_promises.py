"""What psyco_ray promises of its own manifests, and asks of changed ones: safety, bounds, and that the job fits in."""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lint_manifests import ROLE, ROLES, Found, Manifest, Pods, autoscales, nodes, quantity, workers

from psyco_ray.cli.main import build_parser
from psyco_ray.config import job_file
from psyco_ray.config.resources import Actors, PoolConfig
from psyco_ray.config.training import Job

ROOT = Path(__file__).resolve().parent.parent
IN_IMAGE = "/opt/psyco-ray/"  # where the image has the checkout
_SECRET = re.compile(r".*(KEY|TOKEN|SECRET|PASSWORD)", re.IGNORECASE)
_GIVEN_KEY = re.compile(r"://[^/\s@]+:[^/\s@]+@|(KEY|TOKEN|SECRET|PASSWORD)['\"]?\s*[:=]\s*\S", re.IGNORECASE)


# --- a Ray cluster, alone or in a job


def token(cluster: Manifest) -> Found:
    """Whoever reaches a cluster without a token can run anything on it."""
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions.mode", "is not token, and whoever reaches the dashboard could run anything; set it"


def autoscaler(cluster: Manifest) -> Found:
    """The autoscaler that knows labels is on, in a container as safe as the others."""
    if not autoscales(cluster):
        yield "autoscalerOptions.version", "is not v2 with enableInTreeAutoscaling: true, which label selectors need"
    options = cluster.get("autoscalerOptions") or {}
    if (options.get("securityContext") or {}).get("allowPrivilegeEscalation") is not False:
        yield "autoscalerOptions.securityContext", "is open; copy that of the Ray container"


def roles(cluster: Manifest) -> Found:
    """Placement finds a group for each role, or, where no group has one, puts every role everywhere."""
    given = [(pods.spec.get("labels") or {}).get(ROLE) for pods in workers(cluster)]
    if not any(given):
        return
    for pods, role in zip(workers(cluster), given, strict=True):
        if role not in ROLES:
            yield f"{pods.field}.labels", f"has {ROLE}: {role}; placement knows {', '.join(ROLES)}"
    for role in ROLES:
        if role not in given:
            yield "workerGroupSpecs", f"has no group labelled {ROLE}: {role}, so that actors of it would wait; add one"


def bounds(cluster: Manifest) -> Found:
    """Groups start within their bounds, none grows without end, and learners stay as many as they are."""
    for pods in workers(cluster):
        low, high = pods.spec.get("minReplicas", 0), pods.spec.get("maxReplicas")
        count = pods.spec.get("replicas", low)
        if high is None:
            yield f"{pods.field}.maxReplicas", "is missing, so that nothing bounds what the group costs; give a number"
            continue
        if not low <= count <= high:
            yield f"{pods.field}.replicas", f"{count} is not between minReplicas {low} and maxReplicas {high}"
        if (pods.spec.get("labels") or {}).get(ROLE) == "learner" and not low == count == high:
            yield f"{pods.field}.maxReplicas", f"{high} lets the learner group change; set all three to {count}"


def head(cluster: Manifest) -> Found:
    """The head holds the driver and nothing that could crowd it out."""
    pods = nodes(cluster)[0]
    if pods.has("cpu") and (pods.spec.get("resources") or {}).get("CPU") != "0":
        yield f"{pods.field}.rayStartParams.num-cpus", 'lets actors onto the head; set it to "0"'


def probes(cluster: Manifest) -> Found:
    """A node that hangs is found."""
    for pods in nodes(cluster):
        for name in ("readinessProbe", "livenessProbe"):
            if not pods.pod["containers"][0].get(name):
                yield f"{pods.field}.template.spec.containers[0].{name}", "is missing; ask /api/healthz on port 52365"


def service_account(cluster: Manifest) -> Found:
    """Only the head, whose autoscaler needs it, may talk to Kubernetes."""
    for pods in workers(cluster):
        if pods.pod.get("automountServiceAccountToken") is not False:
            yield f"{pods.field}.template.spec.automountServiceAccountToken", "is not false; workers need no such token"


# --- pods of any kind


def not_root(pods: Pods) -> Found:
    """No container can be or become root, or reach into its machine."""
    user, place = pods.pod.get("securityContext") or {}, f"{pods.field}.{pods.template}.spec"
    if user.get("runAsNonRoot") is not True or user.get("runAsUser") == 0:
        yield f"{place}.securityContext.runAsNonRoot", "is not true; the images run as user 1000"
    if any(pods.pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield f"{place}.hostNetwork", "opens the machine to the pod; leave hostNetwork, hostPID and hostIPC out"
    for k, volume in enumerate(pods.pod.get("volumes") or []):
        if "hostPath" in volume:
            yield f"{place}.volumes[{k}].hostPath", "opens the machine to the pod; take a claim or an emptyDir"
    for field, container in pods.containers:
        own = container.get("securityContext") or {}
        if own.get("privileged") or own.get("runAsUser") == 0 or own.get("runAsNonRoot") is False:
            yield f"{field}.securityContext", "gives root to the container; leave it out"
        dropped = (own.get("capabilities") or {}).get("drop") or []
        if own.get("allowPrivilegeEscalation") is not False or "ALL" not in dropped:
            yield f"{field}.securityContext", "needs allowPrivilegeEscalation: false and capabilities: {drop: [ALL]}"


def limits(pods: Pods) -> Found:
    """Every container says what it needs and what it may take at most."""
    for field, container in pods.containers:
        given = container.get("resources") or {}
        for name in ("cpu", "memory"):
            low, high = ((given.get(kind) or {}).get(name) for kind in ("requests", "limits"))
            if low is None or high is None:
                yield f"{field}.resources", f"lacks {name} in requests or limits; give both"
            elif quantity(low) > quantity(high):
                yield f"{field}.resources.requests.{name}", f"{low} is above the limit {high}; lower it"


def images(pods: Pods) -> Found:
    """An image is the same one tomorrow."""
    for field, container in pods.containers:
        image = str(container.get("image", ""))
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            yield f"{field}.image", f"{image!r} is not pinned; give it a tag of its own or a digest"


def literal_secrets(pods: Pods) -> Found:
    """Keys come from secrets, by reference."""
    for field, container in pods.containers:
        for variable in container.get("env") or []:
            if _SECRET.fullmatch(variable["name"]) and "value" in variable:
                yield f"{field}.env", f"holds {variable['name']} itself; take it from the secret psyco-ray-keys"


# --- a Ray job


@dataclass(frozen=True)
class Command:
    """What a job runs."""

    name: str
    job: Any
    resume: bool


def command(job: Manifest) -> Command:
    """The entrypoint, read as the command would read it.

    Raises:
        ValueError: it is no command of psyco_ray, or its job file does not do.
    """
    words = shlex.split(job.get("entrypoint") or "")
    words = words[1:] if words[:1] == ["psyco-ray"] else words[3:] if words[1:3] == ["-m", "psyco_ray.cli"] else []
    if not words:
        raise ValueError("does not begin with psyco-ray or python -m psyco_ray.cli")
    words = [re.sub(f"^{IN_IMAGE}", f"{ROOT}/", word) for word in words]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given, rest = build_parser().parse_known_args(words)
    except SystemExit:
        raise ValueError(f"is refused: {said.getvalue().splitlines()[-1]}") from None
    if given.kind is None:
        raise ValueError(f"runs {words[0]}, which takes no job file; name a command that does")
    path = Path(given.job) if Path(given.job).is_absolute() else ROOT / given.job
    read = job_file.load_as(given.kind, path, [*given.overrides, *rest])
    return Command(words[0], read, getattr(given, "resume", True))


def entrypoint(job: Manifest) -> Found:
    """The command and its job file are there, and a second try goes on."""
    try:
        found = command(job)
    except ValueError as error:
        yield "entrypoint", str(error)
        return
    if job.get("backoffLimit") and not found.resume:
        yield "entrypoint", "lacks --resume, so that a second try would be refused its run_dir; add it"


def keys(job: Manifest) -> Found:
    """Nothing that a job is given is secret: it can be read on the dashboard."""
    for field in ("entrypoint", "runtimeEnvYAML"):
        if _GIVEN_KEY.search(str(job.get(field))):
            yield field, "holds a key; take it from the secret psyco-ray-keys"


def shared(job: Manifest) -> Found:
    """What a run makes outlives its pods."""
    run_dir = _job(job).run_dir
    for pods in () if "://" in run_dir else nodes(job["rayClusterSpec"]):
        claims = {v["name"] for v in pods.pod.get("volumes") or [] if "persistentVolumeClaim" in v}
        mounts = pods.pod["containers"][0].get("volumeMounts") or []
        if not any(Path(run_dir).is_relative_to(m["mountPath"]) for m in mounts if m["name"] in claims):
            yield (
                f"rayClusterSpec.{pods.field}.template.spec.containers[0].volumeMounts",
                f"does not hold run_dir {run_dir}; mount the shared volume there, or take a run_dir on s3://",
            )


def fits(job: Manifest) -> Found:
    """The groups hold the job's actors, at the beginning and when pools have grown."""
    wanted = command(job)
    for role, name, actors, count in _demand(wanted) if isinstance(wanted.job, Job) else ():
        groups = [g for g in workers(job["rayClusterSpec"]) if (g.spec.get("labels") or {}).get(ROLE, role) == role]
        most = max(count, actors.autoscale.max if isinstance(actors, PoolConfig) and actors.autoscale else 0)
        for bound, needed in (("replicas", count), ("maxReplicas", most)):
            room = sum(_replicas(g, bound) * _actors_in(g, actors) for g in groups)
            if room < needed and groups:
                yield (
                    f"rayClusterSpec.{groups[0].field}.{bound}",
                    f"holds {room:g} of {needed} {name} ({actors.cpus:g} CPUs, {actors.gpus:g} GPUs each); "
                    f"raise it, or lower {name} in the job",
                )


def submitter_image(job: Manifest) -> Found:
    """The submitter speaks the head's Ray."""
    if job.get("submitterPodTemplate"):
        own, its = (p.pod["containers"][0].get("image") for p in (submitter(job), nodes(job["rayClusterSpec"])[0]))
        if own != its:
            yield "submitterPodTemplate.spec.containers[0].image", f"{own} is not the head's {its}; give it that one"


def submitter(job: Manifest) -> Pods:
    """The pod that submits a job and follows its log."""
    return Pods("submitter", "spec", job, "submitterPodTemplate")


def _job(job: Manifest) -> Any:
    return command(job).job


def _demand(wanted: Command) -> list[tuple[str, str, Actors, int]]:
    """Role, setting, size and number of the actors that a command starts."""
    job = wanted.job
    models = {"demo": 2, "train-reward": 1}.get(wanted.name, 0)
    found = [("learner", "reward.learners.actors", job.reward.learners, models * job.reward.learners.actors)]
    found += [("data", "data.cpus", Actors(cpus=job.data.cpus), 1)]
    if wanted.name != "train-reward":
        found += [("rollout", "rollouts.actors", job.rollouts, job.rollouts.actors)]
        found += [("scorer", "scorers.actors", job.scorers, job.scorers.actors)]
        found += [("learner", "learners.actors", job.learners, job.learners.actors)]
    return found


def _replicas(pods: Pods, bound: str) -> float:
    given = pods.spec.get(bound)
    return given if given is not None else math.inf if bound == "maxReplicas" else pods.spec.get("minReplicas", 0)


def _actors_in(pods: Pods, actors: Actors) -> float:
    """How many such actors a pod holds."""
    needs = [("cpu", actors.cpus), ("nvidia.com/gpu", actors.gpus)]
    return min((math.floor(pods.has(name) / need + 1e-9) for name, need in needs if need), default=math.inf)


# --- what stands beside each other


def disruption(manifest: Manifest, everywhere: list[Pods]) -> Found:
    """A disruption budget is one that Kubernetes can keep, of pods that there are."""
    low = manifest["spec"].get("minAvailable")
    if type(low) is not int:
        yield "spec.minAvailable", "is no number; pods of a RayCluster have no scale for maxUnavailable or percentages"
        return
    chosen = [p for p in everywhere if _selects(manifest["spec"]["selector"], p)]
    if sum(p.spec.get("replicas", 1) for p in chosen) < low:
        yield "spec.selector", f"finds fewer pods than minAvailable {low}; give it labels that the groups have"


def network(manifest: Manifest) -> Found:
    """A network policy closes both directions."""
    if set(manifest["spec"].get("policyTypes") or []) != {"Ingress", "Egress"}:
        yield "spec.policyTypes", "must be [Ingress, Egress]; a direction that is not named is open"


def closed(pods: Pods, policies: list[Manifest]) -> Found:
    """Every pod is under a network policy."""
    if not any(_selects(policy["spec"]["podSelector"], pods) for policy in policies):
        yield f"{pods.field}.{pods.template}.metadata.labels", "are under no NetworkPolicy; add part-of: psyco-ray"


def secret(manifest: Manifest) -> Found:
    """Secrets are made in the cluster, not in files."""
    for name in ("data", "stringData"):
        if manifest.get(name):
            yield name, "holds secrets in a file; make the secret with kubectl create secret"


def _selects(selector: Manifest, pods: Pods) -> bool:
    return (selector.get("matchLabels") or {}).items() <= pods.labels.items()


CLUSTER = (token, autoscaler, roles, bounds, head, probes, service_account)
PODS = (not_root, limits, images, literal_secrets)
JOB = (shared, fits, submitter_image)
