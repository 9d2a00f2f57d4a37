"""The commands for a run in progress: ``status`` and ``scale``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from psyco_ray.cli.arguments import add_command
from psyco_ray.config.errors import InputError
from psyco_ray.run import throughput
from psyco_ray.run.status import ROLES, read_status, request_scale, silent_s


def add(subparsers: Any) -> None:
    """Adds the commands."""
    where = "its run directory, a path or a URI"
    command = add_command(
        subparsers, "status", status, "print a run's stage, progress and actors", "psyco-ray status runs/demo"
    )
    command.add_argument("run_dir", metavar="RUN", help=where)
    command = add_command(
        subparsers, "scale", scale, "give a run more or fewer actors", "psyco-ray scale runs/demo rollouts=6 scorers=2"
    )
    command.add_argument("run_dir", metavar="RUN", help=where)
    command.add_argument("counts", nargs="+", metavar="ROLE=NUMBER", help="such as rollouts=6")


def status(_: None, options: argparse.Namespace) -> int:
    """Prints the state of a run."""
    print(describe(options.run_dir))
    return 0


def scale(_: None, options: argparse.Namespace) -> int:
    """Requests other numbers of actors for a run."""
    request_scale(options.run_dir, parse_counts(options.counts))
    print(f"requested; psyco-ray status {options.run_dir} shows the actors")
    return 0


def describe(run: str | Path) -> str:
    """The state of a run in a few lines for a terminal.

    Args:
        run: its directory, a path or a URI.

    Raises:
        InputError: no run has been started there.
    """
    record = read_status(run)
    state = record["state"]
    if state == "going on" and (age := silent_s(run, record)):
        state = f"its driver last reported {age:.0f} s ago; continue with --resume"
    done = f", {record['done']} of {record['total']}" if record.get("total") else ""
    lines = [f"{run}: {state}", f"stage: {record['stage'] or 'starting'}{done}; policy version {record['version']}"]
    if "now" in record and record["state"] == "going on":
        lines.append(throughput.describe(record["now"]))
    for role, actors in record["pools"].items():
        requested = f" ({record['wanted'][role]} requested)" if role in record["wanted"] else ""
        lines.append(f"{role}: {len(actors)}{requested}")
        for actor in actors:
            idle = "" if actor["idle_share"] is None else f", idle {100 * actor['idle_share']:.0f} %"
            lines.append(
                f"  {actor['member']:>3}  {actor['state']:<10}{actor['seconds']:>7.0f} s  version {actor['version']}, "
                f"{actor['items']} items{idle}, replaced {actor['restarts']} times, {actor['node'] or 'no node yet'}"
            )
    return "\n".join(lines)


def parse_counts(arguments: list[str]) -> dict[str, int]:
    """Numbers of actors by role, from arguments ROLE=NUMBER.

    Raises:
        InputError: an argument has another form.
    """
    counts: dict[str, int] = {}
    for argument in arguments:
        role, _, count = argument.partition("=")
        if role not in ROLES or not count.isdecimal() or int(count) < 1:
            raise InputError(
                f"{argument!r} is not of the form ROLE=NUMBER with a role of {', '.join(ROLES)}, such as rollouts=6"
            )
        counts[role] = int(count)
    return counts
