"""CSV and TSV files: separators, quotes, line ends, torn rows."""

import csv
import io
import random
from pathlib import Path

import pytest
from support.files import write_content
from support.records import rows_of

from psyco_ray.config.errors import InputError
from psyco_ray.files import delimited
from psyco_ray.files.records import open_records

ROWS = [
    ["1", 'I cannot sleep, "and"\nI cry', "sleep"],
    ["2", 'She said "no"; twice | again', "work"],
    ["3", "", "family"],
]


def written(rows: list[list[str]], **dialect: str) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, **dialect).writerows([["id", "text", "topic"], *rows])
    return buffer.getvalue()


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("separator", "kind"), [(",", "CSV"), (";", "CSV with ;"), ("\t", "TSV"), ("|", "CSV with |")])
def test_a_separator_and_a_line_end_are_recognised(tmp_path, separator, kind, newline) -> None:
    content = written(ROWS, delimiter=separator, lineterminator=newline)
    for name in ("a.csv", "a.tsv"):
        file = open_records(write_content(tmp_path / name, content), "speeches")
        assert file.kind == kind
        assert [list(record.cells.values()) for record in file] == ROWS


def test_a_separator_is_told_by_the_rows(tmp_path) -> None:
    content = "name (first, last);text\n" + "Ann;a, b, c\n" * 5
    assert rows_of(tmp_path, "a.csv", content)[0] == {"name (first, last)": "Ann", "text": "a, b, c"}
    assert rows_of(tmp_path, "a.csv", "sep=;\nid;text\n1;a,b\n") == [{"id": "1", "text": "a,b"}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('id,text\n1,"he said \\"go, now\\" to me"\n', 'he said "go, now" to me'),
        ('id, text\n1, "go, now"\n', "go, now"),
        ('id\ttext\n1\t"go\n2\tnow\n', '"go'),
        ('id,text\n1,"he said ""go, now"""\n', 'he said "go, now"'),
    ],
)
def test_other_ways_to_quote(tmp_path, content, expected) -> None:
    assert rows_of(tmp_path, "a.csv", content)[0]["text"] == expected


def test_a_cell_is_of_any_size(tmp_path) -> None:
    long = "Therapist: we met, again.\n" * 40_000
    rows = [["1", "I cannot sleep", long], ["2", "I am afraid", long]]
    assert [list(row.values()) for row in rows_of(tmp_path, "a.csv", written(rows))] == rows


def test_one_column_of_unquoted_sentences(tmp_path) -> None:
    rows = rows_of(tmp_path, "a.csv", 'text\rI cannot sleep, I cry, and I am tired.\r"Quoted, too"\r')
    assert [row["text"] for row in rows] == ["I cannot sleep, I cry, and I am tired.", "Quoted, too"]
    assert rows_of(tmp_path, "a.csv", "text\nclient,therapist\n") == ["2 cells where the header has 1"]


def test_bad_rows_are_counted_and_the_others_stay(tmp_path) -> None:
    content = "id,text,\n1,one,\n2\n3,a,b,c\n4,x\ry,\n\n5,with \0 nul,,,\n"
    assert rows_of(tmp_path, "a.csv", content) == [
        {"id": "1", "text": "one"},
        "1 cells where the header has 3",
        "4 cells where the header has 3",
        "a carriage return outside quotes",
        {"id": "5", "text": "with \0 nul"},
    ]


def test_a_torn_quote_loses_its_row_alone(tmp_path) -> None:
    lines = [f"{n},line {n}" for n in range(3000)]
    torn = rows_of(tmp_path, "a.csv", "\n".join(["id,text", '0,"no end', *lines]))
    assert torn == ["a quote that never closes", *({"id": f"{n}", "text": f"line {n}"} for n in range(3000))]
    quoted = [f'{n},"line {n}, and\nmore"' for n in range(300)]
    rows = rows_of(tmp_path, "a.csv", "\n".join(["id,text", *quoted, '7,"torn', *quoted]))
    assert rows.count("2 cells where the header has 2") == 0
    assert [row for row in rows if isinstance(row, dict)][-1] == {"id": "299", "text": "line 299, and\nmore"}
    assert len([row for row in rows if isinstance(row, dict)]) >= 599
    # the tail of a cut download is part of a cell, not a row
    cut = "id,text\n" + "\n".join(quoted) + '\n300,"I cry\nand then, always\nI sleep'
    assert rows_of(tmp_path, "a.csv", cut)[300:] == ["a quote that never closes"]
    swallowed = cut + "\nmore, and more" * 200
    with pytest.raises(InputError, match="has a quote in line 602 that never closes, and 202 lines follow; close it"):
        rows_of(tmp_path, "a.csv", swallowed)


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_quote_too_many_or_too_few_costs_a_row_or_two(tmp_path, columns, quoting) -> None:
    names = ["text", "therapist", "topic"][:columns]
    rows = [[f'{n}. I cry, "really",{end}and sleep' for end in ("\n", " ", "\n")][:columns] for n in range(40)]
    buffer = io.StringIO()
    csv.writer(buffer, quoting=quoting, lineterminator="\n").writerows([names, *rows])
    content, start = buffer.getvalue(), len(",".join(names)) + 9
    draws = random.Random(columns)
    for _ in range(40):
        at = draws.randrange(start, len(content))
        missing = content.index('"', min(at, len(content) - 60))
        for damaged in (f'{content[:at]}"{content[at:]}', content[:missing] + content[missing + 1 :]):
            read = [list(row.values()) for row in rows_of(tmp_path, "a.csv", damaged) if isinstance(row, dict)]
            assert sum(row not in read for row in rows) <= 2
            assert sum(row not in rows for row in read) <= 2


def test_a_file_of_unmatched_quotes_ends(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(delimited, "_REREAD_LINES", 3000)
    content = "id,text\n1,a\n" + '2,"b\n3,"c"x",\n' * 400
    try:
        rows = rows_of(tmp_path, "a.csv", content)
    except InputError as error:
        assert "quotes that do not match" in str(error)  # noqa: PT017
    else:
        assert len(rows) > 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("text\n", "has no rows"),
        ("\n\n", "has no rows"),
        (",,\n1,2,3\n", "no names of columns in its first row"),
        ("text,text\nI cannot sleep,THERAPIST\n", "has two columns text; rename or drop one of them"),
        ('"text\nI cannot sleep\n', "has no readable header: a quote that never closes"),
        ("0,I cannot sleep since my mother moved in\n1,I cry\n", "its first row looks like data; add a row"),
    ],
)
def test_files_without_a_usable_header_are_refused_without_their_words(tmp_path, content, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        rows_of(tmp_path, "a.csv", content)
    assert str(tmp_path / "a.csv") in str(caught.value)
    assert "sleep" not in str(caught.value)


def test_a_missing_column_shows_no_words(tmp_path: Path) -> None:
    file = open_records(write_content(tmp_path / "a.csv", "id,I hear voices since the day she left\n1,x\n"), "speeches")
    with pytest.raises(InputError, match=r"no column text; it has id, .*: its first row looks like data") as caught:
        file.column(["text"], "data.speech_column")
    assert "voices" not in str(caught.value)
