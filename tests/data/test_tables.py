"""Files of speeches, read in a stream."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from psyco_ray.data import tables

RAW = [
    {"n": n, "text": f" {n} 'q\"uo,te' \nline é {'word ' * 30}", "split": "test" if n % 3 else None, "topic": f"t{n}"}
    for n in range(9000)
]
COLUMNS = ["text", "topic", "split"]


def write(path: Path, rows: list[dict]) -> str:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=700)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def streamed(path: str) -> list[dict]:
    return [row for table in tables.stream_rows(path, "speeches", COLUMNS) for row in table.to_pylist()]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl", "jsonl.gz"])
def test_a_file_is_read_in_small_tables_in_its_order(tmp_path, ending) -> None:
    path = write(tmp_path / f"s.{ending}", RAW)
    assert streamed(path) == [{name: row[name] for name in COLUMNS} for row in RAW]
    assert set(tables.columns_of(path, "speeches")) == set(RAW[0])
    sizes = [table.num_rows for table in tables.stream_rows(path, "speeches", COLUMNS)]
    assert max(sizes) < len(RAW)
    assert tables.size_of(path, "speeches") == Path(path).stat().st_size


def test_names_of_files_give_the_split(tmp_path) -> None:
    rows = [{"text": row["text"], "topic": row["topic"]} for row in RAW[:50]]
    for split in ("train", "test"):
        write(tmp_path / f"{split}-0.parquet", rows)
    expected = tables.read_table(str(tmp_path), "speeches").select(COLUMNS).to_pylist()
    assert streamed(str(tmp_path)) == expected
    assert "split" in tables.columns_of(str(tmp_path), "speeches")
    assert {row["split"] for row in expected} == {None, "test"}


def test_numbers_are_texts_and_blank_cells_are_null(tmp_path) -> None:
    (tmp_path / "s.csv").write_text('text,topic,split\na,07,\n"",,dev\n')
    assert streamed(str(tmp_path / "s.csv")) == [
        {"text": "a", "topic": "07", "split": None},
        {"text": "", "topic": None, "split": "dev"},
    ]
    (tmp_path / "s.jsonl").write_text('{"text": 3, "topic": null}\n\n{"text": true}\n')
    assert [row["text"] for row in streamed(str(tmp_path / "s.jsonl"))] == ["3", "True"]


def test_a_csv_of_an_old_excel_is_streamed_as_cp1252(tmp_path) -> None:
    (tmp_path / "s.csv").write_bytes("text,topic\nI can’t sleep,Café\n".encode("cp1252"))
    assert streamed(str(tmp_path / "s.csv"))[0]["text"] == "I can’t sleep"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", b"text,topic\nMy husband hits me, and I am afraid,Leave\n", "Expected 2 columns, got 3"),
        ("s.csv", b"text\n", "has no rows"),
        ("s.jsonl", b"", "has no rows"),
        ("s.jsonl", b'{"text": "My husband"}\n{"te', "cannot be read: line 2 is not JSON"),
        ("s.jsonl", b'["My husband"]\n', "cannot be read: line 1 is a list, not an object"),
        ("s.jsonl", b'{"text": "My husband \\ud800"}\n', "cannot be read"),
        ("s.jsonl.gz", b"no gzip", "cannot be read"),
        ("s.parquet", b"PAR1 and nothing", "cannot be read"),
    ],
)
def test_damaged_files_are_named_without_their_words(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        streamed(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    assert "husband" not in str(caught.value)
