"""A stand-in for Ray whose actors work when they are called, and which counts calls and fetched results."""

import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from psyco_ray.pool import actor_pool, polling, processes, slot, supervisor, updates


class Ref:
    """A reference to a value that is there."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Results:
    """References to the results of a generator, all of which are there."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.left = [Ref(value) for value in values]

    def __next__(self) -> Ref:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)

    def next_ready(self) -> bool:
        return bool(self.left)

    def is_finished(self) -> bool:
        return not self.left


class CountedRay:
    """Stands in for the module `ray` in the pool."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.fetched = 0
        for module in (actor_pool, polling, processes, slot, supervisor, updates):
            monkeypatch.setattr(module, "ray", self)
        monkeypatch.setattr(processes, "draining_nodes", set)

    def get(self, ref: Ref, timeout: float | None = None) -> Any:
        self.fetched += 1
        return ref.value

    def wait(self, refs: list[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[list, list]:
        return refs[:num_returns], refs[num_returns:]

    def kill(self, actor: object) -> None:
        """Nothing runs."""


def sent(value: Any) -> Any:
    """What arrives in another process."""
    return pickle.loads(cloudpickle.dumps(value))


class CountedActor:
    """Stands in for the handle of an actor."""

    def __init__(self, counted: CountedRay, actor: object) -> None:
        self._counted, self._actor = counted, actor
        process = processes.Process("node", "host", 1, 0.0, (), (), "", ())
        self.__ray_call__ = SimpleNamespace(remote=lambda _: Ref(process))
        self.__ray_terminate__ = SimpleNamespace(remote=lambda: Ref(None))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)

        def call(*args: Any) -> Ref:
            self._counted.calls += 1
            return Ref(method(*sent(args)))

        def stream(*args: Any) -> Results:
            self._counted.calls += 1
            return Results(list(method(*sent(args))))

        return SimpleNamespace(remote=call, options=lambda num_returns: SimpleNamespace(remote=stream))
