"""What a person gets next, in an order and on sides of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psyco_ray.desk.people import Person
from psyco_ray.desk.store import Item, Store

KINDS = {"annotator": ("pair", "scores", "draft"), "reviewer": ("draft",), "lead": ()}
"""The kinds of items that a role gets. A lead sees the labels of others, so that no judgement of theirs is blind."""


class NotYoursError(Exception):
    """The item is not the person's: of somebody else, given back, or none."""


@dataclass(frozen=True)
class Assigned:
    """An item that a person has.

    Attributes:
        item: as stored.
        sides: whether the responses are shown swapped; see `shown`.
        number: how many items the person got before, plus 1.
        answer: the newest one, in unswapped terms; None: nothing is saved, or all of it is undone.
        version: of the newest saved answer; 0: nothing is saved.
        complete: whether the answer says all that is asked.
    """

    item: Item
    sides: bool
    number: int
    answer: dict[str, Any] | None
    version: int
    complete: bool


@dataclass(frozen=True)
class Counts:
    """How far a person is.

    Attributes:
        done: items with a complete answer.
        open: items that the person has and that are unfinished.
        left: items that the person may still get.
        per_hour: at the pace of the newest 20; None before there are 3.
    """

    done: int
    open: int
    left: int
    per_hour: float | None


def next_item(store: Store, person: Person) -> Assigned | None:
    """What the person works on: an unfinished item of theirs, else a new one; None: nothing is left.

    New ones with flags of risk come first; the order is the person's own. An item goes to at most as many people as
    the overlap says, a draft to one.
    """
    raise NotImplementedError


def assigned(store: Store, person: Person, item_id: str) -> Assigned:
    """An item that the person has.

    Raises:
        NotYoursError: they do not have it.
    """
    raise NotImplementedError


def counts(store: Store, person: Person) -> Counts:
    """How far the person is."""
    raise NotImplementedError


def release(store: Store, item_id: str, person_id: int, by: Person | None = None) -> None:
    """Take an unfinished item from a person, who does not get it again, so that it goes to somebody else.

    Raises:
        NotYoursError: the person does not have it, or has finished it.
    """
    raise NotImplementedError


def shown(item: Item, sides: bool) -> tuple[str, ...]:
    """The responses as a person sees them, from left to right."""
    return item.responses[::-1] if sides else item.responses
