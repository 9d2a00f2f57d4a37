"""What annotation tools exchange: an item, and what people answered, in the order in which a tool shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    speech: str
    responses: tuple[str, ...]
    votes: tuple[Vote, ...] = ()
    split: str | None = None
    crisis: tuple[str, ...] = ()
