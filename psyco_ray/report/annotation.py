"""The experts' check of preference pairs: agreement by principle and overall, as a page, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psyco_ray.report.render import DASH, decimal, decimal_interval, percent, percent_interval, plain, render, thousands
from psyco_ray.report.tables import Row, Table
from psyco_ray.run import storage

_COLUMNS = ("Preference", "pairs", "equal, % (95 %)", "kappa (95 %)", "alpha (95 %)")


def write_report(results: Mapping[str, Any], out: Path) -> None:
    """Write ``report.html``, ``agreement.md`` and ``agreement.json``.

    Args:
        results: of `evaluate.annotation.score`.
        out: directory for the three files.
    """
    page = render("annotation.html", results, tables=_tables(results))
    storage.write_text(out / "report.html", page)
    storage.write_text(out / "agreement.md", markdown(results))
    storage.write_text(out / "agreement.json", json.dumps(results, indent=1, allow_nan=False) + "\n")


def markdown(results: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    tables = [f"## {plain(table.title)}\n\n{table.markdown()}" for table in _tables(results)]
    return "\n\n".join(["# Experts' check of the pairs", *tables]) + "\n"


def _tables(results: Mapping[str, Any]) -> list[Table]:
    paper = results["paper"]
    by_title = {"Between the experts": (results["between_experts"], paper["between_experts"])}
    for expert, compared in results["with_labels"].items():
        by_title[f"{expert} and the labels"] = (compared, paper[expert])
    return [_table(title, compared, share) for title, (compared, share) in by_title.items()]


def _table(title: str, by_aspect: Mapping[str, Mapping[str, Any] | None], paper: float) -> Table:
    rows = [Row(_cells(aspect, compared)) for aspect, compared in by_aspect.items()]
    rows.append(Row(["overall, the paper", "200", percent(paper), DASH, DASH], "paper"))
    return Table(title, _COLUMNS, rows, _COLUMNS[:1])


def _cells(aspect: str, compared: Mapping[str, Any] | None) -> list[str]:
    if compared is None:
        return [aspect, "0", DASH, DASH, DASH]
    share = f"{percent(compared['share'])} ({percent_interval(compared['wilson'])})"
    chance_corrected = [
        DASH if measure["value"] is None else f"{decimal(measure['value'], 2)} ({decimal_interval(bounds, 2)})"
        for measure, bounds in ((compared[name], _bounds(compared[name])) for name in ("kappa", "alpha"))
    ]
    return [aspect, thousands(compared["items"]), share, *chance_corrected]


def _bounds(measure: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return measure["low"], measure["high"]
