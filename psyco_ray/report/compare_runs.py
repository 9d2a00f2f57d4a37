"""Training runs side by side: figure 4 of the paper with intervals, and win rates as in its table 3."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.report import figures
from psyco_ray.report.render import (
    DASH,
    basename,
    decimal,
    decimal_interval,
    percent,
    percent_interval,
    plain,
    render,
    thousands,
)
from psyco_ray.report.tables import Table, of_rows
from psyco_ray.run import storage

SETTINGS = {"free": "w/o length constraint", "matched": "w/ length constraint"}
"""Titles of the evaluation's variants, by their names."""

_JUDGES = {
    "judge": "the judge, a language model",
    "heldout": "the held-out reward model",
    "reward": "the reward model that trains the policy",
}
_WIN_RATES = {
    "judge": "Share of responses that the judge prefers to the base model's. Bars: 95 % Wilson.",
    "heldout": "Share of responses that score above the base model's. Bars: 95 % Wilson.",
    "reward": "Share of responses that score above the base model's. Bars: 95 % Wilson.",
}
_CURVES = (
    # key of a point, factor, axis label, reference level
    ("win_rate", 100, "win rate against base model (%)", 50),
    ("reward", 1, "mean reward (model's scale)", None),
    ("length_ratio", 1, "length ratio (tokens / base model's)", 1),
)


def write_report(results: Mapping[str, Any], out: Path) -> None:
    """Write ``compare.html``, ``compare.md`` and ``compare.json``.

    Args:
        results: of `evaluate.compare_runs.compare`.
        out: directory for the three files.
    """
    runs = results["runs"]
    page = render(
        "compare_runs.html",
        {
            "runs": runs,
            "notes": results["notes"],
            "judge": _JUDGES[results["judge"]],
            "speeches": results["shared_speeches"],
            "best": _best(results),
            "figures": _figure4(results) if runs else [],
            "policy_figures": _policy_figures(results["policies"]),
            "tables": layout(results),
            "series": len(figures.SERIES),
        },
    )
    storage.write_text(out / "compare.html", page)
    storage.write_text(out / "compare.md", markdown(results))
    storage.write_text(out / "compare.json", json.dumps(results, indent=1, allow_nan=False) + "\n")


def layout(results: Mapping[str, Any]) -> list[Table]:
    """All tables that have rows."""
    tables = [_checkpoints(results), _pairs(results), _differences(results), *_table3(results["policies"])]
    return [table for table in tables if table.rows]


def markdown(results: Mapping[str, Any]) -> str:
    """Tables and notes as Markdown."""
    parts = ["# Runs side by side", *[f"- {plain(note)}" for note in results["notes"]]]
    if results["runs"]:
        parts.insert(1, f"Judge: {_JUDGES[results['judge']]}.")
    for table in layout(results):
        parts += [f"## {plain(table.title)}", table.markdown(), plain(table.note)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _best(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run whose final checkpoint has the highest win rate; None unless all runs share one judge and one base."""
    runs = results["runs"]
    comparable = len(results["pairs"]) == len(runs) * (len(runs) - 1) // 2
    if not runs or not comparable or len({run["base"] for run in runs.values()}) > 1:
        return None
    name = max(runs, key=lambda name: runs[name]["final"]["win_rate"])
    return {"name": name, **runs[name]["final"]}


def _checkpoints(results: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            f"{which}, iteration {point['iteration']}",
            thousands(point["step"]),
            thousands(point["speeches"]),
            percent(point["win_rate"]),
            percent_interval(point["win_rate_ci95"]) if point["iteration"] else DASH,
            decimal(point["reward"]),
            DASH if point["reward"] is None else decimal_interval(point["reward_ci95"]),
            f"{point['length_ratio']:.2f}",
            percent(point["finished_share"]),
        ]
        for name, run in results["runs"].items()
        for which, point in (("final", run["final"]), ("best", run["best"]))
        if point is not None
    ]
    columns = ["Run", "Checkpoint", "Steps", "Speeches", "Win rate, %", "Win rate 95 %", "Reward", "Reward 95 %"]
    columns += ["Length ratio", "Finished, %"]
    chosen = list(dict.fromkeys(run["chosen_by"] for run in results["runs"].values() if run["chosen_by"]))
    note = (
        f"Win rate: against the base model by {_JUDGES[results['judge']]}, ties as half. Best: what the run chose"
        f"{f', by its {chosen[0]}' if len(chosen) == 1 else ''}; the same speeches chose it, which biases it upwards. "
        "Iteration 0 is the base model."
    )
    return of_rows("Checkpoints", columns, rows, columns[:2], note)


def _pairs(results: Mapping[str, Any]) -> Table:
    rows = [
        [
            pair["a"],
            pair["b"],
            which,
            thousands(pair[which]["speeches"]),
            thousands(pair[which]["wins"]),
            thousands(pair[which]["ties"]),
            thousands(pair[which]["losses"]),
            _p_value(pair[which]["p"]),
            f"{pair[which]['difference']:+.3f}",
            "{:+.3f} to {:+.3f}".format(*pair[which]["ci95"]),
        ]
        for pair in results["pairs"]
        for which in ("final", "best")
        if pair[which] is not None
    ]
    difference = "Win rate, A less B" if results["judge"] == "judge" else "Reward, A less B"
    columns = ["A", "B", "Checkpoints", "Speeches", "A better", "Equal", "B better", "p", difference, "95 %"]
    note = (
        "On the speeches that both runs answered. p: exact two-sided sign test without ties, not corrected for the "
        "number of comparisons."
    )
    return of_rows("Runs in pairs", columns, rows, columns[:3], note)


def _differences(results: Mapping[str, Any]) -> Table:
    names = list(results["runs"])
    rows = [[row["setting"], *[_setting(row["values"][name]) for name in names]] for row in results["differences"]]
    columns = ["Setting", *names]
    return of_rows("Settings that differ", columns, rows, columns)


def _table3(policies: Sequence[Mapping[str, Any]]) -> Iterable[Table]:
    """Win rates against the opponent, a table for each setting."""
    for setting in dict.fromkeys(policy["setting"] for policy in policies):
        evaluated = [policy for policy in policies if policy["setting"] == setting]
        topics = list(dict.fromkeys(topic for policy in evaluated for topic in policy["topics"]))
        rows = [
            [
                policy["policy"],
                policy["run"],
                policy["opponent"],
                DASH if policy["steps"] is None else thousands(policy["steps"]),
                thousands(policy["speeches"]),
                *[percent(policy["topics"].get(topic)) for topic in topics],
                percent(policy["crisis"]),
                percent(policy["overall"]),
                percent_interval(policy["wilson95"]),
                percent(policy["finished_share"]),
            ]
            for policy in evaluated
        ]
        columns = ["Model", "Run", "Opponent", "Steps", "Speeches", *topics, "Signs of a crisis", "Overall", "95 %"]
        columns.append("Finished, %")
        yield of_rows(f"Win rates, %, {SETTINGS.get(setting, setting)}", columns, rows, columns[:3])


def _figure4(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Win rate, mean reward and length ratio by optimizer step, a curve for each run."""
    runs, drawn = results["runs"], []
    captions = {
        "win_rate": _WIN_RATES[results["judge"]],
        "reward": f"Mean reward by {_JUDGES[results['reward_model']]}. Bars: 95 % bootstrap over speeches."
        if results["reward_model"]
        else "",
        "length_ratio": "Tokens per response, relative to the base model.",
    }
    for key, factor, label, level in _CURVES:
        if not captions[key]:
            continue
        figure, axes = figures.new()
        for number, run in enumerate(runs.values()):
            points = run["curve"]
            intervals = [tuple(factor * bound for bound in p[f"{key}_ci95"]) for p in points if f"{key}_ci95" in p]
            figures.curve(axes, [p["step"] for p in points], [factor * p[key] for p in points], intervals, number)
        if level is not None:
            axes.axhline(level, color=figures.MUTED, linewidth=0.8, linestyle="--")
        axes.set_ylabel(label)
        ends = "; ".join(
            f"{name}: from {factor * run['curve'][0][key]:.2f} to {factor * run['curve'][-1][key]:.2f}"
            for name, run in runs.items()
        )
        drawn.append({"svg": figures.svg(figure, f"{label} by optimizer step. {ends}."), "caption": captions[key]})
    return drawn


def _policy_figures(policies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Win rates against an opponent by optimizer step, of runs whose checkpoints are all evaluated (figure 4)."""
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in policies:
        if row["series"]:
            curves = groups.setdefault((row["opponent"], row["setting"]), {})
            name = row["series"] if len({p["run"] for p in policies}) == 1 else f"{row['series']} ({row['run']})"
            curves.setdefault(name, []).append({"steps": row["steps"], "rate": row["overall"], **row})
    return [
        {
            "svg": figures.win_rates(curves, opponent, SETTINGS.get(setting, setting)),
            "names": list(curves),
            "title": f"Against {opponent}, {SETTINGS.get(setting, setting)}",
        }
        for (opponent, setting), curves in groups.items()
    ]


def _setting(value: Any) -> str:
    """A setting as text, without directories of this machine."""
    if value is None:
        return DASH
    return basename(value) if isinstance(value, str) else str(value)


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
