"""Pools of actors that take work items one at a time and stream results back.

Work is pulled: a member gets its next item when it is done with the last, so a slow one never decides how long the
whole takes. Only members that have answered `ready` get work.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

_POLL_S = 0.02


class ActorPool:
    """Members of one role."""

    def __init__(self, role: str, make: Callable[[int], Any], size: int, *, start_s: float, item_s: float) -> None:
        """Create the members; they load in the background until `wait_ready`.

        Args:
            role: what the members are, in messages.
            make: creates the actor of an index.
            size: number of members.
            start_s: seconds a member may take to get ready.
            item_s: seconds a member may take between two results.
        """
        self.role = role
        self._start_s, self._item_s = start_s, item_s
        self._members = {index: make(index) for index in range(size)}
        self._pings = {index: actor.ready.remote() for index, actor in self._members.items()}
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()

    def wait_ready(self) -> None:
        """Wait until every member has loaded and may get work.

        Raises:
            TimeoutError: one did not in time.
        """
        done, late = ray.wait(list(self._pings.values()), num_returns=len(self._pings), timeout=self._start_s)
        ray.get(done)
        if late:
            names = [index for index, ping in self._pings.items() if ping in late]
            raise TimeoutError(f"{self.role} actors {names} were not ready within {self._start_s:g} s")
        for index in self._members:
            self._idle.put(index)

    def stream(self, method: str, items: Iterable[Any]) -> Iterator[Any]:
        """Give items to members as they get free, and yield what their generator `method` yields, as it comes.

        Several streams may run at the same time; they share the members. `items` may itself be a stream.
        """
        out: queue.Queue[Any] = queue.Queue(maxsize=1024)
        stop = threading.Event()
        feed: queue.Queue[Any] = queue.Queue(maxsize=2 * len(self._members))
        feeder = threading.Thread(target=_feed, args=(items, feed, stop), daemon=True)
        runner = threading.Thread(target=self._dispatch, args=(method, feed, out, stop), daemon=True)
        feeder.start()
        runner.start()
        try:
            while not isinstance(found := out.get(), _End):
                yield found
            if found.error is not None:
                raise found.error
        finally:
            stop.set()

    def call_all(self, method: str, *args: Any, deadline_s: float) -> list[Any]:
        """Call a method on every member and wait for all.

        Raises:
            TimeoutError: naming the members that did not answer in time.
        """
        refs = {index: getattr(actor, method).remote(*args) for index, actor in self._members.items()}
        _, late = ray.wait(list(refs.values()), num_returns=len(refs), timeout=deadline_s)
        if late:
            names = [index for index, ref in refs.items() if ref in late]
            raise TimeoutError(f"{self.role} actors {names} did not finish {method} within {deadline_s:g} s")
        return ray.get(list(refs.values()))

    def close(self) -> None:
        """End all members."""
        for actor in self._members.values():
            ray.kill(actor)

    def _dispatch(self, method: str, feed: queue.Queue[Any], out: queue.Queue[Any], stop: threading.Event) -> None:
        """Move items from `feed` to idle members and results to `out` until both are done."""
        running: dict[Any, _Running] = {}  # by result stream
        item: Any = None  # waits for a member; a member never waits for an item, for another stream may have one
        try:
            while not stop.is_set() and not (isinstance(item, _End) and not running):
                if item is None:
                    item = _take(feed, 0 if running else _POLL_S)
                if isinstance(item, _End) and item.error is not None:
                    raise item.error
                if item is not None and not isinstance(item, _End):
                    member = _take(self._idle, 0 if running else _POLL_S)
                    if member is not None:
                        results = self._start(member, method, item)
                        running[results] = _Running(member)
                        item = None
                self._collect(running, out, wait_s=0.2 if isinstance(item, _End) else _POLL_S)
            _put(out, _End(None), stop)
        except BaseException as error:  # noqa: BLE001 - whatever ends this thread is raised again by the stream
            _put(out, _End(error), stop)

    def _start(self, member: int, method: str, item: Any) -> Any:
        return getattr(self._members[member], method).options(num_returns="streaming").remote(item)

    def _collect(self, running: dict[Any, _Running], out: queue.Queue[Any], wait_s: float) -> None:
        """Hand over the results that are there, and free the members that are done."""
        if not running:
            return
        ready, _ = ray.wait(list(running), timeout=wait_s)
        for results in ready:
            state = running[results]
            try:
                out.put(ray.get(next(results)))
                state.heard = time.monotonic()
            except StopIteration:
                del running[results]
                self._idle.put(state.member)
            except RayActorError as error:
                raise RuntimeError(f"{self.role} actor {state.member} died: {str(error).splitlines()[0]}") from error
            except RayTaskError:
                self._idle.put(state.member)  # the item failed, the member did not
                raise
        for state in running.values():
            silent = time.monotonic() - state.heard
            if silent > self._item_s:
                raise TimeoutError(f"{self.role} actor {state.member} gave no result for {silent:.0f} s")


class _Running:
    """An item at a member, and when its last result came."""

    def __init__(self, member: int) -> None:
        self.member = member
        self.heard = time.monotonic()


class _End:
    """The end of a queue, and the error that ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _feed(items: Iterable[Any], feed: queue.Queue[Any], stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(feed, item, stop):
                return
        _put(feed, _End(None), stop)
    except BaseException as error:  # noqa: BLE001 - raised again by the stream that reads the queue
        _put(feed, _End(error), stop)


def _take(source: queue.Queue[Any] | queue.SimpleQueue[Any], wait_s: float) -> Any:
    """The next entry; None if none came in time."""
    try:
        return source.get(timeout=wait_s) if wait_s else source.get_nowait()
    except queue.Empty:
        return None


def _put(target: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Put an item unless the reader has gone; false if so."""
    while not stop.is_set():
        try:
            target.put(item, timeout=0.2)
        except queue.Full:
            continue
        return True
    return False
