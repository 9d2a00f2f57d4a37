import errno
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.groups import ITEMS, SCHEMA, groups_of, job, parts_of, stream

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import DpoConfig, Job, Sampling
from psyco_ray.run.hashing import key_of
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.types import Group, Prompt, PromptBatch
from psyco_ray.training.control import Control


def test_tables_are_made_once(tmp_path) -> None:
    made = []

    def make() -> tuple[Iterator[pa.Table], dict]:
        made.append(1)
        facts: dict = {}

        def parts() -> Iterator[pa.Table]:
            yield from parts_of([1], [2])
            facts["kept"] = 2

        return parts(), facts

    for resume in (False, True):
        ledger = Ledger(job(tmp_path), resume)
        assert pq.read_table(ledger.table("stage/x", SCHEMA, make))["a"].to_pylist() == [1, 2]
        assert ledger.record("stage/x")["seconds"] >= 0
        assert ledger.record("stage/x")["kept"] == 2
        ledger.close()
    assert made == [1]


def test_a_table_without_its_record_is_made_again(tmp_path) -> None:
    ledger = Ledger(job(tmp_path), False)
    ledger.table("x", SCHEMA, lambda: (parts_of([1]), {}))
    (ledger.root / "x.json").unlink()
    assert pq.read_table(ledger.table("x", SCHEMA, lambda: (parts_of([5]), {})))["a"].to_pylist() == [5]


def test_items_are_stored_when_whole_and_not_made_again(tmp_path) -> None:
    ledger = Ledger(job(tmp_path), False)

    def dies_in_the_second(items):
        first, second = items
        yield groups_of(first)[0]
        yield groups_of(second)[0]
        yield from groups_of(first)[1:]
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        list(stream(ledger, dies_in_the_second))
    asked: list[str] = []

    def rest(items):
        for item in items:
            asked.append(item.key)
            yield from groups_of(item)

    found = list(stream(ledger, rest))
    assert asked == ["item1"]
    expected = [group for item in ITEMS for group in groups_of(item)]
    assert sorted(found, key=lambda g: g.prompt.speech_id) == expected
    assert list(stream(ledger, rest)) == expected
    assert asked == ["item1"]


def batches(count: int) -> list[PromptBatch]:
    return [PromptBatch(f"many{k}", (Prompt(f"m{k}", (1, k), k),)) for k in range(count)]


def produced(items) -> Iterator[Group]:
    return (group for item in items for group in groups_of(item))


def test_no_file_of_an_item_has_its_name_before_all_are_on_the_disk(tmp_path, monkeypatch) -> None:
    ledger, done = Ledger(job(tmp_path), False), list[tuple[str, str]]()
    ledger.path("it/samples/any")  # the directory is made first
    sync, replace = os.fsync, os.replace

    def synced(file: int) -> None:
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{file}")).name))
        sync(file)

    def replaced(source: Path, target: Path) -> None:
        done.append(("name", target.name))
        replace(source, target)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.replace", replaced)
    list(ledger.store_missing("it/samples", batches(1), produced, {}))
    monkeypatch.undo()
    [key] = {file.name.split(".")[0] for file in (ledger.root / "it/samples").iterdir()}
    names = [f"{key}.samples.parquet", f"{key}.scores.parquet"]
    synced_files = [("sync", f".{name}.{os.getpid()}.partial") for name in names]
    assert done == [*synced_files, *(("name", name) for name in names), ("sync", "samples")], "one sync for both names"
    ledger.close()


def test_a_disk_that_fails_at_the_second_file_of_an_item_leaves_neither(tmp_path, monkeypatch) -> None:
    ledger, synced = Ledger(job(tmp_path), False), []
    ledger.path("it/samples/any")

    def fails(file: int) -> None:
        synced.append(file)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(InputError, match=r"scores.parquet.*make room"):
        list(ledger.store_missing("it/samples", batches(1), produced, {}))
    monkeypatch.undo()
    assert not list((ledger.root / "it/samples").iterdir())
    ledger.close()


def test_items_are_stored_beside_the_stream_which_waits_for_a_slow_disk(tmp_path, monkeypatch) -> None:
    ledger, waiting, most = Ledger(job(tmp_path), False), [0], [0]
    stored, free = ledger._store, threading.Event()

    def slowly(stage: str, items) -> None:
        free.wait(10)
        stored(stage, items)
        waiting[0] -= len(items)

    monkeypatch.setattr(ledger, "_store", slowly)
    for group in ledger.store_missing("it/samples", batches(40), produced, {}):
        assert group.version == 3
        waiting[0] += 1
        most[0] = max(most[0], waiting[0])
        if waiting[0] == 5:  # the stream goes on while the disk is slow
            threading.Timer(0.5, free.set).start()
    assert 32 <= most[0] <= 36, "but not without end"
    assert waiting[0] == 0
    assert len(list((ledger.root / "it/samples").glob("*.scores.parquet"))) == 40, "all are stored at the end"
    ledger.close()


def test_an_error_of_the_disk_ends_the_stream_and_the_rest_is_made_later(tmp_path, monkeypatch) -> None:
    ledger = Ledger(job(tmp_path), False)
    stored = ledger._store

    def fails_at_the_fourth(stage: str, items) -> None:
        if any(item.key == "many3" for item, _ in items):
            raise InputError("the disk is full")
        stored(stage, items)

    monkeypatch.setattr(ledger, "_store", fails_at_the_fourth)
    with pytest.raises(InputError, match="the disk is full"):
        list(ledger.store_missing("it/samples", batches(30), produced, {}))
    monkeypatch.undo()
    asked: list[str] = []

    def rest(items) -> Iterator[Group]:
        for item in items:
            asked.append(item.key)
            yield from groups_of(item)

    whole = {file.name.split(".")[0] for file in (ledger.root / "it/samples").glob("*.scores.parquet")}
    list(ledger.store_missing("it/samples", batches(30), rest, {}))
    assert "many3" in asked
    assert not whole & set(asked)
    ledger.close()


def test_items_of_the_same_moment_share_one_sync_of_the_directory(tmp_path, monkeypatch) -> None:
    ledger, synced, first = Ledger(job(tmp_path), False), list[str](), threading.Event()
    ledger.path("it/samples/any")
    sync = os.fsync

    def slow(file: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        first.wait(10)
        sync(file)

    monkeypatch.setattr("os.fsync", slow)
    for number, _ in enumerate(ledger.store_missing("it/samples", batches(10), produced, {})):
        if number == 9:
            first.set()
    monkeypatch.undo()
    assert len(list((ledger.root / "it/samples").glob("*.parquet"))) == 20
    assert len(set(synced) - {"samples"}) == 20, "every file is on the disk"
    assert synced.count("samples") <= 4
    ledger.close()


def test_a_directory_in_use_is_refused(tmp_path) -> None:
    ledger = Ledger(job(tmp_path), False)
    with pytest.raises(ValueError, match=r"is in use by process \d+ on"):
        Ledger(job(tmp_path), True)
    ledger.close()
    Ledger(job(tmp_path), True).close()


def leave_a_run(tmp_path: Path, **changes) -> None:
    ledger = Ledger(job(tmp_path, **changes), False)
    ledger.finish("stage", 0.0)
    ledger.close()


def test_a_run_that_made_nothing_does_not_hold_its_directory(tmp_path) -> None:
    ledger = Ledger(job(tmp_path), False)
    Control(ledger, {}, {}, lambda _: {"stage": "", "version": 0}).close()
    assert "status.json" in {path.name for path in ledger.root.iterdir()}
    ledger.close()
    Ledger(job(tmp_path, seed=4), False).close()
    assert "seed: 4" in (tmp_path / "run" / "job.yaml").read_text()


def test_an_old_run_is_not_overwritten_unasked(tmp_path) -> None:
    leave_a_run(tmp_path)
    with pytest.raises(ValueError, match="already holds a run; add --resume or choose another run_dir"):
        Ledger(job(tmp_path), False)


def test_a_resumed_run_keeps_what_its_results_depend_on(tmp_path) -> None:
    leave_a_run(tmp_path)
    with pytest.raises(ValueError, match=r"job\.yaml was written with seed: 0, now it is 4"):
        Ledger(job(tmp_path, seed=4), True)
    with pytest.raises(ValueError, match=r"sampling\.responses: 8, now it is 2"):
        Ledger(job(tmp_path, sampling=Sampling(responses=2)), True)
    Ledger(job(tmp_path, iterations=3, rollouts=Rollouts(actors=4)), True).close()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"evaluation": {"judge": {"model": "gpt-4o"}}}, "evaluation.judge.model"),
        ({"reward": {"lora": {"rank": 4}}}, "reward.lora.rank"),
    ],
)
def test_a_section_that_is_gone_is_a_change(tmp_path, settings, key) -> None:
    leave_a_run(tmp_path, **settings)
    with pytest.raises(ValueError, match=rf"was written with {re.escape(key)}: .*, now it is None"):
        Ledger(job(tmp_path), True)


@pytest.mark.parametrize("whole", [{"dpo": DpoConfig(schedule_over="run")}, {"pairs_from": "file"}])
def test_a_resumed_run_keeps_the_iterations_that_its_schedule_spans(tmp_path, whole) -> None:
    leave_a_run(tmp_path, **whole)
    with pytest.raises(ValueError, match=r"written with iterations: 16, now it is 3, and the learning-rate schedule"):
        Ledger(job(tmp_path, iterations=3, **whole), True)
    Ledger(job(tmp_path, rollouts=Rollouts(actors=4), **whole), True).close()


def test_a_directory_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/run cannot be written: Not a directory"):
        Ledger(Job(run_dir=str(tmp_path / "file" / "run")), False)


def test_keys_depend_on_every_part() -> None:
    assert key_of({"a": 1, "b": [1, 2]}, "x") == key_of({"b": [1, 2], "a": 1}, "x")
    assert len({key_of(*parts) for parts in ([1, 2], [2, 1], [[1], 2], ["1", 2])}) == 4
