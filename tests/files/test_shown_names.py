"""Names that are read from a file: messages show them unless they may be a client's words."""

import json
import zipfile

import openpyxl
import pyarrow as pa
import pytest
from support.files import write_content

from psyco_ray.config.errors import InputError
from psyco_ray.files.records import open_records
from psyco_ray.files.table import shown, shown_among
from psyco_ray.run.records import ParquetReading

WORDS = "I want to die"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["speech", "topic", "id"], "speech, topic, id"),
        (["Client story", "chosen-rating"], "Client story, chosen-rating"),
        (["0", "1"], "0, 1"),
        (["id", "help me", WORDS], "id, (a text of 7 characters), (a text of 13 characters)"),
        (["help me", "I feel lost."], "(a text of 7 characters), (a text of 12 characters)"),
        (["anna.meier@gmx.de", "I'm sad!"], "(a text of 17 characters), (a text of 8 characters)"),
        (["我最近总是失眠", "编号"], "(a text of 7 characters), 编号"),
        ([], ""),
    ],
)
def test_one_text_makes_all_names_doubtful(names, message) -> None:
    assert shown(names) == message


def test_a_name_is_judged_with_the_others() -> None:
    assert shown_among("help me", ["help me", "id"]) == "help me"
    assert shown_among("help me", ["help me", WORDS]) == "(a text of 7 characters)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{WORDS},help me\nx,y\n", "it has .*: its first row looks like data; add a row"),
        (f"help me,help me,{WORDS}\nx,y,z\n", r"has two columns \(a text of 7 characters\); rename"),
    ],
)
def test_a_first_row_of_short_texts_is_not_shown(tmp_path, content, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_records(write_content(tmp_path / "a.csv", content), "speeches").column(["text"], "data.speech_column")
    assert "die" not in str(caught.value)
    assert "help" not in str(caught.value)


def test_keys_and_titles_of_parts_that_are_words_are_not_shown(tmp_path) -> None:
    lists = write_content(tmp_path / "a.json", json.dumps({WORDS: [{"a": 1}], "train": [{"a": 2}]}))
    for name in (lists, f"{lists}#none"):
        with pytest.raises(InputError, match=r"it has \(a text of 13 characters\), train") as caught:
            open_records(name, "speeches")
        assert "die" not in str(caught.value)
    book = openpyxl.Workbook()
    for title in (WORDS, "Codes"):
        book.create_sheet(title).append(["text"])
    book.save(tmp_path / "a.xlsx")
    for name in (tmp_path / "a.xlsx", f"{tmp_path}/a.xlsx#none"):
        with pytest.raises(InputError, match=r"it has \(a text of 13 characters\), Codes") as caught:
            open_records(name, "speeches")
        assert "die" not in str(caught.value)
    with pytest.raises(InputError, match=r"name one as a\.xlsx#Codes;"):
        open_records(tmp_path / "a.xlsx", "speeches")


def test_files_in_a_zip_file_are_named(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("the notes of May.csv", "b.csv"):
            archive.writestr(name, "text\nx\n")
    with pytest.raises(InputError, match=r"name one as a\.zip#the notes of May\.csv; it has the notes of May\.csv, b"):
        open_records(tmp_path / "a.zip", "speeches")


def test_words_in_place_of_a_file_are_not_shown(tmp_path) -> None:
    with pytest.raises(InputError, match="speeches file with a name of 13 characters does not exist"):
        open_records(WORDS, "speeches")
    with pytest.raises(InputError, match=r"speeches file my notes of May\.csv does not exist"):
        open_records("my notes of May.csv", "speeches")


def test_values_that_arrow_quotes_are_not_shown(tmp_path) -> None:
    with (
        pytest.raises(InputError, match=r"a\.parquet is damaged \(Could not convert\); restore it") as caught,
        ParquetReading(tmp_path / "a.parquet"),
    ):
        raise pa.ArrowInvalid(f"Could not convert: {WORDS}\nmore")
    assert "die" not in str(caught.value)
