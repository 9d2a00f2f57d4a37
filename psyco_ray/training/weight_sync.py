"""Weights from the learner to every rollout actor: version, digest, deadline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from psyco_ray.rollout.actor import RolloutActor

if TYPE_CHECKING:
    from psyco_ray.config.resources import Sync, Transport
    from psyco_ray.learner.group import LearnerGroup
    from psyco_ray.pool.actor_pool import ActorPool
    from psyco_ray.run.types import PreferencePair, SentWeights, Weights, WeightUpdateAck


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyncReport:
    """What a weight update took."""

    version: int
    bytes: int  # that an actor took, at most: all weights, or a delta
    actors: int  # that have them
    export_s: float  # gathering on the learner, and sending or writing to the object store
    load_s: float  # until the last rollout actor had them and was checked
    gap: float  # largest difference of a probe's log-probability between learner and engines, nats a token


def push_weights(
    learner: LearnerGroup,
    rollouts: ActorPool[RolloutActor],
    version: int,
    probe: PreferencePair,
    settings: Sync,
    *,
    transport: Transport = "object_store",
    workers: int = 1,
    handover: Callable[[], None] = lambda: None,
) -> SyncReport:
    """Bring the learner's weights to every rollout actor, and check that they arrived and are in use.

    Over `nccl` and `ipc` they go to the actors that are idle; everyone else, and everyone if ranks are lost over it,
    takes them from the object store. Each actor checks the digest. Then it computes the log-probability of one
    response: an engine that keeps a stale copy of a weight would sample from a policy that nobody trains. An actor that
    fails is replaced; whoever joins later takes the same weights before it works.

    Args:
        learner: has the weights.
        rollouts: gets them.
        version: what they are called from now on.
        probe: a pair whose chosen response is the probe.
        settings: deadline, sizes, largest gap.
        transport: how they get there.
        workers: of each actor's engine.
        handover: called when the learner has done its part, and before the actors need all of their memory.

    Raises:
        TimeoutError: no actor finished in time.
        RuntimeError: every actor received something else than was sent, or computes with other weights.
    """
    began = time.monotonic()
    # the rejected response is not compared: a token of it will do
    expected = learner.evaluate_pairs([replace(probe, rejected_ids=probe.chosen_ids[:1])])[0][0]
    weights = _sent(learner, rollouts, version, settings, transport, workers)
    handover()
    exported = time.monotonic()

    def gap(loaded: WeightUpdateAck) -> float:
        return abs(loaded.logprob - expected) / len(probe.chosen_ids)

    def wrong(loaded: WeightUpdateAck) -> str | None:
        if (loaded.version, loaded.digest) != (version, weights.digest):
            return f"it took version {loaded.version} with digest {loaded.digest}, {weights.digest} was sent"
        if gap(loaded) > settings.max_gap:
            return (
                f"after the update to version {version} the learner gives the probe {expected:.3f} nats and it gives "
                f"{loaded.logprob:.3f}: {gap(loaded):.3f} a token, more than sync.max_gap {settings.max_gap:g}"
            )
        return None

    taken = rollouts.broadcast(
        RolloutActor.load_weights,
        weights,
        probe.prompt_ids,
        probe.chosen_ids,
        version=version,
        check=wrong,
        deadline_s=settings.deadline_s,
    )
    done = time.monotonic()
    moved = max(loaded.bytes for loaded in taken)
    return SyncReport(version, moved, len(taken), exported - began, done - exported, max(map(gap, taken)))


def _sent(
    learner: LearnerGroup,
    rollouts: ActorPool[RolloutActor],
    version: int,
    settings: Sync,
    transport: Transport,
    workers: int,
) -> Weights | SentWeights:
    """The weights on their way: with the actors that could be sent to, and in the object store."""
    from psyco_ray.learner.group import WeightSendError

    idle = rollouts.idle if transport != "object_store" else []
    if idle:
        try:
            return learner.send(transport, idle, version, workers, settings)
        except WeightSendError as error:
            _log.warning("%s; the weights of version %d go through the object store", error, version)
    return learner.export(version, settings.bucket_mb, settings.deltas)
