"""Cost of API calls in US dollars."""

from __future__ import annotations

from collections.abc import Sequence

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge.batch_api import Outcome
from psyco_ray.judge.pipeline import CallStage, CallStats

_SAMPLED_PARTS = 8


def cost(stats: CallStats | Outcome, endpoint: Endpoint) -> float | None:
    """Cost of calls; None without prices."""
    if endpoint.price_in is None or endpoint.price_out is None:
        return None
    return (stats.prompt_tokens * endpoint.price_in + stats.completion_tokens * endpoint.price_out) / 1e6


def estimate(stage: CallStage, todo: Sequence[str]) -> CallStats:
    """Upper bound of the usage of some parts, extrapolated from a sample of them."""
    sample = list(todo)[:: max(1, len(todo) // _SAMPLED_PARTS)]
    calls = [question.call for part in sample for question in stage.questions(part)]
    scale = len(todo) / len(sample)
    return CallStats(
        units=round(len(calls) * scale),
        prompt_tokens=round(sum(call.prompt_tokens() for call in calls) * scale),
        completion_tokens=round(sum(call.max_tokens for call in calls) * scale),
    )
