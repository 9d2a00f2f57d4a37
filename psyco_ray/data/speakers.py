"""Whose words a message list or a text holds; `roles` has the names of speakers, `chat_marks` the layouts of texts.

Example:
    >>> first_turn([{"from": "system", "value": "Be kind."}, {"from": "human", "value": "I cannot sleep."}])
    'I cannot sleep.'
    >>> client_words("Patient: I cannot sleep.\\nDoctor: Since when?")
    'I cannot sleep.'
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from psyco_ray.config.contexts import CLIENT, THERAPIST
from psyco_ray.data.chat_marks import Mark, inline_labels, is_speaker, line_labels, may_have_marks, token_marks
from psyco_ray.data.roles import OPENING, is_role, role_of, strong

ROLE_KEYS = ("role", "from", "speaker", "author", "interlocutor", "sender")
"""Keys of a message, or columns of a table, that name the speaker."""
TEXT_KEYS = ("content", "value", "text", "utterance", "message")
"""Keys of a message that hold what is said."""
LIST_KEYS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns")
"""Keys of an object that hold its messages."""

_SPECIAL = re.compile(
    r"<[|｜][^<>|｜\n]{1,40}[|｜]>|<(?:start|end|begin)_of_\w+>|\[/?(?:INST|SYS)\]|<</?SYS>>", re.IGNORECASE
)
_BEGIN = re.compile(
    r"^(?:\s|<s>|<bos>|<\|(?:begin_of_text|startoftext|endoftext)\|>|<｜begin▁of▁sentence｜>)+", re.IGNORECASE
)

_END = re.compile(r"(?:\s|</?s>|\|\||//)+$")


class UnknownSpeakerError(ValueError):
    """It cannot be told which words are the client's; the message is the reason, without any of them."""


def first_turn(messages: Any) -> str:
    """The client's first message.

    Args:
        messages: a list of messages, an object that holds one, or one message. A message has a key that names the
            speaker (`ROLE_KEYS`) and one with the text (`TEXT_KEYS`), or the speaker's role as its only key.

    Raises:
        UnknownSpeakerError: no message is known to be the client's.
    """
    if isinstance(messages, Mapping):
        inner = next((messages[key] for key in LIST_KEYS if isinstance(messages.get(key), list)), [messages])
        if inner == [messages] and not _said(messages):
            raise UnknownSpeakerError("an object without a message of the client")
        return first_turn(inner)
    if len(messages) == 1 and isinstance(messages[0], str):
        return messages[0]
    names: dict[str, None] = {}
    for message in messages:
        if not isinstance(message, Mapping):
            raise UnknownSpeakerError("a list of values that name no speaker")
        for name, text in _said(message):
            names[name] = None
            if role_of(name) == "user" and text:
                return text
    found = f"; its speakers are {listed(names)}" if names else ""
    raise UnknownSpeakerError(f"a list without a message of the client{found}")


def turns(messages: Any) -> list[tuple[str, str]]:
    """Role and words of all messages of the client and the therapist, in their order.

    Args:
        messages: as `first_turn` takes them.

    Raises:
        UnknownSpeakerError: the speaker of a message is unknown, or none is the client's.
    """
    if isinstance(messages, Mapping):
        inner = next((messages[key] for key in LIST_KEYS if isinstance(messages.get(key), list)), [messages])
        if inner == [messages] and not _said(messages):
            raise UnknownSpeakerError("an object without a message of the client")
        return turns(inner)
    if len(messages) == 1 and isinstance(messages[0], str):
        return [(CLIENT, messages[0])]
    if not all(isinstance(message, Mapping) for message in messages):
        raise UnknownSpeakerError("a list of values that name no speaker")
    said = [(name, text) for message in messages for name, text in _said(message)]
    roles = [role_of(name) for name, _ in said]
    found = f"; its speakers are {listed(dict(said))}" if said else ""
    if any(role is None and text for role, (_, text) in zip(roles, said, strict=True)):
        raise UnknownSpeakerError(f"a list with a message of an unknown speaker{found}")
    if not any(role == CLIENT and text for role, (_, text) in zip(roles, said, strict=True)):
        raise UnknownSpeakerError(f"a list without a message of the client{found}")
    return [(role, text) for role, (_, text) in zip(roles, said, strict=True) if role in (CLIENT, THERAPIST)]


def _said(message: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Speakers and texts of a message."""
    name = next((message[key] for key in ROLE_KEYS if isinstance(message.get(key), str)), None)
    if name is None:
        return [(key, value) for key, value in message.items() if role_of(key) is not None and isinstance(value, str)]
    value = next((message[key] for key in TEXT_KEYS if message.get(key) is not None), "")
    if isinstance(value, list):  # parts, of which some may be images
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in value)
        value = "".join(part for part in parts if isinstance(part, str))
    return [(name, value if isinstance(value, str) else "")]


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names of speakers for a message; those that are no roles, or too many, are counted.

    Example:
        >>> listed(["therapist", "Client 1", "Client (cries)", "Anna"])
        'therapist, Client 1 and 2 other values'
    """
    names = list(names)
    roles = list(filter(is_role, names))[:most]
    others = len(names) - len(roles)
    counted = [f"{others:,} other value{'s' if others != 1 else ''}"] if others else []
    return " and ".join([", ".join(roles), *counted] if roles else counted)


def client_words(text: str) -> str:
    """The client's first turn if the text is a conversation, else the text.

    Raises:
        UnknownSpeakerError: it is a conversation in an unknown layout, or without a turn of the client.
    """
    if (messages := parsed_list(text)) is not None:
        return first_turn(messages).strip()
    text, marks = _layout(text)
    if marks and all(mark.role == "end" for mark in marks):
        turn = client_words(text[: marks[0].start])
    else:
        turn = _client_turn(text, marks) if marks else text
    if _SPECIAL.search(turn):
        raise UnknownSpeakerError("a conversation in an unknown layout")
    return turn.strip()


def conversation(text: str) -> list[tuple[str, str]]:
    """Role and words of all turns of the client and the therapist; a text without a layout is one turn of the client.

    Raises:
        UnknownSpeakerError: it is a conversation in an unknown layout, with an unknown speaker or without the client.
    """
    if (messages := parsed_list(text)) is not None:
        return turns(messages)
    text, marks = _layout(text)
    if marks and all(mark.role == "end" for mark in marks):
        said = conversation(text[: marks[0].start])
    else:
        said = _all_turns(text, marks) if marks else [(CLIENT, text)]
    if any(_SPECIAL.search(words) for _, words in said):
        raise UnknownSpeakerError("a conversation in an unknown layout")
    return said


def _layout(text: str) -> tuple[str, list[Mark]]:
    """A text without what begins it, and the markers or labels of a conversation in it; none: it is no conversation.

    Raises:
        UnknownSpeakerError: the labels are those of unknown speakers, or no label is the client's.
    """
    text = text.lstrip()
    if not may_have_marks(text):
        return text, []
    if (begin := _BEGIN.match(text)) is not None:
        text = text[begin.end() :]
    return text, token_marks(text) or _labels(text)


def parsed_list(text: str) -> Any:
    """The messages or values that a text holds as JSON or as Python or NumPy prints them; None: it holds none."""
    start = text.lstrip()[:200]
    if start[:1] not in ("[", "{"):
        return None
    if not re.match(r"\[\s*(?:\{\s*['\"]|['\"])|\{\s*['\"]\w+['\"]\s*:", start) or text.rstrip()[-1] not in "]}":
        return None
    spaced = re.sub(r"\}\s*\n\s*\{", "}, {", text)  # as NumPy prints lists
    for parse, form in ((json.loads, text), (ast.literal_eval, text), (ast.literal_eval, spaced)):
        try:
            value = parse(form.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list | dict) and value else None
    return None


def _client_turn(text: str, marks: list[Mark]) -> str:
    """What the client says before anybody else does; an Alpaca input is the client's, its instruction is not."""
    said: list[tuple[str, str]] = []
    for mark, words in _marked(text, marks):
        if mark.role == CLIENT and words:
            said.append((mark.name, words))
        elif said and mark.role == THERAPIST:
            break
        if said and mark.name != "instruction" and mark.role == CLIENT:
            break
    if not said:
        raise UnknownSpeakerError("a conversation without a turn of the client")
    return next((words for name, words in said if name == "input"), said[0][1])


def _all_turns(text: str, marks: list[Mark]) -> list[tuple[str, str]]:
    """Role and words of each turn; an Alpaca input is the client's, the instruction before it is not.

    Raises:
        UnknownSpeakerError: a marker names an unknown speaker, or no turn is the client's.
    """
    said: list[tuple[Mark, str]] = []
    for mark, words in _marked(text, marks):
        if not words or mark.role in ("end", "system") or (mark.role is None and mark.heading):
            continue
        if mark.role is None or _hidden_speakers(words):
            raise UnknownSpeakerError("a conversation with an unknown speaker")
        if mark.name == "input" and said and said[-1][0].name == "instruction":
            said.pop()
        said.append((mark, words))
    if not any(mark.role == CLIENT for mark, _ in said):
        raise UnknownSpeakerError("a conversation without a turn of the client")
    return [(mark.role or "", words) for mark, words in said]


def _marked(text: str, marks: list[Mark]) -> Iterator[tuple[Mark, str]]:
    """Each mark and the words up to the next one."""
    ends = [*(mark.start for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=True):
        yield mark, _END.sub("", text[mark.end : end].strip().removeprefix(":").strip())


def _hidden_speakers(words: str) -> bool:
    """Whether labels such as `Anna:` within a turn are another speaker's: one of them comes twice."""
    names = [mark.name for mark in line_labels(words) if mark.role is None and not mark.heading]
    return any(is_speaker(name) and names.count(name) > 1 for name in names)


def _labels(text: str) -> list[Mark]:
    """The labels of a conversation; none if the text is one speaker's.

    Raises:
        UnknownSpeakerError: the labels are those of unknown speakers, or no label is the client's.
    """
    marks = line_labels(text)
    known = [mark for mark in marks if mark.role is not None]
    begins = bool(marks) and not text[: marks[0].start].strip()
    known = sorted([*known, *inline_labels(text, known)], key=lambda mark: mark.start)
    roles = {mark.role for mark in known}
    if roles >= {"user", "assistant"}:
        headings = [mark for mark in marks if mark.role is None and mark.heading]
        return sorted([*known, *headings], key=lambda mark: mark.start)
    others = [mark for mark in marks if mark.role is None and not mark.heading and is_speaker(mark.name)]
    if any(mark.role == "assistant" and not mark.soft and strong(mark.name.split()) for mark in known):
        raise UnknownSpeakerError("a conversation without a turn of the client")
    if begins and marks[0].role == "user" and marks[0].name in OPENING:
        if others:
            raise UnknownSpeakerError("a conversation with an unknown speaker")
        return known
    names = [mark.name for mark in others]
    if begins and len(set(names)) > 1 and others[0] is marks[0]:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(names) > len(set(names)) or (len(names) == len(lines) and len(names[0]) > 1):
            raise UnknownSpeakerError("a conversation of unknown speakers")
    return []
