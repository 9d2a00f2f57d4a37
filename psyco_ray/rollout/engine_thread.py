"""The thread of an actor that uses its engine, and the calls from other threads."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from psyco_ray.run.types import Group, Prompt

if TYPE_CHECKING:
    from psyco_ray.rollout.engine import Engine

T = TypeVar("T")

HELD_S = 5.0  # that a group waits at most for those that travel with it


@dataclass
class _Sampled:
    """What has been sampled of some prompts."""

    left: int  # prompts without a group
    # groups with seconds, or the error of a step
    results: queue.SimpleQueue[tuple[Group, float] | BaseException] = field(default_factory=queue.SimpleQueue)

    def take(self, most: int) -> list[tuple[Group, float]]:
        """Wait for the next group, and a while for those after it; raises the error of a step."""
        found: list[tuple[Group, float]] = []
        until = None
        while len(found) < most:
            try:
                result = self.results.get(timeout=until and max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(result, BaseException):
                raise result
            found.append(result)
            until = until or time.monotonic() + HELD_S
        return found


class EngineThread:
    """Steps an engine as long as it has prompts; calls from other threads run between two steps.

    Prompts that come while others are sampled join them, so that an engine with more than one request never drains. One
    thread makes all calls, because CUDA streams and PyTorch's modes belong to a thread.

    Example:
        >>> thread = EngineThread(lambda: Engine(path, settings, seed=0))
        >>> for groups in thread.sample(prompts, responses=8, temperature=1.0, top_p=1.0, max_tokens=64):
        ...     print(len(groups))
        >>> thread.call(thread.engine.sleep, True)
    """

    def __init__(self, load: Callable[[], Engine]) -> None:
        """Load the engine in the new thread."""
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._sampled: dict[int, _Sampled] = {}  # unfinished, by the engine's number of the prompts
        self._last_group = 0.0  # time.perf_counter() of the engine's last group
        threading.Thread(target=self._run, name="engine", daemon=True).start()
        self.engine = self.call(load)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in the engine's thread and return its result."""
        return self.submit(function, *args).result()

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Have a function called in the engine's thread, before whatever is called or sampled after this."""
        future: Future[T] = Future()
        self._calls.put((future, lambda: function(*args)))
        return future

    def sample(
        self, prompts: Sequence[Prompt], together: int = 1, **sampling: Any
    ) -> Iterator[list[tuple[Group, float]]]:
        """Sample responses; yields groups as they complete, each with the seconds since the engine's previous one.

        Args:
            prompts: to sample.
            together: groups of a list, at most; it is shorter where the next group takes longer than five seconds.
            **sampling: the other arguments of `Engine.add`.

        Raises:
            InputError: on the CPU, the KV cache is too small.
        """
        sampled = _Sampled(len(prompts))
        number = self.call(self._add, prompts, sampling, sampled)
        try:
            left = len(prompts)
            while left:
                found = sampled.take(min(left, together))
                left -= len(found)
                yield found
        finally:
            self.call(self._remove, number)

    def _add(self, prompts: Sequence[Prompt], sampling: dict[str, Any], sampled: _Sampled) -> int:
        if not self._sampled:
            self._last_group = time.perf_counter()
        number = self.engine.add(prompts, **sampling)
        self._sampled[number] = sampled
        return number

    def _remove(self, number: int) -> None:
        self._sampled.pop(number, None)
        self.engine.abort(number)

    def _run(self) -> None:
        while True:
            if self._sampled and self._calls.empty():
                self._step()
                continue
            future, function = self._calls.get()
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised by `call`
                future.set_exception(error)

    def _step(self) -> None:
        try:
            complete = self.engine.step()
        except BaseException as error:  # noqa: BLE001 - raised by every `sample`
            for sampled in self._sampled.values():
                sampled.results.put(error)
            self._sampled.clear()
            return
        for number, group in complete:
            now = time.perf_counter()
            sampled = self._sampled[number]
            sampled.results.put((group, now - self._last_group))
            self._last_group = now
            sampled.left -= 1
            if not sampled.left:
                del self._sampled[number]
