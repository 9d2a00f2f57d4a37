"""Parquet files and directories of them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psyco_ray.config.errors import InputError
from psyco_ray.files.records import open_records


def test_cells_are_what_parquet_has(tmp_path) -> None:
    rows = [
        {"text": "one", "raw": b"\xff", "turns": [{"role": "user", "content": "x"}], "n": 1, "score": None, "a.b": "x"},
        {"text": None, "raw": b"two", "turns": [], "n": 2, "score": 0.5, "a.b": "y"},
    ]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("word", pa.array(["a", "b"]).dictionary_encode())
    table = table.append_column("large", pa.array(["a", "b"], pa.large_string()))
    pq.write_table(table, tmp_path / "a.parquet")
    file = open_records(tmp_path / "a.parquet", "speeches")
    assert [record.cells for record in file] == [
        {**rows[0], "word": "a", "large": "a"},
        {**rows[1], "word": "b", "large": "b"},
    ]
    assert [record.cells for record in file.read(["a.b", "n"])] == [{"n": 1, "a.b": "x"}, {"n": 2, "a.b": "y"}]
    assert [record.cells for record in file.read([])] == [{}, {}]


def test_a_directory_is_read_file_by_file_in_the_order_of_names(tmp_path) -> None:
    (tmp_path / "b").mkdir()
    for name, column in (
        ("b/0.parquet", "late"),
        ("a.parquet", "text"),
        ("_hidden.parquet", "x"),
        ("b/.x.parquet", "x"),
    ):
        pq.write_table(pa.table({"id": [name], column: [1 if column == "late" else "words"]}), tmp_path / name)
    file = open_records(tmp_path, "speeches")
    assert (file.kind, file.columns) == ("Parquet, 2 files", ["id", "text", "late"])
    assert [(record.number, record.cells) for record in file] == [
        (1, {"id": "a.parquet", "text": "words", "late": None}),
        (2, {"id": "b/0.parquet", "late": 1, "text": None}),
    ]
    before = file.digest()
    (tmp_path / "a.parquet").rename(tmp_path / "c.parquet")
    assert open_records(tmp_path, "speeches").digest() != before


def test_names_of_files_give_the_split(tmp_path) -> None:
    def splits() -> list[str | None]:
        return [record.cells["split"] for record in open_records(tmp_path, "speeches")]

    for name in ("train-0", "test-0"):
        pq.write_table(pa.table({"text": [name]}), tmp_path / f"{name}.parquet")
    assert splits() == ["test", None]  # dev is drawn from train
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "validation_x.parquet")
    assert splits() == ["test", "train", "dev"]
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "more.parquet")
    with pytest.raises(InputError, match=r"has more\.parquet, which does not begin with the name of a split"):
        splits()


def test_unusable_files_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="is a directory without a Parquet file; name a file"):
        open_records(tmp_path, "speeches")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    pq.write_table(pa.table({"text": ["x" * 100] * 1000}), tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-9])
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"when": pa.array([2**62], pa.timestamp("us"))}), tmp_path / "date.parquet")
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "bytes.parquet")
    for name in ("date", "bytes"):
        with pytest.raises(InputError, match="cannot be read: it has a text that is not UTF-8, or a date out of range"):
            open_records(tmp_path / f"{name}.parquet", "speeches")
    for name, message in (("twice", "has two columns text"), ("cut", "cannot be read"), ("none", "has no rows")):
        with pytest.raises(InputError, match=message):
            open_records(tmp_path / f"{name}.parquet", "speeches")
