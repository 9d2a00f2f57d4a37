"""Win rates of policies against an opponent: a page with cases to read, and the paper's table 3 with our rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.evaluate.stats import MIN_FINISHED_SHARE
from psyco_ray.report import dialogues, figures
from psyco_ray.report.policy_tables import SETTINGS, by_topic, by_variant, layout
from psyco_ray.report.render import percent, plain, render
from psyco_ray.report.tables import Table
from psyco_ray.run import storage


def write_report(
    results: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    out: Path,
    conversed: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write ``report.html`` and ``tables.md``.

    Args:
        results: of `evaluate.matchups.results`, perhaps with `dialogues` of `evaluate.dialogue_matchups.results`.
        cases: of `evaluate.matchups.cases`.
        out: directory for both files.
        conversed: of `evaluate.dialogue_matchups.cases`.
    """
    page = render(
        "policies.html",
        results,
        tables=_tables(results),
        turns=dialogues.by_turn_figures(results),
        curve_names=[policy["name"] for policy in results["policies"]],
        conversations=results.get("conversations"),
        dialogue_note=dialogues.note(results["dialogues"]) if "dialogues" in results else "",
        conversed=conversed,
        note=note(results),
        warnings=warnings(results),
        best=_best(results),
        drawn=_figure(results),
        curves=_curves(results),
        series=list(dict.fromkeys(policy["series"] for policy in results["policies"] if policy["series"])),
        colors=len(figures.SERIES),
        topics=by_topic(results),
        cases=cases,
        settings=SETTINGS,
    )
    storage.write_text(out / "report.html", page)
    storage.write_text(out / "tables.md", markdown(results))


def markdown(results: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    tables = [f"## {plain(table.title)}\n\n{table.markdown()}" for table in _tables(results)]
    return "\n\n".join([plain(note(results)), *[f"**Warning:** {plain(w)}" for w in warnings(results)], *tables]) + "\n"


def _tables(results: Mapping[str, Any]) -> list[Table]:
    first, *others = layout(results)
    return [first, *dialogues.tables(results), *others]


def note(results: Mapping[str, Any]) -> str:
    """How the figures of the tables came about."""
    sentences = [
        f"Win rates in per cent against {results['opponent']} on {answered(results)} of the split {results['split']}, "
        f"by the judge {results['judges'][0]}.",
        "Every pair was shown in both orders; a tie counts as half a win."
        if results["order"] == "strict"
        else "Every pair was shown once, in an order that the seed drew for its speech, the same for all models.",
        "An unreadable verdict and a missing or empty response count as losses; a response that was cut at the token "
        "limit is judged as it is.",
        "Rows marked (paper) are the paper's, with GPT-4o as opponent and judge on its own 3,291 test speeches.",
    ]
    if "conversations" in results:
        sentences.append(
            "Intervals and tests treat the contexts of a conversation as dependent: they are those of conversations."
        )
    if results["opponent_finished_share"] is not None:
        sentences.append(
            f"{percent(results['opponent_finished_share'])} % of {results['opponent']}'s responses are finished."
        )
    if results["opponent_silent"]:
        sentences.append(
            f"{results['opponent_silent']:,} more speeches take no part because {results['opponent']} gave no response."
        )
    if results["crisis_speeches"]:
        sentences.append(
            f"A screen found signs of a crisis in {results['crisis_speeches']:,} speeches, many of them harmless; "
            "their win rates have a table of their own."
        )
    if results.get("not_screened"):
        sentences.append(
            f"{results['not_screened']:,} speeches could not be screened for signs of a crisis: no lexicon reads "
            "their language, and no model has screened them."
        )
    if any(policy["series"] for policy in results["policies"]):
        sentences.append("The highest win rate of many checkpoints is biased upwards.")
    return " ".join(sentences)


def answered(results: Mapping[str, Any]) -> str:
    """What was answered: speeches, or contexts of conversations."""
    if "conversations" not in results:
        return f"{results['speeches']:,} speeches"
    return f"{results['speeches']:,} contexts of {results['conversations']:,} conversations"


def warnings(results: Mapping[str, Any]) -> list[str]:
    """What makes the win rates doubtful: answers that are not finished."""
    shares = {results["opponent"]: results["opponent_finished_share"]}
    shares |= {
        f"{name}, {SETTINGS[variant]}": measures["finished_share"] for name, variant, measures in by_variant(results)
    }
    return [
        f"{name}: only {percent(share)} % of the answers are finished. The others were cut at the token limit or are "
        "missing; raise sampling.max_tokens."
        for name, share in shares.items()
        if share is not None and share < MIN_FINISHED_SHARE
    ]


def _curves(results: Mapping[str, Any]) -> dict[str, str]:
    """Win rates of runs whose checkpoints are all evaluated, by optimizer step; a figure by setting."""
    by_setting: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for policy in results["policies"]:
        for variant, measures in policy["variants"].items():
            if policy["series"]:
                curves = by_setting.setdefault(SETTINGS[variant], {})
                curves.setdefault(policy["series"], []).append({"steps": policy["steps"], **measures["overall"]})
    return {setting: figures.win_rates(curves, results["opponent"], setting) for setting, curves in by_setting.items()}


def _figure(results: Mapping[str, Any]) -> str:
    """Win rates with their intervals, raw and length-controlled; each policy's name stands above its row.

    Checkpoints of a series are left out, as they have curves; empty if nothing else is evaluated.
    """
    in_series = {policy["name"] for policy in results["policies"] if policy["series"]}
    variants = [item for item in by_variant(results) if item[0] not in in_series]
    if not variants:
        return ""
    figure, axes = figures.new(height=1.2 + 0.55 * len(variants))
    for offset, label, key, interval, color, marker in (
        (-0.1, "win rate", "overall", "wilson95", figures.SERIES[0], "o"),
        (0.12, "length-controlled win rate", "lc", "ci95", figures.SERIES[1], "s"),
    ):
        rates = [measures[key] for _, _, measures in variants]
        axes.errorbar(
            [100 * rate["rate"] for rate in rates],
            [place + offset for place in range(len(rates))],
            xerr=[[_arm(rate["rate"], rate[interval][end]) for rate in rates] for end in (0, 1)],
            fmt=marker,
            color=color,
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=label,
        )
    cover = {"facecolor": figures.PAGE, "edgecolor": "none", "pad": 1}  # of the line behind a name
    for place, (name, variant, _) in enumerate(variants):
        axes.text(0, place - 0.3, f"{figures.literal(name, 30)}, {SETTINGS[variant]}", fontsize=7.5, bbox=cover)
    axes.axvline(50, color=figures.MUTED, linewidth=0.8, linestyle="--")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(variants) - 0.6, -0.7)
    axes.set_xlabel(figures.literal(f"win rate against {results['opponent']} (%)", 48))
    figures.legend(figure, 2)
    described = "; ".join(
        f"{name}, {SETTINGS[variant]}: {percent(measures['overall']['rate'])} %, length-controlled "
        f"{percent(measures['lc']['rate'])} %"
        for name, variant, measures in variants
    )
    return figures.svg(figure, f"Win rates against {results['opponent']}. {described}.")


def _arm(rate: float, bound: float | None) -> float:
    """From a rate to a bound of its interval, in percent; NaN, which is not drawn, where the interval is unknown."""
    return math.nan if bound is None else 100 * abs(rate - bound)


def _best(results: Mapping[str, Any]) -> dict[str, Any]:
    """The policy and setting with the highest win rate."""
    name, variant, measures = max(by_variant(results), key=lambda item: item[2]["overall"]["rate"])
    return {"name": name, "setting": SETTINGS[variant], "length_ratio": measures["length_ratio"], **measures["overall"]}
