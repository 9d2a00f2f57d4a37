"""What an answer may say, and when it says all that is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from psyco_ray.config.desk import Desk
from psyco_ray.config.prompts import PRINCIPLES

DECISIONS = ("approve", "edit", "reject")

LONGEST_COMMENT = 10_000
LONGEST_EDIT = 50_000
LONGEST_REASON = 500
MOST_REASONS = 20

_KEYS = {
    "pair": ("overall", "principles", "confidence", "comment"),
    "scores": ("scores", "comment"),
    "draft": ("decision", "edit", "reasons", "comment"),
}
_LEVELS = (1, 2, 3, 4, 5)
_NOT_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")


class InvalidAnswerError(Exception):
    """An answer that cannot be saved; the message is one sentence, without any of its words."""


def validate(kind: str, answer: Any, settings: Desk) -> bool:
    """Whether an answer, in unswapped terms, is complete; incomplete ones are saved too.

    Args:
        kind: of the item: pair, scores or draft.
        answer: a mapping with some of the keys of its kind.
        settings: of the desk.

    Raises:
        InvalidAnswerError: it has a key or value that no answer of this kind has.
    """
    if not isinstance(answer, Mapping) or not set(answer) <= set(_KEYS[kind]):
        raise InvalidAnswerError(f"an answer about a {kind} has only {', '.join(_KEYS[kind])}")
    require_text(answer.get("comment"), "the comment", LONGEST_COMMENT)
    return {"pair": _pair, "scores": _scores, "draft": _draft}[kind](answer, settings)


def cleaned(answer: Any) -> Any:
    """A valid answer, or a text, whose line ends are line feeds; browsers and word processors send others."""
    if isinstance(answer, str):
        return re.sub(r"\r\n|[\r\v\f]", "\n", answer)
    if isinstance(answer, Mapping):
        return {key: cleaned(value) for key, value in answer.items()}
    return [cleaned(value) for value in answer] if isinstance(answer, list) else answer


def require_text(value: Any, what: str, most: int) -> None:
    """Check a text from a form; None stands for none.

    Raises:
        InvalidAnswerError: it is no text, too long, or has characters that no keyboard writes.
    """
    if value is None:
        return
    if not isinstance(value, str) or len(value) > most or _NOT_TEXT.search(value):
        raise InvalidAnswerError(f"{what} is a text of at most {most} characters, without control characters")


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
    return -value if type(value) is int else value


def _pair(answer: Mapping[str, Any], settings: Desk) -> bool:
    preferences = (1, 0, -1) if settings.ties else (1, -1)
    principles = _by_principle(answer.get("principles"), "principles", preferences)
    if principles and not settings.principles:
        raise InvalidAnswerError("this desk does not ask by principle")
    if answer.get("confidence") is not None and not settings.confidence:
        raise InvalidAnswerError("this desk does not ask for confidence")
    overall = _require_one(answer.get("overall"), "overall", preferences)
    confidence = _require_one(answer.get("confidence"), "confidence", _LEVELS)
    return (
        overall is not None
        and (len(principles) == len(PRINCIPLES) or not settings.principles)
        and (confidence is not None or not settings.confidence)
    )


def _scores(answer: Mapping[str, Any], settings: Desk) -> bool:
    scores = answer.get("scores")
    if not isinstance(scores, list) or not 1 <= len(scores) <= 2:
        raise InvalidAnswerError("scores is a list with the scores of each response")
    given = [_by_principle(of_one, "scores", _LEVELS) for of_one in scores]  # checks all of them
    return all(len(of_one) == len(PRINCIPLES) for of_one in given)


def _draft(answer: Mapping[str, Any], settings: Desk) -> bool:
    decision, edit, reasons = answer.get("decision"), answer.get("edit"), answer.get("reasons") or []
    if decision is not None and decision not in DECISIONS:
        raise InvalidAnswerError(f"decision is one of {', '.join(DECISIONS)}")
    require_text(edit, "the edit", LONGEST_EDIT)
    if not isinstance(reasons, list) or len(reasons) > MOST_REASONS:
        raise InvalidAnswerError(f"reasons is a list of at most {MOST_REASONS} texts")
    for reason in reasons:
        require_text(reason, "a reason", LONGEST_REASON)
    if decision == "edit":
        return bool(edit and edit.strip())
    return decision == "approve" or (decision == "reject" and any(reason and reason.strip() for reason in reasons))


def _by_principle(values: Any, what: str, allowed: tuple[int, ...]) -> dict[str, int]:
    """The values that are given for principles."""
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not set(values) <= set(PRINCIPLES):
        raise InvalidAnswerError(f"{what} holds values for {', '.join(PRINCIPLES)} and nothing else")
    checked = {name: _require_one(value, name, allowed) for name, value in values.items()}
    return {name: value for name, value in checked.items() if value is not None}


def _require_one(value: Any, what: str, allowed: tuple[int, ...]) -> int | None:
    if value is not None and (type(value) is not int or value not in allowed):
        raise InvalidAnswerError(f"{what} is one of {', '.join(map(str, allowed))}")
    return value
