"""The one reader of users' tables: kinds, columns, records, messages."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psyco_ray.config.errors import InputError
from psyco_ray.files.cells import CellError, text_of
from psyco_ray.files.records import Record, open_records, read_rows

ROWS = [{"text": f"I cannot sleep {n}", "topic": "sleep"} for n in range(30)]


def write(path: Path) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    match path.name.partition(".")[2].lower():
        case "parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path)
        case "csv":
            path.write_text("text,topic\n" + "".join(f"{row['text']},{row['topic']}\n" for row in ROWS))
        case "jsonl":
            path.write_text(lines)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case "json":
            path.write_text(json.dumps(ROWS, indent=1))
    return path


@pytest.mark.parametrize("ending", ["csv", "CSV", "jsonl", "jsonl.gz", "json", "parquet"])
def test_every_kind_gives_the_same_records(tmp_path, ending) -> None:
    file = open_records(write(tmp_path / f"a.{ending}"), "speeches")
    assert list(file) == [Record(number, row) for number, row in enumerate(ROWS, start=1)]
    assert next(file.read(["topic", "absent"])) == Record(1, {"topic": "sleep"})
    assert file.columns == ["text", "topic"]
    assert file.column(["question", "text"], "source's text") == "text"
    with pytest.raises(InputError, match=r"has no column a or b; it has text, topic; name the right one in data\.x"):
        file.column(["a", "b"], "data.x")
    assert read_rows(file.path, "speeches") == ROWS


def test_a_digest_changes_with_the_content(tmp_path) -> None:
    path = write(tmp_path / "a.csv")
    before = open_records(path, "speeches").digest()
    assert open_records(path, "speeches").digest() == before
    path.write_text(path.read_text().replace("sleep 7", "sleep 8"))
    assert open_records(path, "speeches").digest() != before


def test_cells_as_text() -> None:
    texts = [text_of(value) for value in ("half \ud83d, \0nul", None, 7, 0.5, "café".encode())]
    assert texts == ["half , nul", "", "7", "0.5", "café"]
    for value, reason in (([1], "a list"), ({}, "an object"), (True, "true or false"), (b"\xff", "not UTF-8")):
        with pytest.raises(CellError, match=reason):
            text_of(value)
