"""Weight sync from the learner to the rollout actors.

Invariants:
    - All actors that sample have the same version of the weights, verified by digest.
    - On shared GPUs an engine's weights wake up when every rank has left all but its own weights, and an engine's cache
      when the ranks have left those, too.
    - Every engine computes with the new weights, verified by the log-probabilities of a part of one pair (the probe).
      Its second response shares the prompt with the first on the learner, which must not change it.
"""

from __future__ import annotations

import functools
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
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
class SyncReport:
    """Size and time of a weight update."""

    version: int
    bytes: int  # received by an actor, at most: all weights or a delta
    actors: int  # that have the weights
    export_s: float  # gathering on the learner, and sending with the engines' loading, or storing
    load_s: float  # from then until the last actor has loaded and verified the weights
    gap: float  # largest difference of the probe's log-probability between learner and engines, nats per token


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
) -> SyncReport:
    """Sends the learner's weights to every rollout actor and verifies that they arrived and are in use.

    Idle actors load chunk after chunk while the learner sends. Other actors, and those that miss a chunk, take all
    weights from the object store; so do all with deltas, and over `object_store` on shared GPUs. An actor that fails
    the checks is replaced; an actor that joins later loads the same weights before its first item.

    Args:
        learner: holds the weights.
        rollouts: receive the weights.
        version: of the weights.
        probe: a prompt with two responses, to a part of which learner and engines must give the same log-probabilities.
        settings: deadline, bucket size, largest gap.
        transport: of the job.
        workers: of each actor's engine.
        colocation: of actors and ranks that share GPUs, with the learner on them; None: they share none, and the
            learner computes the probe's log-probabilities while the actors do.

    Raises:
        TimeoutError: no actor finished before the deadline.
        RuntimeError: every actor received other weights than were sent, or computes with other weights.
    """
    began, probe = time.monotonic(), _part(probe)
    with ThreadPoolExecutor(1, "probe") as background:
        send = functools.partial(_send_or_export, learner, rollouts, version, settings, transport, workers)
        if colocation is None:
            weights = send(None)
            expected = background.submit(_values, learner, probe)
        else:
            expected = background.submit(_values, learner, probe)
            expected.result()
            colocation.hand_over()
            weights = send(colocation)
            colocation.to_rollouts()
        exported = time.monotonic()
        acks = rollouts.broadcast(
            RolloutActor.load_weights,
            weights,
            probe,
            version=version,
            check=lambda ack: _mismatch(ack, weights, expected, probe.trained_tokens, settings.max_gap),
            deadline_s=settings.deadline_s,
        )
    loaded = time.monotonic()
    size = max(ack.bytes for ack in acks)
    gap = max(_gap(ack, expected.result(), probe.trained_tokens) for ack in acks)
    return SyncReport(version, size, len(acks), exported - began, loaded - exported, gap)


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


def _gap(ack: WeightUpdateAck, expected: Values, tokens: tuple[int, ...]) -> float:
    """Larger difference of a response's log-probability between engine and learner, nats per token."""
    gaps = [abs(a - b) / n for a, b, n in zip(ack.logprobs, expected, tokens, strict=True)]
    return float(np.max(gaps))  # NaN if one of them is


def _mismatch(
    ack: WeightUpdateAck, sent: Weights | SentWeights, values: Future[Values], tokens: tuple[int, ...], max_gap: float
) -> str | None:
    """Why an actor does not have the weights that were sent; None if it has, or if the learner has failed."""
    if (ack.version, ack.digest) != (sent.version, sent.digest):
        return f"it took version {ack.version} with digest {ack.digest}, {sent.digest} was sent"
    if values.exception() is not None:  # no actor's fault; `push_weights` raises it
        return None
    expected = values.result()
    if not (gap := _gap(ack, expected, tokens)) <= max_gap:  # a gap of NaN is no match either
        ours, theirs = (" and ".join(f"{value:.3f}" for value in values) for values in (expected, ack.logprobs))
        return (
            f"after the update to version {sent.version} the learner gives the probe's responses {ours} nats and it "
            f"gives {theirs}: up to {gap:.3f} per token, more than sync.max_gap {max_gap:g}"
        )
    return None


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
