"""JSON files: lines, arrays, objects that hold an array, and what is none of them."""

import json

import pytest
from support.files import write_content
from support.records import rows_of

from psyco_ray.config.errors import InputError
from psyco_ray.files import json_rows
from psyco_ray.files.records import open_records

ROWS = [{"text": f"I cannot sleep {n}", "n": n, "tags": ["a", {"b": None}]} for n in range(50)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("indent", [None, 1])
def test_arrays_lines_and_objects_give_their_rows(tmp_path, name, indent) -> None:
    lines = "\n".join(json.dumps(row, indent=indent) for row in ROWS)
    for content in (lines, lines.replace("\n", "\r"), json.dumps(ROWS, indent=indent)):
        assert rows_of(tmp_path, name, content) == ROWS


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_with_one_list_of_rows_is_that_list(tmp_path, indent) -> None:
    for whole in (
        {"data": ROWS},
        {"version": 1.5, "about": {"rows": []}, "tags": ["a"], "data": ROWS, "end": 12},
    ):
        assert rows_of(tmp_path, "a.json", json.dumps(whole, indent=indent)) == ROWS
    lists = write_content(
        tmp_path / "b.json", json.dumps({"train": ROWS[:3], "n": 1, "valid": ROWS[3:]}, indent=indent)
    )
    with pytest.raises(InputError, match=r"several lists of rows; name one as b\.json#train; it has train, valid"):
        open_records(lists, "speeches")
    assert [record.cells for record in open_records(f"{lists}#valid", "speeches")] == ROWS[3:]
    with pytest.raises(InputError, match="has no list test; it has train, valid"):
        open_records(f"{lists}#test", "speeches")


def test_one_object_is_one_row_or_refused(tmp_path) -> None:
    assert rows_of(tmp_path, "a.json", '{"text": "one", "more": {"x": 1}}') == [{"text": "one", "more": {"x": 1}}]
    line = {"messages": [{"role": "user", "content": "x"}]}
    assert rows_of(tmp_path, "a.jsonl", json.dumps(line)) == [line]
    for whole in ({"a": {"text": "x"}, "b": {"text": "y"}}, {"a": ["x"], "b": ["y"]}):
        with pytest.raises(InputError, match="is one JSON object and not a list of rows; its keys are a, b"):
            rows_of(tmp_path, "a.json", json.dumps(whole, indent=1))


def test_a_row_may_be_long(tmp_path) -> None:
    rows = [{"text": "I cannot sleep. " * 200_000}, {"text": "I cry."}]
    for content in (json.dumps(rows), json.dumps({"data": rows}), "\n".join(map(json.dumps, rows))):
        assert rows_of(tmp_path, "a.json", content) == rows
    assert rows_of(tmp_path, "a.jsonl", "\n".join([*map(json.dumps, rows), "torn"]))[:2] == rows
    assert rows_of(tmp_path, "a.jsonl", json.dumps(rows[0])) == rows[:1]


def test_bad_lines_are_counted(tmp_path) -> None:
    lines = ['{"text": "torn', '{"text": "one"}', "", "[1]", "7", '{"a": 1, "a": 2}', '{"text": "raw\ttab \\ud83d"}']
    assert rows_of(tmp_path, "a.jsonl", "\n".join(lines)) == [
        "invalid JSON: Unterminated string starting at",
        {"text": "one"},
        "a list instead of an object",
        "a number instead of an object",
        "an object with a key twice",
        {"text": "raw\ttab \ud83d"},
    ]
    assert rows_of(tmp_path, "a.json", '[{"a": 1}, 2, {"a": 12}]') == [
        {"a": 1},
        "a number instead of an object",
        {"a": 12},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("[]", "has no rows"),
        ("My husband", r"no JSON object in its first 1 rows \(invalid JSON: Expecting value\)"),
        ('["My husband"]', r"no JSON object in its first 1 rows \(text instead of an object\)"),
        ('[{"text": "My husband"},', "is not valid JSON: Expecting value, after 1 rows"),
        ('{\n "data": [\n  {"text": "My husband"},\n', "is not valid JSON: Expecting value, after 1 rows"),
        ('{\n "data": [\n  {"text": "My husb', "is not valid JSON: Unterminated string starting at, after 0 rows"),
        ('[{"text": "My husband"} {', "is not valid JSON: no , or ] after 1 rows"),
        ('[{"text": "My husband", "text": 1}]', "is not valid JSON: an object with a key twice, after 0 rows"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_damaged_files_are_refused_without_their_words(tmp_path, content, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        rows_of(tmp_path, "a.json", content)
    assert "husband" not in str(caught.value)


def test_columns_that_appear_late_are_found(tmp_path) -> None:
    lines = [json.dumps({"id": n}) for n in range(3000)] + ['{"late": "x"}']
    file = open_records(write_content(tmp_path / "a.jsonl", "\n".join(lines)), "speeches")
    assert file.columns == ["id"]
    assert file.column(["text", "late"], "source's text") == "late"
    assert file.columns == ["id", "late"]
    with pytest.raises(InputError, match="no column none; it has id, late"):
        file.column(["none"], "source's text")


def test_values_are_read_in_pieces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", 3)
    for content in (json.dumps(ROWS), json.dumps({"n": 123456, "data": ROWS}, indent=2)):
        assert rows_of(tmp_path, "a.json", content) == ROWS
    monkeypatch.setattr(json_rows, "_VALUE_CHARS", 40)
    with pytest.raises(InputError, match=r"is not valid JSON: .*, after 0 rows"):
        rows_of(tmp_path, "a.json", json.dumps([{"text": "My husband " * 90}]))
