"""Runs the benchmarks of a checkout and compares their ratios with the baselines.

    .venv/bin/python benchmarks/regression.py [NAME ...] [--update DEVICE]

Without a name it runs every benchmark that has a baseline. --update writes today's ratios as the new baselines, with
the name of the device. Exits with 1 if a ratio is worse than its baseline by more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from psyco_ray.config.job_file import Section, parse

WORSE = 0.15  # a ratio may get so much worse before it is flagged: machines are shared and noisy


class Ratio(Section):
    """What a benchmark's line gave, and which way is up."""

    ratio: float
    better: Literal["higher", "lower"]


class Baseline(Section):
    """How a benchmark was run, on what, and its ratios by the `name` in its lines."""

    arguments: str = ""
    device: str
    date: str
    ratios: dict[str, Ratio]


@dataclass(frozen=True)
class Found:
    """A ratio of today beside that of the baseline."""

    name: str
    ratio: float
    baseline: float
    worse: bool
    reached: bool  # its bar


def load(directory: Path, wanted: Sequence[str] = ()) -> dict[str, Baseline]:
    """The baselines of a directory of benchmarks, by script.

    Raises:
        ValueError: there are none, a wanted one is not there, or a file is none.
    """
    files = {path.stem: path for path in sorted((directory / "baselines").glob("*.json"))}
    if not files:
        raise ValueError(
            f"{directory}/baselines holds no *.json; run benchmarks/regression.py in a checkout of psyco_ray"
        )
    for name in wanted:
        if name not in files:
            raise ValueError(f"no benchmark is named {name}; known are {', '.join(files)}")
    found = {}
    for name in wanted or files:
        try:
            found[name] = parse(Baseline, json.loads(files[name].read_text(encoding="utf-8")), str(files[name]))
        except json.JSONDecodeError as error:
            raise ValueError(f"{files[name]} is no JSON: {error}") from None
    return found


def run(directory: Path, script: str, baseline: Baseline) -> list[Found]:
    """Run a benchmark, show what it prints, and compare its ratios.

    Raises:
        ValueError: it failed, or did not print a ratio that the baseline has.
    """
    command = [sys.executable, str(directory / f"{script}.py"), *shlex.split(baseline.arguments)]
    print(f"== {shlex.join(command[1:])}", flush=True)
    ratios: dict[str, dict[str, Any]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            ratios |= {found["name"]: found for found in _result(line)}
    if process.returncode:
        raise ValueError(f"{script}.py ended with exit code {process.returncode}; what it printed says why")
    for name in baseline.ratios:
        if name not in ratios:
            raise ValueError(f"{script}.py printed no ratio {name}, which baselines/{script}.json has")
    return [compare(name, ratios[name], was) for name, was in baseline.ratios.items()]


def compare(name: str, line: dict[str, Any], was: Ratio) -> Found:
    """A benchmark's line beside what it gave before."""
    ratio = line["ratio"]
    change = ratio / was.ratio if was.better == "higher" else was.ratio / ratio
    return Found(name, ratio, was.ratio, worse=change < 1 - WORSE, reached=bool(line["pass"]))


def renewed(baseline: Baseline, found: Sequence[Found], device: str, today: str) -> str:
    """The baseline's file with the ratios of today."""
    ratios = {one.name: baseline.ratios[one.name].model_copy(update={"ratio": one.ratio}) for one in found}
    renewed_baseline = baseline.model_copy(update={"ratios": ratios, "device": device, "date": today})
    return json.dumps(renewed_baseline.model_dump(mode="json"), indent=2) + "\n"


def format_ratios(found: Sequence[Found]) -> str:
    """A line for each ratio."""
    return "\n".join(
        f"{one.name}: {one.ratio:g}, {one.baseline:g} before{', WORSE' if one.worse else ''}"
        f"{'' if one.reached else ', its bar is not reached'}"
        for one in found
    )


def summary(found: Sequence[Found]) -> str:
    """All of it as one JSON line."""
    return json.dumps(
        {"name": "bench", "ratios": [asdict(one) for one in found], "pass": not any(f.worse for f in found)}
    )


def _result(line: str) -> Iterator[dict[str, Any]]:
    """What a line says, if it is a benchmark's result."""
    if line.startswith("{"):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            return
        if isinstance(found, dict) and isinstance(found.get("ratio"), int | float):
            yield found


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as rollout (default: all with a baseline)")
    parser.add_argument("--update", metavar="DEVICE", help="write today's ratios as baselines, measured on this device")
    options = parser.parse_args(arguments)
    directory, results = Path("benchmarks"), []
    try:
        for script, baseline in load(directory, options.names).items():
            ratios = run(directory, script, baseline)
            print(format_ratios(ratios), flush=True)
            results += ratios
            if options.update:
                renewed_text = renewed(baseline, ratios, options.update, date.today().isoformat())
                (directory / "baselines" / f"{script}.json").write_text(renewed_text, encoding="utf-8")
    except ValueError as error:
        print(f"regression.py: {error}", file=sys.stderr)
        return 2
    print(summary(results))
    return int(any(one.worse for one in results))


if __name__ == "__main__":
    sys.exit(main())
