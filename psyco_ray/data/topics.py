"""Topics of the speeches: 42 fine ones under 8 coarse ones, by a model that chooses from the closed set (table 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.prompts import prompt_messages
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.client import Call
from psyco_ray.judge.pipeline import Question
from psyco_ray.run import shards
from psyco_ray.run.schemas import TOPICS
from psyco_ray.run.types import Row


def _topics() -> dict[str, dict[str, dict[str, str]]]:
    """Coarse topic -> fine topic -> `about` and other texts."""
    return yaml.safe_load(Path(__file__).with_name("topics.yaml").read_text(encoding="utf-8"))


def coarse_of() -> dict[str, str]:
    """Fine topic -> the coarse one above it."""
    return {fine: coarse for coarse, topics in _topics().items() for fine in topics}


@dataclass(frozen=True)
class TopicStage:
    """One call a speech."""

    endpoint: Endpoint
    attempts: int
    max_tokens: int
    prompt: dict[str, str]
    root: Path  # of the dataset
    schema = TOPICS

    @property
    def out(self) -> Path:
        """The directory of its parts."""
        return self.root / "topics"

    def questions(self, part: str) -> Iterator[Question]:
        """A question for each speech of the part."""
        coarse = coarse_of()
        schema = {
            "type": "object",
            "properties": {"topic": {"type": "string", "enum": list(coarse)}},
            "required": ["topic"],
            "additionalProperties": False,
        }
        described = "\n".join(
            f"- {fine}: {about['about']}" for topics in _topics().values() for fine, about in topics.items()
        )
        asked = {**self.prompt, "user": self.prompt["user"].replace("{topics}", described)}
        for row in shards.read(self.root / "collect" / "speeches", part):
            call = Call(tuple(prompt_messages(asked, row["speech"])), schema, self.max_tokens, temperature=0.0)
            check = partial(_label, known={name.casefold(): name for name in coarse})
            yield Question(row["speech_id"], "topic", call, check, partial(_row, row["speech_id"], coarse))


def from_source(rows: list[Row]) -> list[Row]:
    """Topics where no model is asked: the source's own label if it is one of the set, else none."""
    coarse = coarse_of()
    known = {name.casefold(): name for name in coarse}
    found = []
    for row in rows:
        label = known.get((row["source_topic"] or "").strip().casefold())
        found.append({"speech_id": row["speech_id"], "topic": label, "coarse_topic": coarse.get(label or "")})
    return found


def _label(text: str, known: dict[str, str]) -> str:
    answer = parse_json(text)
    given = str(answer.get("topic", "")).strip().casefold() if isinstance(answer, dict) else ""
    if given not in known:
        raise UnreadableAnswerError(
            f"{given[:60]!r} is not one of the topics" if given else 'the answer has no "topic"'
        )
    return known[given]


def _row(speech_id: str, coarse: dict[str, str], label: Any, finished: bool) -> list[Row]:
    return [{"speech_id": speech_id, "topic": label, "coarse_topic": coarse[label]}]
