"""What annotation tools exchange: an item, and what people answered, in the order in which a tool shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    speech: str
    responses: tuple[str, ...]
    votes: tuple[Vote, ...] = ()
    split: str | None = None
    crisis: tuple[str, ...] = ()


def texts_of(texts: Mapping[str, Any]) -> tuple[list[str], str, tuple[str, ...]]:
    """The names of the responses in a tool's texts, the speech, and the responses.

    Raises:
        UnusablePairError: they are not a prompt and responses.
    """
    names = annotated.responses_of(texts)
    prompt = annotated.prompt_of([name for name in texts if name not in names])
    return names, str(texts[prompt]).strip(), tuple(str(texts[name]).strip() for name in names)
