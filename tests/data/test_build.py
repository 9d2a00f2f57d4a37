"""A dataset from raw file to pairs: through the command, against a server that misbehaves and against a real judge."""

import csv
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support import commands
from support.logs import messages
from support.paper_prompts import write_paper_prompts
from support.processes import kill_tree

from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data import topics
from psyco_ray.data.pair import SCHEMA
from psyco_ray.files import records
from psyco_ray.run import shards
from psyco_ray.run.schemas import PREFERENCES


def psyco_ray(*arguments: object) -> subprocess.CompletedProcess:
    return commands.here("data", *arguments)


def write_job(where: Path, url: str, count: int, **changes) -> Path:
    raw = where / "raw.jsonl"
    rows = [json.loads(line) for line in records.SAMPLE.read_text().splitlines()[:count]]
    raw.write_text("".join(json.dumps({"text": row["question"], "topic": row["topic"]}) + "\n" for row in rows))
    pool = where / "pool.yaml"
    api = {"base_url": url, "key_env": None}
    pool.write_text(yaml.safe_dump([{"name": f"model-{i}", "api": {**api, "model": f"model-{i}"}} for i in range(6)]))
    job = {
        "run_dir": str(where / "run"),
        "sources": [{"name": "mine", "path": str(raw), "licence": "CC0"}],
        "collect": {"test_share": 0.3},
        "topics": {"endpoint": {**api, "model": "labeller"}},
        "respond": {"pool": str(pool), "max_tokens": 60},
        "rate": {"endpoint": {**api, "model": "judge", "price_in": 1.0, "price_out": 2.0, "concurrency": 16}},
        **changes,
    }
    path = where / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def counts(url: str) -> dict:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/counts") as answer:
        return json.load(answer)


def rows_of(directory: Path) -> list[dict]:
    return [row for part in shards.list_shards(directory) for row in shards.read(directory, part)]


def test_build_from_raw_file_to_pairs_with_a_faulty_server(tmp_path, serve, local_ray):
    url = serve("--share", "0.2", "--kinds", "429,500,cut,malformed,truncated,range", "--retry-after", "ms:50")
    job, run = write_job(tmp_path, url, 30), tmp_path / "run"
    done = psyco_ray("build", job)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = {row["speech_id"]: row for row in rows_of(run / "collect" / "speeches")}
    answers, ratings = rows_of(run / "respond"), rows_of(run / "rate")
    assert Counter(row["speech_id"] for row in answers) == dict.fromkeys(kept, 4)
    assert len(ratings) == 7 * 4 * len(kept)
    assert {row["rating"] for row in ratings} <= {1, 2, 3, 4, 5}
    assert not rows_of(run / "rate" / "set-aside")
    record = json.loads((run / "rate.json").read_text())
    assert record["units"] == 7 * len(kept)
    assert record["paid"] >= record["units"]
    assert record["cost"] > 0
    expected = expected_pairs(kept, ratings, {(r["speech_id"], r["model"]) for r in answers if not r["finished"]})
    for split in ("train", "dev", "test"):
        table = pq.read_table(run / "pairs" / f"{split}.parquet")
        assert table.schema.equals(SCHEMA)
        assert table.schema.names[: len(PREFERENCES)] == PREFERENCES.names
        rows = table.to_pylist()
        assert {(r["ID"], r["chosen_model"], r["rejected_model"]) for r in rows} == expected[split]
        assert all(row["topic"] and row["coarse_topic"] and row["split"] == split for row in rows)
    assert sum(map(len, expected.values())) > 10
    page = (run / "report.html").read_text()
    assert "mine" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "CC0" in (run / "dataset-card.md").read_text()

    assert {row["speech_id"] for row in rows_of(run / "topics")} == set(kept)
    exported = psyco_ray("export-annotation", job, "--count", 5)
    assert exported.returncode == 0, exported.stderr
    with open(run / "annotation" / "expert-1.csv", encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.reader(file))) == 6
    unfilled = psyco_ray("agreement", run / "annotation")
    assert unfilled.returncode == 0, unfilled.stderr
    agreement = json.loads((run / "annotation" / "agreement.json").read_text())
    assert agreement["experts"]["expert-1"] == {"filled": 0, "unfilled": 40}

    before = counts(url)["served"]
    again = psyco_ray("build", job)
    assert again.returncode == 0, again.stderr
    assert counts(url)["served"] == before

    changed = psyco_ray("rate", job, "rate.attempts=5")
    assert changed.returncode == 2
    assert "rate.attempts 3, now it is 5" in changed.stderr


def expected_pairs(kept: dict, ratings: list[dict], unfinished: set[tuple[str, str]]) -> dict[str, set]:
    sums: dict[str, Counter] = {}
    for row in ratings:
        sums.setdefault(row["speech_id"], Counter())[row["model"]] += row["rating"]
    expected: dict[str, set] = {"train": set(), "dev": set(), "test": set()}
    for key, total in sums.items():
        if kept[key]["split"] == "test":
            finished = [model for model in sorted(total) if (key, model) not in unfinished]
            best, worst = max(finished, key=total.get), min(sorted(total), key=total.get)
            pairs = [(best, worst)] if total[best] - total[worst] >= len(PRINCIPLES) else []
        else:
            pairs = [(a, b) for a in total for b in total if total[a] - total[b] >= len(PRINCIPLES)]
            pairs = [(a, b) for a, b in pairs if (key, a) not in unfinished]
        expected[kept[key]["split"]] |= {(key, a, b) for a, b in pairs}
    return expected


@pytest.fixture(scope="module")
def responded(tmp_path_factory, serve, local_ray):
    """A job whose speeches have their responses; the server that gave them is still there."""
    where = tmp_path_factory.mktemp("responded")
    job = write_job(where, serve(), 30)
    for stage in ("collect", "respond"):
        done = psyco_ray(stage, job)
        assert done.returncode == 0, done.stderr[-3000:]
    return job, where / "run"


@pytest.fixture
def to_rate(responded, tmp_path, serve):
    """Starts a server and gives it, the command's arguments to rate there, and the run directory, a copy of its own."""

    def prepare(*options: str) -> tuple[str, list[str], Path]:
        job, run = responded
        shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True)
        url = serve(*options)
        return url, [str(job), f"run_dir={tmp_path / 'run'}", f"rate.endpoint.base_url={url}"], tmp_path / "run"

    return prepare


@pytest.mark.long
def test_a_killed_stage_pays_again_at_most_the_calls_in_flight(to_rate):
    url, arguments, run = to_rate("--latency", "0.2")
    kept = len(rows_of(run / "collect" / "speeches"))
    command = [sys.executable, "-m", "psyco_ray.cli", "data", "rate", *arguments]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while counts(url)["paid"] < 60:
        assert killed.poll() is None, "it ended before it was killed"
        time.sleep(0.05)
    assert not kill_tree(killed.pid)
    assert counts(url)["paid"] < 7 * kept
    done = psyco_ray("rate", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(rows_of(run / "rate")) == 28 * kept
    assert counts(url)["paid_twice"] <= 16  # rate.endpoint.concurrency


def test_a_stage_stopped_by_its_budget_resumes(to_rate):
    url, arguments, run = to_rate()
    stopped = psyco_ray("rate", *arguments, "--max-cost", 0.05)
    assert stopped.returncode == 75, stopped.stderr
    assert "max_cost" in stopped.stderr
    assert not (run / "rate.json").exists()
    paid = counts(url)["paid"]
    again = psyco_ray("rate", *arguments, "--max-cost", 0.05)
    assert (again.returncode, counts(url)["paid"]) == (75, paid), "the budget is the run's, not the command's"
    assert "max_cost $0.05, of which $0.05 are spent, is below" in again.stderr
    done = psyco_ray("rate", *arguments)
    assert done.returncode == 0, done.stderr
    assert counts(url)["paid_twice"] == 0


def test_batches_fill_the_journal(to_rate):
    url, arguments, run = to_rate()
    refused = psyco_ray("rate", *arguments, "rate.endpoint.via=batch", "--max-cost", 0.2)
    assert refused.returncode == 2
    assert "$0.20 of max_cost are left; raise it, or set via to calls" in refused.stderr
    assert counts(url)["batch_requests"] == 0
    done = psyco_ray("rate", *arguments, "rate.endpoint.via=batch", "--max-cost", 20)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = len(rows_of(run / "collect" / "speeches"))
    assert counts(url)["batch_requests"] == 7 * kept
    assert counts(url)["served"] == 7 * kept  # no single call beside them
    assert json.loads((run / "rate.json").read_text())["cost"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["rate.endpoint.key_env=NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["rate.endpont.model=x"], "rate.endpoint"),
        (["respond.pool=nowhere.yaml"], "nowhere.yaml"),
        (["prompts=nowhere.yaml"], "nowhere.yaml"),
        (["max_cost=1", "rate.endpoint.price_in=null"], "price_in"),
        (["max_cost=1", "respond.seed_is_not_a_key=1"], "respond.seed_is_not_a_key"),
        (["respond.per_speech=7"], "6 members"),
    ],
)
def test_invalid_settings_are_named_and_nothing_is_lost(responded, changes, message):
    job, run = responded
    stage = "respond" if "respond" in changes[0] else "rate"
    done = psyco_ray(stage, job, *changes)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("psyco-ray: ")
    assert "Traceback" not in done.stderr
    assert len(rows_of(run / "respond")) > 0


def write_pool(path: Path, url: str, models: dict[str, str], **more: object) -> str:
    """A pool file of API members; by name the model that the server is asked for, which decides its answers."""
    members = [
        {"name": name, "api": {"base_url": url, "key_env": None, "model": model, **more}}
        for name, model in models.items()
    ]
    path.write_text(yaml.safe_dump(members))
    return str(path)


def collected(job_and_run: tuple[Path, Path], where: Path) -> list[str]:
    """A copy of a job's speeches in another run directory; the arguments that name job and directory."""
    job, run = job_and_run
    where.mkdir(parents=True)
    shutil.copytree(run / "collect", where / "collect")
    shutil.copy(run / "collect.json", where)
    return [str(job), f"run_dir={where}"]


def test_a_stage_of_mostly_cut_responses_stops_unless_they_are_allowed(responded, tmp_path, serve):
    pool = write_pool(tmp_path / "pool.yaml", serve(), {"short": "model", "a": "truncated", "b": "truncated"})
    arguments = [*collected(responded, tmp_path / "run"), f"respond.pool={pool}", "respond.per_speech=3"]
    stopped = psyco_ray("respond", *arguments)
    assert stopped.returncode == 2, stopped.stderr
    assert "67% of" in stopped.stderr
    assert "respond.max_tokens 60, most of a " in stopped.stderr
    assert not (tmp_path / "run" / "respond.json").exists()
    done = psyco_ray("respond", *arguments, "pair.unfinished=allow")
    assert done.returncode == 0, done.stderr
    kept = len(rows_of(tmp_path / "run" / "collect" / "speeches"))
    record = json.loads((tmp_path / "run" / "respond.json").read_text())
    assert record["finished"]["a"] == {"answers": kept, "unfinished": kept}
    assert record["finished"]["short"] == {"answers": kept, "unfinished": 0}


def test_prompts_of_the_papers_form_are_answered(responded, tmp_path, serve):
    prompts = write_paper_prompts(tmp_path / "mine.yaml")
    arguments = [*collected(responded, tmp_path / "run"), f"prompts={prompts}"]
    logged = messages()
    for stage in ("respond", "rate"):
        done = psyco_ray(stage, *arguments)
        assert done.returncode == 0, done.stderr
    kept = len(rows_of(tmp_path / "run" / "collect" / "speeches"))
    assert len(rows_of(tmp_path / "run" / "rate")) == 28 * kept
    assert any("no {principle}" in line for line in logged)
    done = psyco_ray("rate", *arguments, "respond.per_speech=3")
    assert done.returncode == 2
    assert "needs {responses}, or {response1} to {response3} for the 3 responses" in done.stderr


def test_a_stage_names_the_stage_it_builds_on(tmp_path, serve):
    job = write_job(tmp_path, serve(), 20)
    done = psyco_ray("rate", job)
    assert done.returncode == 2
    assert "psyco-ray data respond" in done.stderr


def test_a_budget_needs_the_prices_of_the_pool(responded, tmp_path):
    job, run = responded
    shutil.copytree(run / "collect", tmp_path / "collect")
    shutil.copy(run / "collect.json", tmp_path)
    done = psyco_ray("respond", job, "max_cost=1", f"run_dir={tmp_path}")
    assert done.returncode == 2
    assert "respond: model-0: max_cost needs price_in" in done.stderr


def test_topics_of_the_sources_without_a_model():
    rows = [{"speech_id": str(i), "source_topic": topic} for i, topic in enumerate(["anxiety ", "Weather", None])]
    assert topics.from_source(rows) == [
        {"speech_id": "0", "topic": "Anxiety", "coarse_topic": "Core Mental Health Issues"},
        {"speech_id": "1", "topic": None, "coarse_topic": None},
        {"speech_id": "2", "topic": None, "coarse_topic": None},
    ]
