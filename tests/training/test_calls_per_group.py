"""How many calls and results of Ray a group costs the driver."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
from support.counted_ray import CountedActor, CountedRay
from support.groups import job

from psyco_ray.config.resources import Rollouts, Scorers
from psyco_ray.config.training import Deadlines
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor
from psyco_ray.rollout.engine_thread import EngineThread
from psyco_ray.rollout.scorer import GroupBatch, GroupScores, PairReference
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.token_ids import TokenIds
from psyco_ray.run.types import Group, PreferencePair, Prompt, Response
from psyco_ray.training.pair_stage import PairStage
from psyco_ray.training.pipeline import SamplingPipeline

SPEECHES, RESPONSES, TOKENS = 64, 8, 1000


class Engine:
    """An engine that samples in one step what it was given."""

    version = 0

    def __init__(self) -> None:
        self.given: list[tuple[int, Prompt]] = []
        self.numbers = 0

    def add(self, prompts: Sequence[Prompt], **_: object) -> int:
        self.numbers += 1
        self.given += [(self.numbers, prompt) for prompt in prompts]
        return self.numbers

    def step(self) -> list[tuple[int, Group]]:
        responses = tuple(Response(f"answer {k}", TokenIds([k] * TOKENS), True) for k in range(RESPONSES))
        complete, self.given = [(number, Group(prompt, responses, 0)) for number, prompt in self.given], []
        return complete

    def abort(self, number: int) -> None:
        assert not self.given


class Rows(list):
    """Rows of a run, which are read from a file; counts how often."""

    passes = 0

    def __iter__(self) -> Iterator[dict]:
        self.passes += 1
        return super().__iter__()


def rollout(settings: Rollouts) -> RolloutActor:
    """A rollout actor whose engine takes no time."""
    actor = RolloutActor("rollout-0", "none", settings, seed=0)
    engine = Engine()
    actor._engine, actor._thread = engine, EngineThread(lambda: engine)  # type: ignore[assignment]
    return actor


def score(batch: GroupBatch) -> list[GroupScores]:
    values = {"reward": tuple(map(float, range(RESPONSES)))}
    return [GroupScores(group.prompt.speech_id, values, 0.0) for group, _ in batch.groups]


def reference_logprobs(pairs: Sequence[PreferencePair]) -> list[PairReference]:
    return [PairReference(pair.key, (-1.0, -2.0), 0.0) for pair in pairs]


@pytest.mark.parametrize(("gpus", "least", "most"), [(1, 0.0, 0.5), (0, 5.0, 5.5)])
def test_groups_share_calls_and_results_on_gpus(tmp_path, monkeypatch, gpus, least, most) -> None:
    settings = job(tmp_path, rollouts=Rollouts(gpus=gpus), scorers=Scorers(gpus=gpus))
    rows = Rows({"speech_id": f"s{n:03d}", "speech": f"speech {n}", "prompt_ids": [n, 1]} for n in range(SPEECHES))
    counted = CountedRay(monkeypatch)
    scorer = SimpleNamespace(score=score, reference_logprobs=reference_logprobs)

    def pool(role: str, actor: object) -> ActorPool:
        return ActorPool(role, lambda _: CountedActor(counted, actor), 2, Deadlines())

    ledger = Ledger(settings, False)
    rollouts, scorers = pool("rollout", rollout(settings.rollouts)), pool("scorer", scorer)
    try:
        telemetry = Telemetry(settings, ledger)
        pipeline = SamplingPipeline(settings, ledger, telemetry, rollouts, scorers, ("reward",))
        stage = PairStage(settings, ledger, telemetry, pipeline.reference)
        assert stage.make_sampled(1, rows, counting(pipeline.samples(1, rows, 0)))["rows"] == SPEECHES
    finally:
        rollouts.close()
        scorers.close()
        ledger.close()
    assert least <= (counted.calls + counted.fetched) / SPEECHES <= most
    assert rows.passes == 2, "one for the items, one for the batches of pairs"


def counting(groups: Iterator[Group]) -> Iterator[Group]:
    """The groups, each of which comes once."""
    seen: set[str] = set()
    for group in groups:
        assert group.prompt.speech_id not in seen
        seen.add(group.prompt.speech_id)
        yield group
