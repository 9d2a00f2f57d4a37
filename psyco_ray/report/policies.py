"""How policies fare against their opponent: a page with cases to read, and the paper's table 3 with ours beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.evaluate import winrates
from psyco_ray.report import figures
from psyco_ray.report.render import environment, markdown_table, plain

SETTINGS = {"free": "w/o Length Constraint", "matched": "w/ Length Constraint"}
"""The variants as table 3 calls them."""

_PAPER = job_file.read_yaml(Path(__file__).with_name("paper.yaml"), "the paper's tables")["table3"]
_DASH = "–"
_SMALL_P = 0.001
_WORDS = ("Model", "Setting", "Judge", "Judges", "Other one")  # columns that hold no figures


@dataclass(frozen=True)
class Table:
    """A table as it is printed; a row is a group's title, the paper's, or ours."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]  # kind (group, paper or ours) and a text for each column
    words: Sequence[str] = _WORDS


def write(results: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write ``report.html`` and ``tables.md``.

    Args:
        results: as `matchups.results` gives them.
        cases: as `bouts.cases` gives them.
        out: directory for both.
    """
    tables = [table for table in layout(results) if table.rows]
    page = environment(escape=True).get_template("policy.html")
    text = page.render(
        results,
        tables=tables,
        note=note(results),
        best=_best(results),
        drawn=_figure(results),
        topics=_topics(results),
        cases=cases,
        settings=SETTINGS,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(text, encoding="utf-8")
    (out / "tables.md").write_text(markdown(results), encoding="utf-8")


def markdown(results: Mapping[str, Any]) -> str:
    """All tables that have rows, as Markdown."""
    parts = [plain(note(results))]
    for table in layout(results):
        if table.rows:
            rows = [[f"**{row[0]}**", *row[1:]] if kind == "group" else row for kind, row in table.rows]
            parts.append(f"## {table.title}\n\n{markdown_table(table.columns, rows, table.words)}")
    return "\n\n".join(parts) + "\n"


def layout(results: Mapping[str, Any]) -> list[Table]:
    """Table 3, and what has to be known beside it; a table without rows is one that the evaluation has no use for."""
    return [
        _table3(results),
        _intervals(results),
        _lengths(results),
        _judges(results),
        _mcnemar(results),
        _agreement(results),
    ]


def note(results: Mapping[str, Any]) -> str:
    """What a reader of the tables has to know."""
    sentences = [
        f"Win rates in per cent against {results['opponent']} on {results['speeches']:,} speeches of the split "
        f"{results['split']}, as {results['judges'][0]} judges.",
        "Every pair was shown in both orders, and a tie counts as half a win."
        if results["order"] == "strict"
        else "Every pair was shown once, in an order drawn by the seed.",
        "An unreadable verdict and a missing answer count as losses.",
        "Rows marked (paper) are the paper's, with GPT-4o as opponent and judge on its own 3,291 test speeches.",
    ]
    if results["opponent_silent"]:
        sentences.append(
            f"{results['opponent_silent']:,} more speeches take no part, as {results['opponent']} gave no answer."
        )
    return " ".join(sentences)


def _table3(results: Mapping[str, Any]) -> Table:
    titles = list(winrates.TOPICS.values())
    rows: list[tuple[str, Sequence[str]]] = []
    for variant, setting in SETTINGS.items():
        ours = [
            (policy["name"], policy["variants"][variant])
            for policy in results["policies"]
            if variant in policy["variants"]
        ]
        if not ours:
            continue
        rows.append(("group", [setting, *[""] * (len(titles) + 1)]))
        for name, found in ours:
            by_title = {title: of["rate"] for title, of in found["topics"].items()}
            rows.append(
                ("ours", [name, *(_percent(by_title.get(t)) for t in titles), _percent(found["overall"]["rate"])])
            )
        for row in _PAPER[variant]:
            shares = [*row["topics"], row["overall"]]
            rows.append(("paper", [f"{row['model']} (paper)", *(_percent(share) for share in shares)]))
    return Table(f"Table 3: win rates (%) against {results['opponent']}", ["Model", *titles, winrates.OVERALL], rows)


def _intervals(results: Mapping[str, Any]) -> Table:
    columns = ("Model", "Setting", "Win rate", "Wilson 95 %", "Bootstrap 95 %", "Length-controlled", "LC 95 %", "Ties")
    rows = [
        [
            name,
            SETTINGS[variant],
            _percent(found["overall"]["rate"]),
            _interval(found["overall"]["wilson95"]),
            _interval(found["overall"]["bootstrap95"]),
            _percent(found["lc"]["rate"]),
            _interval(found["lc"]["ci95"]),
            f"{found['overall']['ties']:,}",
        ]
        for name, variant, found in _each(results)
    ]
    return Table("Intervals", columns, [("ours", row) for row in rows])


def _lengths(results: Mapping[str, Any]) -> Table:
    columns = ("Model", "Setting", "Words", "Opponent's words", "Length ratio", "Unreadable", "No answer", "Cut off")
    rows = [
        [
            name,
            SETTINGS[variant],
            f"{found['mean_words']:.1f}",
            f"{found['opponent_mean_words']:.1f}",
            f"{found['length_ratio']:.2f}",
            f"{found['overall']['unreadable']:,}",
            f"{found['unanswered']:,}",
            f"{found['cut']:,}",
        ]
        for name, variant, found in _each(results)
    ]
    return Table("Lengths, and what is missing", columns, [("ours", row) for row in rows])


def _judges(results: Mapping[str, Any]) -> Table:
    columns = (
        "Judge",
        "Model",
        "Setting",
        "Win rate",
        "Wilson 95 %",
        "Unreadable",
        "First one chosen",
        "Calls",
        "Dollars",
    )
    rows = [
        [
            judge,
            name,
            SETTINGS[variant],
            _percent(of["overall"]["rate"]),
            _interval(of["overall"]["wilson95"]),
            f"{of['overall']['unreadable']:,}",
            _percent(of["first_chosen"]),
            f"{of['spent']['paid'] + of['spent']['reused']:,}",
            _DASH if of["spent"]["dollars"] is None else f"{of['spent']['dollars']:.2f}",
        ]
        for name, variant, found in _each(results)
        for judge, of in found["by_judge"].items()
    ]
    return Table("Judges", columns, [("ours", row) for row in rows])


def _mcnemar(results: Mapping[str, Any]) -> Table:
    columns = ("Setting", "Model", "Other one", "Model better", "Other better", "p (McNemar, exact)")
    rows = [
        [
            SETTINGS[variant],
            row["a"],
            row["b"],
            f"{row['a_only']:,}",
            f"{row['b_only']:,}",
            f"{row['p']:.3f}" if row["p"] >= _SMALL_P else f"below {_SMALL_P}",
        ]
        for variant, of in results["mcnemar"].items()
        for row in of
    ]
    return Table("Models against each other, on the same speeches", columns, [("ours", row) for row in rows])


def _agreement(results: Mapping[str, Any]) -> Table:
    columns = ("Judges", "Model", "Setting", "Speeches", "Same verdict, %", "95 %", "Cohen's kappa", "Kappa 95 %")
    rows = [
        [
            " and ".join(row["judges"]),
            row["policy"],
            SETTINGS[row["variant"]],
            f"{row['percent']['items']:,}",
            _percent(row["percent"]["value"]),
            _interval([row["percent"]["low"], row["percent"]["high"]]),
            _DASH if row["kappa"]["value"] is None else f"{row['kappa']['value']:.2f}",
            _DASH if row["kappa"]["low"] is None else f"{row['kappa']['low']:.2f} to {row['kappa']['high']:.2f}",
        ]
        for row in results["agreement"]
    ]
    return Table("Agreement between judges", columns, [("ours", row) for row in rows])


def _topics(results: Mapping[str, Any]) -> list[Table]:
    """Every topic that occurs, a table for each policy and setting."""
    columns = ("Topic", "Speeches", "Win rate", "Wilson 95 %", "Unreadable")
    return [
        Table(
            f"{name}, {SETTINGS[variant]}",
            columns,
            [
                (
                    "ours",
                    [
                        title,
                        f"{of['speeches']:,}",
                        _percent(of["rate"]),
                        _interval(of["wilson95"]),
                        f"{of['unreadable']:,}",
                    ],
                )
                for title, of in found["topics"].items()
            ],
            words=("Topic",),
        )
        for name, variant, found in _each(results)
    ]


def _figure(results: Mapping[str, Any]) -> str:
    """Win rates with their intervals, as they are and with the length controlled for."""
    each = list(_each(results))
    figure, axes = figures.new(6.4, 1.2 + 0.5 * len(each))
    for offset, title, key, interval in (
        (-0.12, "win rate", "overall", "wilson95"),
        (0.12, "at equal length", "lc", "ci95"),
    ):
        places = [place + offset for place in range(len(each))]
        middles = [100 * of[key]["rate"] for _, _, of in each]
        reach = [[100 * abs(of[key]["rate"] - of[key][interval][end]) for _, _, of in each] for end in (0, 1)]
        axes.errorbar(middles, places, xerr=reach, fmt="o", markersize=4, capsize=3, linewidth=1.2, label=title)
    axes.axvline(50, color="#999999", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(each)), [f"{name}\n{SETTINGS[variant]}" for name, variant, _ in each], fontsize=8)
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.set_xlabel(f"per cent of speeches won against {results['opponent']}".replace("$", r"\$"))
    axes.legend(frameon=False, fontsize=8, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figures.svg(figure)


def _best(results: Mapping[str, Any]) -> dict[str, Any]:
    name, variant, found = max(_each(results), key=lambda of: of[2]["overall"]["rate"])
    return {"name": name, "setting": SETTINGS[variant], **found["overall"], "length_ratio": found["length_ratio"]}


def _each(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Name, variant and figures of every policy, variant by variant as in table 3."""
    for variant in SETTINGS:
        for policy in results["policies"]:
            if variant in policy["variants"]:
                yield policy["name"], variant, policy["variants"][variant]


def _percent(share: float | None) -> str:
    return _DASH if share is None else f"{100 * share:.1f}"


def _interval(bounds: Sequence[float | None]) -> str:
    low, high = bounds
    return _DASH if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
