"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.job_file import Section
from psyco_ray.config.names import setting

Run = Callable[[Any, argparse.Namespace], int]


def add_command(
    subparsers: Any, name: str, run: Run, summary: str, example: str, job: type[Section] | None = None
) -> argparse.ArgumentParser:
    """Adds a command with ``-v`` and ``-q``.

    Args:
        subparsers: where it is added.
        name: the word that calls it.
        run: receives the job (None for a command without one) and the options; returns the exit code.
        summary: one line for ``--help``.
        example: a command line for ``--help``.
        job: the kind of job file it reads.
    """
    command = subparsers.add_parser(name, allow_abbrev=False, **_texts(summary, example))
    command.set_defaults(run=run, kind=job)
    volume = command.add_mutually_exclusive_group()
    volume.add_argument(
        "-v", "--verbose", action="store_const", const=1, default=0, dest="verbosity", help="log details"
    )
    volume.add_argument("-q", "--quiet", action="store_const", const=-1, dest="verbosity", help="log warnings only")
    return command


def add_group(subparsers: Any, name: str, summary: str, metavar: str, example: str) -> Any:
    """Adds a command that consists of commands; returns where those are added."""
    group = subparsers.add_parser(name, **_texts(summary, example))
    return group.add_subparsers(required=True, metavar=metavar)


def add_job(command: argparse.ArgumentParser, override: str, *, optional: bool = False) -> None:
    """Adds the job file, overrides of its keys and the Ray cluster."""
    command.add_argument("job", metavar="JOB.yaml", nargs="?" if optional else None, help="the job file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {override}")
    command.add_argument("--address", help="a Ray cluster (default: $RAY_ADDRESS, else a local one)")


def by_name(arguments: list[str], what: str) -> dict[str, str]:
    """Files by their names, from arguments NAME=FILE.

    Raises:
        InputError: an argument has another form, or a name comes twice.
    """
    files: dict[str, str] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise InputError(f"{what} {setting(argument)} is not of the form NAME=FILE, such as free=responses.parquet")
        if name in files:
            raise InputError(f"{what} names {name} twice; give each file its own name")
        files[name] = path
    return files


def _texts(summary: str, example: str) -> dict[str, Any]:
    return {
        "help": summary,
        "description": summary,
        "epilog": f"example:\n  {example}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
