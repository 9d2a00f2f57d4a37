"""The commands that train: ``demo``, ``train-reward``, ``iterate`` and ``train-dpo``."""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.cli.arguments import add_command, add_job
from psyco_ray.cli.session import RESUME, run_session
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.run import ray_session, storage
from psyco_ray.run.remote import is_remote
from psyco_ray.run.startup import gc_paused

if TYPE_CHECKING:
    from psyco_ray.run.changes import Changes
    from psyco_ray.run.ledger import Ledger
    from psyco_ray.run.telemetry import Telemetry


_log = logging.getLogger(__name__)


def add(subparsers: Any) -> None:
    """Adds the commands."""
    for name, run, summary, example in (
        ("demo", demo, "train two reward models, then a policy with iterative DPO, and report", "jobs/demo.yaml"),
        (
            "train-reward",
            train_reward,
            "train a Bradley-Terry reward model on preference pairs",
            "jobs/reward-laptop.yaml seed=1 run_dir=runs/reward-seed1",
        ),
        (
            "iterate",
            iterate,
            "iterative DPO with a reward model",
            "jobs/smollm2.yaml scorers.reward_model=runs/smollm2-reward/reward --resume",
        ),
        ("train-dpo", train_dpo, "offline DPO on a file of preference pairs", "jobs/psyco-llama3-3b.yaml --resume"),
    ):
        command = add_command(subparsers, name, run, summary, f"psyco-ray {name} {example}", job=Job)
        add_job(command, "sampling.responses=4")
        command.add_argument("--resume", action="store_true", help="continue the run in run_dir")
        command.add_argument(
            "--accept-changes",
            action="store_true",
            help="with --resume: go on with models, prompts, data, code or packages that have changed, and record it",
        )


def train_reward(job: Job, options: argparse.Namespace) -> int:
    """Trains one reward model."""

    def work(ledger: Ledger, telemetry: Telemetry) -> None:
        from psyco_ray.training.reward_trainer import train_reward as train

        facts = train({"reward": job}, ledger, telemetry)["reward"]
        print(f"reward model: {storage.join(job.run_dir, 'reward')}, held-out accuracy {facts['accuracy']}")

    return _in_run(job, options, work, lambda ledger, changes: _check_reward_pairs(job, ledger, "reward", changes))


def iterate(job: Job, options: argparse.Namespace) -> int:
    """Iterative DPO with an existing reward model."""
    if job.pairs_from == "file":
        raise InputError("pairs_from is file, which is offline DPO; run train-dpo, or set pairs_from to policy or base")
    if job.scorers.reward_model is None:
        raise InputError("scorers.reward_model is not set; name a reward model, or train one with train-reward")
    return _in_run(job, options, lambda ledger, telemetry: _iterate(job, ledger, telemetry))


def train_dpo(job: Job, options: argparse.Namespace) -> int:
    """Offline DPO on a file of pairs, in iterations that each end with a judged checkpoint."""
    if job.scorers.heldout_model is None and job.scorers.reward_model is None:
        raise InputError("scorers.heldout_model is not set; name the reward model that judges the checkpoints")
    offline = job.model_copy(update={"pairs_from": "file"})

    def check(ledger: Ledger, changes: Changes) -> None:
        from psyco_ray.data import mixture

        mixture.check(job.mixture, job.data, (ledger.record("mixture") or {}).get("parts", []), changes)

    return _in_run(offline, options, lambda ledger, telemetry: _iterate(offline, ledger, telemetry), check)


def demo(job: Job, options: argparse.Namespace) -> int:
    """Two reward models on halves of the pairs, then iterative DPO: A trains the policy, B only judges."""

    def work(ledger: Ledger, telemetry: Telemetry) -> None:
        from psyco_ray.training.reward_trainer import train_reward as train

        names = {half: f"reward-{half}" for half in ("a", "b")}
        train({name: _with(job, "reward", half=half) for half, name in names.items()}, ledger, telemetry)
        paths = {half: ledger.place(name) for half, name in names.items()}
        _iterate(_with(job, "scorers", reward_model=paths["a"], heldout_model=paths["b"]), ledger, telemetry)
        if not is_remote(job.run_dir):
            print(f"to review its answers in a browser: {_desk_command(job.run_dir)}")

    return _in_run(job, options, work, lambda ledger, changes: _check_reward_pairs(job, ledger, "reward-a", changes))


def _desk_command(run_dir: str) -> str:
    """The command line that serves a run's answers at a desk beside it."""
    called = Path(sys.argv[0])  # as this command was called, where a shell would not find it by its name
    program = sys.argv[0] if called.name == "psyco-ray" and shutil.which("psyco-ray") is None else "psyco-ray"
    directory = str(storage.local_path(run_dir))
    return shlex.join([program, "desk", "serve", f"{directory.rstrip('/')}-desk", "--from", directory])


def _check_reward_pairs(job: Job, ledger: Ledger, name: str, changes: Changes) -> None:
    """Check the files of pairs that a reward model is trained on, also against those that an earlier part read."""
    from psyco_ray.data import mixture

    record = ledger.record(name) or ledger.record(f"{name}-training/progress") or {}
    mixture.check(job.reward.mixture, job.data, record.get("mixture", []), changes)


def _iterate(job: Job, ledger: Ledger, telemetry: Telemetry) -> None:
    with gc_paused():
        from psyco_ray.driver import iterate as run
        from psyco_ray.report import training_run
        from psyco_ray.training.summary import headline

    summary = run(job, ledger, telemetry)
    telemetry.summarise({key: value for key, value in summary.items() if key not in ("per_iteration", "versions")})
    training_run.write_report(job, ledger, summary)
    print(f"{headline(summary)}\nreport: {storage.join(job.run_dir, 'report.html')}")


def _with(job: Job, section: str, **changes: Any) -> Job:
    """The job with other settings in one section."""
    return job.model_copy(update={section: getattr(job, section).model_copy(update=changes)})


def _in_run(
    job: Job,
    options: argparse.Namespace,
    work: Callable[[Ledger, Telemetry], None],
    check_pairs: Callable[[Ledger, Changes], None] = lambda ledger, changes: None,
) -> int:
    from psyco_ray.cli.plan import memory_report
    from psyco_ray.data import speech_file
    from psyco_ray.judge.outgoing import Outgoing
    from psyco_ray.run.changes import Changes
    from psyco_ray.run.ledger import Ledger
    from psyco_ray.run.telemetry import Telemetry
    from psyco_ray.training import inputs

    for sentence in memory_report.warnings(job):
        _log.warning(sentence)
    if job.evaluation.judge is not None:
        Outgoing(job.scrub, job.privacy).allow({"evaluation.judge": job.evaluation.judge})
    if job.simulate is not None and job.simulate.client.endpoint is not None:
        Outgoing(job.scrub, job.privacy).allow({"simulate.client": job.simulate.client.endpoint})
    ledger = Ledger(job, options.resume)
    with run_session(ledger, RESUME):
        changes = Changes(options.accept_changes)
        if speech_file.check(job.data, ledger.record("speeches"), changes):
            ledger.discard("speeches")
        check_pairs(ledger, changes)
        ray_session.connect(options.address)
        inputs.check(job, ledger, changes)
        with Telemetry(job, ledger) as telemetry:
            work(ledger, telemetry)
    return 0
