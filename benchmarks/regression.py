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

from psyco_ray.config.errors import INPUT_ERROR, InputError
from psyco_ray.config.job_file import Section, parse

TOLERANCE = 0.15  # share by which a ratio may get worse; machines are shared and noisy


class BaselineRatio(Section):
    """A ratio and the direction in which it improves."""

    ratio: float
    better: Literal["higher", "lower"]


class Baseline(Section):
    """How and where a benchmark ran, and its ratios by the `name` of its lines."""

    arguments: str = ""
    device: str
    date: str
    ratios: dict[str, BaselineRatio]


@dataclass(frozen=True)
class Comparison:
    """A ratio of today beside its baseline."""

    name: str
    ratio: float
    baseline: float
    worse: bool
    reached: bool  # whether it reaches its bar


def load(directory: Path, names: Sequence[str] = ()) -> dict[str, Baseline]:
    """Reads the baselines of a directory of benchmarks.

    Args:
        directory: contains the scripts, and `baselines/` with a file for each.
        names: the scripts to load; empty: all.

    Raises:
        InputError: the directory has no baselines, a name is unknown, or a file is invalid.
    """
    files = {path.stem: path for path in sorted((directory / "baselines").glob("*.json"))}
    if not files:
        raise InputError(
            f"{directory}/baselines contains no *.json; run benchmarks/regression.py in a checkout of psyco_ray"
        )
    baselines = {}
    for name in names or files:
        if name not in files:
            raise InputError(f"no benchmark is named {name}; known are {', '.join(files)}")
        try:
            content = json.loads(files[name].read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"{files[name]} is not JSON: {error}") from None
        baselines[name] = parse(Baseline, content, str(files[name]))
    return baselines


def run(directory: Path, script: str, baseline: Baseline) -> list[Comparison]:
    """Runs a benchmark, prints its output, and compares its ratios with the baseline.

    Raises:
        InputError: the benchmark failed, or did not print a ratio of the baseline.
    """
    command = [sys.executable, str(directory / f"{script}.py"), *shlex.split(baseline.arguments)]
    print(f"== {shlex.join(command[1:])}", flush=True)
    results: dict[str, dict[str, Any]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            results |= {result["name"]: result for result in _results_in(line)}
    if process.returncode:
        raise InputError(f"{script}.py ended with exit code {process.returncode}; its output has the reason")
    for name in baseline.ratios:
        if name not in results:
            raise InputError(f"{script}.py printed no ratio {name}, which baselines/{script}.json has")
    return [compare(name, results[name], ratio) for name, ratio in baseline.ratios.items()]


def compare(name: str, result: dict[str, Any], baseline: BaselineRatio) -> Comparison:
    """Compares a result line with its baseline."""
    ratio = result["ratio"]
    change = ratio / baseline.ratio if baseline.better == "higher" else baseline.ratio / ratio
    return Comparison(name, ratio, baseline.ratio, worse=change < 1 - TOLERANCE, reached=bool(result["pass"]))


def updated(baseline: Baseline, comparisons: Sequence[Comparison], device: str, today: str) -> str:
    """The text of the baseline's file with the ratios of today."""
    ratios = {c.name: baseline.ratios[c.name].model_copy(update={"ratio": c.ratio}) for c in comparisons}
    update = baseline.model_copy(update={"ratios": ratios, "device": device, "date": today})
    return json.dumps(update.model_dump(mode="json"), indent=2) + "\n"


def format_comparisons(comparisons: Sequence[Comparison]) -> str:
    """Formats each comparison as a line."""
    return "\n".join(
        f"{c.name}: {c.ratio:g}, {c.baseline:g} before{', WORSE' if c.worse else ''}"
        f"{'' if c.reached else ', its bar is not reached'}"
        for c in comparisons
    )


def summary(comparisons: Sequence[Comparison]) -> str:
    """All comparisons as one JSON line."""
    ratios = [asdict(comparison) for comparison in comparisons]
    return json.dumps({"name": "bench", "ratios": ratios, "pass": not any(c.worse for c in comparisons)})


def _results_in(line: str) -> Iterator[dict[str, Any]]:
    """The result in a line of output, if there is one."""
    if line.startswith("{"):
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            return
        if isinstance(result, dict) and isinstance(result.get("ratio"), int | float):
            yield result


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks and returns the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as rollout (default: all with a baseline)")
    parser.add_argument("--update", metavar="DEVICE", help="write today's ratios as baselines, measured on this device")
    options = parser.parse_args(arguments)
    directory, comparisons = Path("benchmarks"), list[Comparison]()
    try:
        for script, baseline in load(directory, options.names).items():
            compared = run(directory, script, baseline)
            print(format_comparisons(compared), flush=True)
            comparisons += compared
            if options.update:
                text = updated(baseline, compared, options.update, date.today().isoformat())
                (directory / "baselines" / f"{script}.json").write_text(text, encoding="utf-8")
    except InputError as error:
        print(f"regression.py: {error}", file=sys.stderr)
        return INPUT_ERROR
    print(summary(comparisons))
    return int(any(comparison.worse for comparison in comparisons))


if __name__ == "__main__":
    sys.exit(main())
