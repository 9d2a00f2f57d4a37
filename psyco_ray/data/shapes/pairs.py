"""A preference pair from a question and two responses, each a text, messages or a whole conversation."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import Messages
from psyco_ray.data import conversations
from psyco_ray.data.conversations import UnusablePairError
from psyco_ray.run import reasoning
from psyco_ray.run.types import Row

NO_PREFERENCE = "no preference"
"""Reason for leaving out a pair that none of the two responses wins."""

SYSTEM = ("system", "system_prompt", "system_message")
"""Columns with the system message of a row."""

UNREAD = frozenset(
    ("history", "context", "input", "instruction", "tools", "functions", "image", "images", "audio", "video")
)
"""Columns that change what a response answers; a format names those that it reads."""


def filled(cells: Mapping[str, Any], columns: Collection[str]) -> str | None:
    """One of some columns that has a value in a row."""
    return next((column for column in cells if column in columns and cells[column] not in (None, "", [], {})), None)


def answered(prompt: Any, chosen: Any, rejected: Any, system: Any = None, form: str = "text") -> Row:
    """A pair of responses to a question.

    Args:
        prompt: a text, or a conversation. It may repeat the beginning or a question of the responses' conversations.
            A text that stands for a conversation (`config.contexts`) is a context of the client's, a `speech`.
        chosen: the better response, the turns that follow the prompt, or the whole conversation.
        rejected: the worse one.
        system: the system message, if there is one.
        form: of a prompt that is a text, as in COMPARISONS.

    Returns:
        `form`, `asked`, `chosen` and `rejected`, as in COMPARISONS.

    Raises:
        UnusablePairError: the pair cannot be used.
    """
    question = conversations.read(prompt)
    if isinstance(question, str):
        context = Context.of(question)
        asked, text = context.messages, context.text
        form = "speech" if context.is_conversation else form
    else:
        asked, text = question, None
    if text is None and asked[-1]["role"] == "assistant":
        asked = []  # the chosen conversation, as some files have it beside the pair
    elif not asked[-1]["content"].strip():
        raise UnusablePairError("empty prompt")
    return _of_sides(asked, chosen, rejected, system, text, form)


def whole(chosen: Any, rejected: Any, system: Any = None) -> Row:
    """A pair of whole conversations that differ in their last message; else as `answered`."""
    return _of_sides([], chosen, rejected, system)


def system_of(cells: Mapping[str, Any]) -> Any:
    """The system message of a row, if it has one."""
    return next((cells[column] for column in SYSTEM if cells.get(column)), None)


def number(value: Any) -> float | None:
    """A finite number, also from a text cell; None without one."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _of_sides(
    asked: Messages, chosen: Any, rejected: Any, system: Any, text: str | None = None, form: str = "text"
) -> Row:
    """A pair of the conversations that two sides are; in `form` where they ask the text alone."""
    sides = [conversations.continued(asked, side) for side in (chosen, rejected)]
    prompt = sides[0][:-1]
    if prompt != sides[1][:-1]:
        raise UnusablePairError("two different prompts")
    if not prompt:
        raise UnusablePairError("no prompt")
    if prompt[-1]["role"] != "user":
        raise UnusablePairError("a prompt that does not end with the user's message")
    better, worse = (side[-1]["content"] for side in sides)
    prompt = conversations.with_system(system, prompt)
    if text is not None and prompt == asked:
        return _checked(form, text, better, worse)
    return _checked("messages", json.dumps(prompt), better, worse)


def _checked(form: str, asked: str, chosen: str, rejected: str) -> Row:
    texts = {"asked": asked, "chosen": chosen, "rejected": rejected}
    for field, text in texts.items():
        if not text.strip():
            raise UnusablePairError(f"empty {'prompt' if field == 'asked' else field}")
        if field != "asked" and not reasoning.split(text)[1].strip():
            raise UnusablePairError(f"{field} has reasoning without an answer")
    if reasoning.split(chosen)[1].strip() == reasoning.split(rejected)[1].strip():
        raise UnusablePairError("chosen and rejected are the same")
    return {"form": form, **texts}
