"""Pairs of two responses, chosen and rejected or with the better one named in a column."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from psyco_ray.data import conversations
from psyco_ray.data.conversations import UnusablePairError
from psyco_ray.data.shapes.pairs import NO_PREFERENCE, answered, number, system_of, whole
from psyco_ray.run.types import Row

_EVEN = 1.5  # preference of alpaca_eval between 1, the first output, and 2, the second


def of_prompt(
    column: str, form: str = "text", sides: tuple[str, str] = ("chosen", "rejected")
) -> Callable[[Row], list[Row]]:
    """A function that reads the pair of a row whose question is in a column."""

    def pairs(cells: Row) -> list[Row]:
        chosen, rejected = (cells[side] for side in sides)
        return [answered(cells[column], chosen, rejected, system_of(cells), form)]

    return pairs


def conversations_of(cells: Row) -> list[Row]:
    """Two whole conversations."""
    return [whole(cells["chosen"], cells["rejected"], system_of(cells))]


def instruction(cells: Row) -> list[Row]:
    """An instruction with an optional `input` and earlier turns in `history` (LLaMA-Factory)."""
    asked: Any = _with_input(cells)
    if history := cells.get("history"):
        if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
            raise UnusablePairError("a history that is no list of a question and an answer each")
        asked = [*_alternating([text for turn in history for text in turn]), {"role": "user", "content": asked}]
    return [answered(asked, cells["chosen"], cells["rejected"], system_of(cells))]


def alpaca_eval(cells: Row) -> list[Row]:
    """Two outputs, and a preference from 1, the first one, to 2, the second one."""
    preference = number(cells["preference"])
    if preference in (None, 0, _EVEN):
        raise UnusablePairError(NO_PREFERENCE)
    if not 1 <= preference <= 2:
        raise UnusablePairError("a preference that is not from 1 to 2")
    outputs = [cells["output_1"], cells["output_2"]]
    chosen, rejected = outputs if preference < _EVEN else reversed(outputs)
    return [answered(_with_input(cells), chosen, rejected, system_of(cells))]


def arena(cells: Row) -> list[Row]:
    """Two conversations and the winner; `turn` may say that a vote is about an earlier turn (MT-bench)."""
    sides = {"a": cells["conversation_a"], "b": cells["conversation_b"]}
    if isinstance(turn := cells.get("turn"), int):
        sides = {name: _until(turn, side) for name, side in sides.items()}
    winner = _winner(cells["winner"])
    return [whole(sides[winner], sides["b" if winner == "a" else "a"], system_of(cells))]


def arena_texts(cells: Row) -> list[Row]:
    """A prompt and two responses, each a text or a list of a text per turn, and the winner in one or three columns."""
    asked, *responses = (_texts(cells[column]) for column in ("prompt", "response_a", "response_b"))
    if any(len(texts) != len(asked) for texts in responses):
        raise UnusablePairError("a response without a text for each turn")
    won = [name for name in ("model_a", "model_b", "tie") if number(cells.get(f"winner_{name}"))]
    winner = _winner(cells["winner"] if "winner" in cells else won[0] if len(won) == 1 else None)
    first, second = (
        _alternating([text for turn in zip(asked, texts, strict=True) for text in turn]) for texts in responses
    )
    chosen, rejected = (first, second) if winner == "a" else (second, first)
    return [whole(chosen, rejected, system_of(cells))]


def several(cells: Row) -> list[Row]:
    """Several chosen and several rejected responses to one prompt, as RewardBench 2 has them.

    As many pairs as the longer list has responses, so that every response is in a pair. They are one item of a
    benchmark: a model is right on it if every chosen response scores higher than every rejected one.
    """
    chosen, rejected = cells["chosen"], cells["rejected"]
    if not has_several(cells):
        return of_prompt("prompt")(cells)
    if not chosen or not rejected:
        raise UnusablePairError("no chosen or no rejected response")
    count = max(len(chosen), len(rejected))
    system = system_of(cells)
    return [
        answered(cells["prompt"], chosen[i % len(chosen)], rejected[i % len(rejected)], system) for i in range(count)
    ]


def has_several(cells: Row) -> bool:
    """Whether the sides of a row are lists of texts."""
    sides = [cells["chosen"], cells["rejected"]]
    return all(isinstance(side, list) and all(isinstance(text, str) for text in side) for side in sides) and any(sides)


def _winner(value: Any) -> str:
    """`a` or `b`."""
    named = {"model_a": "a", "a": "a", "model_b": "b", "b": "b"}
    winner = value.strip().casefold() if isinstance(value, str) else ""
    if winner in named:
        return named[winner]
    if winner.startswith(("tie", "both")):
        raise UnusablePairError(NO_PREFERENCE)
    raise UnusablePairError("a winner that is neither model_a, model_b nor tie")


def _until(turn: int, side: Any) -> Any:
    """A conversation up to the answer in a turn, from 1."""
    messages = conversations.read(side)
    answers = [
        place for place, message in enumerate(messages) if isinstance(message, dict) and message["role"] == "assistant"
    ]
    return messages[: answers[turn - 1] + 1] if 0 < turn < len(answers) else messages


def _with_input(cells: Row) -> Any:
    extra = cells.get("input")
    return f"{cells['instruction']}\n{extra}" if isinstance(extra, str) and extra.strip() else cells["instruction"]


def _texts(value: Any) -> list[Any]:
    """The text of each turn: a list, also as the JSON text of a CSV cell, or one text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        value = parsed if isinstance(parsed, list) else value
    return value if isinstance(value, list) else [value]


def _alternating(texts: list[Any]) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
