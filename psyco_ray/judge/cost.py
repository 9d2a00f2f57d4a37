"""What calls cost."""

from __future__ import annotations

from collections.abc import Sequence

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge.batch_api import Outcome
from psyco_ray.judge.pipeline import CallStage, CallStats


def cost(facts: CallStats | Outcome, endpoint: Endpoint) -> float | None:
    """Dollars that calls took; None where the prices are not known."""
    if endpoint.price_in is None or endpoint.price_out is None:
        return None
    return (facts.prompt_tokens * endpoint.price_in + facts.completion_tokens * endpoint.price_out) / 1e6


def estimate(stage: CallStage, todo: Sequence[str]) -> CallStats:
    """What the calls of some parts will take at most; a sample of the parts stands for all."""
    sample = list(todo)[:: max(1, len(todo) // 8)]
    asked = [unit.call for part in sample for unit in stage.units(part)]
    scale = len(todo) / len(sample)
    return CallStats(
        units=round(len(asked) * scale),
        prompt_tokens=round(sum(call.prompt_tokens() for call in asked) * scale),
        completion_tokens=round(sum(call.max_tokens for call in asked) * scale),
    )
