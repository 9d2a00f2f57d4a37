"""A stage of one call per speech, whose answer is chosen from a closed set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from psyco_ray.config.data import Crisis, Topics
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.prompts import SPEECH, ContextEntry, prompt_messages
from psyco_ray.judge import outside_texts
from psyco_ray.judge.callers import Question
from psyco_ray.judge.calls import Call
from psyco_ray.run import shards
from psyco_ray.run.types import Row


@dataclass(frozen=True)
class LabelStage:
    """What the stages have in common; a `CallStage` but for `check` and `rows`."""

    name: ClassVar[str]  # of the stage and its directory
    what: ClassVar[str]  # subject of a question
    placeholder: ClassVar[str]  # of the set in the prompt
    schema: ClassVar[pa.Schema]

    endpoint: Endpoint
    settings: Crisis | Topics
    prompt: ContextEntry
    root: Path  # of the dataset

    @property
    def attempts(self) -> int:
        """Attempts per question."""
        return self.settings.attempts

    @property
    def out(self) -> Path:
        """Directory of the stage's parts."""
        return self.root / self.name

    def questions(self, part: str) -> Iterator[Question]:
        """One question per speech of the part that `asks`."""
        schema = {
            "type": "object",
            "properties": (properties := self.answer()),
            "required": list(properties),
            "additionalProperties": False,
        }
        described = self.described()
        for row in shards.read(self.root / "collect" / "speeches", part):
            if not self.asks(row):
                continue
            entry, asked = self.prompt.of(row["speech"]), self.prompt.placeholder(row["speech"])
            user = entry["user"].replace(self.placeholder, described).replace(asked, SPEECH)
            speech = outside_texts.shown(row["speech"])
            quoted = outside_texts.quote([speech], outside_texts.labels(entry))  # it may order another answer
            messages = quoted.ask(prompt_messages({**entry, "user": user}, quoted.texts[0]))
            call = Call(messages, schema, self.settings.max_tokens, temperature=0.0)
            yield Question(row["speech_id"], self.what, call)

    def asks(self, row: Row) -> bool:
        """Whether there is a question about a collected speech."""
        return True

    @abstractmethod
    def described(self) -> str:
        """The set, for the prompt."""

    @abstractmethod
    def answer(self) -> dict[str, Any]:
        """The properties of an answer, as a JSON schema."""
