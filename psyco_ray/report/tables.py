"""Tables as pages and Markdown print them, and the rows that the paper prints."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from psyco_ray.config import job_file
from psyco_ray.report.render import plain


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        cells: a text for each column; a group has one, its title.
        kind: "ours", "paper" (printed by the paper), or "group" (the title of the rows below it).
    """

    cells: Sequence[str]
    kind: Literal["ours", "paper", "group"] = "ours"


@dataclass(frozen=True)
class Table:
    """A table of texts, formatted and ready to print.

    Attributes:
        title: caption.
        columns: their titles; cells of the first column head their rows.
        rows: without rows the table is left out.
        text_columns: columns that hold words rather than figures; aligned left.
        note: sentences below the table.

    Example:
        >>> table = Table("Checkpoints", ["Run", "Steps"], [Row(["demo", "15"])], text_columns=["Run"])
        >>> table.markdown()
        '| Run | Steps |\\n| --- | ---: |\\n| demo | 15 |'
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    text_columns: Collection[str] = ()
    note: str = ""

    def markdown(self) -> str:
        """The rows as a Markdown table, without title and note."""
        rules = ["---" if column in self.text_columns else "---:" for column in self.columns]
        lines = [[plain(text) for text in self.columns], rules]
        for row in self.rows:
            cells = [plain(text) for text in row.cells]
            if row.kind == "group":
                cells = [f"**{cells[0]}**", *[""] * (len(self.columns) - 1)]
            lines.append(cells)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_rows(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Collection[str], note: str = ""
) -> Table:
    """A table of our own rows alone."""
    return Table(title, columns, [Row(cells) for cells in rows], text_columns, note)


@functools.cache
def paper_tables() -> dict[str, Any]:
    """The paper's tables 1, 2, 3 and 7, as ``paper.yaml`` holds them."""
    return job_file.read_yaml(Path(__file__).with_name("paper.yaml"), "the paper's tables")
