"""Excel files."""

import datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from psyco_ray.config.errors import InputError
from psyco_ray.files.records import open_records


def save(path: Path, **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_cells_are_what_excel_has(tmp_path) -> None:
    rows = [
        [],
        [None, "id", " text ", "when", None],
        [],
        ["left", 7, "two\nlines – é 😀", datetime.datetime(2024, 5, 1), None],
        [None, 0.5, None, True],
        [None, None, "last"],
        [None, 1, "too wide", None, None, "x"],
    ]
    file = open_records(save(tmp_path / "a.XLSX", first=rows, empty=[]), "speeches")
    assert (file.kind, file.columns, file.encoding) == ("Excel", ["id", "text", "when"], None)
    assert [record.cells or record.problem for record in file] == [
        {"id": 7, "text": "two\nlines – é 😀", "when": datetime.datetime(2024, 5, 1)},
        {"id": 0.5, "text": None, "when": True},
        {"id": None, "text": "last", "when": None},
        "6 cells where the header has 4",
    ]
    assert next(file.read(["text"])).cells == {"text": "two\nlines – é 😀"}


def test_one_of_several_sheets_is_named(tmp_path) -> None:
    path = save(tmp_path / "a.xlsx", Clients=[["text"], ["I cannot sleep"]], Codes=[["code"], [1]], empty=[])
    with pytest.raises(
        InputError, match=r"several sheets with rows; name one as a\.xlsx#Clients; it has Clients, Codes"
    ):
        open_records(path, "speeches")
    assert [record.cells for record in open_records(f"{path}#Codes", "speeches")] == [{"code": 1}]
    with pytest.raises(InputError, match="no sheet empty with rows; it has Clients, Codes"):
        open_records(f"{path}#empty", "speeches")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([["text"]], "has no rows"),
        ([["text", "text"], ["a", "b"]], "has two columns text"),
        ([["I cannot sleep since my mother moved in"], ["I cry"]], "its first row looks like data"),
    ],
)
def test_sheets_without_rows_or_names_are_refused(tmp_path, rows, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_records(save(tmp_path / "a.xlsx", one=rows), "speeches")
    assert "sleep" not in str(caught.value)


def test_a_damaged_workbook_is_refused(tmp_path) -> None:
    path = save(tmp_path / "a.xlsx", one=[["text"], *[[f"I cannot sleep {n}"] for n in range(500)]])
    whole = path.read_bytes()
    start = whole.index(b"sheet1.xml")
    for damaged in (whole[: len(whole) // 2], whole[: start + 50] + b"x" * 400 + whole[start + 450 :]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.xlsx cannot be read"):
            list(open_records(path, "speeches"))
