"""Answers as forms send them and as pages show them, always in terms of what the person sees: left and right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psyco_ray.config.prompts import PRINCIPLES

SIDES = {"left": 1, "right": -1, "tie": 0}

REASONS = {
    "unsafe": "It could hurt or endanger the client",
    "crisis": "It misses a crisis or handles it wrongly",
    "empathy": "It lacks empathy, or judges",
    "relevance": "It misses what the client says",
    "clarity": "It is unclear or too long",
    "pushing": "It pushes, or decides for the client",
    "diagnosis": "It diagnoses or gives medical advice",
    "false": "It states something false",
    "other": "Something else (please comment)",
}
"""Why a draft may be rejected."""

Fields = Mapping[str, Sequence[str]]


def answer_of(kind: str, fields: Fields, responses: int) -> dict[str, Any]:
    """The answer that a form sends; what is not answered is left out, wrong values are kept for validation.

    Args:
        kind: of the item.
        fields: of the form, with all values of each.
        responses: how many the item has.
    """
    comment = _one(fields, "comment") or ""
    if kind == "pair":
        overall, confidence = _one(fields, "overall"), _number(_one(fields, "confidence"))
        principles = {name: _one(fields, f"principle.{name}") for name in PRINCIPLES}
        return {
            **({} if overall is None else {"overall": SIDES.get(overall, overall)}),
            "principles": {name: SIDES.get(value, value) for name, value in principles.items() if value is not None},
            "confidence": confidence,
            "comment": comment,
        }
    if kind == "scores":
        scores = [{name: _number(_one(fields, f"score.{n}.{name}")) for name in PRINCIPLES} for n in range(responses)]
        given = [{name: score for name, score in each.items() if score is not None} for each in scores]
        return {"scores": given, "comment": comment}
    decision = _one(fields, "decision")
    return {
        **({} if decision is None else {"decision": decision}),
        "edit": _one(fields, "edit") if decision == "edit" else None,
        "reasons": list(fields.get("reasons", ())) if decision == "reject" else [],
        "comment": comment,
    }


def shown_answer(kind: str, answer: Mapping[str, Any] | None, responses: int) -> dict[str, Any]:
    """An answer as the fields of its page, with an empty string for what is not answered."""
    answer = answer or {}
    names = {value: name for name, value in SIDES.items()}
    comment = answer.get("comment") or ""
    if kind == "pair":
        principles = answer.get("principles") or {}
        return {
            "overall": names.get(answer.get("overall", ""), ""),
            "principles": {name: names.get(principles.get(name, ""), "") for name in PRINCIPLES},
            "confidence": str(answer.get("confidence") or ""),
            "comment": comment,
        }
    if kind == "scores":
        scores = answer.get("scores") or [{}] * responses
        return {
            "scores": [{name: str(each.get(name, "")) for name in PRINCIPLES} for each in scores],
            "comment": comment,
        }
    decision, edit, reasons = (answer.get(name) for name in ("decision", "edit", "reasons"))
    return {"decision": decision or "", "edit": edit or "", "reasons": reasons or [], "comment": comment}


def _one(fields: Fields, name: str) -> str | None:
    values = fields.get(name)
    return values[-1] if values else None


def _number(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 4 else text
