"""Batches of groups or pairs for the scorers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from psyco_ray.config.resources import Scorers
from psyco_ray.models.layout import common
from psyco_ray.models.sharing import LEAST

T = TypeVar("T")


def tokens_of_call(scorers: Scorers) -> int:
    """Tokens of a batch for one call of a scorer, at most: a row on CPUs, on GPUs several rows."""
    return scorers.row_tokens * scorers.groups_together


@dataclass
class _Window(Generic[T]):
    """Members that may share a batch."""

    missing: deque[str]  # keys in order, without those at the front that have arrived
    # and not in a batch yet: members with their tokens and prompts
    arrived: dict[str, tuple[T, int, Sequence[int]] | None] = field(default_factory=dict)
    batch: list[T] = field(default_factory=list)
    tokens: int = 0  # of the batch, without those that are common
    prompt: tuple[int, ...] = ()  # of its last member


class Batches(Generic[T]):
    """Forms batches of neighbours in a window, whatever the order in which its members arrive.

    Rounding depends on what is computed together. What is in a batch depends on the members of a window and not on when
    they arrive, so that a run that is repeated or resumed has the same results.

    Example:
        >>> batches = Batches[str](tokens=10)
        >>> batches.open(["a", "b", "c"])
        >>> batches.add("b", "B", 4), batches.add("a", "A", 5), batches.add("c", "C", 3)
        ([], [], [('A', 'B'), ('C',)])
    """

    def __init__(self, tokens: int, common: int = 0) -> None:
        """Start without windows.

        Args:
            tokens: of a batch, at most; a larger member has a batch of its own.
            common: tokens with which all members begin, and which count once in a batch.
        """
        self._limit, self._common = tokens, common
        self._windows: dict[str, _Window[T]] = {}  # by the keys of members that have not arrived

    def open(self, keys: Sequence[str]) -> None:
        """Open a window with members of these keys, in this order."""
        self._windows.update(dict.fromkeys(keys, _Window[T](deque(keys))))

    def add(self, key: str, member: T | None, tokens: int = 0, prompt: Sequence[int] = ()) -> list[tuple[T, ...]]:
        """Add a member, or with None say that there is none of this key.

        Args:
            key: of a window.
            member: to add.
            tokens: of the member.
            prompt: with which they begin; what it shares with the member before counts once, see `sharing.LEAST`.
                Empty: it shares what is common.

        Returns:
            The batches that are complete now.
        """
        window = self._windows.pop(key)
        window.arrived[key] = None if member is None else (member, tokens, prompt)
        complete = []
        while window.missing and window.missing[0] in window.arrived:
            if (found := window.arrived.pop(window.missing.popleft())) is not None:
                complete += self._append(window, *found)
        if not window.missing and window.batch:
            complete.append(tuple(window.batch))
        return complete

    def rest(self) -> list[tuple[T, ...]]:
        """The batches of what has arrived in windows that will not be complete."""
        complete = []
        for window in {id(window): window for window in self._windows.values()}.values():
            for key in window.missing:
                if (found := window.arrived.pop(key, None)) is not None:
                    complete += self._append(window, *found)
            if window.batch:
                complete.append(tuple(window.batch))
        self._windows.clear()
        return complete

    def _append(self, window: _Window[T], member: T, tokens: int, prompt: Sequence[int]) -> list[tuple[T, ...]]:
        """Append to the window's batch; returns the batch before it if there is no room."""
        full = []
        ids = tuple(prompt)
        shared = common(window.prompt, ids)
        added = tokens - (shared if shared >= self._common + LEAST else self._common)
        if window.batch and self._common + window.tokens + added > self._limit:
            full.append(tuple(window.batch))
            window.batch, window.tokens = [], 0
            added = tokens - self._common
        window.batch.append(member)
        window.tokens += added
        window.prompt = ids
        return full
