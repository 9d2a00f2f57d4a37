"""Rows of a run's speeches, and the draw of an iteration's."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.data.speech_rows import draw, train_and_dev
from psyco_ray.run.schemas import SPEECHES


def drawn_one_by_one(ids: list[str], count: int, iteration: int, seed: int) -> list[str]:
    """The draw of an iteration, as its definition reads."""
    left: list[str] = []
    drawn: list[str] = []
    passes = 0
    for _ in range(iteration):
        drawn, left = left[:count], left[count:]
        if len(drawn) < count:
            shuffled = [ids[i] for i in np.random.default_rng([seed, passes]).permutation(len(ids))]
            passes += 1
            fresh = [key for key in shuffled if key not in drawn]
            missing = count - len(drawn)
            left = fresh[missing:] + [key for key in shuffled if key in drawn]
            drawn = drawn + fresh[:missing]
    return drawn


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 99))
def test_no_speech_is_drawn_twice_before_all_were_drawn(count: int, extra: int, seed: int) -> None:
    ids = [f"id {i}" for i in range(count + extra)]
    draws = draw(len(ids), count, 8, seed)
    for iteration, batch in enumerate(draws, start=1):
        assert len(set(batch.tolist())) == count
        assert [ids[i] for i in batch] == drawn_one_by_one(ids, count, iteration, seed)
    seen = Counter(i for batch in draws for i in batch.tolist())
    assert max(seen[i] for i in range(len(ids))) - min(seen[i] for i in range(len(ids))) <= 1


def test_a_seed_draws_the_same_from_version_to_version() -> None:
    assert [batch.tolist() for batch in draw(7, 3, 4, seed=5)] == [[1, 4, 2], [3, 6, 5], [0, 4, 2], [6, 5, 3]]


def test_the_draws_of_a_run_from_a_million_speeches_take_seconds() -> None:
    began = time.process_time()
    draws = draw(1_000_000, 64_000, 48, seed=0)
    assert time.process_time() - began < 5
    assert len({i for batch in draws[:15] for i in batch.tolist()}) == 15 * 64_000


def test_drawing_more_speeches_than_there_are_is_an_input_error() -> None:
    with pytest.raises(ValueError, match="speeches_per_iteration is 5, but the training split has only 2 speeches"):
        draw(2, 5, 1, 0)


@pytest.fixture
def table(tmp_path) -> tuple[Path, list[dict]]:
    """A table of several row groups, and its rows."""
    rows = [
        {
            "speech_id": f"{n:016x}",
            "speech": f"speech {n}",
            "split": "dev" if n % 7 == 3 else "train",
            "topic": None if n % 2 else "t",
            "prompt_ids": list(range(n % 9)),
        }
        for n in range(500)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SPEECHES), tmp_path / "speeches.parquet", row_group_size=64)
    return tmp_path / "speeches.parquet", rows


def test_rows_are_read_in_the_order_of_the_draw(table) -> None:
    path, rows = table
    train, dev = train_and_dev(path)
    of_train = [row for row in rows if row["split"] == "train"]
    assert list(train) == of_train
    assert list(dev[:20]) == [row for row in rows if row["split"] == "dev"][:20]
    for picks in draw(len(train), 90, 6, seed=1):
        drawn = train[picks]
        assert len(drawn) == 90
        assert list(drawn) == list(drawn) == [of_train[i] for i in picks]
    assert list(train[np.array([], np.int64)]) == []


def test_a_draw_reads_one_row_group_at_a_time_and_keeps_its_own_rows(table, monkeypatch) -> None:
    path, _ = table
    train, _ = train_and_dev(path)
    read = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda file, group: read.append(group) or whole(file, group))
    monkeypatch.setattr(pq, "read_table", lambda *_, **__: pytest.fail("the whole table is read"))
    drawn = train[np.array([420, 3, 5])]
    assert read == [], "nothing is read before the rows are needed"
    assert [row["speech"] for row in drawn] == ["speech 490", "speech 4", "speech 6"]
    assert list(drawn)
    assert read == [0, 7]
