"""Values that come with sampled responses."""

import math
from types import SimpleNamespace

import pytest

from psyco_ray.config.errors import NonFiniteError
from psyco_ray.config.resources import Rollouts
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest
from psyco_ray.rollout.engine_thread import EngineThread
from psyco_ray.run.types import Group, Prompt, PromptBatch, Response

PROMPT = Prompt("speech-7", (1,), 0)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_log_probability_that_is_not_finite_names_speech_and_policy(value) -> None:
    actor = RolloutActor("rollout-0", "models/policy", Rollouts(), seed=0)
    values: list[float | None] = [None, -1.5]

    def step() -> list[tuple[int, Group]]:
        return [(1, Group(PROMPT, tuple(Response("Hello.", (5,), True, v) for v in values), 4))]

    engine = SimpleNamespace(version=4, add=lambda *_, **__: 1, step=step, abort=lambda _: None)
    actor._engine, actor._thread = engine, EngineThread(lambda: engine)
    request = SamplingRequest(PromptBatch("item", (PROMPT,)), 4, 2, 1.0, 1.0, 16)
    [[(group, _)]] = actor.sample(request)
    assert [response.logprob for response in group.responses] == values
    values.append(value)
    message = (
        f"a log-probability of speech-7 under version 4 of policy models/policy is {value}; its weights are damaged"
    )
    with pytest.raises(NonFiniteError, match=message):
        list(actor.sample(request))
