"""Directories that are complete or absent, here and on a (real, local) S3 server."""

import json
import os
import re
import shutil
import subprocess
import sys

import pyarrow.fs
import pytest
from support.files import fill
from support.paths import SUPPORT

from psyco_ray.cli.main import main
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.judge.journal import Answer, Journal
from psyco_ray.models import loading
from psyco_ray.run import shards, storage
from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.remote import MANIFEST, RemoteDirectory, require_inside
from psyco_ray.run.schemas import COLLECTED


def test_an_interrupted_directory_never_shows(tmp_path) -> None:
    def fill_half() -> None:
        with storage.atomic_dir(tmp_path / "model") as staging:
            (staging / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(ValueError, match=r"directory .*/model cannot be written: disk full"):
        fill_half()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_away(tmp_path) -> None:
    (tmp_path / ".model.partial-killed").mkdir()
    (tmp_path / ".model-other.partial-alive").mkdir()
    fill(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model-other.partial-alive", "model"]


def test_a_damaged_local_directory_names_the_file(tmp_path) -> None:
    fill(tmp_path / "state")
    assert storage.fetch(tmp_path / "state", digests=True) == tmp_path / "state"
    (tmp_path / "state" / "README.md").write_text("a card is no part of what was written")
    (tmp_path / "state" / "a.txt").write_text("two")
    storage.fetch(tmp_path / "state")
    with pytest.raises(ValueError, match=r"state is damaged: the bytes of a.txt are not .*; put a whole copy"):
        storage.fetch(tmp_path / "state", digests=True)
    with open(tmp_path / "state" / "below" / "b.bin", "ab") as file:
        file.truncate(7)
    with pytest.raises(ValueError, match=r"below/b.bin has 7 bytes, not 10240000"):
        storage.fetch(tmp_path / "state")
    shutil.rmtree(tmp_path / "state" / "below")
    with pytest.raises(ValueError, match=r"below/b.bin is missing"):
        storage.fetch(tmp_path / "state")


def test_models_from_elsewhere_load_as_before(tiny_model, tmp_path) -> None:
    assert loading.resolve(str(tiny_model), digests=True) == tiny_model
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / "manifest.json").write_text('{"name": "of another program"}')
    assert loading.resolve(str(copy), digests=True) == copy


def test_a_remote_directory_comes_back_and_goes(place) -> None:
    target = storage.join(place, "state")
    assert not storage.exists(target)
    fill(target)
    fill(target, "two")
    path = storage.fetch(target)
    assert (path / "a.txt").read_text() == "two"
    assert (path / "below" / "b.bin").read_bytes() == bytes(range(256)) * 40000
    moved = storage.join(place, "final")
    storage.move_dir(target, moved)
    assert not storage.exists(target)
    assert (storage.fetch(moved) / "a.txt").read_text() == "two"
    assert storage.subdirs(place) == ["final"]
    storage.remove_dir(moved)
    storage.remove_dir(moved)
    assert storage.subdirs(place) == []
    with pytest.raises(ValueError, match=r"final.* has no manifest.json: it does not exist, was not written whole"):
        storage.fetch(moved)


def test_places_with_directories_and_unusual_names(monkeypatch, tmp_path) -> None:
    """Where an object does not appear whole a file is moved into its place."""
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path))
    target = "mock:///some%20runs/one"
    RemoteDirectory(target).at("a b").write("x.json", b"1")
    RemoteDirectory(target).at("a b").write("x.json", b"2")
    assert set(RemoteDirectory("mock:///some%20runs").files()) == {"one/a b/x.json"}
    assert pyarrow.fs.FileSystem.from_uri(target)[1] == "some runs/one", "as others read the URI"
    assert RemoteDirectory(target).read("a b/x.json") == b"2"
    fill(storage.join(target, "state"))
    storage.move_dir(storage.join(target, "state"), storage.join(target, "other/final"))
    assert storage.subdirs(target) == ["a b", "other"]
    assert (storage.fetch(storage.join(target, "other/final"), digests=True) / "below" / "b.bin").is_file()
    storage.remove_dir(target)
    assert not RemoteDirectory(target).files()


def test_a_failure_before_the_manifest_leaves_no_directory(place, monkeypatch) -> None:
    target = storage.join(place, "state")
    fill(target, "old")

    def fails(remote, name, data):
        raise OSError("connection lost")

    with monkeypatch.context() as broken:
        broken.setattr(RemoteDirectory, "write", fails)
        with pytest.raises(ValueError, match="connection lost"):
            fill(target)
    assert set(RemoteDirectory(target).files()) == {"a.txt", "below/b.bin"}, "the files are there"
    assert not storage.exists(target)
    fill(target)
    assert storage.exists(target)


def test_damage_in_the_remote_place_or_in_the_copy_is_found(place) -> None:
    target = storage.join(place, "state")
    fill(target)
    path = storage.fetch(target)
    (path / "a.txt").write_text("bad")
    assert (storage.fetch(target, digests=True) / "a.txt").read_text() == "one", "the copy is made again"
    RemoteDirectory(target).write("a.txt", b"bad")
    shutil.rmtree(storage.cache_dir())
    with pytest.raises(ValueError, match=r"s3://.*state.* is damaged: the bytes of a.txt"):
        storage.fetch(target)


def test_a_key_in_a_uri_is_refused_and_not_shown(tmp_path) -> None:
    for uri in ("s3://AKIA:se/cret@bucket/run", "s3://AKIA@bucket/run", "abfs://box/run?client_secret=AKIA"):
        for use in (RemoteDirectory, RunDirectory, lambda uri: Ledger(Job(run_dir=str(tmp_path), model=uri), False)):
            with pytest.raises(ValueError, match="has a key in it; take it out") as refused:
                use(uri)
            assert "AKIA" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_in_a_remote_manifest_cannot_lead_out_of_the_directory(place, tmp_path) -> None:
    target = storage.join(place, "state")
    fill(target)
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    remote = RemoteDirectory(target)
    manifest = json.loads(remote.read(MANIFEST))
    for name in ("../../outside.txt", str(outside), "a/../../outside.txt", "a//b", "./a", "a\\..\\b", ""):
        files = {**manifest["files"], name: {"bytes": 0}}
        remote.write(MANIFEST, json.dumps({**manifest, "files": files}).encode())
        with pytest.raises(InputError, match="leads out of a directory"):
            storage.fetch(target)
    assert outside.read_text() == "mine"
    assert not list(storage.cache_dir().rglob("outside*"))


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "."])
def test_the_name_of_an_object_cannot_lead_out_of_a_directory(name) -> None:
    with pytest.raises(InputError, match="which leads out of a directory"):
        require_inside(name, "s3://bucket/run")


def test_what_a_run_writes_can_be_read_by_its_user_alone(tmp_path) -> None:
    directory = RunDirectory(str(tmp_path / "above" / "run"))
    directory.write_json("samples/one.json", {})
    directory.close()
    fill(tmp_path / "model")
    shards.write(tmp_path / "above" / "run" / "rate", "0", [], COLLECTED)
    journal = Journal(tmp_path / "above" / "run" / "journal", "writer")
    journal.add("ab" * 8, "ab" * 32, Answer("hello", True, 1, 1))
    journal.close()
    made = [path for path in tmp_path.rglob("*") if path.parent.name != "model" and path.name not in ("b.bin", "LOCK")]
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in made}
    assert len(modes) >= 7
    assert {name: oct(mode) for name, mode in modes.items() if mode not in (0o700, 0o600)} == {}


def test_a_stricter_umask_stays_in_force(tmp_path) -> None:
    before = os.umask(0o277)
    try:
        storage.write_file(tmp_path / "file", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o400


def test_places_that_cannot_be_are_one_sentence(server) -> None:
    with pytest.raises(ValueError, match="which only training runs can have"):
        RunDirectory(f"s3://bucket/run?{server}")
    with pytest.raises(ValueError, match=r"s3://nowhere/run.* cannot be reached: "):
        Ledger(Job(run_dir=f"s3://nowhere/run?{server}"), False)
    with pytest.raises(ValueError, match=r"nothing://x.* cannot be reached: Unrecognized filesystem"):
        Ledger(Job(run_dir="nothing://x"), False)


def test_file_uris_are_local(tmp_path) -> None:
    ledger = Ledger(Job(run_dir=f"file://{tmp_path}/a%20run"), False)
    assert ledger.root == tmp_path / "a run"
    assert ledger.place("state") == str(tmp_path / "a run" / "state")
    ledger.close()


CUT = """
import os, signal, sys
from psyco_ray.run import preemption
from psyco_ray.run.remote import MANIFEST, RemoteDirectory, require_inside
from psyco_ray.run.schemas import COLLECTED

class Slow:
    \"""A file system where SIGTERM comes while a file is being opened.\"""
    type_name = "s3"
    def __init__(self, true):
        self.true = true
    def open_output_stream(self, path):
        stream = self.true.open_output_stream(path)
        os.kill(os.getpid(), signal.SIGTERM)
        return stream

remote = RemoteDirectory(sys.argv[1])
remote._fs = Slow(remote._fs)
try:
    with preemption.stop_on_signals():
        remote.write("record.json", b"whole")
except preemption.Preempted:
    sys.exit(75)
"""


def test_a_driver_that_is_stopped_while_it_writes_leaves_no_empty_file(place) -> None:
    found = subprocess.run([sys.executable, "-c", CUT, place], capture_output=True, text=True, timeout=120)
    assert found.returncode == 75, found.stderr
    assert RemoteDirectory(place).read("record.json") == b"whole"


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(place) -> None:
    remote = RemoteDirectory(place)
    remote.write("status.json", b"old")
    true = remote._fs

    class Busy:
        type_name = "s3"
        get_file_info = true.get_file_info

        def open_input_stream(self, path):
            stream = true.open_input_stream(path)
            RemoteDirectory(place).write("status.json", b"new and longer")
            return stream

    remote._fs = Busy()
    assert remote.read("status.json") == b"new and longer"


def test_runs_to_compare_are_local(place, capsys) -> None:
    assert main(["compare", place]) == 2
    told = capsys.readouterr().err
    assert "is remote, and compare reads local directories; copy" in told
    assert "://" in told


def test_a_run_whose_disk_was_full_again_and_again_goes_on_to_the_same_result(tmp_path) -> None:
    def run(name: str, *full_from: str) -> list[dict]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.yaml").write_text("run_dir: run")
        command = [sys.executable, str(SUPPORT / "filling_disk.py"), "job.yaml", *full_from]
        found = subprocess.run(command, cwd=tmp_path / name, capture_output=True, text=True, timeout=200)
        assert found.returncode == 0, found.stderr
        return [json.loads(line) for line in found.stdout.splitlines()]

    def results(name: str) -> dict[str, bytes]:
        files = (path for path in (tmp_path / name / "run").rglob("*") if path.is_file())
        found = {path.relative_to(tmp_path / name / "run").as_posix(): path.read_bytes() for path in files}
        return {name: data if "." in name and not name.endswith(".json") else b"" for name, data in found.items()}

    whole = ["table", "item0", "item1", "step0", "step1", "step2", "checkpoint"]
    assert run("undisturbed", "nowhere") == [{"code": 0, "error": "", "made": whole}]
    *full, end = run("run", "table", "item1", "step1", "checkpoint", "nowhere")
    assert [act["code"] for act in full] == [2] * 4
    # what was whole is kept, what the disk had no room for is made again
    assert [act["made"] for act in full] == [
        whole[:1],
        whole[:3],
        ["item1", "step0", "step1"],
        ["step1", "step2", whole[-1]],
    ]
    for act, where in zip(
        full, ("run", "run/it/samples", "run/it/training/state-000002", "run/it/checkpoint"), strict=True
    ):
        sentence = rf"psyco-ray: (directory )?(\S+/)?{where} cannot be written.*File too large.*; make room.*"
        assert re.fullmatch(sentence, act["error"]), act["error"]
    assert end == {"code": 0, "error": "", "made": ["checkpoint"]}
    assert results("run") == results("undisturbed")
