"""The actor that samples responses from the policy with vLLM."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from psyco_ray.config.errors import require_finite
from psyco_ray.config.resources import Rollouts
from psyco_ray.pool import placement
from psyco_ray.rollout.engine_thread import EngineThread
from psyco_ray.run.cuda_driver import check_driver
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.types import Group, PreferencePair, PromptBatch, SentWeights, Weights, WeightUpdateAck

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from psyco_ray.models.weight_chunks import Chunk, StoredChunk

_FILLED_TIMES = 4  # responses that an engine has at a time, in units of what it decodes at once
_MOST_ITEMS = 64  # that an engine has at a time, each in a thread that waits for its groups


def actor_environment(settings: Rollouts) -> dict[str, str]:
    """Environment variables of a rollout actor's process."""
    variables = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core lives in the actor, so nothing outlives the actor
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if settings.enforce_eager:
        # the sampler compiles small helpers on first use even with enforce_eager, 25 s each on a CPU
        variables["TORCHDYNAMO_DISABLE"] = "1"
    return variables


def actor_options(settings: Rollouts, bundles: PlacementGroup | None = None, index: int = 0) -> dict[str, Any]:
    """Ray options of a rollout actor; `bundles` and `index` are those of `placement.pool_options`."""
    options = placement.pool_options(settings, actor_environment(settings), bundles, index)
    return {**options, "max_concurrency": _MOST_ITEMS} if settings.feed == "continuous" else options


def items_in_flight(settings: Rollouts, responses: int) -> int:
    """Work items that an engine has at a time, so many that it is full until the last ones, with `responses` each.

    An item's longest response takes several times the mean, and only its end brings the next item.
    """
    if settings.feed == "items":
        return 1
    sequences = settings.speeches_per_item * responses
    return min(_MOST_ITEMS, max(2, math.ceil(_FILLED_TIMES * settings.max_num_seqs / sequences)))


@dataclass(frozen=True)
class SamplingRequest:
    """A batch of prompts, the sampling parameters, and the policy version that must sample."""

    item: PromptBatch
    version: int
    responses: int  # of each prompt
    temperature: float
    top_p: float
    max_tokens: int
    logprobs: bool = False  # of the responses

    def split(self) -> list[SamplingRequest]:
        """One request for each prompt."""
        item = self.item
        return [replace(self, item=PromptBatch(f"{item.key}/{prompt.speech_id}", (prompt,))) for prompt in item.prompts]


class RolloutActor:
    """One vLLM engine with the policy's weights.

    Args:
        name: of the actor, in messages.
        model: name or directory of the base model, which is version 0.
        settings: engine size, dtype and parallelism.
        seed: of the engine.
        shared: whether a learner rank has the same GPU.

    Example:
        >>> options = placement.pool_options(settings, actor_environment(settings))
        >>> actor = ray.remote(RolloutActor).options(**options).remote("rollout-0", "smollm2-135m", settings, seed=0)
        >>> ray.get(actor.ready.remote())
        'rollout-0'
    """

    def __init__(self, name: str, model: str, settings: Rollouts, seed: int, shared: bool = False) -> None:
        self.name, self._model, self._settings, self._seed, self._shared = name, model, settings, seed, shared

    @gc_paused()
    def ready(self) -> str:
        """Load the engine; returns the actor's name."""
        check_driver(self._settings.gpus)
        from psyco_ray.models import loading
        from psyco_ray.rollout.engine import Engine

        model = loading.resolve(self._model)
        self._thread = EngineThread(lambda: Engine(model, self._settings, self._seed, shared=self._shared))
        self._engine = self._thread.engine
        return self.name

    def sample(self, request: SamplingRequest) -> Iterator[list[tuple[Group, float]]]:
        """Sample responses; yields groups as they complete, each with the seconds since the engine's previous one.

        Several calls at the same time share the engine. On GPUs groups travel together, see `EngineThread.sample`.

        Raises:
            InputError: on the CPU, the KV cache is too small.
            NonFiniteError: a log-probability is not finite.
        """
        version = self._engine.version
        assert version == request.version, (
            f"{self.name} has policy version {version}, version {request.version} was asked for"
        )
        sampled = self._thread.sample(
            request.item.prompts,
            self._settings.groups_together,
            responses=request.responses,
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            logprobs=request.logprobs,
        )
        for groups in sampled:
            for group, _ in groups:
                require_finite(
                    (response.logprob for response in group.responses if response.logprob is not None),
                    f"a log-probability of {group.prompt.speech_id} under version {group.version} of policy "
                    f"{self._model}",
                    "its weights are damaged, or too large for rollouts.dtype; choose another dtype or model",
                )
            yield groups

    def init_transfer(self, transport: str, settings: tuple[Any, ...]) -> None:
        """Connect to the learner for one weight update; see `EngineWeights`."""
        self._thread.call(self._engine.weights.init_transfer, transport, settings)

    def start_update(self) -> None:
        """Start a weight update."""
        self._thread.call(self._engine.weights.start_update)

    def receive_chunk(self, chunk: Chunk | StoredChunk) -> None:
        """Receive a chunk of the weights."""
        self._thread.call(self._engine.weights.receive_chunk, chunk)

    def finish_update(self, version: int) -> None:
        """Finish the weight update; `load_weights` must confirm it."""
        self._thread.call(self._engine.weights.finish_update, version)

    def sleep(self, keep_weights: bool) -> None:
        """Free the GPU until the next call that needs it."""
        self._thread.call(self._engine.weights.sleep, keep_weights)

    def load_weights(self, weights: Weights | SentWeights, probe: PreferencePair) -> WeightUpdateAck:
        """Load weights, or confirm those received in chunks; then the engine computes a probe, see `probe_logprobs`.

        Args:
            weights: the new version.
            probe: a prompt with two responses.

        Raises:
            WeightTransferError: other weights arrived.
        """
        began, engine = time.perf_counter(), self._engine
        loaded_bytes = self._thread.call(engine.load_weights, weights)
        sides = zip((probe.chosen_ids, probe.rejected_ids), probe.context, strict=True)
        texts = [((*probe.prompt_ids, *ids[:k]), tuple(ids[k:])) for ids, k in sides]
        self._probe = self._thread.submit(engine.logprobs, texts)
        # the engine refuses any other digest
        return WeightUpdateAck(engine.version, weights.digest, loaded_bytes, time.perf_counter() - began)

    def probe_logprobs(self) -> tuple[float, ...]:
        """Log-probabilities in nats of the responses of the last update's probe, under its weights."""
        return tuple(self._probe.result())
