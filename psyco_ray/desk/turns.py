"""What was said before the responses of an item, turn by turn, as people read it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from psyco_ray.config.contexts import CLIENT, THERAPIST, Context
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
    of_messages = item.facts.get("form") == "messages"
    messages = json.loads(item.facts["asked"]) if of_messages else Context.of(item.speech).messages
    return [Turn(SPEAKERS.get(turn["role"], turn["role"]), turn["content"]) for turn in messages]
