"""Which texts may be used: those that a reviewer or lead approved as they are."""

from __future__ import annotations

from dataclasses import dataclass

from psyco_ray.desk.people import Person
from psyco_ray.desk.store import Item, Store


class NotAllowedError(Exception):
    """The person may not decide this; the message says why and may be shown."""


@dataclass(frozen=True)
class Waiting:
    """A text that somebody proposes for use: the draft as it is, or their edit.

    Attributes:
        item: the draft.
        text: that is proposed.
        edited: whether it differs from the draft.
        by: ids of the people who propose it.
        reasons: of theirs.
        comments: of theirs.
    """

    item: Item
    text: str
    edited: bool
    by: tuple[int, ...]
    reasons: tuple[str, ...]
    comments: tuple[str, ...]


@dataclass(frozen=True)
class Approved:
    """A text that may be used.

    Attributes:
        item: the draft.
        text: that was approved, and nothing else.
        edited: whether it differs from the draft.
        by: ids of those who approved it.
    """

    item: Item
    text: str
    edited: bool
    by: tuple[int, ...]


def waiting(store: Store, person: Person) -> list[Waiting]:
    """Proposed texts about which nobody has decided and this person may; those with flags of risk first."""
    raise NotImplementedError


def decide(store: Store, person: Person, item_id: str, text: str, approved: bool, reason: str) -> None:
    """Approve or refuse a proposed text; the person's later decision about it replaces their earlier one.

    Args:
        store: the desk.
        person: a reviewer or lead.
        item_id: of the draft.
        text: as it was shown; the decision is about this text alone.
        approved: or refused.
        reason: needed for a refusal.

    Raises:
        NotAllowedError: the person is an annotator, or the only one who proposes this edit and `approve_own` is false.
        ConflictError: of `judgements`; nobody proposes this text (any more).
        InvalidAnswerError: of `judgements`; a refusal without a reason.
    """
    raise NotImplementedError


def approved(store: Store) -> list[Approved]:
    """The texts that may be used: proposed now, approved, and refused by nobody."""
    raise NotImplementedError
