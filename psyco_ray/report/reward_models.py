"""How good the reward models are: a page and the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psyco_ray.report import figures, reward_tables
from psyco_ray.report.render import environment

_SIZE = (3.4, 2.9)  # inches: two figures side by side, or one as wide as a phone


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write ``report.html`` and ``tables.md``.

    Args:
        results: of an evaluation: `name`, `seed`, `versions`, `tests` and `models`, of which each has its figures by
            test (`metrics.measure` or `metrics.ranked`) and on the benchmark (`rewardbench.bench`, `bench_ranked`).
        out: directory for both.
    """
    page = environment(escape=True).get_template("reward.html")
    text = page.render(
        results,
        tables=reward_tables.layout(results),
        note=reward_tables.note(results),
        best=_best(results),
        measured={test["name"]: _measured(results, test["name"]) for test in results["tests"]},
        bench=_bench(results),
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(text, encoding="utf-8")
    (out / "tables.md").write_text(reward_tables.markdown(results), encoding="utf-8")


def _best(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Our most accurate reward model on the first test, with its figures there; None if none was tested."""
    for test in results["tests"][:1]:
        ours = [
            {"model": model["name"], "test": test["name"], **model["tests"][test["name"]]}
            for model in results["models"]
            if model["group"] == "ours" and test["name"] in model["tests"]
        ]
        return max(ours, key=lambda row: row["accuracy"], default=None)
    return None


def _measured(results: Mapping[str, Any], test: str) -> list[dict[str, Any]]:
    """Every model's figures on a test, those of a reward model drawn too."""
    found = []
    for model in results["models"]:
        if test in model["tests"]:
            figures_of = model["tests"][test]
            drawn = {} if model["group"] == "ranker" else {"drawn": [_reliability(figures_of), _histogram(figures_of)]}
            found.append({"model": model["name"], "group": model["group"], **figures_of, **drawn})
    return found


def _bench(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The benchmark with a column a model: rows of sections, each followed by its subsets."""
    models = [model for model in results["models"] if model["rewardbench"]]
    if not models:
        return None
    by_model = [model["rewardbench"] for model in models]
    sections: dict[str, list[str]] = {}
    for bench in by_model:
        for subset, row in bench["subsets"].items():
            names = sections.setdefault(row["section"], [])
            if subset not in names:
                names.append(subset)
    rows = []
    for section, subsets in sections.items():
        rows.append(_bench_row("section", section, [bench["sections"].get(section) for bench in by_model]))
        if subsets != [section]:
            rows += [_bench_row("subset", s, [bench["subsets"].get(s) for bench in by_model]) for s in subsets]
    return {"models": [model["name"] for model in models], "rows": rows, "by_model": by_model}


def _bench_row(kind: str, name: str, found: list[dict[str, Any] | None]) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "pairs": max(row["pairs"] for row in found if row),
        "accuracies": [row["accuracy"] if row else None for row in found],
    }


def _reliability(measured: Mapping[str, Any]) -> str:
    """How often a response was right by how probable the model found it, before and after calibration."""
    figure, axes = figures.new(*_SIZE)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle="--")
    curves = {"scores as they are": measured["reliability"]}
    if measured.get("calibrated"):
        curves["calibrated"] = measured["calibrated"]["reliability"]
    for title, bins in curves.items():
        filled = [row for row in bins if row["count"]]
        axes.plot(
            [r["probability"] for r in filled], [r["right"] for r in filled], marker="o", markersize=4, label=title
        )
    axes.set_xlabel("probability of being the better one")
    axes.set_ylabel("share that is")
    axes.legend(frameon=False, fontsize=8)
    return figures.svg(figure)


def _histogram(measured: Mapping[str, Any]) -> str:
    figure, axes = figures.new(*_SIZE)
    edges = np.array(measured["histogram"]["edges"])
    for side, color in (("chosen", "#2f7a8c"), ("rejected", "#c2572f")):
        axes.stairs(measured["histogram"][side], edges, fill=True, alpha=0.55, color=color, label=side)
    axes.set_xlabel("reward")
    axes.set_ylabel("responses")
    axes.legend(frameon=False, fontsize=8)
    return figures.svg(figure)
