"""What was said before the responses of an item, turn by turn, as people read it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from psyco_ray.config.contexts import CLIENT, THERAPIST, Context
from psyco_ray.data import splits, turns
from psyco_ray.desk.store import Item

SPEAKERS = {"system": "System", CLIENT: "Client", THERAPIST: "Therapist"}
"""What pages call the roles of messages."""


@dataclass(frozen=True)
class Turn:
    """What somebody says."""

    speaker: str
    words: str


def turns_of(item: Item) -> list[Turn]:
    """The turns of an item's context, or of the messages that it asks; the last one is what the responses answer."""
    return [Turn(SPEAKERS.get(turn["role"], turn["role"]), turn["content"]) for turn in _messages(item)]


def conversations(items: Iterable[Item]) -> dict[str, str] | None:
    """The id of the conversation by item; None if all items are about single speeches."""
    items = list(items)
    if not any(context_of(item).is_conversation for item in items):
        return None
    return {item.id: conversation_of(item) for item in items}


def conversation_of(item: Item) -> str:
    """The id of the conversation that an item is about; of a speech its own."""
    return splits.conversation_of(context_of(item).text, item.facts.get("dialogue"))


def context_of(item: Item) -> Context:
    """The context of an item, of messages without those of a system."""
    return turns.of_messages(_messages(item)) or Context((item.speech,))


def _messages(item: Item) -> list[dict[str, str]]:
    if item.facts.get("form") == "messages":
        found: list[dict[str, str]] = json.loads(item.facts["asked"])
        return found
    return Context.of(item.speech).messages
