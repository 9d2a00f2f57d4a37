"""The command ``psyco-ray``: finds the command, loads its job, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from importlib.metadata import PackageNotFoundError, version

from psyco_ray.cli import compare, config, data, desk, evaluate, experts, forget, init, sample, status, submit, train
from psyco_ray.cli.plan import command as plan
from psyco_ray.cli.session import StoppedError, unwrapped
from psyco_ray.config import job_file
from psyco_ray.config.errors import INPUT_ERROR, RESUMABLE, InputError
from psyco_ray.config.names import is_key, size_of
from psyco_ray.run import disk_errors, logs, preemption, ray_session

_COMMANDS = (train, plan, init, config, submit, status, sample, data, evaluate, compare, experts, desk, forget)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0, `INPUT_ERROR` for invalid input, `RESUMABLE` after a stop that loses nothing. Any other
        failure is an exception with its traceback.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)  # overrides may follow options
    for unknown in rest:
        if unknown.startswith("-") or options.kind is None:
            parser.error(_unknown(unknown))
    logs.configure(options.verbosity)
    with preemption.stop_on_signals():
        return _run(options, rest)


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    """Runs the command with overrides that follow its options, and returns its exit code."""
    try:
        job = job_file.load_as(options.kind, options.job, [*options.overrides, *rest]) if options.kind else None
        if hasattr(options, "overrides"):
            options.overrides += rest
        if hasattr(options, "address") and not (options.address or os.environ.get("RAY_ADDRESS")):
            ray_session.prepare_local()
        with preemption.unmasked():
            return options.run(job, options)
    except preemption.Preempted:
        _say("stopped")
        return RESUMABLE
    except Exception as error:
        cause = unwrapped(error)
        if isinstance(cause, OSError) and cause.errno in disk_errors.UNWRITABLE:
            cause = disk_errors.elsewhere(cause)
        elif isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            cause = InputError(
                "the name of a file is longer than its disk takes; shorten it, or name the file that holds the text"
            )
        if not isinstance(cause, InputError | StoppedError):
            raise
        _say(str(cause))
        return INPUT_ERROR if isinstance(cause, InputError) else RESUMABLE


def _unknown(argument: str) -> str:
    """What is wrong with an argument; other ones than options may be words of a text without quotes."""
    option = argument.partition("=")[0]
    if option.startswith("-") and is_key(option):
        return f"unknown argument {option}"
    return f"unknown argument {size_of(argument)}; put a text of several words into quotes"


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # SIGHUP comes because the terminal is gone
        print(f"psyco-ray: {sentence}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="psyco-ray",
        description="Preference learning for counselling responses, on Ray.",
        epilog="example:\n  psyco-ray demo jobs/demo.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"psyco-ray {_version()}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add(subparsers)
    return parser


def _version() -> str:
    try:
        return version("psyco-ray")
    except PackageNotFoundError:  # a submitted job runs from its uploaded directory
        return "(not installed)"
