"""What the crew does with pairs and ranks, beside its actors."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from psyco_ray.config.resources import Learners
from psyco_ray.config.training import DpoConfig, Job, Optimizer, Part, Prompts
from psyco_ray.data import mixture
from psyco_ray.pool import placement
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.types import PreferencePair
from psyco_ray.training import orchestrator


@pytest.fixture
def made(tmp_path, tiny_model):
    """A crew without actors: its scorers answer at once, and nothing is trained."""
    job = Job(
        run_dir=str(tmp_path / "run"),
        model=str(tiny_model),
        pairs_from="file",
        prompts=Prompts(respond="respond-small"),
    )
    found = object.__new__(orchestrator.Orchestrator)
    found.job, found.ledger = job, Ledger(job, resume=False)
    found.telemetry = SimpleNamespace(track=lambda stream, *_: stream)
    found.timeline = SimpleNamespace(span=lambda *_: contextlib.nullcontext())
    found._flow = SimpleNamespace(pop_busy_seconds=dict)
    yield found
    found.ledger.close()


def referenced(name: str, examples) -> dict[str, PreferencePair]:
    return {one.key: replace(one, reference=(-float(len(one.chosen_ids)), -1.0)) for one in examples}


def test_pairs_of_two_files_that_bear_the_same_ids_are_all_trained(local_ray, made, tmp_path) -> None:
    rows = [
        {"prompt": f"{name} {i}", "chosen": f"{name} yes {i}", "rejected": f"{name} no {i}", "split": "train"}
        for name in ("first", "second")
        for i in range(4)
    ]
    for number, name in enumerate(("a", "b")):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(orchestrator.pa.Table.from_pylist(rows[4 * number : 4 * number + 4]), path)
    parts = [Part(pairs=str(tmp_path / f"{name}.parquet")) for name in ("a", "b")]
    table = mixture.mix(parts, made.job.data, seed=0).train
    assert len(set(table["pair_id"].to_pylist())) < 8, "their ids are the numbers of their rows"
    made._flow.add_reference = referenced
    examples = made.offline_pairs(1, [str(i) for i in range(8)], table)
    assert len({one.key for one in examples}) == len({one.chosen_ids for one in examples}) == 8
    stored = pq.read_table(made.ledger.path("iteration-001/pairs.parquet")).to_pylist()
    assert sorted(row["chosen"] for row in stored) == sorted(row["chosen"] for row in rows)
    for row, one in zip(stored, examples, strict=True):
        assert row["chosen"].split()[:2] == [*row["rejected"].split()[:1], "yes"]
        assert row["chosen_reference"] == -len(one.chosen_ids), "the reference is that of its own pair"


def test_a_pair_that_scorers_gave_up_is_left_out(local_ray, made, tmp_path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no", "split": "train"} for i in range(4)]
    pq.write_table(orchestrator.pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    table = mixture.mix([Part(pairs=str(tmp_path / "pairs.parquet"))], made.job.data, seed=0).train
    made._flow.add_reference = lambda name, examples: referenced(name, list(examples)[1:])
    assert len(made.offline_pairs(1, ["0", "1", "2", "3"], table)) == 3
    too_long = [row | {"chosen": "word " * 5000} for row in rows]
    pq.write_table(orchestrator.pa.Table.from_pylist(too_long), tmp_path / "long.parquet")
    table = mixture.mix([Part(pairs=str(tmp_path / "long.parquet"))], made.job.data, seed=0).train
    with pytest.raises(ValueError, match="none of 4 fits rollouts"):
        made.offline_pairs(2, ["0", "1", "2", "3"], table)


def test_no_more_ranks_train_than_the_smallest_batch_has_pairs(made, monkeypatch) -> None:
    sizes: list[int] = []
    made.learner = SimpleNamespace(workers=["a", "b"], resize=sizes.append)
    made.control = SimpleNamespace(wanted={"learners": 6})
    made.job = made.job.model_copy(
        update={"learners": Learners(actors=2), "dpo": DpoConfig(optimizer=Optimizer(batch_size=8))}
    )
    planned: list[list] = []
    monkeypatch.setattr(orchestrator.Orchestrator, "_train", lambda self, iteration, batches: planned.extend(batches))
    made.train(1, [PreferencePair(f"{i}", (1,), (2,), (3,), (0.0, 0.0)) for i in range(19)])
    assert sorted(map(len, planned))[0] == 3
    assert sizes == [3]


def test_what_was_started_is_closed_where_the_rest_finds_no_room(made, monkeypatch) -> None:
    closed: list[str] = []

    def pool(role: str, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(close=lambda: closed.append(role))

    def full(*_: object, **__: object) -> None:
        raise placement.PlacementTimeoutError("no room for 2 learner ranks")

    monkeypatch.setattr(orchestrator, "ActorPool", pool)
    monkeypatch.setattr(orchestrator, "LearnerGroup", full)
    made.trained, made.weights, made._rewards = 0, 0, {"reward": "a"}
    made.timeline.add_busy = print
    with pytest.raises(ValueError, match="no room for 2 learner ranks"):
        made.__enter__()
    assert sorted(closed) == ["rollout", "scorer"]
