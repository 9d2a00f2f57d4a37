"""A second look for signs of a crisis: a model reads speeches, and what it names adds to the flags of the lexicons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psyco_ray.config.data import Crisis
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.prompts import prompt_messages
from psyco_ray.judge import outside_texts
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.callers import Question
from psyco_ray.judge.calls import Call
from psyco_ray.run import shards
from psyco_ray.run.schemas import JUDGED_CRISIS
from psyco_ray.run.types import Row
from psyco_ray.screening.crisis import KINDS

_ABOUT = {
    "self-harm": "suicidal thoughts, plans, means or past attempts, and self-injury",
    "violence": "harm that somebody does or wants to do to others or to animals",
    "abuse": "violence, sexual abuse, threats, coercion or neglect that somebody suffers",
    "eating disorder": "starving, purging, bingeing, or fear of food and weight",
}


@dataclass(frozen=True)
class CrisisStage:
    """One call per speech that is asked about."""

    settings: Crisis
    prompt: dict[str, str]
    root: Path  # of the dataset
    schema = JUDGED_CRISIS

    @property
    def endpoint(self) -> Endpoint:
        """The judge."""
        assert self.settings.judge is not None
        return self.settings.judge

    @property
    def attempts(self) -> int:
        """Attempts per question."""
        return self.settings.attempts

    @property
    def out(self) -> Path:
        """Directory of the stage's parts."""
        return self.root / "crisis"

    def questions(self, part: str) -> Iterator[Question]:
        """One question per speech of the part; per unflagged one, if the settings say so."""
        schema = {
            "type": "object",
            "properties": {"kinds": {"type": "array", "items": {"type": "string", "enum": list(KINDS)}}},
            "required": ["kinds"],
            "additionalProperties": False,
        }
        kinds = "\n".join(f"- {kind}: {about}" for kind, about in _ABOUT.items())
        prompt = {**self.prompt, "user": self.prompt["user"].replace("{kinds}", kinds)}
        labels = outside_texts.labels(self.prompt)
        for row in shards.read(self.root / "collect" / "speeches", part):
            if self.settings.asked == "unflagged" and row["crisis"]:
                continue
            speech = outside_texts.quote([row["speech"]], labels)  # it may order the judge to see nothing
            messages = speech.ask(prompt_messages(prompt, speech.texts[0]))
            yield Question(
                row["speech_id"], "crisis", Call(messages, schema, self.settings.max_tokens, temperature=0.0)
            )

    def check(self, question: Question, text: str) -> list[str]:
        """The kinds in an answer, in the order of KINDS."""
        answer = parse_json(text)
        named = answer.get("kinds") if isinstance(answer, dict) else None
        if not isinstance(named, list) or not all(kind in KINDS for kind in named):
            raise UnreadableAnswerError(f"kinds is not a list of {', '.join(KINDS)}")
        return [kind for kind in KINDS if kind in named]

    def rows(self, question: Question, value: Any, finished: bool) -> list[Row]:
        """The row of an answer."""
        return [{"speech_id": question.speech_id, "crisis": value, "judge": self.endpoint.model}]


def count(root: Path) -> dict[str, Any]:
    """Speeches by kind and by who flags them.

    Returns:
        `judge`: flagged by the judge, by kind. `either`: by the lexicons or the judge, by kind. `added`: speeches that
        only the judge flags. `unread`: speeches that neither the lexicons nor the judge read.
    """
    judge, either, added, unread = Counter[str](), Counter[str](), 0, 0
    for part in shards.list_shards(root / "collect" / "speeches"):
        named = {row["speech_id"]: row["crisis"] for row in shards.read(root / "crisis", part)}
        for row in shards.read(root / "collect" / "speeches", part):
            kinds, flagged = named.get(row["speech_id"]), row["crisis"]
            judge.update(kinds or ())
            either.update({*(kinds or ()), *(flagged or ())})
            added += bool(kinds) and not flagged
            unread += kinds is None and flagged is None
    by_kind = {"judge": judge, "either": either}
    return {
        **{name: {kind: counts[kind] for kind in KINDS} for name, counts in by_kind.items()},
        "added": added,
        "unread": unread,
    }
