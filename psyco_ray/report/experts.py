"""Blind evaluation by experts: a page with the paper's figures 2 and 3, and the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.report import figures
from psyco_ray.report.render import DASH, decimal, decimal_interval, percent, percent_interval, plain, render, thousands
from psyco_ray.report.tables import Table, of_rows
from psyco_ray.run import storage

_OUTCOMES = {"wins": figures.SERIES[0], "ties": figures.NEUTRAL, "losses": figures.SERIES[1]}
_SIDES = {"policy": (figures.SERIES[0], "o", -0.12), "opponent": (figures.SERIES[1], "s", 0.12)}
"""Color, marker and vertical offset of each side's scores."""

_HEIGHT = 3.4  # inches


def write_report(results: Mapping[str, Any], out: Path) -> None:
    """Write ``report.html``, ``experts.md`` and ``experts.json``.

    Args:
        results: of `evaluate.experts.score`.
        out: directory for the three files.
    """
    comparisons = [
        {
            "name": name,
            "pairs": comparison["items"],
            "overall": comparison["preferences"]["overall"],
            "figure2": _figure2(name, comparison["preferences"]),
            "figure3": _figure3(name, comparison["scores"]),
            "tables": [_preferences(comparison), _scores(comparison)],
        }
        for name, comparison in results["comparisons"].items()
    ]
    page = render(
        "experts.html", results, shown=comparisons, tables=[t for t in (_agreement(results), _judge(results)) if t.rows]
    )
    storage.write_text(out / "report.html", page)
    storage.write_text(out / "experts.md", markdown(results))
    storage.write_text(out / "experts.json", json.dumps(results, indent=1, allow_nan=False) + "\n")


def markdown(results: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    parts = ["# Experts' evaluation"]
    for name, comparison in results["comparisons"].items():
        tables = (_preferences(comparison), _scores(comparison))
        parts += [f"## {plain(name)}: {comparison['items']} pairs", *map(_titled, tables)]
    parts += ["## Agreement", *[_titled(table) for table in (_agreement(results), _judge(results)) if table.rows]]
    return "\n\n".join(parts) + "\n"


def _titled(table: Table) -> str:
    return f"### {plain(table.title)}\n\n{table.markdown()}"


def _preferences(comparison: Mapping[str, Any]) -> Table:
    rows = []
    for aspect, outcomes in comparison["preferences"].items():
        shares = [_share(outcomes and outcomes[outcome]) for outcome in _OUTCOMES]
        rows.append([aspect, thousands(outcomes["items"]) if outcomes else "0", *shares])
    columns = ["Policy, %", "pairs", "wins (95 %)", "ties (95 %)", "losses (95 %)"]
    return of_rows("Preferences", columns, rows, columns[:1])


def _share(outcome: Mapping[str, Any] | None) -> str:
    return f"{percent(outcome['share'])} ({percent_interval(outcome['wilson95'])})" if outcome else DASH


def _scores(comparison: Mapping[str, Any]) -> Table:
    rows = [[principle, *[_mean(sides[side]) for side in _SIDES]] for principle, sides in comparison["scores"].items()]
    columns = ["Mean (95 %)", *_SIDES]
    return of_rows("Scores, 1 to 5", columns, rows, columns[:1])


def _mean(score: Mapping[str, Any] | None) -> str:
    return f"{decimal(score['mean'], 2)} ({decimal_interval(score['ci95'], 2)})" if score else DASH


def _agreement(results: Mapping[str, Any]) -> Table:
    rows = [
        [f"{aspect}, {kind}", thousands(measures["percent"]["items"]), *_measures(measures)]
        for kind, key in (("preference", "preferences"), ("score", "scores"))
        for aspect, measures in results["agreement"][key].items()
    ]
    columns = ["Between the experts", "cases", "equal, % (95 %)", "kappa (95 %)", "alpha (95 %)"]
    return of_rows("Between the experts", columns, rows, columns[:1])


def _judge(results: Mapping[str, Any]) -> Table:
    """Agreement of the experts with the judge; the last row is the paper's. Without rows if no verdicts were given."""
    rows = []
    by_comparison = {name: comparison["judge"] for name, comparison in results["comparisons"].items()}
    for name, judged in {**by_comparison, "all comparisons": results["judge"]}.items():
        if judged:
            share = f"{percent(judged['share'])} ({percent_interval(judged['ci95'])})"
            rows.append([f"{name}, both experts", thousands(judged["items"]), share, DASH, DASH])
            for expert, measures in judged["experts"].items():
                rows.append([f"{name}, {expert}", thousands(measures["percent"]["items"]), *_measures(measures)])
    if rows:
        rows.append(["the paper's judge and experts", "200", percent(results["paper"]), DASH, DASH])
    columns = ["With the judge, overall", "pairs", "equal, % (95 %)", "kappa (95 %)", "alpha (95 %)"]
    return of_rows("With the judge", columns, rows, columns[:1])


def _measures(measures: Mapping[str, Any]) -> list[str]:
    """Percent agreement, kappa and alpha, each with its interval."""
    texts = []
    for key, value, interval in (
        ("percent", percent, percent_interval),
        ("kappa", lambda x: decimal(x, 2), lambda x: decimal_interval(x, 2)),
        ("alpha", lambda x: decimal(x, 2), lambda x: decimal_interval(x, 2)),
    ):
        measure = measures[key]
        bounds = (measure["low"], measure["high"])
        texts.append(DASH if measure["value"] is None else f"{value(measure['value'])} ({interval(bounds)})")
    return texts


def _figure2(name: str, preferences: Mapping[str, Any]) -> str:
    """Shares of wins, ties and losses, a bar for each aspect; a line marks the interval of the wins."""
    figure, axes = figures.new(height=_HEIGHT)
    described = []
    for place, (aspect, outcomes) in enumerate(preferences.items()):
        if not outcomes:
            continue
        left = 0.0
        for outcome, color in _OUTCOMES.items():
            share = 100 * outcomes[outcome]["share"]
            axes.barh(place, share, left=left, color=color, height=0.7)
            left += share
        low, high = (100 * bound for bound in outcomes["wins"]["wilson95"])
        for color, width in ((figures.PAGE, 3), (figures.TEXT, 1.2)):  # an outline keeps the line visible on the bar
            axes.plot([low, high], [place, place], color=color, linewidth=width)
        described.append(f"{aspect} {percent(outcomes['wins']['share'])} %")
    _name_rows(axes, list(preferences))
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of pairs (%)")
    return figures.svg(
        figure, f"Share of pairs of {name} in which the policy is preferred: {', '.join(described) or 'none yet'}."
    )


def _figure3(name: str, scores: Mapping[str, Any]) -> str:
    """Mean scores with their intervals, policy above opponent."""
    figure, axes = figures.new(height=_HEIGHT)
    described = []
    for side, (color, marker, offset) in _SIDES.items():
        for place, (principle, sides) in enumerate(scores.items()):
            if score := sides[side]:
                axes.plot(score["ci95"], [place + offset] * 2, color=color, linewidth=1)
                axes.plot(score["mean"], place + offset, color=color, marker=marker, markersize=5)
                described.append(f"{principle}, {side} {score['mean']:.2f}")
    _name_rows(axes, list(scores))
    axes.set_xlim(0.9, 5.1)
    axes.set_xlabel("mean score (1 to 5)")
    return figures.svg(figure, f"Mean scores of {name} from 1 to 5: {'; '.join(described) or 'none yet'}.")


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
