"""What experts found of a policy and its opponent: a page with the paper's figures 2 and 3, and the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.report import figures
from psyco_ray.report.render import environment, markdown_table, plain

_ENDS = {"wins": "#1f6375", "ties": "#d9d5c7", "losses": "#c2572f"}
_SIDES = {"policy": ("#1f6375", "o", -0.12), "opponent": ("#c2572f", "s", 0.12)}  # color, marker, place in its row
_SIZE = (3.4, 3.4)  # inches: as wide as a phone
_DASH = "–"

_Table = dict[str, Any]


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write ``report.html``, ``experts.md`` and ``experts.json``.

    Args:
        results: of `evaluate.experts.score`.
        out: directory for the three.
    """
    comparisons = [
        {
            "name": name,
            "items": found["items"],
            "overall": found["preferences"]["overall"],
            "figure2": _figure2(found["preferences"]),
            "figure3": _figure3(found["scores"]),
            "tables": [_preferences(found), _scores(found)],
        }
        for name, found in results["comparisons"].items()
    ]
    page = environment(escape=True).get_template("experts.html")
    text = page.render(results, shown=comparisons, tables=[_agreement(results), _judge(results)])
    (out / "report.html").write_text(text, encoding="utf-8")
    (out / "experts.md").write_text(markdown(results), encoding="utf-8")
    (out / "experts.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def markdown(results: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    parts = ["# Experts' evaluation"]
    for name, found in results["comparisons"].items():
        parts += [f"## {plain(name)}: {found['items']} pairs", *map(_markdown, (_preferences(found), _scores(found)))]
    parts += ["## Agreement", *[_markdown(table) for table in (_agreement(results), _judge(results)) if table["rows"]]]
    return "\n\n".join(parts) + "\n"


def _markdown(table: _Table) -> str:
    return f"### {table['title']}\n\n{markdown_table(table['columns'], table['rows'], table['columns'][:1])}"


def _preferences(found: Mapping[str, Any]) -> _Table:
    rows = []
    for aspect, shares in found["preferences"].items():
        row = [_share(shares and shares[end]) for end in _ENDS]
        rows.append([aspect, f"{shares['items']:,}" if shares else "0", *row])
    columns = ["Policy, %", "pairs", "wins (95 %)", "ties (95 %)", "losses (95 %)"]
    return {"title": "Preferences", "columns": columns, "rows": rows}


def _share(found: Mapping[str, Any] | None) -> str:
    return f"{_per_cent(found['share'])} ({_interval(found['wilson95'], _per_cent)})" if found else _DASH


def _scores(found: Mapping[str, Any]) -> _Table:
    rows = [[principle, *[_mean(sides[side]) for side in _SIDES]] for principle, sides in found["scores"].items()]
    return {"title": "Scores, 1 to 5", "columns": ["Mean (95 %)", *_SIDES], "rows": rows}


def _mean(found: Mapping[str, Any] | None) -> str:
    return f"{found['mean']:.2f} ({_interval(found['ci95'], '{:.2f}'.format)})" if found else _DASH


def _agreement(results: Mapping[str, Any]) -> _Table:
    rows = [
        [f"{aspect}, {kind}", f"{found['percent']['items']:,}", *_measures(found)]
        for kind, by_aspect in (("preference", "preferences"), ("score", "scores"))
        for aspect, found in results["agreement"][by_aspect].items()
    ]
    columns = ["Between the experts", "cases", "equal, % (95 %)", "kappa (95 %)", "alpha (95 %)"]
    return {"title": "Between the experts", "columns": columns, "rows": rows}


def _judge(results: Mapping[str, Any]) -> _Table:
    """How far the experts choose as the judge does; the last row is the paper's."""
    rows = []
    of = {name: found["judge"] for name, found in results["comparisons"].items()}
    for name, found in {**of, "all comparisons": results["judge"]}.items():
        if found:
            share = f"{_per_cent(found['share'])} ({_interval(found['ci95'], _per_cent)})"
            rows.append([f"{name}, both experts", f"{found['items']:,}", share, _DASH, _DASH])
            for expert, own in found["experts"].items():
                rows.append([f"{name}, {expert}", f"{own['percent']['items']:,}", *_measures(own)])
    if rows:
        rows.append(["the paper's judge and experts", "200", _per_cent(results["paper"]), _DASH, _DASH])
    columns = ["With the judge, overall", "pairs", "equal, % (95 %)", "kappa (95 %)", "alpha (95 %)"]
    return {"title": "With the judge", "columns": columns, "rows": rows}


def _measures(found: Mapping[str, Any]) -> list[str]:
    """Percent, kappa and alpha as texts."""
    return [
        f"{form(of['value'])} ({_interval((of['low'], of['high']), form)})" if of["value"] is not None else _DASH
        for of, form in ((found["percent"], _per_cent), (found["kappa"], _decimal), (found["alpha"], _decimal))
    ]


def _figure2(preferences: Mapping[str, Any]) -> str:
    """Shares of wins, ties and losses, a bar for each aspect; the line on it is the interval of the wins."""
    figure, axes = figures.new(*_SIZE)
    for place, found in enumerate(preferences.values()):
        left = 0.0
        for end, color in _ENDS.items() if found else ():
            share = 100 * found[end]["share"]
            axes.barh(place, share, left=left, color=color, height=0.7, label=end)
            left += share
        if found:
            low, high = found["wins"]["wilson95"]
            axes.plot([100 * low, 100 * high], [place, place], color="#222222", linewidth=1)
    _rows(axes, list(preferences))
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of pairs, %")
    return figures.svg(figure)


def _figure3(scores: Mapping[str, Any]) -> str:
    """Mean scores with their intervals, policy above opponent."""
    figure, axes = figures.new(*_SIZE)
    for side, (color, marker, shift) in _SIDES.items():
        for place, sides in enumerate(scores.values()):
            if found := sides[side]:
                low, high = found["ci95"]
                axes.plot([low, high], [place + shift, place + shift], color=color, linewidth=1)
                axes.plot(found["mean"], place + shift, color=color, marker=marker, markersize=5)
    _rows(axes, list(scores))
    axes.set_xlim(0.9, 5.1)
    axes.set_xlabel("mean score, 1 to 5")
    return figures.svg(figure)


def _rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f}"


def _decimal(value: float) -> str:
    return f"{value:.2f}"


def _interval(bounds: Sequence[float], form: Any) -> str:
    low, high = bounds
    return f"{form(low)} to {form(high)}"
