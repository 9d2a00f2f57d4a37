"""What annotation tools exchange: an item, and what people answered, in the order in which a tool shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psyco_ray.config.contexts import Context, ContextError
from psyco_ray.data import conversations
from psyco_ray.data.conversations import UnusablePairError
from psyco_ray.data.shapes import annotated


@dataclass(frozen=True)
class Vote:
    """A person's answer; 1 is the response that the tool shows first."""

    annotator: str  # an id of the tool's
    answer: Mapping[str, Any]
    seconds: float = 0.0


@dataclass(frozen=True)
class Entry:
    """An item as a tool shows it, and the answers of people."""

    item_id: str | None
    kind: str  # pair, scores or draft
    speech: str  # text of the context
    responses: tuple[str, ...]
    votes: tuple[Vote, ...] = ()
    split: str | None = None
    crisis: tuple[str, ...] = ()


def are_conversations(entries: Sequence[Entry]) -> bool:
    """Whether a dataset of items shows its prompts as chats: one of them is a conversation."""
    return any(Context.of(entry.speech).is_conversation for entry in entries)


def texts_of(texts: Mapping[str, Any]) -> tuple[list[str], str, tuple[str, ...]]:
    """The names of the responses in a tool's texts, the context's text, and the responses.

    Raises:
        UnusablePairError: they are not a prompt and responses, or the prompt is a list that is no conversation.
    """
    names = annotated.responses_of(texts)
    prompt = texts[annotated.prompt_of([name for name in texts if name not in names])]
    speech = _of_messages(prompt) if isinstance(prompt, list) else str(prompt).strip()
    return names, speech, tuple(str(texts[name]).strip() for name in names)


def _of_messages(value: list[Any]) -> str:
    messages = conversations.read(value)
    try:
        return Context.from_messages(messages if isinstance(messages, list) else []).text.strip()
    except ContextError as reason:
        raise UnusablePairError(f"a conversation in which {reason}") from None
