"""Reading raw files."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.files import write_content

from psyco_ray.config.data import Source
from psyco_ray.data import sources


def rows_of(path: Path | str, **more: str) -> list[sources.RawRow]:
    return list(sources.read(Source(name="s", path=str(path), **more)))


def test_untidy_csv(tmp_path) -> None:
    content = (
        b"\xef\xbb\xbfid, text ,topic\r\n"
        b'1,"two\r\nlines, ""quoted""",sleep\r\n'
        b"2,caf\xc3\xa9 and caf\xe9 \x93so\x94,\r\n"
        b"\r\n"
        b"3,one,cell,more\r\n"
        b"4\r\n"
        b"5,with \x00 nul,work\r\n"
        b"6,,\r\n"
    )
    rows = rows_of(write_content(tmp_path / "a.csv", content))
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.text for row in rows] == [
        'two\r\nlines, "quoted"',
        "café and café “so”",
        None,
        None,
        "with  nul",
        None,
    ]
    assert [row.topic for row in rows] == ["sleep", None, None, None, "work", None]
    assert [row.problem for row in rows] == [
        None,
        None,
        "4 cells where the header has 3",
        "1 cells where the header has 3",
        None,
        None,
    ]


def test_utf_16_csv(tmp_path) -> None:
    path = write_content(tmp_path / "a.csv", 'text\n"café\nça"\nvoilà\n'.encode("utf-16"))
    assert [row.text for row in rows_of(path)] == ["café\nça", "voilà"]


def test_untidy_json(tmp_path) -> None:
    lines = [
        json.dumps({"text": "first"}),
        "",
        '{"text": "torn',
        "[1, 2]",
        json.dumps({"text": 7}),
        json.dumps({"text": None, "topic": ["a", 1, "b"]}),
        json.dumps({"other": "x"}),
        '{"text": "raw\ttab"}',
        '{"text": "half \\ud83d character"}',
        json.dumps({"text": {"deep": 1}}),
    ]
    for name in ("a.jsonl", "a.json"):
        rows = rows_of(
            write_content(tmp_path / name, b"\xef\xbb\xbf" + "\n".join(lines).encode() + b'\n{"text": "caf\xe9"}')
        )
        assert [row.text for row in rows] == ["first", *[None] * 5, "raw\ttab", "half  character", None, "café"]
        assert [row.number for row in rows if row.problem] == [2, 3, 4, 9]
        assert rows[1].problem.startswith("invalid JSON: ")
        assert [rows[n].problem for n in (2, 3, 8)] == [
            "a list instead of an object",
            "text is a number, not text",
            "text is an object without a message of the client",
        ]
        assert rows[4].topic == "a; b"


def test_json_array(tmp_path) -> None:
    path = write_content(tmp_path / "a.json", json.dumps([{"text": "one"}, 2, {"text": "three"}], indent=1))
    assert [(row.text, row.problem) for row in rows_of(path)] == [
        ("one", None),
        (None, "a number instead of an object"),
        ("three", None),
    ]
    with pytest.raises(ValueError, match=r"b\.json is not valid JSON"):
        rows_of(write_content(tmp_path / "b.json", '[{"text": "one"},'))


def test_rows_are_numbered_over_all_files_of_a_source(tmp_path) -> None:
    for n, words in enumerate((["a", None], ["", "d"])):
        pq.write_table(pa.table({"speech": words, "x": [1, 2]}), tmp_path / f"part-{n}.parquet")
    rows = rows_of(tmp_path / "part-*.parquet")
    assert [(row.number, row.text) for row in rows] == [(1, "a"), (2, None), (3, None), (4, "d")]


def test_adapters_read_their_sources(tmp_path) -> None:
    psych8k = (
        "If you are a licensed psychologist, please provide this patient with a helpful response to their concern."
    )
    chat16k = (
        "You are a helpful mental health counselling assistant, please answer the mental health questions based on the "
        "patient's description. The assistant gives helpful, comprehensive, and appropriate answers to the user's "
        "questions."
    )
    cases = {
        "counsel-chat": [
            ({"questionTitle": "Title", "questionText": "Words", "topic": "sleep"}, "Words"),
            ({"questionTitle": "Title", "questionText": " "}, "Title"),
        ],
        "mentalagora": [({"post": "Words"}, "Words")],
        "therapistqa": [({"Patient Question": "Words", "Dominant Distortion": "x"}, "Words")],
        "psych8k": [
            ({"instruction": psych8k, "input": "Words", "output": "x"}, "Words"),
            ({"instruction": psych8k, "input": "", "output": "x"}, None),
            ({"instruction": psych8k + " Words", "output": "x"}, "Words"),
        ],
        "amod-counseling": [({"Context": "Words", "Response": "x"}, "Words")],
        "mentalchat16k": [
            ({"instruction": chat16k, "input": "Words"}, "Words"),
            ({"instruction": chat16k, "input": ""}, None),
            ({"instruction": "Words", "response": "x"}, "Words"),
        ],
        "phi2-mental": [
            ({"text": "<HUMAN>: Words,\nmore <ASSISTANT>: x <HUMAN>: y"}, "Words,\nmore"),
            ({"text": "###Human: Words\n\n###Assistant: x"}, "Words"),
            ({"text": "Instruct: Words\nmore\nOutput: x"}, "Words\nmore"),
            ({"text": "<s>[INST] <<SYS>> be kind <</SYS>> Words [/INST] x </s>"}, "Words"),
            ({"text": "<|im_start|>system\nx<|im_end|>\n<|im_start|>user\nWords<|im_end|>"}, "Words"),
            ({"text": "Plain words"}, "Plain words"),
            ({"text": [{"from": "system", "value": "x"}, {"from": "human", "value": "Words"}]}, "Words"),
            ({"text": [{"role": "assistant", "content": "x"}]}, None),
        ],
    }
    assert set(cases) | {"generic"} == set(sources.adapters())
    for adapter, expected in cases.items():
        path = write_content(tmp_path / f"{adapter}.jsonl", "\n".join(json.dumps(cells) for cells, _ in expected))
        assert [row.text for row in rows_of(path, adapter=adapter)] == [text for _, text in expected], adapter
    assert rows_of(tmp_path / "counsel-chat.jsonl", adapter="counsel-chat")[0].topic == "sleep"
    path = write_content(tmp_path / "own.csv", "Words,Field\nhello,sleep\n")
    assert rows_of(path, text="Words", topic="Field") == [sources.RawRow("s", 1, "hello", "sleep")]


def test_invalid_files_and_columns_are_input_errors(tmp_path) -> None:
    table = write_content(tmp_path / "a.csv", "one,two\n1,2\n")
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"text": ["x" * 100] * 1000}), whole)
    cases = [
        (table, {}, r"a\.csv has no column text or speech or question or client; it has one, two; .* source's text"),
        (table, {"text": "three"}, "no column three; it has one, two"),
        (table, {"text": "one", "topic": "three"}, "no column three; it has one, two; .* source's topic"),
        (table, {"adapter": "nope"}, "unknown adapter nope; known are amod-counseling, counsel-chat"),
        (tmp_path / "no*.csv", {}, r"no file matches .*no\*\.csv"),
        (write_content(tmp_path / "a.txt", "x"), {}, r"a\.txt has none of the endings \.csv"),
        (write_content(tmp_path / "b.csv", ""), {}, r"b\.csv has no rows"),
        (write_content(tmp_path / "c.csv", "text\n"), {}, r"c\.csv has no rows"),
        (write_content(tmp_path / "d.jsonl", "\n"), {}, r"d\.jsonl has no rows"),
        (write_content(tmp_path / "e.jsonl", '{"one": 1}\n'), {}, "no column text .*; it has one"),
        (write_content(tmp_path / "f.parquet", whole.read_bytes()[:-9]), {}, r"f\.parquet cannot be read"),
    ]
    for path, more, message in cases:
        for look in (sources.check, lambda source: list(sources.read(source))):
            with pytest.raises(ValueError, match=message):
                look(Source(name="s", path=str(path), **more))


def test_a_hub_dataset_is_read_in_one_of_its_formats(tmp_path, monkeypatch) -> None:
    import huggingface_hub

    (tmp_path / "data").mkdir()
    for name in ("data/test.jsonl", "data/train.jsonl"):
        write_content(tmp_path / name, json.dumps({"text": name}))
    write_content(tmp_path / "same.csv", "text\nthe same again\n")
    downloads = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **more: downloads.append((name, more["repo_type"])) or str(tmp_path),
    )
    rows = list(sources.read(Source(name="h", hub="somebody/some-set")))
    assert [row.text for row in rows] == ["data/test.jsonl", "data/train.jsonl"]
    assert downloads == [("somebody/some-set", "dataset")]
