"""Pools of Ray actors that pull work items and stream results back.

    caller                          supervisor thread                        Ray
    ------                          -----------------                        ---
    items ----> WorkStream ----> dispatch an item to a free Slot -----> actor 0, actor 1, ...
                  ^    |                                                     |
                  |    +-- requeue, split, give up <-- health check <--------+ dead, hung, failed
    results <-----+------- deliver each result once <-- poll <---------------+ result, end of item
    broadcast ----> PendingUpdate ----> sent before the next item ----> actor 0, actor 1, ...
    verify -------> its proofs <------- results are held until then <--------+

Invariants:

1. An actor has at most `in_flight` items of a stream (1 by default); it gets the next one when one is done, so a slow
   actor delays nobody else.
2. Every result is delivered once, told apart by `identity`, whether or not its item is done again.
3. Every item ends: its results are delivered, or `on_failed` gets it, or the stream raises.
4. A dead or hung actor is replaced and its items requeued, each for an actor of its own; an item that fails twice is
   split, so that only the part at fault is given up.
5. After `broadcast` no actor gets an item before it applied the update; new actors apply it first. Where the update
   has a proof, no result of an actor is delivered before `verify` has accepted the actor's proof.
6. No process, shared memory or temporary file of an actor outlives it.

The pool is written here because neither Ray's ActorPool, RLlib's actor manager nor Ray Data has item deadlines,
exactly-once results, splitting of poison items and a weight barrier.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar, TypeVarTuple

import ray
from ray.exceptions import RayError

from psyco_ray.config.training import Deadlines
from psyco_ray.pool.polling import POLL_S
from psyco_ray.pool.slot import PendingUpdate, Slot, actor_method, reason_of
from psyco_ray.pool.states import State
from psyco_ray.pool.supervisor import Supervisor
from psyco_ray.pool.work import EndOfStream, FailedItem, WorkStream

_ACK_POLL_S = 0.002  # a weight update is not slower for it

A = TypeVar("A")
Item = TypeVar("Item")
Result = TypeVar("Result")
Ack = TypeVar("Ack")
Proof = TypeVar("Proof")
Args = TypeVarTuple("Args")


class ActorPool(Generic[A]):
    """Actors of one class that work on the items of any number of streams.

    Methods of the actor class are passed as functions, such as `RolloutActor.sample`; the pool calls the method of
    that name on its actors.

    Example:
        >>> class Squarer:
        ...     def ready(self) -> None: ...
        ...     def square(self, number: int) -> Iterator[int]:
        ...         yield number**2
        >>> actor = ray.remote(Squarer)
        >>> pool = ActorPool[Squarer]("squarer", lambda index: actor.remote(), 2, Deadlines(item_s=60))
        >>> pool.wait_ready()
        >>> sorted(pool.stream(Squarer.square, range(4), identity=lambda square: square))
        [0, 1, 4, 9]
        >>> pool.close()
    """

    def __init__(
        self,
        role: str,
        create: Callable[[int], Any],
        size: int,
        deadlines: Deadlines,
        *,
        on_busy: Callable[[float, float], None] = lambda *_: None,
        suspended: bool = False,
    ) -> None:
        """Create the actors; they load in the background.

        Args:
            role: name of the actors, in messages.
            create: creates the actor of an index and returns its handle; the actor loads in its method `ready`.
            size: number of actors.
            deadlines: `start_s` for an actor to get ready, `item_s` between two of its results.
            on_busy: called with each busy interval of an actor (two values of `time.monotonic`).
            suspended: create no actor before `resume`.
        """
        self.role = role
        self._supervisor = Supervisor(role, create, size, deadlines, on_busy, suspended)

    def wait_ready(self) -> None:
        """Wait until every actor is loaded and idle.

        Raises:
            TimeoutError: an actor was not ready in time.
            RuntimeError: an actor died, or failed to load.
        """
        while True:
            with self._supervisor.locked() as slots:
                self._supervisor.check()
                for slot in slots:
                    if slot.start_error is not None:
                        raise slot.start_error
                if all(slot.state is State.IDLE for slot in slots):
                    return
            time.sleep(POLL_S)

    def stream(
        self,
        method: Callable[[A, Item], Iterable[list[Result]] | Iterable[Result]],
        items: Iterable[Item],
        *,
        name: str = "work",
        identity: Callable[[Result], Hashable] = lambda _: None,
        split: Callable[[Item], list[Item]] = lambda item: [item],
        on_failed: Callable[[Item, str], None] | None = None,
        in_flight: int = 1,
    ) -> Iterator[Result]:
        """Dispatch items to actors and yield the results as they come, in any order.

        Several streams may run at the same time; they share the actors. `items` may be another stream.

        Args:
            method: of the actor class. The results of a generator method come as it yields them, one at a time or in
                lists, each list as one object of Ray; one that returns a list costs a single call of Ray.
            items: the work.
            name: of the work, in messages.
            identity: key of a result, unique within its item; needed where an item has more than one result.
            split: parts of an item that failed as a whole.
            on_failed: called with an item that was given up and the last reason; None: a given-up item is an error.
            in_flight: number of items that an actor has at a time, those of other streams included. The actor does
                one after the other, or together if it was created with that `max_concurrency`.

        Yields:
            What `method` yields, or the members of the lists that it yields or returns.

        Raises:
            InputError, ValueError, AssertionError: as the method raised it.
            RuntimeError: an item was given up and `on_failed` is None, or item after item fails.
            TimeoutError: no actor could work for `start_s` seconds.
        """
        with self._supervisor.locked() as slots:
            read_ahead = 2 * max(4, len(slots))
        stream = WorkStream(method, items, name, identity, split, read_ahead, in_flight)
        self._supervisor.add(stream)
        try:
            while not isinstance(result := stream.out.get(), EndOfStream):
                if not isinstance(result, FailedItem):
                    yield result
                elif on_failed is None:
                    raise RuntimeError(f"{name}: {self.role} actors gave an item up, {result.reason}")
                else:
                    on_failed(result.item, result.reason)
            if result.error is not None:
                raise result.error
        finally:
            stream.closed.set()

    def broadcast(
        self,
        method: Callable[[A, *Args], Ack],
        *args: *Args,
        version: int,
        check: Callable[[Ack], str | None],
        deadline_s: float,
        proof: Callable[[A], object] | None = None,
    ) -> list[Ack]:
        """Have every actor call a method before its next item, and every new actor before its first.

        Waits for idle actors and for those whose results are still needed, not for actors that are loading.

        Args:
            method: method of the actor class.
            *args: its arguments.
            version: version that `status` shows for an actor that applied the update.
            check: returns the problem with an actor's reply, or None; after two problems the actor is replaced.
            deadline_s: seconds that the call may take.
            proof: method of the actor class that is called after `method` and must return before the actor begins
                another item; its replies wait for `verify`, and what the actor makes of items waits for them.

        Returns:
            The actors' replies.

        Raises:
            RuntimeError: no actor applied the update.
            TimeoutError: no actor applied it in time, or no actor could work.
        """
        update = PendingUpdate(method, args, version, check, deadline_s, proof)
        self._supervisor.set_update(update)
        while True:
            with self._supervisor.locked() as slots:
                self._supervisor.check()
                pending = [slot for slot in slots if slot.updated is not update and slot.must_update]
                if not pending and update.acks:
                    return list(update.acks.values())
                if update.failure is not None or (not pending and len(update.errors) >= len(slots)):
                    raise update.failure or update.error(self.role)
                self._supervisor.check_capacity()
            time.sleep(_ACK_POLL_S)

    def verify(self, check: Callable[[Proof], str | None]) -> list[Proof]:
        """Check the proofs of the last `broadcast`, also of actors that join later.

        Another thread may read streams meanwhile. An actor with a problem is replaced, and its items go to others.

        Args:
            check: returns the problem with a proof, or None.

        Returns:
            The proofs of all actors that have the update.

        Raises:
            RuntimeError: no actor proves that it works with the update; all streams raise it, too.
            TimeoutError: no actor did in time, or no actor could work.
        """
        update = self._supervisor.last_update()
        with self._supervisor.locked():
            update.check_proof, update.check_since = check, time.monotonic()
        try:
            return self._wait_for_proofs(update)
        except Exception as error:
            self.cannot_verify(error)
            raise

    def cannot_verify(self, error: BaseException) -> None:
        """Have all streams raise an error until the next `broadcast`; what waits for proofs would wait forever."""
        with self._supervisor.locked():
            self._supervisor.last_update().failure = error

    def _wait_for_proofs(self, update: PendingUpdate) -> list[Any]:
        while True:
            with self._supervisor.locked() as slots:
                self._supervisor.check()
                pending = any(slot.updated is update and slot.held for slot in slots)
                if not pending and update.proofs:
                    return list(update.proofs.values())
                if update.failure is not None or (not pending and len(update.errors) >= len(slots)):
                    raise update.failure or update.error(self.role)
                self._supervisor.check_capacity()
            time.sleep(_ACK_POLL_S)

    def suspend(self, method: Callable[[A, *Args], object], *args: *Args, deadline_s: float) -> None:
        """Have every actor call a method that frees what it holds; until `resume` none is created or gets work.

        Waits for busy, loading and updating actors. An actor that fails or misses the deadline is killed.

        Args:
            method: method of the actor class.
            *args: its arguments.
            deadline_s: seconds for all of it.
        """
        replies: dict[Any, Any] = {}  # by actor
        deadline = time.monotonic() + deadline_s
        self._supervisor.suspend()
        while True:
            with self._supervisor.locked() as slots:
                self._supervisor.check()
                slots = [slot for slot in slots if slot.actor is not None]
                for slot in slots:
                    if slot.state is State.IDLE and not slot.held and slot.actor not in replies:
                        replies[slot.actor] = actor_method(slot.actor, method).remote(*args)
                pending = [s for s in slots if s.actor not in replies or not self._replied(s, replies[s.actor], method)]
                late = pending if time.monotonic() > deadline else []
                for slot in late:
                    self._supervisor.fail(slot, f"did not finish {method.__name__} within {deadline_s:g} s")
            if not pending or late:
                return
            time.sleep(POLL_S)

    def resume(self) -> None:
        """Create missing actors and dispatch work again after `suspend`."""
        self._supervisor.resume()

    def resize(self, size: int) -> None:
        """Change the number of actors; new ones work once they are ready, the last ones leave after their item."""
        self._supervisor.resize(size)

    def status(self) -> list[dict[str, Any]]:
        """What each actor does, for how many seconds, on which node, and how often it was replaced."""
        with self._supervisor.locked() as slots:
            return [slot.status() for slot in slots]

    def waiting(self) -> int:
        """Number of items that wait for an actor."""
        return self._supervisor.waiting()

    @property
    def actors(self) -> list[Any]:
        """Handles of all actors, loading ones included."""
        with self._supervisor.locked() as slots:
            return [slot.actor for slot in slots if slot.actor is not None]

    @property
    def idle(self) -> list[Any]:
        """Handles of the idle actors."""
        with self._supervisor.locked() as slots:
            return [slot.actor for slot in slots if slot.state is State.IDLE]

    def close(self) -> None:
        """End all actors; streams that are still read raise."""
        self._supervisor.close()

    def _replied(self, slot: Slot, reply: Any, method: Callable[..., Any]) -> bool:
        """Whether an actor returned from a call, or failed in it."""
        if not ray.wait([reply], timeout=0)[0]:
            return False
        try:
            ray.get(reply)
        except RayError as error:
            self._supervisor.fail(slot, f"failed in {method.__name__}, {reason_of(error)}")
        return True
