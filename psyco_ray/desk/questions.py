"""The questions of each kind of item as annotation tools ask them, and answers as values by question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from psyco_ray.config.desk import Desk
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data.shapes import annotated

DECISIONS = ("approve", "edit", "reject")

_CHOICES = {1: "response-1", -1: "response-2", 0: "tie"}
_POINTS = range(1, 6)


@dataclass(frozen=True)
class Question:
    """A question of a form.

    Attributes:
        name: lower-case letters, digits and -.
        kind: one of its options is chosen, 1 to 5 is given, or a text is written.
        options: of a choice.
        required: whether a form is complete only with it.
        about: the number of the response that is asked about; None: about both.
    """

    name: str
    kind: Literal["choice", "rating", "text"]
    options: tuple[str, ...] = ()
    required: bool = False
    about: int | None = None


def form_of(kind: str, settings: Desk, responses: int) -> list[Question]:
    """The form of a kind of item.

    Args:
        kind: pair, scores or draft.
        settings: of the desk.
        responses: of an item.
    """
    if kind == "draft":
        first = [
            Question("decision", "choice", DECISIONS, required=True),
            Question("edit", "text"),
            Question("reasons", "text"),
        ]
    elif kind == "scores":
        numbers = range(1, responses + 1)
        first = [Question(f"{name}-{n}", "rating", required=True, about=n) for n in numbers for name in PRINCIPLES]
    else:
        options = tuple(_CHOICES.values()) if settings.ties else tuple(_CHOICES.values())[:2]
        names = ("overall", *PRINCIPLES) if settings.principles else ("overall",)
        first = [Question(name, "choice", options, required=name == "overall") for name in names]
        first += [Question("confidence", "rating")] if settings.confidence else []
    return [*first, Question("comment", "text")]


def values_of(kind: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer by question, without empty ones."""
    values: dict[str, Any] = {"comment": answer.get("comment")}
    if kind == "draft":
        values |= {name: answer.get(name) for name in ("decision", "edit")}
        values["reasons"] = "\n".join(answer.get("reasons") or [])
    elif kind == "scores":
        for number, scores in enumerate(answer["scores"], start=1):
            values |= {f"{name}-{number}": points for name, points in scores.items()}
    else:
        values["overall"] = _CHOICES[answer["overall"]]
        values |= {name: _CHOICES[choice] for name, choice in (answer.get("principles") or {}).items()}
        values["confidence"] = answer.get("confidence")
    return {name: value for name, value in values.items() if value not in (None, "")}


def answer_of(kind: str, values: Sequence[tuple[str, Any]], names: list[str]) -> dict[str, Any] | None:
    """The answer in the values of a form, also of another tool's own; None: the values do not answer it.

    Args:
        kind: pair, scores or draft.
        values: questions and values, as `data.shapes.annotated` reads them.
        names: fields of the responses.
    """
    by_question = {question.casefold(): value for question, value in values}
    comment = {"comment": _text(by_question.get("comment"))}
    if kind == "draft":
        decision = _text(by_question.get("decision")).casefold()
        if decision not in DECISIONS:
            return None
        reasons = [line for line in _text(by_question.get("reasons")).splitlines() if line.strip()]
        edit = _text(by_question.get("edit")) or None
        return {"decision": decision, "edit": edit if decision == "edit" else None, "reasons": reasons, **comment}
    if kind == "scores":
        scores = [
            {name: points for name in PRINCIPLES if (points := _points(by_question.get(f"{name}-{number}")))}
            for number in range(1, len(names) + 1)
        ]
        return {"scores": scores, **comment} if any(scores) else None
    plain = [(question, value) for question, value in values if question.casefold() not in PRINCIPLES]
    overall = _choice(plain, names)
    if overall is None:
        return None
    principles = dict(_principles(values, names))
    return {
        "overall": overall,
        "principles": principles,
        "confidence": _points(by_question.get("confidence")),
        **comment,
    }


def _principles(values: Sequence[tuple[str, Any]], names: list[str]) -> Iterator[tuple[str, int]]:
    for question, value in values:
        if question.casefold() in PRINCIPLES and (choice := _choice([(question, value)], names)) is not None:
            yield question.casefold(), choice


def _choice(values: Sequence[tuple[str, Any]], names: list[str]) -> int | None:
    """1: the first response is better, -1: the second; None: no value compares them."""
    ballots = [ballot for ballot in annotated.ballots_of(values, names) if set(names) <= ballot.keys()]
    if not ballots:
        alone = annotated.ballots_of(values, names)  # a rating of one response each
        joined = {name: score for ballot in alone for name, score in ballot.items()}
        ballots = [joined] if set(names) <= joined.keys() else []
    balance = sum((ballot[names[0]] > ballot[names[1]]) - (ballot[names[0]] < ballot[names[1]]) for ballot in ballots)
    return (balance > 0) - (balance < 0) if ballots else None


def _points(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value in _POINTS else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
