"""Tables of a policy evaluation: the paper's table 3 with our rows, and the tables that qualify it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from psyco_ray.evaluate import winrates
from psyco_ray.report.render import basename, decimal, decimal_interval, percent, percent_interval, thousands
from psyco_ray.report.tables import Row, Table, of_rows, paper_tables

SETTINGS = {"free": "w/o Length Constraint", "matched": "w/ Length Constraint"}
"""Titles of the variants in table 3."""

CRISIS = "Speeches with signs of a crisis"
"""Title of the rows and the table of these speeches."""

TEXT_COLUMNS = ("Model", "Setting", "Judge", "Judges", "Other model")
"""Columns of words."""

_SMALL_P = 0.001


def layout(results: Mapping[str, Any]) -> list[Table]:
    """Table 3 and the tables that qualify it, as far as they have rows."""
    tables = [
        _table3(results),
        _intervals(results),
        _crisis(results),
        _lengths(results),
        _checkpoints(results),
        _judges(results),
        _mcnemar(results),
        _agreement(results),
    ]
    return [table for table in tables if table.rows]


def by_variant(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Name, variant and measures of every policy, variant by variant as in table 3."""
    for variant in SETTINGS:
        for policy in results["policies"]:
            if variant in policy["variants"]:
                yield policy["name"], variant, policy["variants"][variant]


def _table3(results: Mapping[str, Any]) -> Table:
    titles = list(winrates.TOPICS.values())
    rows: list[Row] = []
    for variant, setting in SETTINGS.items():
        evaluated = [(name, measures) for name, key, measures in by_variant(results) if key == variant]
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
    return Table(title, ["Model", *titles, winrates.OVERALL], rows, TEXT_COLUMNS, below)


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
        for name, variant, measures in by_variant(results)
    ]
    return of_rows("Intervals", columns, rows, TEXT_COLUMNS)


def _crisis(results: Mapping[str, Any]) -> Table:
    columns = ("Model", "Setting", "Speeches", "Win rate", "Wilson 95 %", "Unreadable")
    rows = [
        [name, SETTINGS[variant], *rate_cells(measures["crisis"])]
        for name, variant, measures in by_variant(results)
        if measures["crisis"]
    ]
    return of_rows(CRISIS, columns, rows, TEXT_COLUMNS)


def _checkpoints(results: Mapping[str, Any]) -> Table:
    """Where policies come from that are checkpoints of training runs."""
    rows = [
        [policy["name"], basename(policy["run"]), thousands(policy["iteration"]), thousands(policy["steps"])]
        for policy in results["policies"]
        if policy["run"] is not None
    ]
    return of_rows("Checkpoints", ("Model", "Run", "Iteration", "Optimizer steps"), rows, (*TEXT_COLUMNS, "Run"))


def rate_cells(rate: Mapping[str, Any]) -> list[str]:
    """Cells of a `winrates.WinRate`: speeches, rate, interval and unreadable verdicts."""
    return [
        thousands(rate["speeches"]),
        percent(rate["rate"]),
        percent_interval(rate["wilson95"]),
        thousands(rate["unreadable"]),
    ]


def _lengths(results: Mapping[str, Any]) -> Table:
    columns = (
        "Model",
        "Setting",
        "Words",
        "Opponent's words",
        "Length ratio",
        "Unreadable",
        "Missing",
        "Cut off",
        "Finished, %",
    )
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
            percent(measures["finished_share"]),
        ]
        for name, variant, measures in by_variant(results)
    ]
    return of_rows("Lengths and missing data", columns, rows, TEXT_COLUMNS)


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
        for name, variant, measures in by_variant(results)
        for judge, judged in measures["by_judge"].items()
    ]
    return of_rows("Judges", columns, rows, TEXT_COLUMNS)


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
    return of_rows("Models against each other, on the same speeches", columns, rows, TEXT_COLUMNS)


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
    return of_rows("Agreement between judges", columns, rows, TEXT_COLUMNS)


def by_topic(results: Mapping[str, Any]) -> list[Table]:
    """Win rates of every topic in the data, a table for each policy and setting."""
    columns = ("Topic", "Speeches", "Win rate", "Wilson 95 %", "Unreadable")
    tables = []
    for name, variant, measures in by_variant(results):
        rates = measures["topics"] | ({CRISIS: measures["crisis"]} if measures["crisis"] else {})
        rows = [[title, *rate_cells(rate)] for title, rate in rates.items()]
        tables.append(of_rows(f"{name}, {SETTINGS[variant]}", columns, rows, ("Topic",)))
    return tables
