"""The one reader of users' tables: kinds, columns, records, messages."""

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psyco_ray.config.errors import InputError
from psyco_ray.data import preferences
from psyco_ray.files.cells import CellError, text_of
from psyco_ray.files.records import Record, locate, open_records, read_rows

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


def test_a_name_may_tell_the_encoding(tmp_path) -> None:
    text = "prompt,chosen,rejected\n我最近总是睡不着。,你睡不着多久了？,别想了。\n"
    path = tmp_path / "pairs.csv"
    path.write_bytes(text.encode("gb18030") * 2)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(path, "pairs.csv")
        archive.writestr("other.csv", "a\nb\n")
    with pytest.raises(InputError, match="#encoding=gb18030 after its name"):
        open_records(path, "pairs")
    for name in (f"{path}#encoding=gb18030", f"{tmp_path}/all.zip#pairs.csv#encoding=gb18030"):
        file = open_records(name, "pairs", encoding="utf-8")
        assert next(iter(file)).cells["prompt"] == "我最近总是睡不着。"
        assert locate(name)[0] == file.path
    assert preferences.read(f"{path}#encoding=gb18030").table.num_rows > 0
    with pytest.raises(InputError, match="the encoding 'gb-none' is unknown"):
        open_records(f"{path}#encoding=gb-none", "pairs")
    literal = write(tmp_path / "a#encoding=b.csv")
    assert open_records(literal, "speeches").path == literal


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
