"""Win rates of policies against an opponent: a page with cases to read, and the paper's table 3 with our rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.evaluate import winrates
from psyco_ray.report import figures
from psyco_ray.report.render import decimal, decimal_interval, percent, percent_interval, plain, render, thousands
from psyco_ray.report.tables import Row, Table, of_rows, paper_tables

SETTINGS = {"free": "w/o Length Constraint", "matched": "w/ Length Constraint"}
"""Titles of the variants in table 3."""

_SMALL_P = 0.001
_TEXT_COLUMNS = ("Model", "Setting", "Judge", "Judges", "Other model")


def write_report(results: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write ``report.html`` and ``tables.md``.

    Args:
        results: of `evaluate.matchups.results`.
        cases: of `evaluate.matchups.cases`.
        out: directory for both files.
    """
    page = render(
        "policies.html",
        results,
        tables=layout(results),
        note=note(results),
        best=_best(results),
        drawn=_figure(results),
        topics=_topics(results),
        cases=cases,
        settings=SETTINGS,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(page, encoding="utf-8")
    (out / "tables.md").write_text(markdown(results), encoding="utf-8")


def markdown(results: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    tables = [f"## {table.title}\n\n{table.markdown()}" for table in layout(results)]
    return "\n\n".join([plain(note(results)), *tables]) + "\n"


def layout(results: Mapping[str, Any]) -> list[Table]:
    """Table 3 and the tables that qualify it, as far as they have rows."""
    tables = [
        _table3(results),
        _intervals(results),
        _lengths(results),
        _judges(results),
        _mcnemar(results),
        _agreement(results),
    ]
    return [table for table in tables if table.rows]


def note(results: Mapping[str, Any]) -> str:
    """How the figures of the tables came about."""
    sentences = [
        f"Win rates in per cent against {results['opponent']} on {results['speeches']:,} speeches of the split "
        f"{results['split']}, by the judge {results['judges'][0]}.",
        "Every pair was shown in both orders; a tie counts as half a win."
        if results["order"] == "strict"
        else "Every pair was shown once, in an order drawn by the seed.",
        "An unreadable verdict and a missing response count as losses.",
        "Rows marked (paper) are the paper's, with GPT-4o as opponent and judge on its own 3,291 test speeches.",
    ]
    if results["opponent_silent"]:
        sentences.append(
            f"{results['opponent_silent']:,} more speeches take no part because {results['opponent']} gave no response."
        )
    return " ".join(sentences)


def _table3(results: Mapping[str, Any]) -> Table:
    titles = list(winrates.TOPICS.values())
    rows: list[Row] = []
    for variant, setting in SETTINGS.items():
        evaluated = [(name, measures) for name, key, measures in _variants(results) if key == variant]
        if not evaluated:
            continue
        rows.append(Row([setting], "group"))
        for name, measures in evaluated:
            rates = {title: topic["rate"] for title, topic in measures["topics"].items()}
            shares = [*map(rates.get, titles), measures["overall"]["rate"]]
            rows.append(Row([name, *map(percent, shares)]))
        for paper in paper_tables()["table3"][variant]:
            cells = [f"{paper['model']} (paper)", *map(percent, [*paper["topics"], paper["overall"]])]
            rows.append(Row(cells, "paper"))
    title = f"Table 3: win rates (%) against {results['opponent']}"
    below = "Speeches without one of these topics count in the overall rate only; all topics are listed below."
    return Table(title, ["Model", *titles, winrates.OVERALL], rows, _TEXT_COLUMNS, below)


def _intervals(results: Mapping[str, Any]) -> Table:
    columns = ("Model", "Setting", "Win rate", "Wilson 95 %", "Bootstrap 95 %", "Length-controlled", "LC 95 %", "Ties")
    rows = [
        [
            name,
            SETTINGS[variant],
            percent(measures["overall"]["rate"]),
            percent_interval(measures["overall"]["wilson95"]),
            percent_interval(measures["overall"]["bootstrap95"]),
            percent(measures["lc"]["rate"]),
            percent_interval(measures["lc"]["ci95"]),
            thousands(measures["overall"]["ties"]),
        ]
        for name, variant, measures in _variants(results)
    ]
    return of_rows("Intervals", columns, rows, _TEXT_COLUMNS)


def _lengths(results: Mapping[str, Any]) -> Table:
    columns = ("Model", "Setting", "Words", "Opponent's words", "Length ratio", "Unreadable", "Missing", "Cut off")
    rows = [
        [
            name,
            SETTINGS[variant],
            decimal(measures["mean_words"], 1),
            decimal(measures["opponent_mean_words"], 1),
            decimal(measures["length_ratio"], 2),
            thousands(measures["overall"]["unreadable"]),
            thousands(measures["unanswered"]),
            thousands(measures["cut"]),
        ]
        for name, variant, measures in _variants(results)
    ]
    return of_rows("Lengths and missing data", columns, rows, _TEXT_COLUMNS)


def _judges(results: Mapping[str, Any]) -> Table:
    columns = (
        "Judge",
        "Model",
        "Setting",
        "Win rate",
        "Wilson 95 %",
        "Unreadable",
        "First shown preferred",
        "Calls",
        "US dollars",
    )
    rows = [
        [
            judge,
            name,
            SETTINGS[variant],
            percent(judged["overall"]["rate"]),
            percent_interval(judged["overall"]["wilson95"]),
            thousands(judged["overall"]["unreadable"]),
            percent(judged["first_chosen"]),
            thousands(judged["spent"]["paid"] + judged["spent"]["reused"]),
            decimal(judged["spent"]["dollars"], 2),
        ]
        for name, variant, measures in _variants(results)
        for judge, judged in measures["by_judge"].items()
    ]
    return of_rows("Judges", columns, rows, _TEXT_COLUMNS)


def _mcnemar(results: Mapping[str, Any]) -> Table:
    columns = ("Setting", "Model", "Other model", "Model better", "Other better", "p (McNemar, exact)")
    rows = [
        [
            SETTINGS[variant],
            test["a"],
            test["b"],
            thousands(test["a_only"]),
            thousands(test["b_only"]),
            decimal(test["p"]) if test["p"] >= _SMALL_P else f"below {_SMALL_P}",
        ]
        for variant, tests in results["mcnemar"].items()
        for test in tests
    ]
    return of_rows("Models against each other, on the same speeches", columns, rows, _TEXT_COLUMNS)


def _agreement(results: Mapping[str, Any]) -> Table:
    columns = ("Judges", "Model", "Setting", "Speeches", "Same verdict, %", "95 %", "Cohen's kappa", "Kappa 95 %")
    rows = [
        [
            " and ".join(measures["judges"]),
            measures["policy"],
            SETTINGS[measures["variant"]],
            thousands(measures["percent"]["items"]),
            percent(measures["percent"]["value"]),
            percent_interval((measures["percent"]["low"], measures["percent"]["high"])),
            decimal(measures["kappa"]["value"], 2),
            decimal_interval((measures["kappa"]["low"], measures["kappa"]["high"]), 2),
        ]
        for measures in results["agreement"]
    ]
    return of_rows("Agreement between judges", columns, rows, _TEXT_COLUMNS)


def _topics(results: Mapping[str, Any]) -> list[Table]:
    """Win rates of every topic in the data, a table for each policy and setting."""
    columns = ("Topic", "Speeches", "Win rate", "Wilson 95 %", "Unreadable")
    tables = []
    for name, variant, measures in _variants(results):
        rows = [
            [
                title,
                thousands(topic["speeches"]),
                percent(topic["rate"]),
                percent_interval(topic["wilson95"]),
                thousands(topic["unreadable"]),
            ]
            for title, topic in measures["topics"].items()
        ]
        tables.append(of_rows(f"{name}, {SETTINGS[variant]}", columns, rows, ("Topic",)))
    return tables


def _figure(results: Mapping[str, Any]) -> str:
    """Win rates with their intervals, raw and length-controlled; each policy's name stands above its row."""
    variants = list(_variants(results))
    figure, axes = figures.new(height=1.2 + 0.55 * len(variants))
    for offset, label, key, interval, color, marker in (
        (-0.1, "win rate", "overall", "wilson95", figures.SERIES[0], "o"),
        (0.12, "length-controlled win rate", "lc", "ci95", figures.SERIES[1], "s"),
    ):
        rates = [measures[key] for _, _, measures in variants]
        axes.errorbar(
            [100 * rate["rate"] for rate in rates],
            [place + offset for place in range(len(rates))],
            xerr=[[100 * abs(rate["rate"] - rate[interval][end]) for rate in rates] for end in (0, 1)],
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


def _best(results: Mapping[str, Any]) -> dict[str, Any]:
    """The policy and setting with the highest win rate."""
    name, variant, measures = max(_variants(results), key=lambda item: item[2]["overall"]["rate"])
    return {"name": name, "setting": SETTINGS[variant], "length_ratio": measures["length_ratio"], **measures["overall"]}


def _variants(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Name, variant and measures of every policy, variant by variant as in table 3."""
    for variant in SETTINGS:
        for policy in results["policies"]:
            if variant in policy["variants"]:
                yield policy["name"], variant, policy["variants"][variant]
