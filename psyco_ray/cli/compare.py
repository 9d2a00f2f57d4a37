"""The command ``compare``: training runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from psyco_ray.cli.arguments import add_command
from psyco_ray.config.errors import InputError
from psyco_ray.config.keys import refuse_key
from psyco_ray.run import storage
from psyco_ray.run.remote import is_remote


def add(subparsers: Any) -> None:
    """Adds the command."""
    command = add_command(
        subparsers,
        "compare",
        compare,
        "compare training runs by their held-out judge, and policies' win rates",
        "psyco-ray compare runs/psyco-3b runs/psyco-3b-dpo --out runs/compare",
    )
    command.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, finished or not")
    command.add_argument("--out", type=Path, default=Path("runs/compare"), help="directory (default: runs/compare)")


def compare(_: None, options: argparse.Namespace) -> int:
    """Reports training runs side by side."""
    from psyco_ray.evaluate import compare_runs
    from psyco_ray.report import compare_runs as report

    for run in options.runs:
        refuse_key(run)
        if is_remote(run):
            raise InputError(
                f"{run.partition('?')[0]} is remote, and compare reads local directories; copy the run's *.json and "
                "job.yaml here, in their directories, and name the copy"
            )
    comparison = compare_runs.compare([storage.local_path(run) for run in options.runs])
    report.write_report(comparison, options.out)
    print(report.markdown(comparison))
    print(f"report: {options.out / 'compare.html'}")
    return 0
