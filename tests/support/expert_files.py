"""Files of the experts: responses to export, and spreadsheets to fill in."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SPEECH = "I can’t sleep, “again”; it is the third week.\nMy wife says: talk to someone. Café, naïve, 5 €."
Row = dict[str, str]
Fill = Callable[[Row, str], Row]


def responses(path: Path, said: str, count: int = 20) -> str:
    rows = [{"speech": f"{SPEECH} ({i})", "response": f"{said} {i}"} for i in range(count)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.mkdir()
        for part in (0, 1):
            pq.write_table(pa.Table.from_pylist(rows[part::2]), path / f"{part}.parquet")
    return str(path)


def read(path: Path) -> list[Row]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))


def items(directory: Path) -> dict[str, Row]:
    return json.loads((directory / "key.json").read_text())["items"]


def fill(directory: Path, expert: str, what: Fill, encoding: str = "utf-8-sig", **form) -> None:
    """Save a filled file as a spreadsheet would: `what` gives cells by column for a row and the side of the policy."""
    key = items(directory)
    rows = read(directory / f"{expert}.csv")
    for row in rows:
        row |= what(row, "A" if key[row["item"]]["A"] == "policy" else "B")
    with open(directory / f"{expert}.csv", "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **form)
        writer.writeheader()
        writer.writerows(rows)
