"""Topics of the speeches: 42 fine ones under 8 coarse ones, by a model that chooses from the closed set (table 5)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from psyco_ray.config.data import Topics
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.prompts import prompt_messages
from psyco_ray.files.cells import quoted
from psyco_ray.judge import outside_texts
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.callers import Question
from psyco_ray.judge.calls import Call
from psyco_ray.run import shards
from psyco_ray.run.schemas import TOPICS
from psyco_ray.run.types import Row


def coarse_of() -> dict[str, str]:
    """Fine topic -> its coarse topic."""
    return {fine: coarse for coarse, topics in _taxonomy().items() for fine in topics}


@dataclass(frozen=True)
class TopicStage:
    """One call per speech."""

    settings: Topics
    prompt: dict[str, str]
    root: Path  # of the dataset
    schema = TOPICS

    @property
    def endpoint(self) -> Endpoint:
        """The labelling model."""
        assert self.settings.endpoint is not None
        return self.settings.endpoint

    @property
    def attempts(self) -> int:
        """Attempts per question."""
        return self.settings.attempts

    @property
    def out(self) -> Path:
        """Directory of the stage's parts."""
        return self.root / "topics"

    def questions(self, part: str) -> Iterator[Question]:
        """One question per speech of the part."""
        coarse = coarse_of()
        schema = {
            "type": "object",
            "properties": {"topic": {"type": "string", "enum": list(coarse)}},
            "required": ["topic"],
            "additionalProperties": False,
        }
        descriptions = "\n".join(
            f"- {fine}: {texts['about']}" for topics in _taxonomy().values() for fine, texts in topics.items()
        )
        prompt = {**self.prompt, "user": self.prompt["user"].replace("{topics}", descriptions)}
        labels = outside_texts.labels(self.prompt)
        for row in shards.read(self.root / "collect" / "speeches", part):
            quoted = outside_texts.quote([row["speech"]], labels)
            messages = quoted.ask(prompt_messages(prompt, quoted.texts[0]))
            call = Call(messages, schema, self.settings.max_tokens, temperature=0.0)
            yield Question(row["speech_id"], "topic", call)

    def check(self, question: Question, text: str) -> str:
        """The topic in an answer."""
        return _read_topic(text)

    def rows(self, question: Question, value: Any, finished: bool) -> list[Row]:
        """The row of a topic."""
        return [{"speech_id": question.speech_id, "topic": value, "coarse_topic": coarse_of()[value]}]


def from_source(rows: Sequence[Row]) -> list[Row]:
    """Topics without a model: the source's own label if it belongs to the set, else none."""
    coarse = coarse_of()
    by_folded_name = {name.casefold(): name for name in coarse}
    labels = [by_folded_name.get((row["source_topic"] or "").strip().casefold()) for row in rows]
    return [
        {"speech_id": row["speech_id"], "topic": label, "coarse_topic": coarse.get(label or "")}
        for row, label in zip(rows, labels, strict=True)
    ]


@functools.cache
def _taxonomy() -> dict[str, dict[str, dict[str, str]]]:
    """Coarse topic -> fine topic -> its texts, such as `about`."""
    return yaml.safe_load(Path(__file__).with_name("topics.yaml").read_text(encoding="utf-8"))


def _read_topic(text: str) -> str:
    by_folded_name = {name.casefold(): name for name in coarse_of()}
    answer = parse_json(text)
    label = str(answer.get("topic", "")).strip().casefold() if isinstance(answer, dict) else ""
    if label not in by_folded_name:
        raise UnreadableAnswerError(
            f"{quoted(label)} is not one of the topics" if label else 'the answer has no "topic"'
        )
    return by_folded_name[label]
