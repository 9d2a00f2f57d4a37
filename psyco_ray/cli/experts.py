"""The commands ``evaluate-experts export`` and ``score``: two experts compare a policy with its opponent, blind."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from psyco_ray.cli.arguments import add_command, add_group, by_name


def add(subparsers: Any) -> None:
    """Adds the commands."""
    export_example = "psyco-ray evaluate-experts export free=ours.parquet --opponent theirs.parquet --out runs/experts"
    summary = "let two experts compare a policy with its opponent, blind"
    steps = add_group(subparsers, "evaluate-experts", summary, "STEP", export_example)
    command = add_command(steps, "export", export, "write a blind CSV for each of two experts", export_example)
    command.add_argument(
        "responses", nargs="+", metavar="NAME=FILE", help="a comparison's name and the policy's responses in it"
    )
    command.add_argument("--opponent", required=True, metavar="FILE", help="the opponent's responses")
    command.add_argument("--out", type=Path, default=Path("runs/experts"), help="directory (default: runs/experts)")
    command.add_argument("--count", type=int, default=100, help="pairs of each comparison (default: 100)")
    command.add_argument("--seed", type=int, default=0, help="of draw, sides and order (default: 0)")
    command = add_command(
        steps,
        "score",
        score,
        "report preferences, scores and agreement from the filled CSVs",
        "psyco-ray evaluate-experts score runs/experts",
    )
    command.add_argument("directory", type=Path, help="where export wrote")
    command.add_argument(
        "--verdicts", nargs="+", default=[], metavar="NAME=FILE", help="a comparison's name and a judge's choices in it"
    )


def export(_: None, options: argparse.Namespace) -> int:
    """Writes the experts' files."""
    from psyco_ray.evaluate import experts

    policies = by_name(options.responses, "responses")
    experts.export(policies, options.opponent, options.out, options.count, options.seed)
    print(f"{options.out / 'expert-1.csv'} and expert-2.csv are for the experts; keep key.json to yourself")
    return 0


def score(_: None, options: argparse.Namespace) -> int:
    """Reports what the experts filled in."""
    from psyco_ray.evaluate import experts
    from psyco_ray.report import experts as report

    scores = experts.score(options.directory, by_name(options.verdicts, "--verdicts"))
    report.write_report(scores, options.directory)
    print(report.markdown(scores))
    print(f"report: {options.directory / 'report.html'}")
    return 0
