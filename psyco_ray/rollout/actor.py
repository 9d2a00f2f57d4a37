"""The actor that samples responses from the policy with vLLM."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from psyco_ray.config.resources import Rollouts
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.types import Group, PromptBatch, SentWeights, Weights, WeightUpdateAck


def actor_environment(settings: Rollouts) -> dict[str, str]:
    """Environment of a rollout actor's process."""
    found = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core lives in the actor: nothing outlives it
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if settings.enforce_eager:
        # small helpers of the sampler are compiled on first use even so, 25 s each on a CPU
        found["TORCHDYNAMO_DISABLE"] = "1"
    return found


@dataclass(frozen=True)
class SamplingRequest:
    """An item and how its responses are drawn; `version` is the policy that has to draw them."""

    item: PromptBatch
    version: int
    responses: int
    temperature: float
    top_p: float
    max_tokens: int

    def one_by_one(self) -> list[SamplingRequest]:
        """The same for each prompt alone, where they cannot be sampled together."""
        item = self.item
        return [replace(self, item=PromptBatch(f"{item.key}/{one.speech_id}", (one,))) for one in item.prompts]


class RolloutActor:
    """One engine with the policy's weights."""

    def __init__(self, name: str, model: str, settings: Rollouts, seed: int, shared: bool = False) -> None:
        self.name, self._model, self._settings, self._seed = name, model, settings, seed
        self._shared = shared  # whether a learner rank has the same GPU

    @gc_paused()
    def ready(self) -> str:
        """Load the engine; the base model is version 0."""
        from psyco_ray.models import loading
        from psyco_ray.rollout.engine import Engine

        self._engine = Engine(loading.resolve(self._model), self._settings, self._seed, shared=self._shared)
        return self.name

    def sample(self, request: SamplingRequest) -> Iterator[tuple[Group, float]]:
        """Sample an item's responses; yield each group as it completes, and the seconds since the last."""
        assert self._engine.version == request.version, (
            f"{self.name} has policy version {self._engine.version}, version {request.version} was asked for"
        )
        began = time.perf_counter()
        prompts = list(request.item.prompts)
        for group in self._engine.generate(
            prompts, request.responses, request.temperature, request.top_p, request.max_tokens
        ):
            now = time.perf_counter()
            yield group, now - began
            began = now

    def receive(self, step: str, **given: Any) -> None:
        """A step of a weight update that the learner sends: meet, start_update, take_piece or finish_update."""
        getattr(self._engine, step)(**given)

    def sleep(self, keep_weights: bool) -> None:
        """Free the GPU until there is something to do."""
        self._engine.sleep(keep_weights)

    def load_weights(
        self, weights: Weights | SentWeights, prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]
    ) -> WeightUpdateAck:
        """Take new weights unless they have come already; compute the log-probability of a response with them."""
        began = time.perf_counter()
        taken = self._engine.load_weights(weights)
        return WeightUpdateAck(
            version=self._engine.version,
            digest=weights.digest,  # anything else that arrived was refused
            bytes=taken,
            logprob=self._engine.logprob(prompt_ids, response_ids),
            seconds=time.perf_counter() - began,
        )
