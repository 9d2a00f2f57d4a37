"""Speeches that leave a dataset after its stages were paid for."""

import contextlib
import json
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
import yaml
from support import commands
from support.data_jobs import asked, rows_of
from support.raw_speeches import speech

from psyco_ray.config import job_file
from psyco_ray.config.data import DataJob
from psyco_ray.config.errors import InputError
from psyco_ray.data import collect as collecting
from psyco_ray.data import collect_stage, withdrawn
from psyco_ray.data.dataset import Dataset
from psyco_ray.data.splits import speech_id
from psyco_ray.run import shards, storage
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import COLLECTED, RESPONSES, SET_ASIDE, TOPICS

STAGES = ("collect/speeches", "topics", "respond", "rate")


def write_speeches(directory: Path, *numbers: int) -> None:
    (directory / "notes.jsonl").write_text("".join(json.dumps({"text": speech(n), "n": n}) + "\n" for n in numbers))


def write_job(directory: Path, url: str) -> Path:
    api = {"base_url": url, "key_env": None}
    pool = directory / "pool.yaml"
    pool.write_text(yaml.safe_dump([{"name": f"model-{n}", "api": {**api, "model": f"model-{n}"}} for n in range(5)]))
    job = {
        "run_dir": str(directory / "run"),
        "sources": [{"name": "clinic", "path": str(directory / "notes.jsonl")}],
        "topics": {"endpoint": {**api, "model": "labeller"}},
        "respond": {"pool": str(pool), "max_tokens": 60},
        "rate": {"endpoint": {**api, "model": "judge"}},
    }
    (directory / "job.yaml").write_text(yaml.safe_dump(job))
    return directory / "job.yaml"


def ids(run: Path, stage: str) -> set[str]:
    return {row["speech_id"] for row in rows_of(run / stage)}


def named(run: Path) -> set[str]:
    """The speeches that any table of the dataset names."""
    found: set[str] = set()
    for path in run.rglob("*.parquet"):
        names = {"speech_id", "ID"} & set(pq.read_schema(path).names)
        found |= {value for name in names for value in pq.read_table(path)[name].to_pylist()}
    return found


def test_stages_keep_what_is_about_speeches_that_are_left(tmp_path) -> None:
    def collected(directory: Path, *keys: str) -> Path:
        rows = [{"speech_id": key.ljust(16, "0"), "speech": key, "split": "train"} for key in keys]
        for part in sorted({key[0] for key in keys}):
            own = [row for row in rows if row["speech_id"][0] == part]
            shards.write(directory, part, own, COLLECTED)
        return directory

    topics, facts = tmp_path / "topics", {"paid": 3}
    for part, keys in {"a": ("a1", "a2"), "b": ("b1",), "c": ("c1", "c2"), "d": ("d1",)}.items():
        rows = [{"speech_id": key.ljust(16, "0"), "topic": key} for key in keys]
        shards.write(topics, part, rows, TOPICS, facts)
        shards.write(topics / "set-aside", part, [{"speech_id": keys[0].ljust(16, "0"), "what": "x"}], SET_ASIDE)
    then = collected(tmp_path / "then", "a1", "a2", "b1", "c1", "c2", "d1")
    now = collected(tmp_path / "now", "a2", "c1", "c2", "d1", "d2")
    assert withdrawn.settle(then, now, [topics, tmp_path / "rate"]) == {"withdrawn": 2, "added": 1}
    assert shards.list_shards(topics) == ["a", "c"], "what gained a speech, and what has none, is made again or gone"
    assert [row["topic"] for row in rows_of(topics)] == ["a2", "c1", "c2"]
    assert shards.facts(topics, "a") == facts
    assert [row["speech_id"][:2] for row in rows_of(topics / "set-aside")] == ["c1"]


def write_collected(directory: Path, *numbers: int) -> None:
    rows = [{"speech_id": speech_id(speech(n)), "speech": speech(n), "split": "train"} for n in numbers]
    shards.write(directory, "0", rows, COLLECTED)


def test_paid_stages_lose_rows_only_where_changes_are_accepted(tmp_path) -> None:
    write_speeches(tmp_path, 1, 2)
    job = job_file.load_as(DataJob, write_job(tmp_path, "http://127.0.0.1:1/v1"))
    run = tmp_path / "run"

    def collect(accept: bool) -> dict:
        def fake(job: DataJob, out: Path, digits: int | None = None, before=None) -> dict:
            assert (digits, before is None) == ((1, False) if shards.list_shards(run / "respond") else (None, True))
            numbers = [int(line["n"]) for line in map(json.loads, (tmp_path / "notes.jsonl").read_text().splitlines())]
            write_collected(out / "new", *numbers)
            if before is not None:
                before(out / "new")
            storage.move_dir(str(out / "new"), str(out / "speeches"))
            counts = {key: {} for key in ("dropped", "bad_rows", "splits", "not_screened", "scrubbed")}
            return {"rows": len(numbers), "kept": len(numbers), **counts}

        with contextlib.ExitStack() as held:
            dataset = held.enter_context(contextlib.closing(Dataset(job, accept_changes=accept)))
            held.enter_context(patch.object(collecting, "collect", fake))
            held.enter_context(patch.object(dataset, "connect"))
            return collect_stage.collect(dataset, Progress())

    assert collect(accept=False)["changes"] == []
    rows = [{"speech_id": speech_id(speech(n)), "model": "m", "response": "r", "finished": True} for n in (1, 2)]
    shards.write(run / "respond", "0", rows, RESPONSES)
    for name in ("respond.json", "rate.json", "pair.json", "report.html", "dataset-card.md", "pairs/train.parquet"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")
    write_speeches(tmp_path, 2)
    with pytest.raises(InputError, match=r"respond in .* depend on it; .*go on with the change by --accept-changes"):
        collect(accept=False)
    assert ids(run, "respond") == {speech_id(speech(1)), speech_id(speech(2))}
    [change] = collect(accept=True)["changes"]
    assert (change["withdrawn"], change["added"]) == (1, 0)
    assert ids(run, "respond") == {speech_id(speech(2))}
    left = {path.name for path in run.iterdir()}
    assert left.isdisjoint({"respond.json", "pair.json", "pairs", "report.html", "dataset-card.md"})
    assert collect(accept=False)["changes"] == [change], "done before"


@pytest.mark.long
def test_withdrawn_speeches_leave_paid_stages_also_after_a_kill_and_nothing_is_paid_again(
    tmp_path, serve, local_ray
) -> None:
    url, run = serve(), tmp_path / "run"
    write_speeches(tmp_path, *range(1, 9))
    job = write_job(tmp_path, url)
    assert commands.here("data", "build", job).returncode == 0
    keys = {n: speech_id(speech(n)) for n in range(1, 10)}
    before = {stage: rows_of(run / stage) for stage in STAGES}
    paid, pairs = asked(url)["paid"], named(run / "pairs")
    assert {keys[1], keys[5]} & pairs

    write_speeches(tmp_path, 2, 3, 4, 6, 7, 8)
    refused = commands.here("data", "build", job)
    assert refused.returncode == 2
    assert "topics, respond, rate in" in refused.stderr
    assert "go on with the change by --accept-changes" in refused.stderr
    assert named(run) == {keys[n] for n in range(1, 9)}

    with patch.object(collecting.storage, "move_dir", side_effect=RuntimeError("killed")), pytest.raises(RuntimeError):
        commands.here("data", "build", job, "--accept-changes")
    assert commands.here("data", "build", job).returncode == 2, "it is not forgotten that the file has changed"
    done = commands.here("data", "build", job, "--accept-changes")
    assert done.returncode == 0, done.stderr
    assert asked(url)["paid"] == paid
    assert named(run) == {keys[n] for n in (2, 3, 4, 6, 7, 8)}
    assert named(run / "pairs") == pairs - {keys[1], keys[5]}
    for stage in STAGES[1:]:
        assert rows_of(run / stage) == [row for row in before[stage] if row["speech_id"] not in (keys[1], keys[5])]
    [change] = json.loads((run / "collect.json").read_text())["changes"]
    assert (change["withdrawn"], change["added"]) == (2, 0)
    assert "notes.jsonl has changed since collect read it" in change["change"]

    write_speeches(tmp_path, 2, 3, 4, 6, 7, 9)
    done = commands.here("data", "build", job, "--accept-changes")
    assert done.returncode == 0, done.stderr
    assert asked(url)["paid"] == paid + 1 + 4 + 7, "the calls about the new speech"
    assert named(run) == {keys[n] for n in (2, 3, 4, 6, 7, 9)}
    for stage in STAGES[1:]:
        assert ids(run, stage) == named(run)
    changes = json.loads((run / "collect.json").read_text())["changes"]
    assert [(change["withdrawn"], change["added"]) for change in changes] == [(2, 0), (1, 1)]
