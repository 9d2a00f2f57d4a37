"""Disks that take no more, and files that were cut: one sentence names directory or file, and nothing is lost."""

import errno
import os
from pathlib import Path

import pytest
from support.commands import here
from support.disks import room
from support.groups import ITEMS, groups_of, job, stream

from psyco_ray.config.errors import InputError
from psyco_ray.data.speech_rows import train_and_dev
from psyco_ray.evaluate import annotation, experts
from psyco_ray.judge.batch_state import BatchState
from psyco_ray.judge.journal import Answer, Journal
from psyco_ray.run import locks, shards, storage
from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.schemas import COLLECTED

PAIRS = [
    {"prefID": str(n), "question": "I feel low.", "chosen": "I hear you.", "rejected": "Cheer up!"} for n in range(9)
]
SPEECHES = [{"speech_id": f"{n:016x}", "speech": "I feel low", "split": "train"} for n in range(99)]


def answer(text: str) -> Answer:
    return Answer(text, finished=True, prompt_tokens=1, completion_tokens=1)


WRITERS = {
    "a shard": lambda out: shards.write(out, "0", SPEECHES, COLLECTED),
    "pairs for experts": lambda out: annotation.export(PAIRS, out, 5),
    "a batch": lambda out: BatchState(out / "state.json").add([("key", "speech", b"{}\n" * 99)]),
    "an answer": lambda out: Journal(out, "me").add("00" * 8, "key", answer("yes")),
    "a record": lambda out: RunDirectory(str(out)).finish("stage", 0.0),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_names_the_directory(tmp_path, write) -> None:
    with (
        pytest.raises(
            InputError, match=rf"{tmp_path}/\S+ cannot be written.*: (File too large|No space .*); make room, then"
        ),
        room(20),
    ):
        write(tmp_path / "out")
    write(tmp_path / "again")


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_directory_that_cannot_be_made_is_named(tmp_path, write) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"{tmp_path}/file/\S+ cannot be written: Not a directory; make it writable"):
        write(tmp_path / "file" / "out")


@pytest.mark.parametrize("command", ["init {out}", "evaluate-experts export a=a --opponent b --out {out}"])
def test_a_command_that_cannot_write_ends_with_2(tmp_path, monkeypatch, command) -> None:
    monkeypatch.setattr(experts, "read_responses", lambda path: {str(n): ("low", f"{path}{n}") for n in range(200)})
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    found = here(*command.format(out=out).split())
    assert found.returncode == 2
    assert found.stderr.startswith(f"psyco-ray: {out} cannot be written: Not a directory")


@pytest.mark.parametrize("name", [None, "/var/cache/some/model.bin"])
def test_a_full_disk_of_a_library_ends_a_command_with_2(tmp_path, monkeypatch, name) -> None:
    def evaluate(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr("psyco_ray.evaluate.policies.evaluate", evaluate)
    jobs = Path(__file__).parents[2] / "jobs"
    found = here("evaluate-policy", jobs / "evaluate-policy-laptop.yaml", f"run_dir={tmp_path / 'run'}")
    assert found.returncode == 2
    assert ("/var/cache/some cannot be written" if name else "(TMPDIR)") in found.stderr
    assert "No space left on device; make room" in found.stderr


def test_an_answer_without_room_spoils_no_other(tmp_path) -> None:
    journal = Journal(tmp_path, "me")
    journal.add("00" * 8, "first", answer("one"))
    [file] = tmp_path.rglob("*.jsonl")
    with pytest.raises(InputError, match=f"{tmp_path} cannot be written"), room(file.stat().st_size + 20):
        journal.add("00" * 8, "second", answer("two"))
    journal.add("00" * 8, "third", answer("three"))
    journal.close()
    assert {key: answer.text for key, answer in Journal(tmp_path, "you").load("00").items()} == {
        "first": "one",
        "third": "three",
    }


@pytest.mark.parametrize("name", ["a shard", "an answer", "a record"])
def test_a_written_file_and_its_name_are_on_the_disk(tmp_path, monkeypatch, name) -> None:
    synced: list[Path] = []
    true = os.fsync

    def fsync(file: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{file}")))
        true(file)

    monkeypatch.setattr("os.fsync", fsync)
    WRITERS[name](tmp_path / "new" / "out")
    assert {tmp_path, tmp_path / "new", tmp_path / "new" / "out"} < {*synced}, "names of files and directories"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError, match=r"run/LOCK cannot be locked: No locks available; name a directory"):
        RunDirectory(str(tmp_path / "run"))
    with pytest.raises(InputError, match="cannot be locked"), locks.locked(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{", b"[]", b"\xff"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, content) -> None:
    ledger = Ledger(job(tmp_path), resume=False)
    list(stream(ledger, lambda items: (group for item in items for group in groups_of(item))))
    shards.write(tmp_path / "stage", "0", SPEECHES, COLLECTED, facts={"a": 1})
    item = next(ledger.root.rglob("*.scores.parquet"))
    for path, read, way_out in (
        (item, lambda: list(ledger.stored_groups("it/samples", ITEMS)), "remove it to make it again"),
        (
            tmp_path / "stage" / "0.parquet",
            lambda: shards.read(tmp_path / "stage", "0"),
            "remove its stage's directory",
        ),
        (tmp_path / "stage" / "0.parquet", lambda: shards.facts(tmp_path / "stage", "0"), "remove its stage's direct"),
        (ledger.root / "x.json", lambda: ledger.record("x"), "remove it to repeat the stage"),
        (tmp_path / "state.json", lambda: BatchState(tmp_path / "state.json"), "restore it; without it the batches"),
        (tmp_path / "speeches.parquet", lambda: train_and_dev(tmp_path / "speeches.parquet"), "remove it to make it"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{path} is damaged \(.+\); (restore it, or )?{way_out}"):
            read()
    ledger.close()


def test_a_cut_table_is_named(tmp_path) -> None:
    shards.write(tmp_path, "0", SPEECHES, COLLECTED)
    path = tmp_path / "0.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"{path} is damaged"):
        shards.read(tmp_path, "0")


def test_another_file_is_not_blamed_on_the_directory(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError), storage.atomic_file(tmp_path / "out" / "table"):
        (tmp_path / "absent").read_text()
