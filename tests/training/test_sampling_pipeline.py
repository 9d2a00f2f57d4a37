"""Prompts on their way to the rollout pool."""

from collections.abc import Iterator
from dataclasses import replace

from support.groups import job

from psyco_ray.config.resources import Rollouts
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

    def stream(self, method, items, **_) -> Iterator:
        for item in items:
            if method.__name__ == "sample":
                for prompt in item.item.prompts:
                    yield Group(prompt, (Response("yes", (1,), True), Response("no", (2,), True)), item.version), 0.0
            else:
                group, messages, _ = item
                assert messages[-1]["content"].endswith(f"speech {group.prompt.token_ids[0]}"), "of its own speech"
                yield replace(group, scores={"reward": (1.0, 0.0)}), 0.0


def test_rows_are_read_as_the_pool_takes_items(tmp_path) -> None:
    settings = job(tmp_path, rollouts=Rollouts(speeches_per_item=4))
    ledger = Ledger(settings, False)
    pipeline = SamplingPipeline(settings, ledger, Telemetry(settings, ledger), InTurn(), InTurn(), ("reward",))
    rows = Rows(400)
    stream = pipeline.samples(1, rows, 0)
    first = next(stream)
    read_for_stored = 400  # one pass looks for stored items
    assert rows.read <= read_for_stored + 8
    assert first.prompt.speech_id == "0" * 16
    assert len(list(stream)) == 399

    again = Rows(400)
    ledger_rows = list(pipeline.samples(1, again, 0))
    assert [group.prompt.speech_id for group in ledger_rows] == [f"{n:016x}" for n in range(400)]
    assert all(group.scores == {"reward": (1.0, 0.0)} for group in ledger_rows)
    ledger.close()
