"""What each command of ``psyco-ray`` does; heavy libraries are imported by those that need them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.config.errors import RESUMABLE, InputError
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.evaluate_reward import EvaluateRewardJob
from psyco_ray.config.training import Job
from psyco_ray.run import storage
from psyco_ray.run.ray_session import connect
from psyco_ray.run.remote import is_remote, refuse_key
from psyco_ray.run.startup import gc_paused


def plan(job: Job, given: argparse.Namespace) -> int:
    """Print the resource plan and how long an iteration takes; fails where the cluster cannot hold the job."""
    from psyco_ray.cli.plan import advice
    from psyco_ray.pool import fit

    if given.job is None and given.gpus is None:
        raise InputError("plan needs JOB.yaml, or --gpus for the paper's settings on so many GPUs")
    asked = {name: getattr(given, name) for name in ("gpus", "model", "device", "finished")}
    if any(value is not None for value in asked.values()):
        if given.cluster:
            raise InputError(
                "plan --cluster is about a job's own actors; leave --gpus, --model, --device and --run out"
            )
        print(advice.forecast(job, **asked))
        return 0
    live = bool(given.address or os.environ.get("RAY_ADDRESS"))
    if given.cluster and not live:
        raise InputError("plan --cluster needs a cluster that is up; give --address or set RAY_ADDRESS")
    if live:
        connect(given.address)
    nodes = fit.cluster_nodes()
    phases = {"train-reward": fit.reward_phase(job), "iterate": fit.iterate_phase(job)}
    print(fit.describe(phases, nodes))
    for phase, roles in phases.items():
        where = fit.describe_places(phase, roles, nodes)
        if live:
            print(where)
    print("every phase fits")
    try:
        print(advice.forecast(job, cores=max(1, int(sum(node.cpus for node in nodes)))))
    except InputError as error:  # the job may run all the same
        print(f"how long it takes is not known: {error}")
    return 0


def train_reward(job: Job, given: argparse.Namespace) -> int:
    """Train one reward model."""

    def work(ledger: Any, telemetry: Any) -> None:
        from psyco_ray.training.reward_trainer import train_reward as train

        found = train({"reward": job}, ledger, telemetry)["reward"]
        print(f"reward model: {storage.join(job.run_dir, 'reward')}, held-out accuracy {found['accuracy']}")

    return _in_run(job, given, work)


def iterate(job: Job, given: argparse.Namespace) -> int:
    """Iterative DPO with a reward model that is there."""
    if job.pairs_from == "file":
        raise InputError("pairs_from is file, which is offline DPO; run train-dpo, or take policy or base")
    if job.scorers.reward_model is None:
        raise InputError("scorers.reward_model is not set; name a reward model, or train one with train-reward")
    return _in_run(job, given, lambda ledger, telemetry: _iterate(job, ledger, telemetry))


def train_dpo(job: Job, given: argparse.Namespace) -> int:
    """Offline DPO: the policy learns from a file of pairs, in iterations that each end with a judged checkpoint."""
    if job.scorers.heldout_model is None and job.scorers.reward_model is None:
        raise InputError("scorers.heldout_model is not set; name the reward model that shall judge the checkpoints")
    offline = job.model_copy(update={"pairs_from": "file"})
    return _in_run(offline, given, lambda ledger, telemetry: _iterate(offline, ledger, telemetry))


def demo(job: Job, given: argparse.Namespace) -> int:
    """Two reward models on halves of the pairs, then iterative DPO: A trains the policy, B only judges."""

    def work(ledger: Any, telemetry: Any) -> None:
        from psyco_ray.training.reward_trainer import train_reward as train

        names = {half: f"reward-{half}" for half in ("a", "b")}
        train({name: _with(job, "reward", half=half) for half, name in names.items()}, ledger, telemetry)
        paths = {half: ledger.place(name) for half, name in names.items()}
        _iterate(_with(job, "scorers", reward_model=paths["a"], heldout_model=paths["b"]), ledger, telemetry)

    return _in_run(job, given, work)


def evaluate_reward(job: EvaluateRewardJob, given: argparse.Namespace) -> int:
    """Compare reward models, and models that rank, on held-out pairs; the same command goes on after a stop."""
    from psyco_ray.evaluate.reward_models import evaluate
    from psyco_ray.report import reward_models as report

    def work(job: EvaluateRewardJob, directory: Any, progress: Any) -> None:
        report.write(evaluate(job, directory, progress), directory.root)

    return _evaluate(work, job, given)


def evaluate_policy(job: PolicyEvaluationJob, given: argparse.Namespace) -> int:
    """Win rates of policies against an opponent; the same command goes on after a stop."""
    from psyco_ray.evaluate.policies import evaluate
    from psyco_ray.report import policies as report

    def work(job: PolicyEvaluationJob, directory: Any, progress: Any) -> None:
        results, cases = evaluate(job, directory, progress)
        report.write(results, cases, directory.root)

    return _evaluate(work, job, given)


def _evaluate(
    evaluate: Callable[[Any, Any, Any], Any], job: EvaluateRewardJob | PolicyEvaluationJob, given: argparse.Namespace
) -> int:
    """Hold the run directory and Ray while an evaluation goes on."""
    import ray

    from psyco_ray.judge.client import UnavailableError
    from psyco_ray.judge.rate_limit import BudgetExceededError
    from psyco_ray.run.directory import RunDirectory
    from psyco_ray.run.progress import Progress

    if given.max_cost is not None:
        settings = {**job.model_dump(mode="json"), "max_cost": given.max_cost}
        job = job_file.parse(type(job), settings, "--max-cost")
    directory = RunDirectory(job.run_dir)
    try:
        connect(given.address)
        evaluate(job, directory, Progress())
        print((directory.root / "tables.md").read_text(encoding="utf-8"))
        print(f"report: {directory.root / 'report.html'}")
    except (BudgetExceededError, UnavailableError) as stop:
        print(f"psyco-ray: {stop}. What was answered is kept, and the same command goes on from there", file=sys.stderr)
        return RESUMABLE
    finally:
        ray.shutdown()
        directory.close()
    return 0


def submit(job: Job, given: argparse.Namespace) -> int:
    """Hand a job to a cluster."""
    from psyco_ray.cli import submit as jobs
    from psyco_ray.run.directory import refuse_keys, require_durable

    if not given.address:
        raise InputError("no cluster is named; give --address http://…:8265 or set RAY_API_SERVER_ADDRESS to that")
    refuse_keys(job)  # for Ray shows the command line, and keeps the job file
    if given.command != "plan":
        require_durable(job.run_dir)
    return jobs.submit(
        jobs.command_line(given.command, Path(given.job), given.overrides, Path.cwd(), given.resume),
        address=given.address,
        directory=Path.cwd(),
        variables=jobs.environment(given.env),
        cpus=given.driver_cpus,
        follow=given.follow,
    )


def status(_: None, given: argparse.Namespace) -> int:
    """Print what a run does."""
    from psyco_ray.cli import status

    print(status.described(given.run_dir))
    return 0


def scale(_: None, given: argparse.Namespace) -> int:
    """Ask a run for other numbers of actors."""
    from psyco_ray.cli import status

    status.scale(given.run_dir, status.wishes(given.wishes))
    print(f"asked for; psyco-ray status {given.run_dir} shows who came")
    return 0


def export_experts(_: None, given: argparse.Namespace) -> int:
    """Write the experts' files."""
    from psyco_ray.evaluate import experts

    policies = _by_name(given.responses, "responses")
    experts.export(policies, given.opponent, given.out, given.count, given.seed)
    print(f"{given.out / 'expert-1.csv'} and expert-2.csv are for the experts; keep key.json to yourself")
    return 0


def score_experts(_: None, given: argparse.Namespace) -> int:
    """Report what the experts filled in."""
    from psyco_ray.evaluate import experts
    from psyco_ray.report import experts as report

    found = experts.score(given.directory, _by_name(given.verdicts, "--verdicts"))
    report.write(found, given.directory)
    print(report.markdown(found))
    print(f"report: {given.directory / 'report.html'}")
    return 0


def compare(_: None, given: argparse.Namespace) -> int:
    """Report training runs side by side."""
    from psyco_ray.evaluate import compare_runs as runs
    from psyco_ray.report import compare_runs as report

    for run in given.runs:
        refuse_key(run)
        if is_remote(run):
            raise InputError(
                f"{run.partition('?')[0]} is remote, and compare reads local directories; copy the run's *.json and "
                "job.yaml here, in their directories, and name the copy"
            )
    found = runs.compare([storage.local_path(run) for run in given.runs])
    report.write(found, given.out)
    print(report.markdown(found))
    print(f"report: {given.out / 'compare.html'}")
    return 0


def _by_name(given: list[str], what: str) -> dict[str, str]:
    """Files by their names, out of NAME=FILE."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError(f"{what} {text!r} is not of the form NAME=FILE, such as free=responses.parquet")
        if name in found:
            raise InputError(f"{what} names {name} twice; give each file its own name")
        found[name] = path
    return found


def _iterate(job: Job, ledger: Any, telemetry: Any) -> None:
    with gc_paused():
        from psyco_ray.driver import iterate as run
        from psyco_ray.report import training_run

    found = run(job, ledger, telemetry)
    training_run.write(job, ledger, found)
    judged = found["heldout"] or found["train"]
    low, high = judged["ci95"]
    print(
        f"reward on {judged['speeches']} held-out speeches: {judged['reward_before']:.3f} before, "
        f"{judged['reward_after']:.3f} after; the policy's answer beats the base model's in "
        f"{100 * judged['win_rate_vs_base']:.0f} % of them (95 % interval {100 * low:.0f} to {100 * high:.0f} %)\n"
        f"report: {storage.join(job.run_dir, 'report.html')}\npolicy: {found['checkpoint']}"
    )


def _with(job: Job, section: str, **changes: Any) -> Job:
    """The job with some settings of a section changed."""
    return job.model_copy(update={section: getattr(job, section).model_copy(update=changes)})


def _in_run(job: Job, given: argparse.Namespace, work: Callable[[Any, Any], None]) -> int:
    """Hold the run directory and Ray while `work` goes on."""
    import ray

    from psyco_ray.judge.client import UnavailableError
    from psyco_ray.run import preemption
    from psyco_ray.run.ledger import Ledger
    from psyco_ray.run.telemetry import Telemetry

    ledger = Ledger(job, given.resume)
    try:
        connect(given.address)
        telemetry = Telemetry(job, ledger)
        try:
            with preemption.handle_sigterm():
                work(ledger, telemetry)
        except preemption.Preempted:
            print("psyco-ray: stopped; the same command with --resume goes on from here", file=sys.stderr)
            return RESUMABLE
        except UnavailableError as outage:  # the judge's
            print(f"psyco-ray: {outage}; the same command with --resume goes on from here", file=sys.stderr)
            return RESUMABLE
        finally:
            telemetry.close()
            ray.shutdown()
    finally:
        ledger.close()
    return 0
