"""What people answer. No answer is overwritten: a new version is added, and the highest counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psyco_ray.config.desk import Desk
from psyco_ray.desk.people import Person
from psyco_ray.desk.queue import Assigned
from psyco_ray.desk.store import Store


class InvalidAnswerError(Exception):
    """An answer that cannot be saved; the message is one sentence, without any of its words."""


class ConflictError(Exception):
    """The answer was changed elsewhere meanwhile.

    Attributes:
        version: the newest one.
    """

    def __init__(self, version: int) -> None:
        super().__init__("this item was changed in another window; load it again")
        self.version = version


@dataclass(frozen=True)
class Judgement:
    """The newest answer of a person about an item.

    Attributes:
        item_id: of the item.
        person_id: of the person.
        answer: in unswapped terms: 1 is `responses[0]`, -1 is `responses[1]`, 0 is a tie.
        version: of the answer.
        saved_at: Unix seconds.
        seconds: that the person spent on the item.
    """

    item_id: str
    person_id: int
    answer: dict[str, Any]
    version: int
    saved_at: float
    seconds: float


def validate(kind: str, answer: Any, settings: Desk) -> bool:
    """Whether an answer, in unswapped terms, is complete; incomplete ones are saved too.

    Raises:
        InvalidAnswerError: it has a key or value that no answer of this kind has.
    """
    raise NotImplementedError


def save(store: Store, person: Person, item_id: str, answer: Any, base_version: int, seconds: float) -> int:
    """Save an answer; returns its version. The newest answer again is no new version, whatever `base_version` is.

    Args:
        store: the desk.
        person: who answers.
        item_id: an item that the person has.
        answer: in unswapped terms.
        base_version: the version that the person saw; 0: none.
        seconds: that the person spent on the item so far.

    Raises:
        NotYoursError: of `queue`; the person does not have the item.
        InvalidAnswerError: the answer is not one to this item.
        ConflictError: `base_version` is not the newest one.
    """
    raise NotImplementedError


def undo(store: Store, person: Person, item_id: str) -> Assigned:
    """Go back to the answer before; again: to the one before that.

    Raises:
        NotYoursError: of `queue`; the person does not have the item.
    """
    raise NotImplementedError


def latest(store: Store, kind: str | None = None, complete: bool = True) -> list[Judgement]:
    """The newest answers by item, in the items' order, then by person.

    Args:
        store: the desk.
        kind: of the items; None: all.
        complete: only those that say all that is asked.
    """
    raise NotImplementedError


def adjudicate(store: Store, person: Person, item_id: str, answer: Any) -> None:
    """Decide an item about which people disagree; a later decision replaces an earlier one.

    Raises:
        NotYoursError: of `queue`; the person is no lead, or there is no such item.
        InvalidAnswerError: the answer is incomplete or not one to this item; principles and confidence may be left out.
    """
    raise NotImplementedError


def unswapped(answer: Any, sides: bool) -> Any:
    """An answer about the responses as shown, in terms of the stored ones; and the other way round.

    Example:
        >>> unswapped({"overall": 1, "principles": {"empathy": -1}}, sides=True)
        {'overall': -1, 'principles': {'empathy': 1}}
    """
    if not sides or not isinstance(answer, Mapping):
        return answer
    turned = dict(answer)
    if "overall" in answer:
        turned["overall"] = _negative(answer["overall"])
    if isinstance(principles := answer.get("principles"), Mapping):
        turned["principles"] = {name: _negative(value) for name, value in principles.items()}
    if isinstance(scores := answer.get("scores"), list):
        turned["scores"] = scores[::-1]
    return turned


def _negative(value: Any) -> Any:
    """A preference for the other side; what is no number is left for `validate`."""
    return -value if isinstance(value, int) and not isinstance(value, bool) else value
