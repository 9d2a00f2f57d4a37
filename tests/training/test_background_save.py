"""A policy is saved beside what follows it, and nothing that follows is stored before it is on disk."""

import itertools
import threading
import time
from types import SimpleNamespace

import pytest
from support.groups import ITEMS, groups_of, job

from psyco_ray.run import preemption
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.training import orchestrator as orchestrators
from psyco_ray.training.background_save import BackgroundSave
from psyco_ray.training.orchestrator import Orchestrator


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(job(tmp_path), resume=False)
    yield opened
    opened.close()


def slow_save(ledger: Ledger, seen: list[set[str]], finished: threading.Event) -> None:
    """Writes what it finds in the run directory when it ends, then the record of the stage."""
    assert finished.wait(10)
    seen.append({path.name for path in ledger.root.rglob("*.json")} | {p.name for p in ledger.root.rglob("*.parquet")})
    ledger.finish("train", time.time())


@pytest.mark.parametrize("result", ["record", "item"])
def test_a_result_is_stored_when_the_policy_is_on_disk(ledger, result: str) -> None:
    save, seen, finished = BackgroundSave(), [], threading.Event()
    ledger.wait_before_results(save.wait)
    save.plan(lambda: slow_save(ledger, seen, finished))
    save.start()
    threading.Timer(0.3, finished.set).start()
    assert ledger.record("train") is None, "it goes on beside the sampling"
    if result == "record":
        ledger.finish("evaluate", time.time())
    else:
        groups = ledger.store_missing(
            "dev", ITEMS[:1], lambda items: (g for item in items for g in groups_of(item)), {}
        )
        assert len(list(groups)) == 3
    assert ledger.record("train") is not None
    assert not seen[0] & {"evaluate.json", "item0.samples.parquet"}


def test_sampling_goes_on_while_the_policy_is_saved(ledger) -> None:
    """A save takes longer than an item: the engines get their next items meanwhile."""
    save, seen, finished = BackgroundSave(), [], threading.Event()
    ledger.wait_before_results(save.wait)
    save.plan(lambda: slow_save(ledger, seen, finished))
    save.start()
    stream = ledger.store_missing("dev", ITEMS, lambda items: (g for item in items for g in groups_of(item)), {})
    assert len(list(itertools.islice(stream, 5))) == 5, "past the first item"
    assert not list(ledger.root.rglob("*.parquet"))
    finished.set()
    assert len(list(stream)) == 1
    assert len(list(ledger.root.rglob("*.parquet"))) == 4


def test_nothing_is_recorded_after_a_save_that_failed(ledger) -> None:
    save = BackgroundSave()
    ledger.wait_before_results(save.wait)

    def fail() -> None:
        raise OSError("disk full")

    save.plan(fail)
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            ledger.finish("evaluate", time.time())
    with pytest.raises(OSError, match="disk full"):
        list(ledger.store_missing("dev", ITEMS, lambda items: (g for item in items for g in groups_of(item)), {}))
    assert ledger.record("evaluate") is None
    assert not list(ledger.root.rglob("*.parquet"))


class Trainer:
    def __init__(self, events: list[str]) -> None:
        self._events = events

    def plan(self, *_: object) -> list:
        return []

    def train(self, iteration: int, _: object) -> SimpleNamespace:
        self._events.append("steps")
        return SimpleNamespace(iteration=iteration)

    def save(self, trained: SimpleNamespace) -> None:
        time.sleep(0.2)
        self._events.append("saved")


@pytest.fixture
def loop(ledger, monkeypatch):
    """The loop's verbs around actors that only note what they are asked."""
    events: list[str] = []

    def verify() -> float:
        time.sleep(0.2)
        events.append("verified")
        return 0.01

    def push(*_: object, **__: object) -> SimpleNamespace:
        events.append("synced")
        return SimpleNamespace(export_s=0.0, load_s=0.0, bytes=0, actors=1, verify=verify)

    monkeypatch.setattr(orchestrators.weight_sync, "push_weights", push)
    monkeypatch.setattr(orchestrators, "worker_count", lambda requested, _: requested)
    shaped = Orchestrator.__new__(Orchestrator)
    nothing = SimpleNamespace(to_learner=lambda: None, to_rollouts=lambda: None)
    shaped.__dict__.update(
        job=job(ledger.root),
        ledger=ledger,
        events=events,
        telemetry=SimpleNamespace(rolling=SimpleNamespace(set=lambda **_: None)),
        run_state=SimpleNamespace(evaluation=lambda _: None, remove_states=lambda _: events.append("old removed")),
        rollout_version=0,
        learner_version=0,
        trained=0,
        actors=SimpleNamespace(learner=SimpleNamespace(workers=[1]), rollouts=None, colocation=nothing),
        control=SimpleNamespace(requested={}),
        timeline=orchestrators.Timeline(ledger, dict),
        _trainer=Trainer(events),
        _pairs=SimpleNamespace(first=lambda _: None),
        _save=BackgroundSave(),
        _close=lambda: events.append("closed"),
    )
    ledger.wait_before_results(shaped._save.wait)
    return shaped


def test_the_policy_is_saved_after_the_sync_and_beside_what_follows(loop) -> None:
    loop.train(1, [])
    assert loop.events == ["steps"]
    loop.sync_weights()
    assert loop.events == ["steps", "synced"], "the rollouts sample while it is saved"
    loop.ledger.finish(stage(1, "evaluate"), time.time())
    assert loop.events == ["steps", "synced", "verified", "saved", "old removed"]
    assert loop.ledger.record(stage(1, "sync"))["gap"] == 0.01
    loop.train(2, [])
    loop.sync_weights()
    loop.train(3, [])
    after = ["steps", "synced", "verified", "saved", "old removed", "steps"]
    assert loop.events[5:] == after, "a step waits for the save"
    loop._save.wait()


def test_engines_that_compute_with_other_weights_end_the_run_and_the_policy_is_saved(loop, monkeypatch) -> None:
    other = RuntimeError("more than sync.max_gap")

    def verify() -> float:
        raise other

    pushed = SimpleNamespace(export_s=0.0, load_s=0.0, bytes=0, actors=1, verify=verify)
    monkeypatch.setattr(orchestrators.weight_sync, "push_weights", lambda *_, **__: pushed)
    loop.train(1, [])
    loop.sync_weights()
    with pytest.raises(RuntimeError, match=r"more than sync\.max_gap"):
        loop.ledger.finish(stage(1, "evaluate"), time.time())
    assert loop.events == ["steps", "saved", "old removed"]
    assert loop.ledger.record(stage(1, "evaluate")) is None


def test_ranks_that_share_gpus_save_before_anything_is_sampled(loop) -> None:
    loop.job = loop.job.model_copy(update={"colocated": True})
    loop.train(1, [])
    assert loop.events == ["steps", "saved", "old removed"]


@pytest.mark.parametrize("error", [preemption.Preempted(), RuntimeError("no actor accepts the weights")])
def test_a_run_that_ends_early_saves_what_it_trained(loop, monkeypatch, error: BaseException) -> None:
    monkeypatch.setattr(Orchestrator, "__enter__", lambda self: self)  # its actors are there
    loop.train(1, [])
    with pytest.raises(type(error)), loop:
        raise error
    assert loop.events == ["steps", "saved", "old removed", "closed"]
