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

from psyco_ray.cli import upload
from psyco_ray.cli.arguments import add_command
from psyco_ray.config.errors import RESUMABLE, InputError
from psyco_ray.config.keys import holds_key, names_secret
from psyco_ray.config.training import Job
from psyco_ray.run import preemption

FAILED = 1
INTERRUPTED = 130  # by Ctrl-C, as shells have it
_STOP_S = 600  # seconds for a driver to end its step and write a checkpoint; Ray's default is 3
_POLL_S = 0.5


def add(subparsers: Any) -> None:
    """Adds the command."""
    command = add_command(
        subparsers,
        "submit",
        submit,
        "send a job to a cluster: uploads the package, the job and the files it names, and runs a command there",
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
    command.add_argument("--accept-changes", action="store_true", help="with --resume: as of the command")
    command.add_argument("--follow", action="store_true", help="show the job's log and end with its result")
    command.add_argument("--env", action="append", default=[], metavar="NAME", help="a variable to pass on; repeatable")
    command.add_argument(
        "--driver-cpus", type=float, default=0, help="CPUs to reserve for the driver (default: 0, on the head)"
    )


def submit(job: Job, options: argparse.Namespace) -> int:
    """Sends a job to a cluster.

    Returns:
        0; with ``--follow`` also 75 where the job was stopped and can be resumed, 1 where it failed, and 130 where
        Ctrl-C ends this command and not the job.
    """
    from psyco_ray.run.directory import require_durable

    if not options.address:
        raise InputError("no cluster is named; give --address http://…:8265 or set RAY_API_SERVER_ADDRESS to that")
    if options.command != "plan":
        require_durable(job.run_dir)
    flags = [f for f, given in (("--resume", options.resume), ("--accept-changes", options.accept_changes)) if given]
    line = command_line(options.command, Path(options.job), options.overrides, Path.cwd(), flags)
    directory = Path.cwd()
    found = upload.files_of(job, Path(options.job), directory)
    upload.check_size(found, directory)
    upload.describe(found, directory)
    variables = environment(options.env)
    with upload.staged(found, directory) as staging:
        client, job_id = _send(line, options.address, staging, variables, options.driver_cpus)
    print(f"submitted as {job_id}; use that name with ray job logs --follow, status and stop", flush=True)
    try:
        with preemption.unmasked(), _client_errors(options.address):
            return _follow(client, job_id) if options.follow else 0
    except preemption.Preempted:  # RESUMABLE would say that the job was stopped
        print(f"psyco-ray: job {job_id} goes on; its log is shown no longer", file=sys.stderr)
        return INTERRUPTED


def command_line(command: str, job: Path, overrides: Sequence[str], directory: Path, flags: Sequence[str]) -> str:
    """The command that runs on the cluster in the uploaded directory, whose package precedes an installed one.

    Raises:
        InputError: the job file is not in the directory.
    """
    if not job.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"job file {job} is not in {directory.resolve()}, which is uploaded; move it or submit there")
    inside = str(job.resolve().relative_to(directory.resolve()))
    return shlex.join(["python", "-m", "psyco_ray.cli", *command.split(), inside, *overrides, *flags])


def environment(names: Sequence[str]) -> dict[str, str]:
    """The named variables with their values on this machine.

    Raises:
        InputError: a variable is not set, or looks like a secret: the cluster's dashboard would show it.
    """
    for name in names:
        if names_secret(name) or holds_key(os.environ.get(name, "")):
            raise InputError(
                f"{name} looks like a secret, and everyone with access to the cluster can read a job's variables; "
                "pass it as a Kubernetes secret, or in the environment that Ray was started in"
            )
        if name not in os.environ:
            raise InputError(f"--env {name} is not set here; set it or leave it out")
    return {name: os.environ[name] for name in names}


def _send(line: str, address: str, directory: Path, variables: dict[str, str], cpus: float) -> tuple[Any, str]:
    """Submits a command; returns Ray's client and the name of the job.

    Args:
        line: the command, from `command_line`.
        address: of the cluster's dashboard, ``http://…:8265``. Ray finds the token in RAY_AUTH_MODE and RAY_AUTH_TOKEN.
        directory: uploaded as the working directory of the command.
        variables: environment of the command and of all its actors.
        cpus: logical CPUs that Ray reserves for the command; with 0 it runs on the head node.

    Raises:
        InputError: the cluster cannot be reached, or rejects the token or the job.
    """
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"address {address} is not that of a dashboard, which begins with http://, such as http://head:8265"
        )
    logging.getLogger("ray").setLevel(logging.ERROR)  # it names every ignore file
    with _client_errors(address):
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=line,
            runtime_env={
                "working_dir": str(directory),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S), **variables},
            },
            entrypoint_num_cpus=cpus,
        )
    return client, job_id


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
