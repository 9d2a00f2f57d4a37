"""Prompts on their way to the rollout pool."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.groups import job
from transformers import AutoModelForSequenceClassification

from psyco_ray.config.errors import NonFiniteError
from psyco_ray.config.resources import Rollouts, Scorers
from psyco_ray.models import loading
from psyco_ray.rollout.scorer import GroupScores, ScorerActor
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.types import Group, Response
from psyco_ray.training.pipeline import SamplingPipeline


class Rows:
    """Rows that count how many were read."""

    def __init__(self, count: int) -> None:
        self.count, self.read = count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict]:
        for number in range(self.count):
            self.read += 1
            yield {"speech_id": f"{number:016x}", "speech": f"speech {number}", "prompt_ids": [number, 1]}


class InTurn:
    """A pool whose one actor does an item when its results are asked for."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []  # first tokens of the prompts that were scored together

    def stream(self, method, items, **_) -> Iterator:
        for item in items:
            if method.__name__ == "sample":
                for prompt in item.item.prompts:
                    yield Group(prompt, (Response("yes", (1,), True), Response("no", (2,), True)), item.version), 0.0
            else:
                self.batches.append([group.prompt.token_ids[0] for group, _ in item.groups])
                for group, messages in item.groups:
                    assert messages[-1]["content"].endswith(f"speech {group.prompt.token_ids[0]}"), "of its own speech"
                    yield GroupScores(group.prompt.speech_id, {"reward": (1.0, 0.0)}, 0.0)


def test_rows_are_read_as_the_pool_takes_items(tmp_path) -> None:
    settings = job(tmp_path, rollouts=Rollouts(speeches_per_item=4))
    ledger = Ledger(settings, False)
    pipeline = SamplingPipeline(settings, ledger, Telemetry(settings, ledger), InTurn(), InTurn(), ("reward",))
    rows = Rows(400)
    stream = pipeline.samples(1, rows, 0)
    first = next(stream)
    assert rows.read <= 8, "nothing is stored: no pass over all rows looks for it"
    assert first.prompt.speech_id == "0" * 16
    assert len(list(stream)) == 399

    again = Rows(400)
    ledger_rows = list(pipeline.samples(1, again, 0))
    assert [group.prompt.speech_id for group in ledger_rows] == [f"{n:016x}" for n in range(400)]
    assert all(group.scores == {"reward": (1.0, 0.0)} for group in ledger_rows)
    ledger.close()


class Watched(InTurn):
    """A pool that writes down how many items its actors have at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight: list[int] = []

    def stream(self, method, items, *, in_flight, **options) -> Iterator:
        self.in_flight.append(in_flight)
        return super().stream(method, items, **options)


@pytest.mark.parametrize(("settings", "items"), [({}, 1), ({"gpus": 1}, 4)])
def test_actors_have_the_next_items_while_they_work(tmp_path, settings: dict, items: int) -> None:
    run = job(tmp_path, rollouts=Rollouts(**settings))
    ledger, rollouts, scorers = Ledger(run, False), Watched(), Watched()
    pipeline = SamplingPipeline(run, ledger, Telemetry(run, ledger), rollouts, scorers, ("reward",))
    assert len(list(pipeline.samples(1, Rows(3), 0))) == 3
    ledger.close()
    assert (rollouts.in_flight, scorers.in_flight) == ([items], [2])


class Shuffled(InTurn):
    """A pool whose results come in another order each time."""

    def stream(self, method, items, **options) -> Iterator:
        found = [result for item in items for result in super(Shuffled, self).stream(method, [item], **options)]
        random.shuffle(found)
        yield from found


def test_the_batches_of_the_scorers_are_of_one_item_and_the_same_in_every_run(tmp_path) -> None:
    made = []
    for number in range(3):
        settings = job(tmp_path / str(number), rollouts=Rollouts(speeches_per_item=5), scorers=Scorers(row_tokens=150))
        ledger = Ledger(settings, False)
        scorers = InTurn()
        pipeline = SamplingPipeline(settings, ledger, Telemetry(settings, ledger), Shuffled(), scorers, ("reward",))
        assert len(list(pipeline.samples(1, Rows(12), 0))) == 12
        ledger.close()
        made.append(sorted(scorers.batches))
    assert made[0] == made[1] == made[2] == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9], [10, 11]]


class Scored(InTurn):
    """A pool whose one actor is a real scorer of this process."""

    def __init__(self, model: Path) -> None:
        self.scorer = ScorerActor("scorer-0", {"reward": str(model)}, None, Scorers(dtype="float32"))
        self.scorer.ready()

    def stream(self, method, items, **_) -> Iterator:
        for item in items:
            yield from method(self.scorer, item)


def test_a_reward_of_nan_ends_the_run_before_it_is_stored_and_the_run_continues(
    tmp_path, tiny_reward_model, tokenizer
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model)
    token = tokenizer("speech 3", add_special_tokens=False)["input_ids"][-1]
    model.model.embed_tokens.weight.data[token] = torch.nan
    damaged = tmp_path / "damaged"
    model.save_pretrained(damaged)
    loading.load_tokenizer(tiny_reward_model).save_pretrained(damaged)

    settings = job(tmp_path, rollouts=Rollouts(speeches_per_item=2))
    ledger = Ledger(settings, False)
    for scorers in (Scored(damaged), Scored(damaged)):  # a resumed run ends alike, and loses nothing
        pipeline = SamplingPipeline(settings, ledger, Telemetry(settings, ledger), InTurn(), scorers, ("reward",))
        found = []
        with pytest.raises(NonFiniteError, match=rf"a score of {3:016x} by reward model {damaged} is nan; "):
            found += pipeline.samples(1, Rows(6), 0)
        assert len(list((tmp_path / "run").rglob("*.scores.parquet"))) == 1, "of the first item"
    scorers = Scored(tiny_reward_model)
    pipeline = SamplingPipeline(settings, ledger, Telemetry(settings, ledger), InTurn(), scorers, ("reward",))
    assert len(list(pipeline.samples(1, Rows(6), 0))) == 6
    ledger.close()
