"""Files as people have them, in every command that could read them: the right rows, or one right sentence."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psyco_ray.config.data import Source
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Data
from psyco_ray.data import preferences, sources, speech_file
from psyco_ray.evaluate import expert_csv

COLUMNS = ["item", "prompt", "chosen", "rejected"]
ROWS = [
    [f"i{n}", f"I cannot sleep; {n} nights,\nor more – é", f"What keeps you awake? {n}", "Count sheep."]
    for n in range(20)
]
CHINESE = "最近我总是失眠，觉得没有人理解我，工作压力很大，晚上常常一个人哭，不知道该怎么办才好。"


def clients(path: Path) -> list[str]:
    """The speeches that `data collect` reads, as `data.speeches` reads them too."""
    rows = sources.read(Source(name="s", path=str(path), text="prompt"))
    return [row.text for row in rows if row.text is not None]


def pairs(path: Path) -> list[str]:
    """The prompts of the pairs that a reward model is trained on."""
    return preferences.read(str(path)).table["asked"].to_pylist()


def sheet(path: Path) -> list[str]:
    """The first column of an expert's sheet."""
    items = [row[0] for row in ROWS]
    return [cells["prompt"] for _, _, cells in expert_csv.read_items(path, ["prompt"], items)]


READERS = pytest.mark.parametrize("read", [clients, pairs, sheet])


def as_csv(separator: str = ",", rows: list[list[str]] = ROWS, header: list[str] = COLUMNS) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows([header, *rows])
    return buffer.getvalue()


def as_zip(content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("export/posts.csv", content)
    return buffer.getvalue()


def as_excel() -> bytes:
    book, buffer = openpyxl.Workbook(), io.BytesIO()
    for row in (COLUMNS, *ROWS):
        book.active.append(row)
    book.save(buffer)
    return buffer.getvalue()


def as_parquet() -> bytes:
    buffer = io.BytesIO()
    table = pa.table([pa.array(column) for column in zip(*ROWS, strict=True)], names=COLUMNS)
    bytes_column = pa.array([row[1].encode() for row in ROWS])
    pq.write_table(table.set_column(1, "prompt", bytes_column), buffer)
    return buffer.getvalue()


OBJECTS = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
READ_WELL = {
    "comma.CSV": as_csv(),
    "semicolon.csv": as_csv(";"),
    "bar.csv": as_csv("|"),
    "tab.tsv": as_csv("\t"),
    "tab.csv": as_csv("\t"),
    "mark.csv": as_csv().encode("utf-8-sig"),
    "utf16.csv": as_csv().encode("utf-16"),
    "no mark utf16.csv": as_csv().encode("utf-16-le"),
    "windows.csv": as_csv().encode("cp1252"),
    "mixed.csv": as_csv().encode().replace("é".encode(), "é".encode("cp1252"), 1),
    "mac.csv": as_csv().replace("\r\n", "\r"),
    "packed.csv.gz": gzip.compress(as_csv().encode()),
    "packed.csv": gzip.compress(as_csv().encode()),
    "packed.zip": as_zip(as_csv()),
    "excel.xlsx": as_excel(),
    "excel.csv": as_excel(),
    "bytes.parquet": as_parquet(),
    "lines.jsonl": "".join(json.dumps(row) + "\n" for row in OBJECTS),
    "lines.jsonl.gz": gzip.compress("".join(json.dumps(row) + "\n" for row in OBJECTS).encode()),
    "array.json": json.dumps(OBJECTS, indent=1),
    "object.json": json.dumps({"version": 1, "data": OBJECTS}, indent=1),
}


@READERS
@pytest.mark.parametrize("name", list(READ_WELL))
def test_the_rows_are_read(tmp_path: Path, read: Callable[[Path], list[str]], name: str) -> None:
    content = READ_WELL[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [" ".join(text.split()) for text in read(tmp_path / name)] == [" ".join(row[1].split()) for row in ROWS]


@READERS
def test_a_long_cell_stays_one_cell(tmp_path, read) -> None:
    rows = [[*row[:2], "I hear you.\nTell me, please.\n" * 9000, row[3]] for row in ROWS[:2]]
    (tmp_path / "a.csv").write_text(as_csv(rows=rows), newline="")
    assert len(read(tmp_path / "a.csv")) == 2


REFUSED = {
    "gbk.csv": (as_csv(rows=[["i0", CHINESE, "x", "y"]]).encode("gbk"), "is not UTF-8: .* looks like gb18030"),
    "twice.csv": (as_csv(header=["item", "prompt", "prompt", "rejected"]), "two columns prompt"),
    "no header.csv": (as_csv(header=ROWS[0]), "first row looks like data"),
    "lists.json": (
        json.dumps({"train": OBJECTS, "test": OBJECTS}),
        r"several lists of rows; name one as lists\.json#train",
    ),
    "pointer.csv": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
    "page.csv": ("<!DOCTYPE html><p>I cannot sleep</p>", "is a web page or XML and not a table"),
    "empty.csv": ("", "has no rows"),
    "cut.jsonl.gz": (gzip.compress(as_csv().encode())[:-20], "cannot be read"),
}


@READERS
@pytest.mark.parametrize("name", list(REFUSED))
def test_the_rest_is_refused_in_one_sentence(tmp_path: Path, read: Callable[[Path], list[str]], name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert not {"sleep", "sheep", "\n", "×î½ü"} & set(str(caught.value).split(" "))


def test_a_sheet_is_named_in_every_command(tmp_path) -> None:
    book = openpyxl.load_workbook(io.BytesIO(as_excel()))
    book.active.title = "Export"
    book.create_sheet("Codes").append(["code"])
    book.save(tmp_path / "a.xlsx")
    name = f"{tmp_path}/a.xlsx#Export"
    assert [read(Path(name))[-1].split()[0] for read in (clients, pairs)] == ["I"] * 2
    data = Data(speeches=name, speech_column="prompt")
    assert sum(table.num_rows for table in speech_file.read(data)) == len(ROWS)
    source = Source(name="s", path=name, text="prompt")
    then = sources.digests(source)
    assert sources.changed(source, then) == []
    book.create_sheet("More").append(["changed"])
    book.save(tmp_path / "a.xlsx")
    assert sources.changed(source, then) == [name]
