"""A job handed to a cluster over Ray's job API: the working directory, a few variables, its log and its result."""

from __future__ import annotations

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

from psyco_ray.config.errors import RESUMABLE, InputError

EXCLUDES = ("/runs", "/wandb", "/build", "/dist", "*.egg-info", ".*_cache", ".env*", "*.env")
"""What is never uploaded, beside what Ray leaves out (`.gitignore`, `.rayignore`, `.git`, environments)."""

SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
FAILED = 1
_STOP_S = 600  # that a driver may take to end its step and write a checkpoint; Ray gives it 3 otherwise
_POLL_S = 0.5
_MIB = 2**20


def command_line(command: str, job: Path, overrides: Sequence[str], directory: Path, resume: bool) -> str:
    """What runs on the cluster, in the uploaded directory, whose package goes before an installed one.

    Raises:
        InputError: the job file is not in the directory.
    """
    if not job.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"job file {job} is not in {directory.resolve()}, which is uploaded; move it or submit there")
    inside = str(job.resolve().relative_to(directory.resolve()))
    flags = ["--resume"] if resume else []
    return shlex.join(["python", "-m", "psyco_ray.cli", *command.split(), inside, *overrides, *flags])


def check_size(directory: Path) -> None:
    """Make sure that Ray's server takes the working directory, before anything is sent.

    Raises:
        InputError: it does not; the largest files are named.
    """
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    files = uploaded(directory)
    size = sum(bytes_ for bytes_, _ in files)
    if size >= DASHBOARD_CLIENT_MAX_SIZE:
        largest = ", ".join(f"{path} ({bytes_ / _MIB:.1f} MiB)" for bytes_, path in sorted(files, reverse=True)[:3])
        raise InputError(
            f"{directory.resolve()} is {size / _MIB:.0f} MiB and Ray takes up to {DASHBOARD_CLIENT_MAX_SIZE // _MIB}; "
            f"the largest files are {largest}: name what is not needed in .rayignore"
        )


def uploaded(directory: Path) -> list[tuple[int, Path]]:
    """The files that Ray puts into the package of a working directory, with the bytes that each takes in it."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    root, files = directory.resolve(), list[tuple[int, Path]]()

    def add(path: Path) -> None:
        if path.is_file():
            inside = path.relative_to(root)
            files.append((path.stat().st_size + 76 + 2 * len(str(inside).encode()), inside))  # with its two zip headers

    excluded = packaging._get_excludes(root, [*get_runtime_env_default_excludes(), *EXCLUDES])
    packaging._dir_travel(root, [excluded], add, include_gitignore=True, logger=logging.getLogger("ray"))
    return files


def environment(names: Sequence[str]) -> dict[str, str]:
    """The named variables with the values that they have here.

    Raises:
        InputError: one is not set, or looks like a secret: whoever sees the cluster's dashboard would see it.
    """
    for name in names:
        if name.upper().endswith(SECRETS):
            raise InputError(
                f"{name} looks like a secret, and a job's variables can be read by whoever reaches the cluster; "
                "there it comes from a Kubernetes secret, or from the environment that Ray was started in"
            )
        if name not in os.environ:
            raise InputError(f"--env {name}: it is not set here; set it or leave it out")
    return {name: os.environ[name] for name in names}


def submit(
    entrypoint: str, *, address: str, directory: Path, variables: dict[str, str], cpus: float, follow: bool
) -> int:
    """Hand a command to the cluster.

    Args:
        entrypoint: the command, as `command_line` makes it.
        address: of the cluster's dashboard, ``http://…:8265``. A token comes from where Ray looks for it:
            RAY_AUTH_MODE, RAY_AUTH_TOKEN.
        directory: is uploaded and becomes the command's working directory.
        variables: environment of the command and of all its actors.
        cpus: logical CPUs that Ray reserves for the command itself; 0: it runs on the head node.
        follow: show its log until it ends.

    Returns:
        0; with `follow` also 75 where the job was stopped and can be resumed, and 1 where it failed.

    Raises:
        InputError: the cluster cannot be reached, refuses the token, or does not take the job.
    """
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise InputError(f"address {address} is not one of a dashboard; it begins with http://, as http://head:8265")
    logging.getLogger("ray").setLevel(logging.ERROR)  # it would name every ignore file
    check_size(directory)
    with _plainly(address):
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=entrypoint,
            runtime_env={
                "working_dir": str(directory.resolve()),
                "excludes": list(EXCLUDES),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S), **variables},
            },
            entrypoint_num_cpus=cpus,
        )
        print(f"submitted as {job_id}; ray job logs --follow, status and stop take that name", flush=True)
        return _followed(client, job_id) if follow else 0


def _followed(client: Any, job_id: str) -> int:
    """Show a job's log until it ends; returns the exit code for it."""
    asyncio.run(_show_log(client, job_id))
    while not (found := client.get_job_info(job_id)).status.is_terminal():
        time.sleep(_POLL_S)
    if found.status == "SUCCEEDED":
        return 0
    if found.status == "STOPPED" or found.driver_exit_code == RESUMABLE:
        print(f"psyco-ray: job {job_id} was stopped; submit it with --resume to go on", file=sys.stderr)
        return RESUMABLE
    code = found.driver_exit_code
    why = f"with exit code {code}; its log says why" if code is not None else f"to start: {_first_line(found.message)}"
    print(f"psyco-ray: job {job_id} failed {why}", file=sys.stderr)
    return FAILED


async def _show_log(client: Any, job_id: str) -> None:
    async for text in client.tail_job_logs(job_id):
        print(text, end="", flush=True)


@contextmanager
def _plainly(address: str) -> Iterator[None]:
    """A context in which what Ray's client raises becomes one sentence."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise InputError(
            f"the cluster at {address} refuses the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
        ) from None
    except OSError:
        raise InputError(
            f"no Ray dashboard answers at {address}; see whether the address is right and reachable from here"
        ) from None
    except RuntimeError as error:
        raise InputError(f"the cluster at {address} does not take the job: {_first_line(str(error))}") from None


def _first_line(text: str | None) -> str:
    return (text or "no reason given").strip().splitlines()[0]
