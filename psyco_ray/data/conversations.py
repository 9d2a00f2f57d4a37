"""Conversations in the forms of public preference files, read as messages of role and content.

Lists of messages, whose keys and roles `speakers` knows, such a list as the text of a CSV cell, as JSON or as Python
writes it, and transcripts as in HH-RLHF.
"""

from __future__ import annotations

import re
from typing import Any

from psyco_ray.config.prompts import Messages
from psyco_ray.data.roles import is_role, role_of
from psyco_ray.data.speakers import LIST_KEYS, ROLE_KEYS, TEXT_KEYS, parsed_list
from psyco_ray.files.cells import CellError, text_of

_LISTED = re.compile(  # messages as text: the first one says who speaks and what is said
    r"""\s*(?:array\()?\[?\s*\{(?=[^{}]*['"](?:role|from|speaker)['"]\s*:)"""
    rf"""(?=[^{{}}]*['"](?:{"|".join(TEXT_KEYS)})['"]\s*:)"""
)
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class UnusablePairError(Exception):
    """A row holds no usable pair; the message is the reason."""


def read(value: Any) -> Messages | str:
    """The messages of a conversation, or a text that is none; "" for a blank value.

    Raises:
        UnusablePairError: a message cannot be read, or the value is neither a text nor messages.
    """
    if isinstance(value, dict):
        return _messages(next((value[key] for key in LIST_KEYS if isinstance(value.get(key), list)), [value]))
    if isinstance(value, list):
        return _messages(value) if value else ""
    try:
        text = text_of(value)
    except CellError as kind:
        raise UnusablePairError(f"{kind} instead of a text or messages") from None
    if _LISTED.match(text):
        if (values := parsed_list(text)) is None:
            raise UnusablePairError("a list of messages that cannot be read")
        return read(values)
    return _transcript(text) if text.lstrip().startswith("Human:") and "\n\nAssistant:" in text else text


def continued(asked: Messages, value: Any) -> Messages:
    """The whole conversation of a response.

    Args:
        asked: the conversation that the response continues; empty: the value holds it.
        value: the response, the turns that follow `asked`, or the whole conversation.

    Raises:
        UnusablePairError: the value is no response to `asked`.
    """
    turns = read(value)
    if isinstance(turns, str):
        if not asked:
            raise UnusablePairError("no prompt")
        return [*asked, {"role": "assistant", "content": turns}]
    if turns[-1]["role"] != "assistant":
        raise UnusablePairError("the last message is not the assistant's")
    if not asked or _same(turns[: len(asked)], asked):
        return turns
    if turns[0]["role"] == "assistant":
        return [*asked, *turns]
    # a prompt that stands for one of its questions
    if len(asked) == 1 and any(_same([turn], asked) for turn in turns):
        return turns
    raise UnusablePairError("a conversation without its prompt")


def _same(turns: Messages, others: Messages) -> bool:
    """Whether turns are equal but for the white space around them."""
    return [(turn["role"], turn["content"].strip()) for turn in turns] == [
        (turn["role"], turn["content"].strip()) for turn in others
    ]


def with_system(system: Any, asked: Messages) -> Messages:
    """The conversation under a row's system message, if there is one.

    Raises:
        UnusablePairError: the conversation has another one.
    """
    try:
        text = text_of(system)
    except CellError as kind:
        raise UnusablePairError(f"{kind} instead of a system message") from None
    if not text.strip():
        return asked
    message = {"role": "system", "content": text}
    if asked and asked[0]["role"] == "system":
        if asked[0] != message:
            raise UnusablePairError("two different system messages")
        return asked
    return [message, *asked]


def _messages(values: list[Any]) -> Messages:
    messages = []
    for value in values:
        if not isinstance(value, dict):
            raise UnusablePairError("a message without role and content")
        name = next((value[key] for key in ROLE_KEYS if value.get(key) is not None), None)
        content = next((value[key] for key in TEXT_KEYS if value.get(key) is not None), None)
        if isinstance(content, list):
            if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
                raise UnusablePairError("a message with parts that are not text")
            content = "".join(part["text"] for part in content)
        if not isinstance(name, str) or not isinstance(content, str):
            raise UnusablePairError("a message without role and content")
        if (role := role_of(name)) is None:
            raise UnusablePairError(f"a message of {f'the role {name}' if is_role(name) else 'an unknown role'}")
        messages.append({"role": role, "content": text_of(content)})
    if not messages:
        raise UnusablePairError("a list without messages")
    return messages


def _transcript(text: str) -> Messages:
    """The turns of a text of HH-RLHF; without an empty last one, which asks for the response."""
    _, *parts = _SPEAKER.split(text.lstrip())
    messages: Messages = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role = {"human": "user", "assistant": "assistant"}[speaker.lower()]
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + said.strip()
        else:
            messages.append({"role": role, "content": said.strip()})
    if messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages
