"""Runs in which rollout actors and scorers die, hang or get damaged weights give the same result."""

import functools
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file
from support.processes import alive, all_ended, eventually, no_segment_left, segments

from psyco_ray import driver
from psyco_ray.cli import status
from psyco_ray.config.resources import Learners, Rollouts, Scorers
from psyco_ray.config.training import Data, Deadlines, DpoConfig, Evaluation, Job, Optimizer, Prompts, Sampling
from psyco_ray.learner import group
from psyco_ray.pool import processes
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.pool.slot import Slot
from psyco_ray.pool.work import WorkItem, WorkStream
from psyco_ray.rollout.actor import actor_environment
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.status import request_scale
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.training import actors, orchestrator

pytestmark = pytest.mark.slow
SPEECHES = 16
ITEM_S = 12.0  # after which an actor counts as hung


def job(run_dir: Path, model: Path, reward_model: Path, **changes) -> Job:
    return Job(
        run_dir=str(run_dir),
        model=str(model),
        speeches_per_iteration=SPEECHES,
        data=Data(dev_share=0.2),
        prompts=Prompts(respond="respond-small"),
        sampling=Sampling(responses=4, max_tokens=24, unfinished="allow"),
        dpo=DpoConfig(optimizer=Optimizer(learning_rate=1e-3, batch_size=8)),
        rollouts=Rollouts(actors=2, cpus=0.1, max_model_len=256, max_num_seqs=32, kv_cache_gb=0.1, speeches_per_item=2),
        scorers=Scorers(actors=2, cpus=0.1, reward_model=str(reward_model)),
        learners=Learners(actors=1, cpus=0.1),
        evaluation=Evaluation(speeches=6),
        deadlines=Deadlines(item_s=ITEM_S),
        **changes,
    )


class Watched(Telemetry):
    """Calls `disturb` with the stage and the count of each result of a run."""

    def __init__(self, job: Job, ledger: Ledger, disturb: Callable[[str, int], None]) -> None:
        super().__init__(job, ledger)
        self._disturb = disturb

    def track(self, stream, stage, total):
        for count, result in enumerate(super().track(stream, stage, total), start=1):
            yield result
            self._disturb(stage, count)


def run(settings: Job, disturb: Callable[[str, int], None] = lambda *_: None) -> Path:
    ledger = Ledger(settings, False)
    try:
        driver.iterate(settings, ledger, Watched(settings, ledger, disturb))
    finally:
        ledger.close()
    return ledger.root


def answered_once(root: Path, iteration: int, without: int = 0) -> None:
    rows = [
        row["speech_id"]
        for file in (root / f"iteration-{iteration:03d}" / "samples").glob("*.samples.parquet")
        for row in pq.read_table(file).to_pylist()
    ]
    counts = Counter(rows)
    assert len(counts) == SPEECHES - without
    assert set(counts.values()) == {4}, "a speech was lost or answered twice"


@pytest.fixture
def captured(monkeypatch) -> list[orchestrator.Orchestrator]:
    """The orchestrators of the runs that follow, so that their actors can be killed."""
    entered: list[orchestrator.Orchestrator] = []

    class Captured(orchestrator.Orchestrator):
        def __enter__(self):
            entered.append(self)
            return super().__enter__()

    monkeypatch.setattr(driver, "Orchestrator", Captured)
    return entered


@pytest.fixture(scope="module")
def calm_run(local_ray, tiny_model, tiny_reward_model, tmp_path_factory) -> Callable[[int], Path]:
    """Runs without faults, by their number of iterations."""
    return functools.cache(
        lambda iterations: run(
            job(tmp_path_factory.mktemp("calm") / "run", tiny_model, tiny_reward_model, iterations=iterations)
        )
    )


@pytest.mark.long
@pytest.mark.parametrize("iterations", [2, 4])
def test_a_run_with_faults_gives_the_same_pairs_and_weights(
    calm_run, captured, tiny_model, tiny_reward_model, tmp_path, monkeypatch, iterations
) -> None:
    undisturbed = calm_run(iterations)
    before = segments()
    faults = {  # (iteration, stream, number of the item) -> signal; a stage has 8 items of rollouts, fewer of scorers
        (1, "samples", 1): signal.SIGSTOP,
        (1, "samples: scores", 1): signal.SIGKILL,
        (2, "samples: scores", 2): signal.SIGSTOP,
        (3, "samples", 3): signal.SIGKILL,
        (3, "samples: scores", 2): signal.SIGSTOP,
        (4, "samples", 1): signal.SIGSTOP,
        (4, "samples: scores", 2): signal.SIGKILL,
    }
    faults = {(f"iteration-{k:03d}/{name}", n): signal_ for (k, name, n), signal_ in faults.items() if k <= iterations}
    assigned: Counter[str] = Counter()
    pids: set[int] = set()
    assign = Slot.assign

    def assigning(self: Slot, stream: WorkStream, work: WorkItem) -> None:
        assign(self, stream, work)
        assigned[stream.name] += 1
        pids.add(self.process.pid)
        if (fault := faults.pop((stream.name, assigned[stream.name]), None)) is not None:
            os.kill(self.process.pid, fault)

    deliver = WorkStream.deliver
    delivered: list[WorkItem] = []

    def delivering(self: WorkStream, work: WorkItem, result: object) -> None:
        deliver(self, work, result)
        if self.name == "iteration-002/samples" and not delivered:  # the first of the two results of an item
            delivered.append(work)
            slots = captured[-1].actors.rollouts._supervisor._slots.values()
            [slot] = [slot for slot in slots if any(task.work is work for task in slot.tasks)]
            os.kill(slot.process.pid, signal.SIGKILL)

    monkeypatch.setattr(Slot, "assign", assigning)
    monkeypatch.setattr(WorkStream, "deliver", delivering)
    send, export = group.LearnerGroup.send, group.LearnerGroup.export
    sent: list[int] = []
    damaged = (
        {2, 4} if iterations == 4 else set()
    )  # an actor that gets damaged weights twice is replaced, which takes long

    def damaging(self, transport: str, actors: list, version: int, *options):
        weights = send(self, transport, actors, version, *options)
        sent.append(version)
        if version in damaged and sent.count(version) == 1:
            refs, *of_weights = ray.get(weights.stored)
            bucket = {name: (array.copy(), dtype) for name, (array, dtype) in ray.get(refs[0]).items()}
            np.asarray(next(iter(bucket.values()))[0]).reshape(-1)[3] ^= 1
            # what the actors have received is not what was sent, nor is what is stored
            return replace(weights, digest="", stored=ray.put(([ray.put(bucket), *refs[1:]], *of_weights)))
        return weights

    def exporting(self, version: int, *options):  # no actor is idle while all of them are replaced
        sent.append(version)
        return export(self, version, *options)

    monkeypatch.setattr(group.LearnerGroup, "send", damaging)
    monkeypatch.setattr(group.LearnerGroup, "export", exporting)
    root = run(job(tmp_path / "run", tiny_model, tiny_reward_model, iterations=iterations))
    assert delivered
    assert not faults, "each fault happened"
    assert sorted(sent) == sorted([*range(1, iterations + 1), *damaged]), "the damaged weights were sent anew"
    for k in range(1, iterations + 1):
        answered_once(root, k)
        ours, calm = (pq.read_table(r / f"iteration-{k:03d}" / "pairs.parquet") for r in (root, undisturbed))
        assert ours.equals(calm), f"iteration {k}"
        stages = [json.loads((r / f"iteration-{k:03d}" / "pairs.json").read_text()) for r in (root, undisturbed)]
        print(f"iteration {k}: {stages[0]['seconds']:.1f} s, {stages[1]['seconds']:.1f} s undisturbed")
        assert stages[0]["quarantined"] == {}
    ours, calm = (
        load_file(r / f"iteration-{iterations:03d}" / "state" / "state-00000.safetensors") for r in (root, undisturbed)
    )
    assert all(torch.equal(ours[name], value) for name, value in calm.items())
    assert all_ended(pids), "a process was left behind"
    assert no_segment_left(before)
    assert json.loads((root / "status.json").read_text())["state"] == "ended"


@pytest.mark.long
def test_a_speech_that_crashes_the_engine_is_quarantined_and_the_others_answered(
    calm_run, captured, tiny_model, tiny_reward_model, tmp_path, monkeypatch
) -> None:
    from support.faulty_actors import FATAL, FaultyRollout

    undisturbed = calm_run(2)
    speeches = {row["speech_id"]: row for row in pq.read_table(undisturbed / "speeches.parquet").to_pylist()}
    first = [row["speech_id"] for row in pq.read_table(undisturbed / "iteration-001" / "pairs.parquet").to_pylist()]
    uses = Counter(token for key, row in speeches.items() for token in set(row["prompt_ids"]))
    poison, token = next((key, token) for key in first for token in speeches[key]["prompt_ids"] if uses[token] == 1)
    monkeypatch.setattr(actors, "RolloutActor", FaultyRollout)
    with_fault = lambda settings: {**actor_environment(settings), FATAL: str(token)}  # noqa: E731
    monkeypatch.setattr("psyco_ray.rollout.actor.actor_environment", with_fault)
    root = run(job(tmp_path / "run", tiny_model, tiny_reward_model, iterations=1))
    answered_once(root, 1, without=1)
    quarantined = json.loads((root / "iteration-001" / "pairs.json").read_text())["quarantined"]
    assert list(quarantined) == [poison]
    assert "rollout actor" in quarantined[poison]
    assert "died at iteration-001/samples" in quarantined[poison]
    ours, calm = (
        {row["speech_id"]: row for row in pq.read_table(r / "iteration-001" / "pairs.parquet").to_pylist()}
        for r in (root, undisturbed)
    )
    assert ours.keys() == calm.keys() - {poison}
    together = next(
        {row["speech_id"] for row in pq.read_table(file).to_pylist()}
        for file in (root / "iteration-001" / "samples").glob("*.samples.parquet")
        if file.with_name(file.name.replace("samples", "quarantine").replace("parquet", "json")).exists()
    )
    for key in ours.keys() - together:  # its neighbour was sampled alone, and bfloat16 may then differ
        assert ours[key] == calm[key]


@pytest.mark.long
def test_rollouts_are_scaled_up_and_down_while_they_sample(
    calm_run, captured, tiny_model, tiny_reward_model, tmp_path
) -> None:
    undisturbed = calm_run(2)
    shown: list[str] = []
    requested: list[int] = []
    root = tmp_path / "run"

    def healthy() -> int:
        return sum(record["state"] in ("idle", "busy") for record in captured[-1].actors.rollouts.status())

    def disturb(stage: str, count: int) -> None:
        if "sample and score" not in stage:
            return
        for at, size in ((2, 2), (9, 1)):
            if count == at and stage.startswith("iteration 1"):
                assert eventually(lambda: (root / "status.json").exists())
                request_scale(root, status.parse_counts([f"rollouts={size}"]))
                requested.append(size)
                assert eventually(lambda wanted=size: healthy() == wanted, within_s=90), captured[
                    -1
                ].actors.rollouts.status()
                time.sleep(2.5)  # the status is written every two seconds
                shown.append(status.describe(root))

    settings = job(root, tiny_model, tiny_reward_model, iterations=2)
    settings = settings.model_copy(update={"rollouts": settings.rollouts.model_copy(update={"actors": 1})})
    run(settings, disturb)
    assert requested == [2, 1]
    for k in (1, 2):
        answered_once(root, k)
        ours, calm = (pq.read_table(r / f"iteration-{k:03d}" / "pairs.parquet") for r in (root, undisturbed))
        assert ours.equals(calm), f"iteration {k}"
    for size, text in zip((2, 1), shown, strict=True):
        stage = rf"going on\nstage: iteration 1: sample and score, \d+ of {SPEECHES}; policy version 0"
        assert re.search(stage, text), text
        assert f"rollouts: {size} ({size} requested)" in text
        assert "scorers: 2" in text
    assert "ended" in status.describe(root)
    with pytest.raises(ValueError, match="no run is in progress in"):
        request_scale(root, {"rollouts": 2})


def test_children_and_files_of_a_killed_engine_are_removed(local_ray) -> None:
    from support.faulty_actors import Parent

    actor = ray.remote(Parent)
    deadlines = Deadlines(start_s=60, item_s=30)
    pool = ActorPool[Parent]("engine", lambda _: actor.options(num_cpus=0).remote(), 1, deadlines)
    try:
        pool.wait_ready()
        process: processes.Process = pool._supervisor._slots[0].process
        assert process.children
        assert process.segments
        assert all(Path(name).exists() for name in (*process.segments, process.scratch))
        os.kill(process.pid, signal.SIGKILL)
        assert sorted(pool.stream(Parent.work, range(4))) == [0, 1, 2, 3]
        assert not any(alive(pid) for pid, _ in process.children)
        assert not any(Path(name).exists() for name in (*process.segments, process.scratch))
    finally:
        pool.close()
