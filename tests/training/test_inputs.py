"""A run that goes on knows what it was made of: models, prompts, code and packages."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PACKAGED
from psyco_ray.config.training import Data, Job
from psyco_ray.data import speech_file
from psyco_ray.files.records import digest_of
from psyco_ray.run import changes, storage
from psyco_ray.run.changes import Changes, digest_of_model
from psyco_ray.run.ledger import Ledger
from psyco_ray.training import inputs


@pytest.fixture
def made(tmp_path, tiny_model, monkeypatch) -> Job:
    """The job of a run that has begun."""
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    for name in ("base", "judge"):
        shutil.copytree(tiny_model, tmp_path / name)
    shutil.copy(PACKAGED, tmp_path / "prompts.yaml")
    job = Job(
        run_dir=str(tmp_path / "run"),
        model=str(tmp_path / "base"),
        scorers={"reward_model": str(tmp_path / "judge")},
        prompts={"file": str(tmp_path / "prompts.yaml")},
    )
    compared(job)
    (tmp_path / "run" / "speeches.parquet").write_bytes(b"work")
    return job


def compared(job: Job, accept: bool = False) -> Changes:
    found = Changes(accept)
    ledger = Ledger(job, resume=True)
    try:
        inputs.check(job, ledger, found)
    finally:
        ledger.close()
    return found


def swap_weights(directory: Path) -> None:
    """Other weights of the same size."""
    path = next(directory.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_a_run_that_has_not_changed_goes_on(made, tmp_path) -> None:
    assert compared(made).accepted == []
    next((tmp_path / "base").glob("*.safetensors")).touch()
    assert compared(made).accepted == [], "the same bytes at another time"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda root: swap_weights(root / "base"), "model has changed since this run began"),
        (lambda root: swap_weights(root / "judge"), "scorers.reward_model has changed"),
        (lambda root: (root / "base" / "extra.json").write_text("{}"), "model has changed"),
        (
            lambda root: (root / "prompts.yaml").write_text((root / "prompts.yaml").read_text() + "# edited\n"),
            "prompts.file has changed",
        ),
    ],
)
def test_what_has_changed_is_refused_by_its_name(made, tmp_path, change, named) -> None:
    change(tmp_path)
    with pytest.raises(InputError, match=named + r".*; put the old one back, .* or go on with .* --accept-changes"):
        compared(made)
    with pytest.raises(InputError, match=named):
        compared(made)
    assert len(compared(made, accept=True).accepted) == 1
    assert compared(made).accepted == [], "what was accepted is what the run is made of"
    record = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert [named in entry["change"] for entry in record["accepted"]] == [True]


@pytest.mark.parametrize(
    ("file", "again"), [("prompts.yaml", True), ("base/config.json", True), ("judge/config.json", False)]
)
def test_prompts_of_another_model_or_file_are_rendered_again(made, tmp_path, file, again) -> None:
    ledger = Ledger(made, resume=True)
    ledger.finish("speeches", 0.0)
    ledger.close()
    (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
    compared(made, accept=True)
    assert (tmp_path / "run" / "speeches.json").exists() != again


def test_an_accepted_file_of_speeches_is_read_again(made, tmp_path) -> None:
    file = tmp_path / "speeches.csv"
    data = Data(speeches=str(file))
    reads: list[int] = []

    def read() -> tuple[list[pa.Table], dict]:
        reads.append(len(file.read_text().splitlines()) - 1)
        return [pa.table({"row": [1]})], {"digest": digest_of(data.speeches, "speeches")}

    def resume(accept: bool) -> Changes:
        """What a training command does before its first iteration."""
        found, ledger = Changes(accept), Ledger(made, resume=True)
        try:
            if speech_file.check(data, ledger.record("speeches"), found):
                ledger.discard("speeches")
            inputs.check(made, ledger, found)
            ledger.table("speeches", pa.schema([("row", pa.int64())]), read)
        finally:
            ledger.close()
        return found

    file.write_text("text\nI cannot sleep.\nI am tired.\n")
    resume(accept=False)
    file.write_text("text\nI am tired.\n")
    with pytest.raises(InputError, match=r"speeches\.csv has changed since this run read it"):
        resume(accept=False)
    assert len(resume(accept=True).accepted) == 1
    assert resume(accept=False).accepted == []
    assert reads == [2, 1]
    record = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert ["speeches.csv has changed" in entry["change"] for entry in record["accepted"]] == [True]


def test_other_packages_and_code_are_changes(made, monkeypatch) -> None:
    now = inputs.versions()
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "versions", lambda: now | {"torch": "1.0"})
        with pytest.raises(InputError, match=rf"package torch has changed .* \({re.escape(now['torch'])}, now 1.0\)"):
            compared(made)
        patch.setattr(inputs, "versions", lambda: now | {"new": "1.0"})
        with pytest.raises(InputError, match=r"package new has changed .* \(is new\)"):
            compared(made)
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "digest_of_code", lambda: "0" * 32)
        with pytest.raises(InputError, match="code of psyco_ray has changed"):
            compared(made)


def test_a_finished_run_shows_its_result_whatever_has_changed(made, tmp_path) -> None:
    swap_weights(tmp_path / "base")
    summary = tmp_path / "run" / "summary.json"
    summary.write_text(json.dumps({"iterations": made.iterations}))
    assert compared(made).accepted == []
    summary.write_text(json.dumps({"iterations": made.iterations - 1}))
    with pytest.raises(InputError, match="model has changed since this run began"):
        compared(made)
    (tmp_path / "run" / "reward.json").write_text("{}")
    assert compared(made).accepted == []


def test_a_run_without_work_may_be_made_of_other_things(made, tmp_path) -> None:
    (tmp_path / "run" / "speeches.parquet").unlink()
    swap_weights(tmp_path / "base")
    compared(made)


def test_a_model_is_read_once(tmp_path, tiny_model, monkeypatch) -> None:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, tmp_path / "model")
    digest = digest_of_model(str(tmp_path / "model"))
    monkeypatch.setattr(changes, "digest_of_file", lambda path: pytest.fail(f"{path} is read again"))
    assert digest_of_model(str(tmp_path / "model")) == digest


def test_the_digest_of_a_remote_model_is_that_of_its_manifest(place) -> None:
    target = storage.join(place, "model")
    digests = []
    for content in ("one", "one", "two"):
        with storage.atomic_dir(target) as staging:
            (staging / "config.json").write_text(content)
        digests.append(digest_of_model(target))
    assert digests[0] == digests[1] != digests[2]


def test_the_hubs_names_of_files_are_their_digests(tmp_path, monkeypatch) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    monkeypatch.setattr(changes, "digest_of_file", lambda path: pytest.fail(f"{path} is read"))
    assert len(digest_of_model(str(snapshot))) == 32
