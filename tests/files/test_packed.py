"""Compressed files, and files that are not what their names say."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.files import write_content
from support.records import rows_of

from psyco_ray.config.errors import InputError
from psyco_ray.files.records import open_records

ROWS = [{"text": f"I cannot sleep, {n}", "topic": "sleep"} for n in range(20)]
CSV = "text,topic\n" + "".join(f'"{row["text"]}",{row["topic"]}\n' for row in ROWS)
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def zipped(members: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def workbook() -> bytes:
    book, buffer = openpyxl.Workbook(), io.BytesIO()
    for row in (ROWS[0].keys(), *(row.values() for row in ROWS)):
        book.active.append(list(row))
    book.save(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv.gz", gzip.compress(CSV.encode())),
        ("a.CSV.GZ", gzip.compress(CSV.encode("utf-16"))),
        ("a.csv", gzip.compress(CSV.encode())),
        ("a.csv.gz", CSV),  # unpacked by a browser
        ("a.jsonl.gz", gzip.compress(JSONL.encode())),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("a.zip", zipped({"data/posts.csv": CSV, "__MACOSX/posts.csv": "x"})),
        ("a.csv.zip", zipped({"posts.CSV": CSV})),
        ("a.csv", zipped({"posts.jsonl": JSONL})),
        ("a.zip", zipped({"book.xlsx": workbook()})),
        ("a.xlsx", workbook()),
        ("a.csv", workbook()),
        ("a.csv", JSONL),
        ("a.csv", "\ufeff" + json.dumps(ROWS)),
    ],
)
def test_the_content_decides(tmp_path, name, content) -> None:
    assert rows_of(tmp_path, name, content) == ROWS


def test_parquet_is_read_under_any_name(tmp_path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.csv")
    assert [record.cells for record in open_records(tmp_path / "a.csv", "speeches")] == ROWS


def test_one_of_several_members_is_named(tmp_path) -> None:
    path = write_content(tmp_path / "a.zip", zipped({"train.csv": CSV, "test.jsonl": JSONL}))
    with pytest.raises(
        InputError, match=r"zip file with 2 files; name one as a\.zip#train\.csv; it has train\.csv, test"
    ):
        open_records(path, "speeches")
    assert [record.cells for record in open_records(f"{path}#test.jsonl", "speeches")] == ROWS
    with pytest.raises(InputError, match="zip file with 2 files"):
        open_records(f"{path}#dev.csv", "speeches")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "is a pointer of Git LFS .*; run git lfs",
        ),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a pointer of Git LFS"),
        ("a.csv", "\n<!DOCTYPE html><html>husband</html>", "is a web page or XML and not a table; download the file"),
        ("a.csv", b"\xd0\xcf\x11\xe0 husband", r"is a workbook of Excel 97-2003; save it as \.xlsx or CSV"),
        ("a.csv.bz2", b"BZh91AY husband", "is compressed with bzip2; unpack it first"),
        pytest.param("a.csv.gz", gzip.compress(gzip.compress(b"husband")), "is compressed with gzip twice", id="twice"),
        pytest.param("a.tar.gz", gzip.compress(b"x" * 257 + b"ustar husband"), "is a tar archive", id="tar"),
        ("a.csv.gz", gzip.compress(CSV.encode() * 999)[:900], "cannot be read: Compressed file ended"),
        ("a.csv.gz", b"\x1f\x8b husband", "cannot be read: "),
        ("a.csv", b"PK\x03\x04 husband", "cannot be read: it is a damaged zip file"),
        ("a.zip", zipped({}), "is a zip file without a file in it"),
        ("a.zip", zipped({"__MACOSX/a.csv": CSV}), "is a zip file without a file in it"),
        ("a.ods", zipped({"mimetype": "x", "content.xml": "husband"}), r"no Excel workbook; save its table as \.xlsx"),
        (
            "a.docx",
            zipped({"[Content_Types].xml": "x", "word/document.xml": "husband"}),
            "document of an office program",
        ),
        ("a.zip", zipped({"notes.txt": "husband"}), "has none of the endings"),
        ("a.zip", zipped({"book.xlsx": zipped({"a.csv": CSV})}), "is a zip file but no undamaged Excel workbook"),
        ("a.xlsx", "text\nhusband\n", r"is not a \.xlsx file, whatever its name says"),
        ("a.parquet", "text\nhusband\n", r"is not a \.parquet file"),
        ("a.parquet", b"PAR1 husband", "cannot be read"),
        ("a.txt", "husband", r"has none of the endings \.csv, .*, also with \.gz or \.zip"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        rows_of(tmp_path, name, content)
    assert str(tmp_path / name) in str(caught.value)
    assert "husband" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path) -> None:
    for name in ("none.csv", "none.xlsx#Sheet", "none"):
        with pytest.raises(InputError, match=f"speeches file {tmp_path}/none.* does not exist"):
            open_records(tmp_path / name, "speeches")
