"""Stages that overlap: one stream of rows, one budget, one failure that stops all, and the same files after a kill."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from support import commands
from support.data_jobs import asked, files_of, rows_of, write_overlapping_job
from support.processes import kill_tree

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.privacy import Privacy, ScrubSent
from psyco_ray.judge import callers
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.calls import Call
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run.progress import Progress

MEMBERS = ("model-0", "model-1", "model-2", "model-3")


@pytest.fixture
def servers(serve):
    """Starts a server for the labeller, for each member and for the judge; gives their URLs by name."""

    def start(*options: str) -> dict[str, str]:
        return {name: serve(*options) for name in ("labeller", *MEMBERS, "judge")}

    return start


@pytest.mark.long
def test_topics_members_and_ratings_of_a_build_overlap(tmp_path, servers, local_ray):
    urls = servers("--latency", "0.3")
    job = write_overlapping_job(tmp_path, urls, 40, concurrency=4)
    done = commands.here("data", "build", job)
    assert done.returncode == 0, done.stderr[-3000:]
    times = {name: asked(url, "times") for name, url in urls.items()}
    others = [name for name in times if name != "judge"]
    last_to_begin = max(times[name][0] for name in others)
    first_to_end = min(times[name][-1] for name in others)
    assert last_to_begin < first_to_end, "topics and all members are asked at the same time"
    assert times["judge"][0] < first_to_end, "the first parts are rated while others are still answered"
    kept = len(rows_of(tmp_path / "run" / "collect" / "speeches"))
    assert {name: len(of) for name, of in times.items()} == dict.fromkeys(others, kept) | {"judge": 7 * kept}
    assert len(rows_of(tmp_path / "run" / "rate")) == 28 * kept


@pytest.mark.long
def test_a_failing_stage_stops_the_others_and_what_is_paid_is_kept(tmp_path, servers, local_ray):
    urls = servers("--latency", "0.2")
    job = write_overlapping_job(tmp_path, urls, 40, concurrency=2)
    stopped = commands.here("data", "build", job, "rate.endpoint.model=status-401")
    assert stopped.returncode == 2
    last = stopped.stderr.strip().splitlines()[-1]
    assert "does not accept the key" in last
    assert "Traceback" not in stopped.stderr
    paid = {name: asked(url)["paid"] for name, url in urls.items()}
    kept = len(rows_of(tmp_path / "run" / "collect" / "speeches"))
    assert all(0 < paid[name] < kept for name in MEMBERS), "the members were stopped on the way"
    journalled = sum(len(file.read_bytes().splitlines()) for file in (tmp_path / "run" / "journal").rglob("*.jsonl"))
    assert journalled == sum(paid.values())
    (tmp_path / "run" / "rate" / "settings.json").unlink()  # the settings name the wrong model
    done = commands.here("data", "build", job)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(asked(url)["paid_twice"] == 0 for url in urls.values())


@pytest.mark.long
def test_the_stages_of_a_build_share_one_budget(tmp_path, servers, local_ray):
    urls = servers("--latency", "0.1")
    job, budget = write_overlapping_job(tmp_path, urls, 40, concurrency=4, price_in=10.0, price_out=30.0), 0.6
    stopped = commands.here("data", "build", job, "--max-cost", budget, "rate.max_tokens=100", "topics.max_tokens=50")
    assert stopped.returncode == 75, stopped.stderr
    assert "max_cost is reached" in stopped.stderr
    assert "is below the" in stopped.stderr, "the command says at its start that the budget will not do"
    lines = [line for file in (tmp_path / "run" / "journal").rglob("*.jsonl") for line in file.read_text().splitlines()]
    answers = [json.loads(line) for line in lines]
    cost = sum(10.0 * answer["prompt_tokens"] + 30.0 * answer["completion_tokens"] for answer in answers) / 1e6
    assert 0.9 * budget < cost <= budget
    assert len(answers) == sum(asked(url)["paid"] for url in urls.values())
    done = commands.here("data", "build", job, "rate.max_tokens=100", "topics.max_tokens=50")
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(asked(url)["paid_twice"] == 0 for url in urls.values())


@pytest.mark.long
def test_open_members_answer_beside_the_others_and_end_with_them(tmp_path, serve, tiny_model, local_ray):
    urls = {name: serve("--latency", "0.05") for name in ("labeller", *MEMBERS[:3], "judge")}
    job = write_overlapping_job(tmp_path, urls, 30)
    pool = yaml.safe_load((tmp_path / "pool.yaml").read_text())
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump([*pool, {"name": "tiny", "model": str(tiny_model)}]))
    engine = {"cpus": 0.5, "max_model_len": 1024, "max_num_seqs": 8, "kv_cache_gb": 0.5}
    arguments = [job, "respond.max_tokens=16", "pair.unfinished=allow"]
    arguments += [f"respond.rollouts.{key}={value}" for key, value in engine.items()]
    stopped = commands.here("data", "build", *arguments, "topics.endpoint.model=status-401")
    assert stopped.returncode == 2
    assert "does not accept the key" in stopped.stderr.strip().splitlines()[-1]
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("engines", "responder pool")]
    assert not (tmp_path / "run" / "respond.json").exists()
    (tmp_path / "run" / "topics" / "settings.json").unlink()  # they name the wrong model
    done = commands.here("data", "build", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = len(rows_of(tmp_path / "run" / "collect" / "speeches"))
    by_model = Counter(row["model"] for row in rows_of(tmp_path / "run" / "respond"))
    assert by_model == dict.fromkeys(MEMBERS[:3], kept) | {"tiny": by_model["tiny"]}
    assert by_model["tiny"] > kept / 2
    assert len(rows_of(tmp_path / "run" / "rate")) == 7 * sum(by_model.values())
    assert all(asked(url)["paid_twice"] == 0 for url in urls.values())


@pytest.mark.long
def test_a_killed_build_makes_the_same_files_and_pays_at_most_the_calls_in_flight(tmp_path, servers, local_ray):
    whole = write_overlapping_job(tmp_path / "whole", servers(), 40)
    done = commands.here("data", "build", whole)
    assert done.returncode == 0, done.stderr[-3000:]
    urls = servers("--latency", "0.2")
    job = write_overlapping_job(tmp_path / "killed", urls, 40, concurrency=4)
    command = [sys.executable, "-m", "psyco_ray.cli", "data", "build", str(job)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while asked(urls["judge"])["paid"] < 40:
        assert killed.poll() is None, "it ended before it was killed"
        time.sleep(0.05)
    assert not kill_tree(killed.pid)
    done = commands.here("data", "build", job)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(asked(url)["paid_twice"] <= 4 for url in urls.values())
    made, expected = files_of(tmp_path / "killed" / "run"), files_of(tmp_path / "whole" / "run")
    assert made.keys() == expected.keys()
    tables = [
        name for name in made if not name.startswith(("topics/", "rate/", "respond/members"))
    ]  # facts: calls paid
    assert {name: made[name] for name in tables} == {name: expected[name] for name in tables}
    for stage in ("topics", "rate", "respond"):
        assert rows_of(tmp_path / "killed" / "run" / stage) == rows_of(tmp_path / "whole" / "run" / stage)


class PidStage:
    """A stage that notes which process reads its questions and which one its answers."""

    attempts = 1
    schema = pa.schema([("speech_id", pa.string()), ("asked_in", pa.int64()), ("read_in", pa.int64())])

    def __init__(self, endpoint: Endpoint, out: Path) -> None:
        self.endpoint, self.out = endpoint, out

    def questions(self, part: str) -> Iterator[callers.Question]:
        for number in range(3):
            call = Call(({"role": "user", "content": f"{part} {number}"},), None, 20, 0.0)
            yield callers.Question(f"{part}{number}", "text", call, {"pid": os.getpid(), "after": number})

    def check(self, question: callers.Question, text: str) -> str:
        return text

    def rows(self, question: callers.Question, value: str, finished: bool) -> list[dict]:
        assert question.call.messages[0]["content"] == f"{question.speech_id[:-1]} {question.about['after']}"
        return [{"speech_id": question.speech_id, "asked_in": question.about["pid"], "read_in": os.getpid()}]


def test_questions_travel_as_rows_from_one_process_to_the_callers(tmp_path, serve, local_ray):
    """Callers get the texts of the calls: they read no file of a stage."""
    stage = PidStage(Endpoint(model="m", base_url=serve(), key_env=None, callers=2), tmp_path / "out")
    calls = CallRun(
        "pids", stage, ["a", "b", "c", "d", "e", "f"], tmp_path / "journal", Outgoing(ScrubSent(), Privacy())
    )
    calls.execute(None, Progress())
    rows = rows_of(stage.out)
    assert [row["speech_id"] for row in rows] == [f"{part}{number}" for part in "abcdef" for number in range(3)]
    reading, asking = {row["asked_in"] for row in rows}, {row["read_in"] for row in rows}
    assert len(reading) == 1
    assert os.getpid() not in reading | asking
    assert not reading & asking
    assert len(asking) == 2
    assert calls.stats().units == 18
