"""Ratings by a judge: for each speech, one call a principle over all its responses in a shuffled order (paper §3.3)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.prompts import PRINCIPLES, filled_messages
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.client import Call
from psyco_ray.judge.pipeline import Question
from psyco_ray.run import shards
from psyco_ray.run.schemas import RATINGS
from psyco_ray.run.types import Row

PLACEHOLDERS = ("{client_speech}", "{principle}", "{responses}", "{keys}")
"""What the user text of the `rate` prompt must contain."""

Rating = tuple[int, str]
"""1 to 5, and the judge's reason."""


@dataclass(frozen=True)
class RateStage:
    """Seven calls a speech."""

    endpoint: Endpoint
    attempts: int
    max_tokens: int
    rationale_chars: int | None
    seed: int
    prompt: dict[str, str]
    principles: dict[str, dict[str, str]]  # by the names of PRINCIPLES: title and text
    root: Path  # of the dataset
    schema = RATINGS

    @property
    def out(self) -> Path:
        """The directory of its parts."""
        return self.root / "rate"

    def questions(self, part: str) -> Iterator[Question]:
        """A question for each speech with two responses or more, and each principle."""
        speeches = {row["speech_id"]: row["speech"] for row in shards.read(self.root / "collect" / "speeches", part)}
        answers: dict[str, dict[str, str]] = {}
        for row in shards.read(self.root / "respond", part):
            answers.setdefault(row["speech_id"], {})[row["model"]] = row["response"]
        for speech_id, responses in sorted(answers.items()):
            if len(responses) < 2:
                continue
            for name in PRINCIPLES:
                order = shuffled(sorted(responses), self.seed, speech_id, name)
                asked = self._messages(name, speeches[speech_id], [responses[model] for model in order])
                call = Call(asked, rating_schema(len(order), self.rationale_chars), self.max_tokens, temperature=0.0)
                rows = partial(rating_rows, speech_id, name, order, self.endpoint.model)
                yield Question(speech_id, name, call, partial(read_ratings, count=len(order)), rows)

    def _messages(self, name: str, speech: str, responses: list[str]) -> tuple[dict[str, str], ...]:
        principle = self.principles[name]
        filled = {
            "{principle}": f"{principle['title']}\n{principle['text']}",
            "{client_speech}": speech,
            "{responses}": "\n".join(f"Response {i}: {text}" for i, text in enumerate(responses, start=1)),
            "{keys}": "\n".join(
                f"- response_{i}_rating: an integer from 1 to 5 for response {i}\n"
                f"- rationale_{i}: a string, one or two sentences on why response {i} got this rating"
                for i in range(1, len(responses) + 1)
            ),
        }
        return filled_messages(self.prompt, filled)


def shuffled(models: list[str], seed: int, speech_id: str, principle: str) -> list[str]:
    """The order in which a call shows the responses: drawn by a hash, so that no model profits from its place."""
    return sorted(models, key=lambda m: hashlib.sha256(f"{seed}:{speech_id}:{principle}:{m}".encode()).digest())


def rating_schema(count: int, rationale_chars: int | None) -> dict[str, Any]:
    """The JSON schema of an answer about so many responses (paper, appendix A)."""
    properties: dict[str, Any] = {}
    rationale: dict[str, Any] = {"type": "string"}
    if rationale_chars is not None:
        rationale["maxLength"] = rationale_chars
    for i in range(1, count + 1):
        properties[f"response_{i}_rating"] = {"type": "integer", "enum": [1, 2, 3, 4, 5]}
        properties[f"rationale_{i}"] = rationale
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def read_ratings(text: str, count: int) -> list[Rating]:
    """The ratings out of an answer, in the order shown.

    Raises:
        UnreadableAnswerError: a rating is missing or invalid.
    """
    answer = parse_json(text)
    if not isinstance(answer, dict):
        raise UnreadableAnswerError("the answer is not a JSON object")
    found = []
    for i in range(1, count + 1):
        given = answer.get(f"response_{i}_rating")
        if isinstance(given, str) and re.fullmatch(r"\d{1,9}", given.strip()):
            given = int(given)
        if isinstance(given, bool) or given not in (1, 2, 3, 4, 5):
            raise UnreadableAnswerError(f"response_{i}_rating is {given!r}, not an integer from 1 to 5")
        found.append((int(given), str(answer.get(f"rationale_{i}", ""))))
    return found


def rating_rows(
    speech_id: str, principle: str, order: list[str], judge: str, ratings: list[Rating], finished: bool
) -> list[Row]:
    """Rows of the RATINGS table: each rating goes back to the model whose response stood there."""
    return [
        {
            "speech_id": speech_id,
            "model": model,
            "principle": principle,
            "rating": rating,
            "rationale": rationale,
            "judge": judge,
        }
        for model, (rating, rationale) in sorted(zip(order, ratings, strict=True))
    ]
