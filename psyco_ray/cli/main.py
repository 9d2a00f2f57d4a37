"""The command ``psyco-ray``."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from psyco_ray.cli import commands
from psyco_ray.cli import data as commands_of_data
from psyco_ray.config import job_file
from psyco_ray.config.errors import INPUT_ERROR, InputError
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.evaluate_reward import EvaluateRewardJob
from psyco_ray.config.training import Job
from psyco_ray.run import logs


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 where what the user gave does not do, or 75 after a stop."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)  # overrides may stand behind options
    for unknown in rest:
        if unknown.startswith("-") or given.kind is None:
            parser.error(f"unknown argument {unknown}")
    logs.configure()
    try:
        if given.kind is not None:
            given.overrides += rest
        job = job_file.load_as(given.kind, given.job, given.overrides) if given.kind else None
        if hasattr(given, "address") and not (given.address or os.environ.get("RAY_ADDRESS")):
            # a token of this run's own, before Ray is imported: it would write one into the home directory
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        return given.run(job, given)
    except InputError as error:  # out of an actor it comes wrapped, with a remote traceback as its text
        return _refuse(getattr(error, "cause", error))


def _refuse(error: InputError) -> int:
    print(f"psyco-ray: {error}", file=sys.stderr)
    return INPUT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="psyco-ray", description="Preference learning for counselling responses, on Ray."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("demo", commands.demo, "train two reward models, then a policy with iterative DPO, and report"),
        ("plan", commands.plan, "print what a job takes and whether the cluster holds it"),
        ("train-reward", commands.train_reward, "train a Bradley-Terry reward model on preference pairs"),
        ("iterate", commands.iterate, "iterative DPO with a reward model"),
        ("train-dpo", commands.train_dpo, "offline DPO on a file of preference pairs"),
    ):
        command = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        # a plan for so many GPUs needs no file: the paper's settings do
        command.add_argument(
            "job", metavar="JOB.yaml", nargs="?" if run is commands.plan else None, help="the job file"
        )
        command.add_argument("overrides", nargs="*", metavar="key=value", help="such as sampling.responses=4")
        command.add_argument("--address", help="a Ray cluster (default: $RAY_ADDRESS, else a local one)")
        command.add_argument("--resume", action="store_true", help="continue the run in run_dir")
        if run is commands.plan:
            command.add_argument("--cluster", action="store_true", help="for a cluster that is up: what goes where")
            command.add_argument("--gpus", type=int, help="share out so many GPUs, and say how long an iteration takes")
            command.add_argument("--model", help="of the policy, such as llama-3.1-8b (default: the job's)")
            command.add_argument("--device", help="a profile's name or file, such as h100 (benchmarks/profile.py)")
            command.add_argument("--run", dest="finished", metavar="RUN", help="a finished run, to learn from")
        command.set_defaults(run=run, kind=Job)
    for name, evaluation, kind, text, example in (
        (
            "evaluate-reward",
            commands.evaluate_reward,
            EvaluateRewardJob,
            "compare reward models and rankers on held-out pairs and RewardBench",
            "max_tokens=2048",
        ),
        (
            "evaluate-policy",
            commands.evaluate_policy,
            PolicyEvaluationJob,
            "win rates of policies against an opponent, as judges see them",
            "speeches.limit=200",
        ),
    ):
        command = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("job", metavar="JOB.yaml", help="the job file")
        command.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {example}")
        command.add_argument("--address", help="a Ray cluster (default: $RAY_ADDRESS, else a local one)")
        command.add_argument("--max-cost", type=float, help="dollars that calls may cost; the job's max_cost")
        command.set_defaults(run=evaluation, kind=kind)
    _add_submit(subparsers)
    _add_steering(subparsers)
    _add_comparisons(subparsers)
    commands_of_data.add(subparsers)
    return parser


def _add_submit(subparsers: Any) -> None:
    text = "hand a job to a cluster: uploads this directory and runs a command there"
    command = subparsers.add_parser("submit", help=text, description=text, allow_abbrev=False)
    command.add_argument("job", metavar="JOB.yaml", help="the job file, in this directory")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="such as run_dir=/shared/runs/psyco")
    address = os.environ.get("RAY_API_SERVER_ADDRESS")
    command.add_argument(
        "--address", default=address, help="the cluster's dashboard, http://…:8265 (default: $RAY_API_SERVER_ADDRESS)"
    )
    command.add_argument(
        "--command",
        default="iterate",
        choices=("iterate", "plan", "demo", "train-reward", "train-dpo"),
        help="what to run (default: iterate)",
    )
    command.add_argument("--resume", action="store_true", help="continue the run in run_dir")
    command.add_argument("--follow", action="store_true", help="show its log, end with its result")
    command.add_argument("--env", action="append", default=[], metavar="NAME", help="a variable to take along; repeat")
    command.add_argument(
        "--driver-cpus", type=float, default=0, help="CPUs to reserve for it (default: 0, on the head)"
    )
    command.set_defaults(run=commands.submit, kind=Job)


def _add_steering(subparsers: Any) -> None:
    """The commands for a run that goes on."""
    for name, act, text in (
        ("status", commands.status, "print what a run does: stage, progress, actors"),
        ("scale", commands.scale, "give a run that goes on more or fewer actors"),
    ):
        command = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("run_dir", metavar="RUN", help="its directory, a path or a URI")
        if name == "scale":
            command.add_argument("wishes", nargs="+", metavar="ROLE=NUMBER", help="such as rollouts=6")
        command.set_defaults(run=act, kind=None)


def _add_comparisons(subparsers: Any) -> None:
    """The commands that read what is there, and need no Ray."""
    text = "compare training runs by their held-out judge, and policies' win rates"
    command = subparsers.add_parser("compare", help=text, description=text, allow_abbrev=False)
    command.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, finished or not")
    command.add_argument("--out", type=Path, default=Path("runs/compare"), help="directory (default: runs/compare)")
    command.set_defaults(run=commands.compare, kind=None)
    text = "let two experts compare a policy with its opponent, blind"
    experts = subparsers.add_parser("evaluate-experts", help=text, description=text)
    steps = experts.add_subparsers(required=True, metavar="STEP")
    text = "write a blind CSV for each of two experts"
    command = steps.add_parser("export", help=text, description=text, allow_abbrev=False)
    command.add_argument(
        "responses", nargs="+", metavar="NAME=FILE", help="a comparison's name and the policy's responses in it"
    )
    command.add_argument("--opponent", required=True, metavar="FILE", help="the opponent's responses")
    command.add_argument("--out", type=Path, default=Path("runs/experts"), help="directory (default: runs/experts)")
    command.add_argument("--count", type=int, default=100, help="pairs of each comparison (default: 100)")
    command.add_argument("--seed", type=int, default=0, help="of draw, sides and order (default: 0)")
    command.set_defaults(run=commands.export_experts, kind=None)
    text = "report preferences, scores and agreement out of the filled CSVs"
    command = steps.add_parser("score", help=text, description=text, allow_abbrev=False)
    command.add_argument("directory", type=Path, help="where export wrote")
    command.add_argument(
        "--verdicts", nargs="+", default=[], metavar="NAME=FILE", help="a comparison's name and a judge's choices in it"
    )
    command.set_defaults(run=commands.score_experts, kind=None)
