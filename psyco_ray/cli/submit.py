"""The command ``submit``: sends a job to a cluster over Ray's job API, shows its log and reports its result."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psyco_ray.cli.arguments import add_command
from psyco_ray.config.errors import RESUMABLE, InputError
from psyco_ray.config.training import Job

EXCLUDES = ("/runs", "/wandb", "/build", "/dist", "*.egg-info", ".*_cache", ".env*", "*.env")
"""Never uploaded, in addition to what Ray leaves out (`.gitignore`, `.rayignore`, `.git`, environments)."""

SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
FAILED = 1
_STOP_S = 600  # seconds for a driver to end its step and write a checkpoint; Ray's default is 3
_POLL_S = 0.5
_MIB = 2**20


def add(subparsers: Any) -> None:
    """Adds the command."""
    command = add_command(
        subparsers,
        "submit",
        submit,
        "send a job to a cluster: uploads this directory and runs a command there",
        "psyco-ray submit jobs/demo.yaml --command demo run_dir=/shared/runs/demo --follow",
        job=Job,
    )
    command.add_argument("job", metavar="JOB.yaml", help="the job file, in this directory")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="such as run_dir=/shared/runs/psyco")
    command.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS"),
        help="the cluster's dashboard, http://…:8265 (default: $RAY_API_SERVER_ADDRESS)",
    )
    command.add_argument(
        "--command",
        default="iterate",
        choices=("iterate", "plan", "demo", "train-reward", "train-dpo"),
        help="what to run (default: iterate)",
    )
    command.add_argument("--resume", action="store_true", help="continue the run in run_dir")
    command.add_argument("--follow", action="store_true", help="show the job's log and end with its result")
    command.add_argument("--env", action="append", default=[], metavar="NAME", help="a variable to pass on; repeatable")
    command.add_argument(
        "--driver-cpus", type=float, default=0, help="CPUs to reserve for the driver (default: 0, on the head)"
    )


def submit(job: Job, options: argparse.Namespace) -> int:
    """Sends a job to a cluster.

    Returns:
        0; with ``--follow`` also 75 where the job was stopped and can be resumed, and 1 where it failed.
    """
    from psyco_ray.run.directory import refuse_keys, require_durable

    if not options.address:
        raise InputError("no cluster is named; give --address http://…:8265 or set RAY_API_SERVER_ADDRESS to that")
    refuse_keys(job)  # Ray shows the command line and keeps the job file
    if options.command != "plan":
        require_durable(job.run_dir)
    line = command_line(options.command, Path(options.job), options.overrides, Path.cwd(), options.resume)
    check_inputs(job, Path.cwd())
    return _send(line, options.address, environment(options.env), options.driver_cpus, options.follow)


def command_line(command: str, job: Path, overrides: Sequence[str], directory: Path, resume: bool) -> str:
    """The command that runs on the cluster in the uploaded directory, whose package precedes an installed one.

    Raises:
        InputError: the job file is not in the directory.
    """
    if not job.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"job file {job} is not in {directory.resolve()}, which is uploaded; move it or submit there")
    inside = str(job.resolve().relative_to(directory.resolve()))
    flags = ["--resume"] if resume else []
    return shlex.join(["python", "-m", "psyco_ray.cli", *command.split(), inside, *overrides, *flags])


def check_inputs(job: Job, directory: Path) -> None:
    """Checks that the job's files and local models in a working directory are uploaded with it.

    Raises:
        InputError: one of them is missing, or an ignore file leaves it out.
    """
    from psyco_ray.models import packaged
    from psyco_ray.run.remote import is_remote

    root = directory.resolve()
    sent = {path for _, file in uploaded(directory) for path in (file, *file.parents)}
    files = {"data.speeches": job.data.speeches, "data.pairs": job.data.pairs, "prompts.file": job.prompts.file}
    mixtures = {"mixture": job.mixture, "reward.mixture": job.reward.mixture}
    files |= {f"{key}.{i}.pairs": part.pairs for key, parts in mixtures.items() for i, part in enumerate(parts)}
    scorers = job.scorers
    models = {"model": job.model, "scorers.reward_model": scorers.reward_model}
    models |= {"scorers.heldout_model": scorers.heldout_model, "scorers.safety_model": scorers.safety_model}
    for key, name in {**files, **models}.items():
        if name is None or name in ("sample", "default", *packaged.MODELS):
            continue
        if is_remote(name) or name.startswith("hub:"):
            continue
        path = Path(os.path.normpath(root / name))
        if Path(name).is_absolute() or (key in models and not path.exists()):  # on the cluster's storage, or a hub id
            continue
        if not path.exists():
            raise InputError(f"{key} {name} does not exist in {root}, which is uploaded; correct it")
        if not path.is_relative_to(root) or path.relative_to(root) not in sent:
            raise InputError(
                f"{key} {name} is not uploaded with {root}: it lies outside, or an ignore file (.gitignore, "
                ".rayignore) leaves it out; put it on storage that the cluster reaches and give that path, or change "
                "the ignore file"
            )


def check_size(directory: Path) -> None:
    """Checks that Ray's server accepts the working directory, before anything is sent.

    Raises:
        InputError: it is too large; the largest files are named.
    """
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    files = uploaded(directory)
    size = sum(bytes_ for bytes_, _ in files)
    if size >= DASHBOARD_CLIENT_MAX_SIZE:
        largest = ", ".join(f"{path} ({bytes_ / _MIB:.1f} MiB)" for bytes_, path in sorted(files, reverse=True)[:3])
        raise InputError(
            f"{directory.resolve()} is {size / _MIB:.0f} MiB, above Ray's limit of "
            f"{DASHBOARD_CLIENT_MAX_SIZE // _MIB}; the largest files are {largest}; name unneeded files in .rayignore"
        )


def uploaded(directory: Path) -> list[tuple[int, Path]]:
    """The files in Ray's package of a working directory, with the bytes that each takes in it."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    root, files = directory.resolve(), list[tuple[int, Path]]()

    def add(path: Path) -> None:
        if path.is_file():
            inside = path.relative_to(root)
            files.append((path.stat().st_size + 76 + 2 * len(str(inside).encode()), inside))  # with its two zip headers

    excluded = packaging._get_excludes(root, [*get_runtime_env_default_excludes(), *EXCLUDES])
    by_git = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"  # as Ray reads it
    packaging._dir_travel(root, [excluded], add, include_gitignore=by_git, logger=logging.getLogger("ray"))
    return files


def environment(names: Sequence[str]) -> dict[str, str]:
    """The named variables with their values on this machine.

    Raises:
        InputError: a variable is not set, or looks like a secret: the cluster's dashboard would show it.
    """
    for name in names:
        if name.upper().endswith(SECRETS):
            raise InputError(
                f"{name} looks like a secret, and everyone with access to the cluster can read a job's variables; "
                "pass it as a Kubernetes secret, or in the environment that Ray was started in"
            )
        if name not in os.environ:
            raise InputError(f"--env {name} is not set here; set it or leave it out")
    return {name: os.environ[name] for name in names}


def _send(line: str, address: str, variables: dict[str, str], cpus: float, follow: bool) -> int:
    """Submits a command; returns the exit code of ``submit``.

    Args:
        line: the command, from `command_line`.
        address: of the cluster's dashboard, ``http://…:8265``. Ray finds the token in RAY_AUTH_MODE and RAY_AUTH_TOKEN.
        variables: environment of the command and of all its actors.
        cpus: logical CPUs that Ray reserves for the command; with 0 it runs on the head node.
        follow: show its log until it ends.

    Raises:
        InputError: the cluster cannot be reached, or rejects the token or the job.
    """
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"address {address} is not that of a dashboard, which begins with http://, such as http://head:8265"
        )
    logging.getLogger("ray").setLevel(logging.ERROR)  # it names every ignore file
    directory = Path.cwd()
    check_size(directory)
    with _client_errors(address):
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=line,
            runtime_env={
                "working_dir": str(directory.resolve()),
                "excludes": list(EXCLUDES),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S), **variables},
            },
            entrypoint_num_cpus=cpus,
        )
        print(f"submitted as {job_id}; use that name with ray job logs --follow, status and stop", flush=True)
        return _follow(client, job_id) if follow else 0


def _follow(client: Any, job_id: str) -> int:
    """Shows a job's log until it ends; returns the exit code."""
    asyncio.run(_show_log(client, job_id))
    while not (info := client.get_job_info(job_id)).status.is_terminal():
        time.sleep(_POLL_S)
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED" or info.driver_exit_code == RESUMABLE:
        print(f"psyco-ray: job {job_id} was stopped; submit it with --resume to continue", file=sys.stderr)
        return RESUMABLE
    code = info.driver_exit_code
    why = f"with exit code {code}; see its log" if code is not None else f"to start: {_first_line(info.message)}"
    print(f"psyco-ray: job {job_id} failed {why}", file=sys.stderr)
    return FAILED


async def _show_log(client: Any, job_id: str) -> None:
    async for text in client.tail_job_logs(job_id):
        print(text, end="", flush=True)


@contextmanager
def _client_errors(address: str) -> Iterator[None]:
    """A context in which errors of Ray's client become one sentence."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise InputError(
            f"the cluster at {address} rejects the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
        ) from None
    except OSError:
        raise InputError(
            f"no Ray dashboard answers at {address}; check that the address is right and reachable from here"
        ) from None
    except RuntimeError as error:
        raise InputError(f"the cluster at {address} rejects the job: {_first_line(str(error))}") from None


def _first_line(text: str | None) -> str:
    return (text or "no reason given").strip().splitlines()[0]
