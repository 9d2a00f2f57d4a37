"""A second look for signs of a crisis by a model behind an API, which is asked about each speech."""

from __future__ import annotations

from typing import Any

from psyco_ray.config.data import Crisis
from psyco_ray.data.crisis_flags import JUDGE, flag, lexicon_flags
from psyco_ray.data.label_stage import LabelStage
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.callers import Question
from psyco_ray.run.schemas import CRISIS_SIGNS
from psyco_ray.run.types import Row
from psyco_ray.screening.crisis import KINDS

_ABOUT = {
    "self-harm": "suicidal thoughts, plans, means or past attempts, and self-injury",
    "violence": "harm that somebody does or wants to do to others or to animals",
    "abuse": "violence, sexual abuse, threats, coercion or neglect that somebody suffers",
    "eating disorder": "starving, purging, bingeing, or fear of food and weight",
}


class CrisisStage(LabelStage):
    """One call per speech that is asked about."""

    name, what, placeholder, schema = "crisis", "crisis", "{kinds}", CRISIS_SIGNS

    def asks(self, row: Row) -> bool:
        """All speeches, or those that the lexicons do not flag or cannot read."""
        assert isinstance(self.settings, Crisis)
        return self.settings.asked == "all" or not lexicon_flags(row)

    def described(self) -> str:
        """The kinds of signs with what they are about."""
        return "\n".join(f"- {kind}: {about}" for kind, about in _ABOUT.items())

    def answer(self) -> dict[str, Any]:
        """A list of kinds."""
        return {"kinds": {"type": "array", "items": {"type": "string", "enum": list(KINDS)}}}

    def check(self, question: Question, text: str) -> list[str]:
        """The kinds in an answer, in the order of KINDS."""
        answer = parse_json(text)
        named = answer.get("kinds") if isinstance(answer, dict) else None
        if not isinstance(named, list) or not all(kind in KINDS for kind in named):
            raise UnreadableAnswerError(f"kinds is not a list of {', '.join(KINDS)}")
        return [kind for kind in KINDS if kind in named]

    def rows(self, question: Question, value: Any, finished: bool) -> list[Row]:
        """The row of an answer."""
        flags = [flag(kind, JUDGE) for kind in value]
        return [{"speech_id": question.speech_id, "flags": flags, "scores": None, "model": self.endpoint.model}]
