"""The update that every actor of a pool applies before its next item.

An update may have a proof: a second call, whose reply shows that the actor works with the update. An actor gets items
while its proof is on the way, and what it returns is held until the proof is accepted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import ray
from ray.exceptions import RayError, RayTaskError

from psyco_ray.pool import states
from psyco_ray.pool.slot import PendingUpdate, Slot, reason_of

_log = logging.getLogger(__name__)


class Updates:
    """Sends the last update to slots and judges the replies; a supervisor owns it and calls it under its lock."""

    def __init__(
        self,
        role: str,
        slots: dict[int, Slot],
        replace: Callable[[Slot, str, bool], None],
        on_busy: Callable[[float, float], None],
    ) -> None:
        """Start without an update.

        Args:
            role: of the actors, in messages.
            slots: by index; the supervisor changes them.
            replace: replaces the actor of a slot for a reason; whether its items may be at fault.
            on_busy: called with each busy interval of an actor.
        """
        self.last: PendingUpdate | None = None
        self._role, self._slots, self._replace, self._on_busy = role, slots, replace, on_busy

    def _exhausted(self, update: PendingUpdate) -> bool:
        """Whether no actor applied an update, however often actors were replaced."""
        applied = any(slot.updated is update and not slot.held for slot in self._slots.values())
        return not applied and update.failures_in_a_row > 2 * len(self._slots)

    def poll(self, slot: Slot) -> None:
        """Take the reply of an actor whose update has ended."""
        update = slot.update
        assert update is not None, f"{slot} is updating"
        try:
            ack = ray.get(slot.ref)
            problem = update.check(ack)
        except RayTaskError as error:
            problem = reason_of(error)
        except RayError as error:
            self._replace(slot, f"died in {update.name}, {reason_of(error)}", False)
            return
        if problem is not None:
            self._reject(slot, update, problem)
            return
        slot.updated, slot.rejections = update, 0
        update.acks[slot.index] = ack
        self._on_busy(slot.since, time.monotonic())
        slot.enter(states.IDLE)
        if update.proof is None:
            self._accept(slot, update)
        else:
            slot.ask_proof(update.proof)

    def poll_proof(self, slot: Slot) -> None:
        """Take an actor's proof."""
        update = slot.updated
        assert update is not None, f"{slot} has an update"
        assert update.check_proof is not None, "a proof waits until its check is known"
        try:
            proof = ray.get(slot.proof)
            problem = update.check_proof(proof)
        except RayTaskError as error:
            problem = reason_of(error)
        except RayError as error:  # perhaps of an item that it has
            self._replace(slot, f"died after {update.name}, {reason_of(error)}", True)
            return
        if problem is not None:
            self._fail(slot, update, RuntimeError(problem))
            return
        update.proofs[slot.index] = proof
        slot.release_results()
        self._accept(slot, update)

    def check_deadline(self, slot: Slot, now: float) -> None:
        """Replace an actor that has not replied in time."""
        if not (slot.state is states.UPDATING or slot.proof_is_due):
            return
        update = slot.update  # also while a proof is due, which `Slot.send` drops
        assert update is not None, f"{slot} has an update"
        since = slot.since if slot.state is states.UPDATING else max(slot.proof_since, update.check_since)
        if now - since > update.deadline_s:
            reason = f"did not finish {update.name} within {update.deadline_s:g} s"
            self._fail(slot, update, TimeoutError(f"{self._role} {slot} {reason}"))

    def _accept(self, slot: Slot, update: PendingUpdate) -> None:
        slot.failed_starts = update.failures_in_a_row = 0

    def _reject(self, slot: Slot, update: PendingUpdate, problem: str) -> None:
        """Retry a failed update once on the same actor, then replace the actor."""
        slot.rejections += 1
        if slot.rejections == 1:
            _log.warning(f"{self._role} {slot}: {problem}; it tries again")
            slot.enter(states.IDLE)
        else:
            self._fail(slot, update, RuntimeError(problem))

    def _fail(self, slot: Slot, update: PendingUpdate, error: Exception) -> None:
        """Replace an actor that does not work with an update."""
        update.errors[slot.index] = error
        self._replace(slot, str(error), False)
        update.failures_in_a_row += 1
        # new actors would start and fail forever if the weights are gone, say with the learner that held them
        if self._exhausted(update):
            update.failure = update.error(self._role)
