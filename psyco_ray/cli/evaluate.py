"""The commands ``evaluate-reward`` and ``evaluate-policy``; the same command continues after a stop."""

from __future__ import annotations

import argparse
from typing import Any

from psyco_ray.cli.arguments import add_command, add_job
from psyco_ray.cli.session import REPEAT, run_session
from psyco_ray.config import job_file
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.evaluate_reward import EvaluateRewardJob
from psyco_ray.run import ray_session


def add(subparsers: Any) -> None:
    """Adds the commands."""
    reward = add_command(
        subparsers,
        "evaluate-reward",
        evaluate_reward,
        "compare reward models and rankers on held-out pairs and RewardBench",
        "psyco-ray evaluate-reward jobs/evaluate-reward.yaml",
        job=EvaluateRewardJob,
    )
    add_job(reward, "max_tokens=2048")
    policy = add_command(
        subparsers,
        "evaluate-policy",
        evaluate_policy,
        "win rates of policies against an opponent, decided by judges",
        "psyco-ray evaluate-policy jobs/evaluate-policy.yaml speeches.limit=200 --max-cost 20",
        job=PolicyEvaluationJob,
    )
    add_job(policy, "speeches.limit=200")
    for command in (reward, policy):
        add_max_cost(command)


def add_max_cost(command: argparse.ArgumentParser) -> None:
    """Adds the budget of a command that calls paid APIs."""
    command.add_argument(
        "--max-cost", type=float, help="US dollars that the calls may cost (default: the job's max_cost)"
    )


def with_max_cost(job: job_file.AnyJob, max_cost: float | None) -> job_file.AnyJob:
    """The job with the budget of the command line, if it has one."""
    if max_cost is None:
        return job
    return job_file.parse(type(job), {**job.model_dump(mode="json"), "max_cost": max_cost}, "--max-cost")


def evaluate_reward(job: EvaluateRewardJob, options: argparse.Namespace) -> int:
    """Compares reward models and rankers on held-out pairs."""
    from psyco_ray.evaluate import pair_sets
    from psyco_ray.evaluate.reward_models import evaluate
    from psyco_ray.judge.outgoing import Outgoing
    from psyco_ray.report import reward_models as report
    from psyco_ray.run.directory import RunDirectory
    from psyco_ray.run.progress import Progress

    job = with_max_cost(job, options.max_cost)
    rankers = {f"the ranker {m.name}": m.endpoint for m in job.models if m.endpoint is not None}
    Outgoing(job.scrub, job.privacy).allow(rankers)
    directory = RunDirectory(job.run_dir)
    with run_session(directory, REPEAT):
        pair_sets.check(job)
        ray_session.connect(options.address)
        report.write_report(evaluate(job, directory, Progress()), directory.root)
        _print_tables(directory)
    return 0


def evaluate_policy(job: PolicyEvaluationJob, options: argparse.Namespace) -> int:
    """Measures win rates of policies against an opponent."""
    from psyco_ray.evaluate import speech_sets
    from psyco_ray.evaluate.policies import evaluate
    from psyco_ray.judge.outgoing import Outgoing
    from psyco_ray.report import policies as report
    from psyco_ray.run.directory import RunDirectory
    from psyco_ray.run.progress import Progress

    job = with_max_cost(job, options.max_cost)
    Outgoing(job.scrub, job.privacy).allow(job.endpoints())
    directory = RunDirectory(job.run_dir)
    with run_session(directory, REPEAT):
        speech_sets.check(job)
        ray_session.connect(options.address)
        facts, cases, conversed = evaluate(job, directory, Progress())
        report.write_report(facts, cases, directory.root, conversed)
        _print_tables(directory)
    return 0


def _print_tables(directory: Any) -> None:
    print((directory.root / "tables.md").read_text(encoding="utf-8"))
    print(f"report: {directory.root / 'report.html'}")
