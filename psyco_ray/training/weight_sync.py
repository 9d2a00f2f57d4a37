"""Weight sync from the learner to the rollout actors.

Invariants:
    - All actors that sample have the same version of the weights, verified by digest.
    - On shared GPUs an engine's weights wake up when every rank has left all but its own weights, and an engine's cache
      when the ranks have left those, too.
    - Every engine computes with the new weights, verified by the log-probabilities of a part of one pair (the probe).
      Its second response shares the prompt with the first on the learner, which must not change it. Learner and engines
      compute it beside the first items, and no result of an engine is used before it agrees with the learner.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from psyco_ray.rollout.actor import RolloutActor

if TYPE_CHECKING:
    from psyco_ray.config.resources import Sync, Transport
    from psyco_ray.learner.group import LearnerGroup
    from psyco_ray.pool.actor_pool import ActorPool
    from psyco_ray.run.types import PreferencePair, SentWeights, Weights, WeightUpdateAck
    from psyco_ray.training.colocation import ColocationManager


# of the probe: wrong weights show in the first of them; with fewer tokens bfloat16's rounding comes near `sync.max_gap`
_PROMPT_TOKENS, _RESPONSE_TOKENS = 8, 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushedWeights:
    """Weights that rollout actors have loaded."""

    version: int
    bytes: int  # received by an actor, at most: all weights or a delta
    actors: int  # that have the weights
    export_s: float  # gathering on the learner, and sending with the engines' loading, or storing
    load_s: float  # from then until the last actor has loaded the weights and confirmed their digest
    verify: Callable[[], float]
    """Waits until the engines have shown that they compute with the weights; see `push_weights`.

    Returns:
        Largest difference of the probe's log-probability between learner and engines, nats per token.

    Raises:
        RuntimeError: every engine computes with other weights; streams of the actors raise it, too.
        TimeoutError: no engine computed the probe before the deadline.
    """


def push_weights(
    learner: LearnerGroup,
    rollouts: ActorPool[RolloutActor],
    version: int,
    probe: PreferencePair,
    settings: Sync,
    *,
    transport: Transport = "object_store",
    workers: int = 1,
    colocation: ColocationManager | None = None,
) -> PushedWeights:
    """Sends the learner's weights to every rollout actor and verifies that they arrived.

    Idle actors load chunk after chunk while the learner sends. Other actors, and those that miss a chunk, take all
    weights from the object store; so do all with deltas, and over `object_store` on shared GPUs. An actor that fails
    the checks is replaced; an actor that joins later loads the same weights before its first item.

    The actors take items from then on, but nothing that they sample is delivered before `PushedWeights.verify`, which
    must be called, has compared their log-probabilities of the probe with the learner's. It uses the learner, unless
    they share GPUs: nothing else may use it meanwhile.

    Args:
        learner: holds the weights.
        rollouts: receive the weights.
        version: of the weights.
        probe: a prompt with two responses, to a part of which learner and engines must give the same log-probabilities.
        settings: deadline, bucket size, largest gap.
        transport: of the job.
        workers: of each actor's engine.
        colocation: of actors and ranks that share GPUs, with the learner on them; None: they share none.

    Raises:
        TimeoutError: no actor finished before the deadline.
        RuntimeError: every actor received other weights than were sent.
    """
    began, probe = time.monotonic(), _part(probe)
    values = functools.cache(functools.partial(_values, learner, probe))
    send = functools.partial(_send_or_export, learner, rollouts, version, settings, transport, workers)
    if colocation is None:
        weights = send(None)
    else:
        values()  # before the learner leaves the GPUs
        colocation.hand_over()
        weights = send(colocation)
        colocation.to_rollouts()
    exported = time.monotonic()
    acks = rollouts.broadcast(
        RolloutActor.load_weights,
        weights,
        probe,
        version=version,
        check=functools.partial(_other_weights, weights),
        deadline_s=settings.deadline_s,
        proof=RolloutActor.probe_logprobs,
    )
    verify = functools.partial(_verify, rollouts, values, version, probe.trained_tokens, settings.max_gap)
    size, loaded = max(ack.bytes for ack in acks), time.monotonic()
    return PushedWeights(version, size, len(acks), exported - began, loaded - exported, verify)


Values = tuple[float, ...]
"""Of the probe's two responses."""


def _part(pair: PreferencePair) -> PreferencePair:
    """The end of a pair's prompt with the first trained tokens of its responses, and a few of those before them."""
    before, n = _PROMPT_TOKENS, _RESPONSE_TOKENS
    chosen, rejected = (
        ids[max(0, k - before) : k + n]
        for ids, k in zip((pair.chosen_ids, pair.rejected_ids), pair.context, strict=True)
    )
    context = min(pair.context[0], before), min(pair.context[1], before)
    return replace(
        pair, prompt_ids=pair.prompt_ids[-before:], chosen_ids=chosen, rejected_ids=rejected, context=context
    )


def _values(learner: LearnerGroup, probe: PreferencePair) -> Values:
    [values] = learner.evaluate_pairs([probe])
    return values


def _verify(
    rollouts: ActorPool[RolloutActor],
    values: Callable[[], Values],
    version: int,
    tokens: tuple[int, ...],
    max_gap: float,
) -> float:
    """See `PushedWeights`."""
    try:
        ours = values()
    except BaseException as error:
        rollouts.cannot_verify(error)
        raise
    proofs: list[Values] = rollouts.verify(lambda theirs: _other_values(version, ours, theirs, tokens, max_gap))
    return max(_gap(ours, theirs, tokens) for theirs in proofs)


def _gap(ours: Values, theirs: Values, tokens: tuple[int, ...]) -> float:
    """Larger difference of a response's log-probability between learner and engine, nats per token."""
    gaps = [abs(a - b) / n for a, b, n in zip(ours, theirs, tokens, strict=True)]
    return float(np.max(gaps))  # NaN if one of them is


def _other_weights(sent: Weights | SentWeights, ack: WeightUpdateAck) -> str | None:
    """Why an actor does not have the weights that were sent; None if it has."""
    if (ack.version, ack.digest) != (sent.version, sent.digest):
        return f"it took version {ack.version} with digest {ack.digest}, {sent.digest} was sent"
    return None


def _other_values(version: int, ours: Values, theirs: Values, tokens: tuple[int, ...], max_gap: float) -> str | None:
    """Why an engine does not compute with the learner's weights; None if it does."""
    if (gap := _gap(ours, theirs, tokens)) <= max_gap:
        return None
    learned, sampled = (" and ".join(f"{value:.3f}" for value in values) for values in (ours, theirs))
    return (  # a gap of NaN is no match either
        f"after the update to version {version} the learner gives the probe's responses {learned} nats and it gives "
        f"{sampled}: up to {gap:.3f} per token, more than sync.max_gap {max_gap:g}"
    )


def _send_or_export(
    learner: LearnerGroup,
    rollouts: ActorPool[RolloutActor],
    version: int,
    settings: Sync,
    transport: Transport,
    workers: int,
    colocation: ColocationManager | None,
) -> Weights | SentWeights:
    """The weights as sent to idle actors and stored for the others; or only stored."""
    from psyco_ray.learner.recovery import WeightSendError

    in_chunks = transport != "object_store" or (colocation is None and not settings.deltas)
    if idle := rollouts.idle if in_chunks else []:
        try:
            return learner.send(transport, idle, version, workers, settings)
        except WeightSendError as error:
            _log.warning(f"{error}; the weights of version {version} go through the object store")
            if colocation is not None:
                colocation.to_learner()  # engines leave the GPUs before new ranks load all of their states
    return learner.export(version, settings.bucket_mb, settings.deltas)
