"""Commands that are killed at random moments go on to the same result, and nothing is paid twice but calls in flight.

`pytest -m long tests/e2e/test_random_kills.py -s` kills 60 times, in about an hour on two cores; -s shows each kill.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.commands import ended
from support.policy_evaluation import local, settings
from support.processes import alive, children_of, kill_tree
from support.runs import JOB

from psyco_ray.files import records
from psyco_ray.judge import journal

pytestmark = pytest.mark.long

KILLS = 5  # of each of 4 seeds of 3 commands
FLYING = 4  # calls in flight at most, of an endpoint
STOP, DRIVER, ALL = "SIGTERM to the group", "SIGKILL to the driver", "SIGKILL to all processes"
HOW = (STOP, DRIVER, DRIVER, ALL, ALL)
PRICES = {"price_in": 1000.0, "price_out": 2000.0, "concurrency": FLYING}


@dataclass
class Work:
    """A command, and the number of endpoints that it calls."""

    write_job: Callable[[Path, str], Path]
    arguments: tuple[str, ...]
    endpoints: int

    def start(self, where: Path, url: str) -> subprocess.Popen:
        """The command over its job in a directory."""
        first, *rest = self.arguments
        command = [sys.executable, "-m", "psyco_ray.cli", *first.split(), str(self.write_job(where, url)), *rest]
        return subprocess.Popen(
            command, stdout=(where / "log").open("a"), stderr=subprocess.STDOUT, start_new_session=True
        )


def training(where: Path, url: str, models: dict[str, Path]) -> Path:
    job = yaml.safe_load(JOB.format(run_dir=where / "run", **models))
    job["evaluation"]["judge"] = local(url, "judge", **PRICES)
    job["dpo"]["checkpoint_every"] = 3
    return written(where, job)


def building(where: Path, url: str, models: dict[str, Path]) -> Path:
    rows = [json.loads(line) for line in records.SAMPLE.read_text().splitlines()[:24]]
    (where / "raw.jsonl").write_text("".join(json.dumps({"text": row["question"]}) + "\n" for row in rows))
    pool = [{"name": f"model-{i}", "api": local(url, f"model-{i}", **PRICES)} for i in range(4)]
    (where / "pool.yaml").write_text(yaml.safe_dump(pool))
    job = {
        "run_dir": str(where / "run"),
        "sources": [{"name": "mine", "path": str(where / "raw.jsonl")}],
        "topics": {"endpoint": local(url, "labeller", **PRICES)},
        "respond": {"pool": str(where / "pool.yaml"), "max_tokens": 60},
        "rate": {"endpoint": local(url, "judge", **PRICES)},
        "max_cost": 1e6,
    }
    return written(where, job)


def evaluation(where: Path, url: str, models: dict[str, Path]) -> Path:
    job = settings(
        where / "run",
        policies=[{"name": "tiny", "model": str(models["model"])}],
        opponent={"name": "talker", "endpoint": local(url, "talker", **PRICES)},
        speeches={"split": "dev", "limit": 30},
        judges=[{"name": "judge", "endpoint": local(url, "judge", **PRICES)}],
        max_cost=1e6,
    )
    return written(where, job)


def written(where: Path, job: dict) -> Path:
    path = where / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


WORKS = {
    "training": (training, ("iterate", "--resume"), 1),
    "building": (building, ("data build",), 6),
    "evaluation": (evaluation, ("evaluate-policy",), 2),
}


@pytest.fixture(scope="module", params=WORKS)
def work(request, tiny_model, tiny_reward_model) -> Work:
    write_job, arguments, endpoints = WORKS[request.param]
    models = {"model": tiny_model, "reward_model": tiny_reward_model}
    return Work(lambda where, url: write_job(where, url, models), arguments, endpoints)


@pytest.fixture(scope="module")
def undisturbed(work, serve, tmp_path_factory) -> tuple[dict[str, Any], dict, float]:
    """What the command leaves, the server's counts, and the seconds that it takes."""
    where, url = tmp_path_factory.mktemp("undisturbed"), serve("--latency", "0.2")
    began = time.monotonic()
    process = work.start(where, url)
    assert ended(process, 900, (where / "log").read_text) == 0, (where / "log").read_text()[-3000:]
    seconds = time.monotonic() - began
    bill = counts(url)
    assert spent(where / "run") == pytest.approx(dollars(*bill["billed"])), "what is counted is the bill"
    print(f"undisturbed: {seconds:.0f} s, {bill['paid']} calls for ${dollars(*bill['billed']):.2f}")
    return results(where / "run"), bill, seconds


@pytest.mark.parametrize("seed", range(4))
def test_a_command_killed_at_random_moments_goes_on_to_the_same_result(
    work, undisturbed, serve, tmp_path, seed, request
) -> None:
    expected, bill, seconds = undisturbed
    drawn = random.Random(request.node.name)
    left = KILLS
    while left:  # a run that ends before its kill is followed by another one
        where, url, interrupted = Path(tempfile.mkdtemp(dir=tmp_path)), serve("--latency", "0.2"), 0
        while True:
            process, moment = work.start(where, url), drawn.uniform(0, 0.7 * seconds)
            how = drawn.choice(HOW)
            try:
                code = process.wait(timeout=moment if left else 900)
                break
            except subprocess.TimeoutExpired:
                interrupt(process, how, where / "log")
                interrupted, left = interrupted + 1, left - (how != STOP)
                print(f"{request.node.name}: {how} after {moment:.1f} s of {seconds:.0f}")
        assert code == 0, (where / "log").read_text()[-3000:]
        same(results(where / "run"), expected)
        paid = counts(url)
        twice = f"{paid['paid_twice']} of {paid['paid']} calls paid twice"
        print(f"{request.node.name}: equal after {interrupted} interruptions, {twice}")
        assert paid["billed_once"] == bill["billed"], "every answer was asked for"
        assert spent(where / "run") == pytest.approx(dollars(*bill["billed"])), "what is counted is the bill"
        assert paid["paid_twice"] <= interrupted * FLYING * work.endpoints, "only calls in flight"


def spent(run: Path) -> float:
    """US dollars that a run counts for its budget."""
    return sum(journal.spent(path) for path in run.rglob("journal"))


def dollars(prompt_tokens: int, completion_tokens: int) -> float:
    return (prompt_tokens * PRICES["price_in"] + completion_tokens * PRICES["price_out"]) / 1e6


def counts(url: str) -> dict:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/counts") as answer:
        return json.load(answer)


def interrupt(process: subprocess.Popen, how: str, log: Path) -> None:
    """End a command; no process of it may be left."""
    below = children_of(process.pid)
    if how == STOP:
        before = log.read_text()
        os.killpg(process.pid, signal.SIGTERM)
        code = ended(process, 90, log.read_text)
        # before the command has begun nothing handles the signal
        assert code in (0, 75) or (code == -signal.SIGTERM and log.read_text() == before), log.read_text()[-3000:]
    elif how == DRIVER:
        process.kill()
    else:
        kill_tree(process.pid)
    process.wait()
    # a worker of Ray that is just starting looks for the dead head for a minute
    began = time.monotonic()
    while time.monotonic() - began < 90 and (left := [one for one in below if alive(one.pid)]):
        time.sleep(0.2)
    print(f"its last process ended after {time.monotonic() - began:.1f} s")
    assert not left, f"left behind: {[one.cmdline() for one in left]}"


def results(root: Path) -> dict[str, Any]:
    """What a finished command leaves, without times and without what says how it came there."""
    found: dict[str, Any] = {}
    for path in (path for path in sorted(root.rglob("*")) if path.is_file()):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".parquet":
            found[name] = pq.read_table(path).replace_schema_metadata(None)  # which counts the calls of a command
        elif path.suffix == ".safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "train.json":
            found[name] = [json.loads(path.read_text())[key] for key in ("steps", "tokens")]
        elif path.suffix == ".json":
            found[f"{name}: cost"] = sorted(costs(json.loads(path.read_text())))
    return found


def costs(record: Any) -> list[float]:
    """All costs in a record."""
    if isinstance(record, list):
        return [cost for one in record for cost in costs(one)]
    if not isinstance(record, dict):
        return []
    own = [record[key] for key in ("cost", "dollars") if isinstance(record.get(key), float)]
    return own + [cost for one in record.values() for cost in costs(one)]


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].equals(value) if isinstance(value, pa.Table) else ours[name] == value, name
