"""Accuracy and calibration of reward models: a page and the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psyco_ray.report import figures, reward_tables
from psyco_ray.report.render import render
from psyco_ray.run import storage


def write_report(results: Mapping[str, Any], out: Path) -> None:
    """Write ``report.html`` and ``tables.md``.

    Args:
        results: of an evaluation: `name`, `seed`, `versions`, `tests` and `models`; each model has its measures by
            test (`metrics.measure` or `metrics.ranked`) and on the benchmark (`rewardbench.bench`, `bench_ranked`).
        out: directory for both files.
    """
    page = render(
        "reward_models.html",
        results,
        tables=reward_tables.layout(results),
        note=reward_tables.note(results),
        best=_best(results),
        measured={test["name"]: _measured(results, test["name"]) for test in results["tests"]},
        bench=_bench(results),
    )
    storage.write_text(out / "report.html", page)
    storage.write_text(out / "tables.md", reward_tables.markdown(results))


def _best(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Our most accurate reward model on the first test, with its measures there; None if none was tested."""
    for test in results["tests"][:1]:
        ours = [
            {"model": model["name"], "test": test["name"], **model["tests"][test["name"]]}
            for model in results["models"]
            if model["group"] == "ours" and test["name"] in model["tests"]
        ]
        return max(ours, key=lambda row: row["accuracy"], default=None)
    return None


def _measured(results: Mapping[str, Any], test: str) -> list[dict[str, Any]]:
    """The measures of every model on a test; those of reward models with two figures."""
    measured = []
    for model in results["models"]:
        if test not in model["tests"]:
            continue
        measures = {"model": model["name"], "group": model["group"], **model["tests"][test]}
        if model["group"] != "ranker":
            measures |= {"reliability_figure": _reliability(measures), "histogram_figure": _histogram(measures)}
        measured.append(measures)
    return measured


def _bench(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The benchmark with a column for each model: rows of sections, each followed by its subsets."""
    models = [model for model in results["models"] if model["rewardbench"]]
    if not models:
        return None
    by_model = [model["rewardbench"] for model in models]
    sections: dict[str, dict[str, None]] = {}  # subsets in the order of their first appearance
    for bench in by_model:
        for subset, row in bench["subsets"].items():
            sections.setdefault(row["section"], {})[subset] = None
    rows = []
    for section, subsets in sections.items():
        rows.append(_bench_row("section", section, [bench["sections"].get(section) for bench in by_model]))
        if list(subsets) != [section]:
            rows += [_bench_row("subset", s, [bench["subsets"].get(s) for bench in by_model]) for s in subsets]
    return {"models": [model["name"] for model in models], "rows": rows, "by_model": by_model}


def _bench_row(kind: str, name: str, by_model: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "pairs": max(row["pairs"] for row in by_model if row),
        "accuracies": [row["accuracy"] if row else None for row in by_model],
    }


def _reliability(measures: Mapping[str, Any]) -> str:
    """Share of responses that are the better ones by predicted probability, before and after calibration."""
    figure, axes = figures.new()
    axes.plot([0, 1], [0, 1], color=figures.MUTED, linewidth=0.8, linestyle="--")
    curves = {"uncalibrated": measures["reliability"]}
    if measures.get("calibrated"):
        curves["calibrated"] = measures["calibrated"]["reliability"]
    for (title, bins), color, marker in zip(curves.items(), figures.SERIES, "os", strict=False):
        filled = [row for row in bins if row["count"]]
        probabilities = [row["probability"] for row in filled]
        shares = [row["right"] for row in filled]
        axes.plot(probabilities, shares, color=color, marker=marker, markersize=4, label=title)
    axes.set_xlabel("predicted probability of being better")
    axes.set_ylabel("share that is better")
    figures.legend(figure, 2)
    description = f"Reliability diagram of {measures['model']}: ECE {measures['ece10']:.3f} with 10 bins"
    if measures.get("calibrated"):
        description += f", {measures['calibrated']['ece10']:.3f} after calibration"
    return figures.svg(figure, f"{description}.")


def _histogram(measures: Mapping[str, Any]) -> str:
    """Rewards of chosen and of rejected responses."""
    figure, axes = figures.new()
    edges = np.array(measures["histogram"]["edges"])
    centers = (edges[1:] + edges[:-1]) / 2
    means = {}
    for side, color in zip(("chosen", "rejected"), figures.SERIES, strict=False):
        counts = measures["histogram"][side]
        axes.stairs(counts, edges, fill=True, alpha=0.45, color=color)
        axes.stairs(counts, edges, color=color, label=side)
        means[side] = float(np.average(centers, weights=counts))
    axes.set_xlabel("reward (model's own scale)")
    axes.set_ylabel("responses")
    figures.legend(figure, 2)
    description = (
        f"Histogram of the rewards of {measures['model']}: chosen around {means['chosen']:.2f}, rejected "
        f"around {means['rejected']:.2f}."
    )
    return figures.svg(figure, description)
