"""Topics of the speeches: 42 fine ones under 8 coarse ones, by a model that chooses from the closed set (table 5)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from psyco_ray.data.label_stage import LabelStage
from psyco_ray.files.cells import quoted
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.callers import Question
from psyco_ray.run.schemas import TOPICS
from psyco_ray.run.types import Row


def coarse_of() -> dict[str, str]:
    """Fine topic -> its coarse topic."""
    return {fine: coarse for coarse, topics in _taxonomy().items() for fine in topics}


class TopicStage(LabelStage):
    """One call per speech."""

    name, what, placeholder, schema = "topics", "topic", "{topics}", TOPICS

    def described(self) -> str:
        """All fine topics with what they are about."""
        return "\n".join(
            f"- {fine}: {texts['about']}" for topics in _taxonomy().values() for fine, texts in topics.items()
        )

    def answer(self) -> dict[str, Any]:
        """The name of one topic."""
        return {"topic": {"type": "string", "enum": list(coarse_of())}}

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
