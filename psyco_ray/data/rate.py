"""Ratings by a judge: per speech and principle, one call over all responses in shuffled order (paper §3.3)."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psyco_ray.config.data import Rate
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES, ContextEntry, PromptsFile, filled_messages, whole_text
from psyco_ray.files.cells import quoted
from psyco_ray.judge import outside_texts
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.callers import Question
from psyco_ray.judge.calls import Call
from psyco_ray.run import shards
from psyco_ray.run.schemas import RATINGS
from psyco_ray.run.types import Row

PRINCIPLE_FIRST = "Principle: {principle}\n\n"
"""Precedes a prompt that does not say where the principle goes, as the paper's does not."""

KEYS_LAST = "\n\nAnswer with one JSON object. Its keys:\n{keys}"
"""Follows a prompt that names no keys."""

NO_RESPONSE = "(no response)"
"""In place of a response that a prompt has a placeholder for, and the speech has not."""

_log = logging.getLogger(__name__)

Rating = tuple[int, str]
"""1 to 5, and the judge's rationale."""


@dataclass(frozen=True)
class RateStage:
    """Seven calls per speech."""

    settings: Rate
    seed: int  # of the orders in which responses are shown
    prompt: ContextEntry
    principles: dict[str, dict[str, str]]  # by name: title and text
    root: Path  # of the dataset
    schema = RATINGS

    @property
    def endpoint(self) -> Endpoint:
        """The judge."""
        return self.settings.endpoint

    @property
    def attempts(self) -> int:
        """Attempts per question."""
        return self.settings.attempts

    @property
    def out(self) -> Path:
        """Directory of the stage's parts."""
        return self.root / "rate"

    def questions(self, part: str) -> Iterator[Question]:
        """One question per principle and speech with at least two responses."""
        settings = self.settings
        speeches = {row["speech_id"]: row["speech"] for row in shards.read(self.root / "collect" / "speeches", part)}
        by_speech: dict[str, dict[str, str]] = {}
        for row in shards.read(self.root / "respond", part):
            by_speech.setdefault(row["speech_id"], {})[row["model"]] = row["response"]
        for speech_id, responses in sorted(by_speech.items()):
            if len(responses) < 2:
                continue
            for name in PRINCIPLES:
                order = shuffled(sorted(responses), self.seed, speech_id, name)
                messages = self._messages(name, speeches[speech_id], [responses[model] for model in order])
                schema = rating_schema(len(order), settings.rationale_chars)
                call = Call(messages, schema, settings.max_tokens, temperature=0.0)
                yield Question(speech_id, name, call, {"order": order})

    def check(self, question: Question, text: str) -> list[Rating]:
        """The ratings in an answer."""
        return read_ratings(text, len(question.about["order"]))

    def rows(self, question: Question, value: Any, finished: bool) -> list[Row]:
        """The rows of a call's ratings."""
        return rating_rows(question.speech_id, question.what, question.about["order"], self.endpoint.model, value)

    def _messages(self, name: str, speech: str, responses: Sequence[str]) -> tuple[dict[str, str], ...]:
        principle, prompt = self.principles[name], self.prompt.of(speech)
        asked = self.prompt.placeholder(speech)
        labels = [*outside_texts.labels(prompt), *(f"Response {i}:" for i in range(1, len(responses) + 1))]
        quoted = outside_texts.quote(outside_texts.shown_with(speech, responses), labels)
        context, *responses = quoted.texts
        values = {
            "{principle}": f"{principle['title']}\n{principle['text']}",
            asked: context,
            "{responses}": "\n".join(f"Response {i}: {text}" for i, text in enumerate(responses, start=1)),
            **dict.fromkeys(_numbered(prompt["user"]), NO_RESPONSE),
            **{f"{{response_{i}}}": text for i, text in enumerate(responses, start=1)},
            "{keys}": "\n".join(
                f"- response_{i}_rating: an integer from 1 to 5 for response {i}\n"
                f"- rationale_{i}: a string, one or two sentences on why response {i} got this rating"
                for i in range(1, len(responses) + 1)
            ),
        }
        return quoted.ask(filled_messages(prompt, values))


def load_prompt(prompts: PromptsFile, per_speech: int, conversations: bool = False) -> ContextEntry:
    """The `rate` entries of a prompts file, with principle and keys added where a text has no place for them.

    Args:
        prompts: the file.
        per_speech: responses of a speech.
        conversations: whether conversations are rated too.

    Raises:
        InputError: an entry lacks its placeholder of the context, or both ``{responses}`` and one placeholder per
            response.
    """
    found = prompts.context_entry("rate", conversations)
    return found.map(lambda prompt: _completed(prompt, prompts, per_speech))


def _completed(prompt: dict[str, Any], prompts: PromptsFile, per_speech: int) -> dict[str, Any]:
    text = prompt["user"]
    numbered = _numbered(text)
    if "{responses}" not in text and numbered != [f"{{response_{i}}}" for i in range(1, per_speech + 1)]:
        raise InputError(
            f"prompts file {prompts.path}: the user text of rate needs {{responses}}, or {{response1}} to "
            f"{{response{per_speech}}} for the {per_speech} responses of respond.per_speech; it has "
            f"{', '.join(numbered) or 'neither'}"
        )
    if "{principle}" not in whole_text(prompt):
        _log.info("rate: the prompt has no {principle}; title and text of the principle precede it")
        text = PRINCIPLE_FIRST + text
    if "{keys}" not in text and "response_1_rating" not in text:
        _log.info("rate: the prompt names no keys; a description of the JSON object follows it")
        text += KEYS_LAST
    return {**prompt, "user": text}


def _numbered(text: str) -> list[str]:
    """The placeholders of single responses in a text, by number."""
    return sorted(set(re.findall(r"\{response_\d+\}", text)), key=lambda name: int(name[len("{response_") : -1]))


def shuffled(models: Sequence[str], seed: int, speech_id: str, principle: str) -> list[str]:
    """The order in which a call shows the responses, by a hash: no model gains from its position."""
    return sorted(models, key=lambda m: hashlib.sha256(f"{seed}:{speech_id}:{principle}:{m}".encode()).digest())


def rating_schema(count: int, rationale_chars: int | None) -> dict[str, Any]:
    """The JSON schema of an answer about `count` responses (paper, appendix A)."""
    properties: dict[str, Any] = {}
    rationale: dict[str, Any] = {"type": "string"}
    if rationale_chars is not None:
        rationale["maxLength"] = rationale_chars
    for i in range(1, count + 1):
        properties[f"response_{i}_rating"] = {"type": "integer", "enum": [1, 2, 3, 4, 5]}
        properties[f"rationale_{i}"] = rationale
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def read_ratings(text: str, count: int) -> list[Rating]:
    """The ratings in an answer, in the order shown.

    Raises:
        UnreadableAnswerError: a rating is missing or invalid.
    """
    answer = parse_json(text)
    if not isinstance(answer, dict):
        raise UnreadableAnswerError("the answer is not a JSON object")
    ratings = []
    for i in range(1, count + 1):
        value = answer.get(f"response_{i}_rating")
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value.strip()):
            value = int(value)
        if isinstance(value, bool) or value not in (1, 2, 3, 4, 5):
            raise UnreadableAnswerError(f"response_{i}_rating is {quoted(value)}, not an integer from 1 to 5")
        ratings.append((int(value), str(answer.get(f"rationale_{i}", ""))))
    return ratings


def rating_rows(
    speech_id: str, principle: str, order: Sequence[str], judge: str, ratings: Sequence[Rating]
) -> list[Row]:
    """Rows of the RATINGS table: each rating is assigned to the model whose response was shown there."""
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
