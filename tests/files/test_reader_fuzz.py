"""Any bytes under any name give rows or one sentence, and no row is lost without being counted."""

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from psyco_ray.config.errors import InputError
from psyco_ray.files.cells import CellError, text_of
from psyco_ray.files.records import Record, open_records

NAMES = ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "a.xlsx", "a.csv.gz", "a.jsonl.zip", "a"]
FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)

TEXTS = st.text(
    st.sampled_from(["a", "é", "最", "😀", " ", ",", ";", "\t", "|", '"', "'", "\\", "\n", "\r", "{", "[", "\0"])
)
ROWS = st.lists(st.lists(TEXTS, min_size=2, max_size=2), min_size=1, max_size=8)
FRAGMENTS = st.sampled_from(
    [
        *(bytes([byte]) for byte in b'"\n\r,;\t|{[]}:\\\0\xe9 a'),
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xe6\x9c",
        b"text",
        b'{"text": "x"}',
        b'"text"',
        b"PK\x03\x04",
        b"\x1f\x8b",
        b"PAR1",
        b"1e999",
        b"null",
        b"sep=;",
        b"id,text\n",
    ]
)


def check(content: bytes, name: str, encoding: str | None = None) -> list[Record]:
    """Read a file with some content; an InputError is an answer, any other exception fails."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_bytes(content)
        records: list[Record] = []
        try:
            file = open_records(path, "speeches", encoding)
            file.digest()
            for record in file:
                records.append(record)
                assert (record.cells is None) == (record.problem is not None)
                for value in (record.cells or {}).values():
                    try:
                        text_of(value).encode()
                    except CellError:
                        continue
            assert [record.number for record in file.read([])] == [record.number for record in records]
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        assert [record.number for record in records] == list(range(1, len(records) + 1))
        return records


@FUZZ
@given(st.binary(max_size=300) | st.lists(FRAGMENTS, max_size=60).map(b"".join), st.sampled_from(NAMES))
@example(b'a,b\n"', "a.csv")
@example(b'{"a": 1', "a.json")
@example(b'[{"a": 1}, 12', "a.json")
def test_any_bytes(content: bytes, name: str) -> None:
    check(content, name)


@FUZZ
@given(
    st.lists(FRAGMENTS, max_size=60).map(b"".join), st.sampled_from(["utf-8", "cp1251", "gb18030", "utf-16", "utf-7"])
)
def test_any_bytes_in_a_declared_encoding(content: bytes, encoding: str) -> None:
    check(content, "a.csv", encoding)


@FUZZ
@given(
    ROWS, st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])
)
def test_every_row_that_is_written_is_read(rows: list[list[str]], separator: str, newline: str, encoding: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, lineterminator=newline, quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text"], *rows])
    records = check(buffer.getvalue().encode(encoding), "a.csv")
    assert [list(record.cells.values()) for record in records] == rows
    lines = "".join(json.dumps(dict(zip(("id", "text"), row, strict=True))) + newline for row in rows)
    records = check(lines.encode(encoding), "a.jsonl")
    assert [list(record.cells.values()) for record in records] == rows


VALID = [{"id": n, "text": f'I "cannot" sleep, {n}\nat all – é', "tags": ["a", {"b": n}]} for n in range(6)]


def valid_files() -> dict[str, bytes]:
    """A file of each kind."""
    table, parquet, book, sheet = io.StringIO(), io.BytesIO(), openpyxl.Workbook(), io.BytesIO()
    csv.writer(table).writerows([["id", "text"], *([row["id"], row["text"]] for row in VALID)])
    pq.write_table(pa.table({"id": [1, 2], "text": ["one", "two"]}), parquet)
    for row in (["id", "text"], *([row["id"], row["text"]] for row in VALID)):
        book.active.append(row)
    book.save(sheet)
    lines = "".join(json.dumps(row) + "\n" for row in VALID).encode()
    return {
        "a.csv": table.getvalue().encode(),
        "a.jsonl": lines,
        "a.json": json.dumps({"data": VALID}, indent=1).encode(),
        "a.jsonl.gz": gzip.compress(lines),
        "a.parquet": parquet.getvalue(),
        "a.xlsx": sheet.getvalue(),
    }


FILES = valid_files()


@pytest.mark.parametrize("name", list(FILES))
@FUZZ
@given(
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3) | FRAGMENTS, st.integers(0, 4)), min_size=1, max_size=4)
)
def test_a_damaged_file(name: str, changes: list[tuple[float, bytes, int]]) -> None:
    content = FILES[name]
    for place, inserted, dropped in changes:
        at = int(place * len(content))
        content = content[:at] + inserted + content[at + dropped :]
    check(content, name)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.jsonl.gz"])
@FUZZ
@given(st.floats(0.1, 1), (st.binary(max_size=3) | FRAGMENTS).filter(bytes.isascii), st.integers(0, 4))
def test_a_change_costs_the_rows_that_it_touches(name: str, place: float, inserted: bytes, dropped: int) -> None:
    content = gzip.decompress(FILES[name]) if name.endswith(".gz") else FILES[name]
    at = int(place * len(content))
    content = content[:at] + inserted + content[at + dropped :]
    records = check(gzip.compress(content) if name.endswith(".gz") else content, name)
    texts = [record.cells.get("text") for record in records if record.cells is not None]
    lost = [row for row in VALID if row["text"] not in texts]
    assert len(lost) <= 2
    assert len(records) >= len(VALID) - 1
