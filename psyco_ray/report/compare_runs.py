"""Training runs side by side: figure 4 of the paper with its intervals, and win rates as in its table 3."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.report import figures
from psyco_ray.report.render import environment, markdown_table, plain

SETTINGS = {"free": "w/o length constraint", "matched": "w/ length constraint"}
"""The paper's titles of what policies are asked for, by the name that results give them."""

_JUDGES = {"heldout": "the reward model that only judges", "reward": "the reward model that trains the policy"}
_COLORS = ("#1f6375", "#c2572f", "#7a5ea8", "#5d8a2a", "#b03060", "#8a6d1f", "#3b6fd4", "#666666")  # a ninth run begins
_MARKERS = "osD^vPX*"  # again
_SIZE = (3.4, 2.9)  # inches: as wide as a phone
_DASH = "–"

_Table = dict[str, Any]


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write ``compare.html``, ``compare.md`` and ``compare.json``.

    Args:
        results: of `evaluate.compare.compare`.
        out: directory for the three.
    """
    out.mkdir(parents=True, exist_ok=True)
    page = environment(escape=True).get_template("compare.html")
    runs = results["runs"]
    shown = {
        "names": list(runs),
        "colors": [_COLORS[place % len(_COLORS)] for place in range(len(runs))],
        "notes": results["notes"],
        "judge": _JUDGES[results["judge"]],
        "speeches": results["shared_speeches"],
        "best": _best(results),
        "figures": _figure4(runs) if runs else [],
        "tables": layout(results),
    }
    (out / "compare.html").write_text(page.render(shown), encoding="utf-8")
    (out / "compare.md").write_text(markdown(results), encoding="utf-8")
    (out / "compare.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def layout(results: Mapping[str, Any]) -> list[_Table]:
    """The tables, ready to be printed: `title`, `columns`, `words` (columns without figures), `rows` of texts, `note`.

    Only those that have rows.
    """
    made = [_checkpoints(results), _pairs(results), _differences(results), *_table3(results["policies"])]
    return [table for table in made if table["rows"]]


def markdown(results: Mapping[str, Any]) -> str:
    """The tables and notes as Markdown."""
    parts = ["# Runs side by side", *[f"- {plain(note)}" for note in results["notes"]]]
    if results["runs"]:
        parts.insert(1, f"Judge: {_JUDGES[results['judge']]}.")
    for table in layout(results):
        parts += [
            f"## {table['title']}",
            markdown_table(table["columns"], table["rows"], table["words"]),
            table["note"],
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _best(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run whose final checkpoint beats its base model most often, where all have one judge and one base."""
    runs = results["runs"]
    comparable = len(results["pairs"]) == len(runs) * (len(runs) - 1) // 2
    if not runs or not comparable or len({run["base"] for run in runs.values()}) > 1:
        return None
    name = max(runs, key=lambda name: runs[name]["final"]["win_rate"])
    return {"name": name, **runs[name]["final"]}


def _checkpoints(results: Mapping[str, Any]) -> _Table:
    rows = [
        [
            name if which == "final" else "",
            f"{which}, iteration {point['iteration']}",
            f"{point['step']:,}",
            _per_cent(point["win_rate"]),
            _interval(point["win_rate_ci95"], _per_cent) if point["iteration"] else _DASH,
            f"{point['reward']:.3f}",
            _interval(point["reward_ci95"], "{:.3f}".format),
            f"{point['length_ratio']:.2f}",
        ]
        for name, run in results["runs"].items()
        for which, point in (("final", run["final"]), ("best", run["best"]))
    ]
    columns = ["Run", "Checkpoint", "Steps", "Win rate, %", "95 % of it", "Reward", "95 % of that", "Length ratio"]
    note = (
        "Win rate: how often an answer scores above the base model's, ties as half. Best: the highest mean reward; it "
        "is chosen on the speeches that it is shown on, which flatters it. Iteration 0 is the base model."
    )
    return {"title": "Checkpoints", "columns": columns, "words": columns[:2], "rows": rows, "note": note}


def _pairs(results: Mapping[str, Any]) -> _Table:
    rows = [
        [
            pair["a"],
            pair["b"],
            which,
            f"{found['speeches']:,}",
            f"{found['wins']:,}",
            f"{found['ties']:,}",
            f"{found['losses']:,}",
            _p(found["p"]),
            f"{found['difference']:+.3f}",
            _interval(found["ci95"], "{:+.3f}".format),
        ]
        for pair in results["pairs"]
        for which, found in (("final", pair["final"]), ("best", pair["best"]))
    ]
    columns = ["A", "B", "Checkpoints", "Speeches", "A better", "Equal", "B better", "p", "Reward, A less B", "95 %"]
    note = (
        "By the speeches that both runs answered. p: exact two-sided sign test without the equal ones, not corrected "
        "for the number of comparisons."
    )
    return {"title": "Runs in pairs", "columns": columns, "words": columns[:3], "rows": rows, "note": note}


def _differences(results: Mapping[str, Any]) -> _Table:
    names = list(results["runs"])
    rows = [[row["setting"], *[_setting(row["values"][name]) for name in names]] for row in results["differences"]]
    columns = ["Setting", *names]
    return {"title": "Settings that differ", "columns": columns, "words": columns, "rows": rows, "note": ""}


def _table3(policies: Sequence[Mapping[str, Any]]) -> Iterable[_Table]:
    """Win rates against the opponent, a table for each setting."""
    for setting in dict.fromkeys(row["setting"] for row in policies):
        of = [row for row in policies if row["setting"] == setting]
        topics = list(dict.fromkeys(topic for row in of for topic in row["topics"]))
        rows = [
            [
                row["policy"],
                row["run"],
                row["opponent"],
                *[_per_cent(row["topics"][topic]) if topic in row["topics"] else _DASH for topic in topics],
                _per_cent(row["overall"]),
                _interval(row["wilson95"], _per_cent),
            ]
            for row in of
        ]
        columns = ["Model", "Run", "Opponent", *topics, "Overall", "95 %"]
        title = f"Win rates, %, {SETTINGS.get(setting, setting)}"
        yield {"title": title, "columns": columns, "words": columns[:3], "rows": rows, "note": ""}


def _figure4(runs: Mapping[str, Any]) -> list[dict[str, str]]:
    """Win rate, mean reward and length ratio by optimizer step, a curve for each run."""
    kinds = (
        ("win_rate", 100, "win rate, %", 50, "How often the answer scores above the base model's. Bars: 95 % Wilson."),
        ("reward", 1, "mean reward", None, "Mean reward on the held-out speeches. Bars: 95 % bootstrap by speech."),
        ("length_ratio", 1, "length ratio", 1, "Tokens of an answer, in multiples of the base model's."),
    )
    found = []
    for key, unit, title, level, caption in kinds:
        figure, axes = figures.new(*_SIZE)
        for place, run in enumerate(runs.values()):
            curve = run["curve"]
            means = [unit * point[key] for point in curve]
            spans = [
                [abs(unit * bound - mean) for bound in point.get(f"{key}_ci95", ())]
                for point, mean in zip(curve, means, strict=True)
            ]
            axes.errorbar(
                [point["step"] for point in curve],
                means,
                yerr=list(zip(*spans, strict=True)) or None,
                color=_COLORS[place % len(_COLORS)],
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=4,
                capsize=2,
                linewidth=1.3,
                elinewidth=0.8,
            )
        if level is not None:
            axes.axhline(level, color="#999999", linewidth=0.8, linestyle="--")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(title)
        found.append({"title": title, "svg": figures.svg(figure), "caption": caption})
    return found


def _setting(value: Any) -> str:
    """A setting as text; of a file only the name is told, not where it lay."""
    if value is None:
        return _DASH
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else str(value)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(bounds: Sequence[float], form: Any) -> str:
    low, high = bounds
    return f"{form(low)} to {form(high)}"
