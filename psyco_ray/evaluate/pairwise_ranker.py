"""Generative models that pick the better of two responses: every pair is shown in both orders (paper table 1)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.evaluate_reward import REWARDBENCH, EvaluateRewardJob, ModelUnderTest
from psyco_ray.config.prompts import PromptsFile, filled_messages
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.client import Call, Client
from psyco_ray.judge.pipeline import Question
from psyco_ray.run import shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Row

ORDERS = ("first", "second")
"""Where the chosen response stands when a pair is asked about."""

PLACES = {
    "rank": ("{principles}", "{client_speech}", "{response_1}", "{response_2}"),
    "rank-general": ("{conversation}", "{response_1}", "{response_2}"),
}
"""Entries of the prompts file and the places in them: one for tests, one for benchmarks outside counselling."""

CHOICES = pa.schema([("pair", pa.string()), ("order", pa.string()), ("right", pa.bool_())])
RANKED = pa.schema([("pair", pa.string()), ("asked", pa.string()), ("chosen", pa.string()), ("rejected", pa.string())])

CHOICE = {
    "type": "object",
    "properties": {"better": {"type": "integer", "enum": [1, 2]}},
    "required": ["better"],
    "additionalProperties": False,
}
"""The JSON schema of an answer."""


@dataclass(frozen=True)
class RankStage:
    """Two calls a pair."""

    endpoint: Endpoint
    attempts: int
    max_tokens: int
    prompt: dict[str, str]
    principles: str
    pairs: Path  # directory of RANKED
    out: Path
    schema = CHOICES

    def questions(self, part: str) -> Iterator[Question]:
        """A question for each pair and order."""
        for row in shards.read(self.pairs, part):
            for place, order in enumerate(ORDERS, start=1):
                shown = (row["chosen"], row["rejected"]) if place == 1 else (row["rejected"], row["chosen"])
                call = Call(self._messages(row["asked"], *shown), CHOICE, self.max_tokens, temperature=0.0)
                yield Question(row["pair"], order, call, read_choice, partial(_choice, row["pair"], order, place))

    def _messages(self, asked: str, first: str, second: str) -> tuple[dict[str, str], ...]:
        places = {"{client_speech}": asked, "{conversation}": asked, "{principles}": self.principles}
        places |= {"{response_1}": first, "{response_2}": second}
        return filled_messages(self.prompt, places)


class Ranking:
    """One model's choices between the pairs of a test."""

    def __init__(
        self, job: EvaluateRewardJob, model: ModelUnderTest, name: str, rows: Sequence[Row], root: Path
    ) -> None:
        """Lay the pairs out; nothing is asked yet.

        Args:
            job: says how to ask.
            model: whom to ask.
            name: of the test, or REWARDBENCH.
            rows: pairs, as in COMPARISONS.
            root: the run directory.

        Raises:
            InputError: the prompts file lacks something.
        """
        assert model.endpoint is not None, "a ranker has an endpoint"
        self.what = f"{model.name} on {name}"
        found = [{**row, "asked": asked_text(row["form"], row["asked"])} for row in rows]
        self._keys = [key_of(row["asked"], row["chosen"], row["rejected"]) for row in found]
        distinct = {key: {"pair": key, **row} for key, row in zip(self._keys, found, strict=True)}
        prompts, counselling = PromptsFile(job.prompts.file), name != REWARDBENCH
        entry_name = "rank" if counselling else "rank-general"
        entry = prompts.entry(entry_name, *PLACES[entry_name])
        principles = prompts.principles_text() if counselling else ""
        how = [model.endpoint.model, model.endpoint.structured, job.ranking.model_dump(), entry, principles]
        pairs = root / "pairs" / key_of(sorted(distinct))
        stage = RankStage(
            endpoint=model.endpoint,
            attempts=job.ranking.attempts,
            max_tokens=job.ranking.max_tokens,
            prompt=entry,
            principles=principles,
            pairs=pairs,
            out=root / "ranks" / model.name / name / key_of(how, sorted(distinct)),
        )
        self._calls = CallRun(self.what, stage, _lay_out(distinct, pairs), root / "journal")
        if self._calls.missing():
            Client(model.endpoint)  # a missing key is told now, not after hours of other work

    def ask(self, max_cost: float | None, progress: Progress) -> float:
        """Ask what was not asked before; the dollars that this took.

        Raises:
            BudgetExceededError, UnavailableError, InputError: as `CallRun.execute`.
        """
        return self._calls.execute(max_cost, progress)

    def choices(self) -> tuple[list[bool | None], list[bool | None]]:
        """Whether the chosen response was picked where it was shown first, and where second; None: unreadable."""
        found = {
            (row["pair"], row["order"]): row["right"]
            for part in self._calls.parts
            for row in shards.read(self._calls.stage.out, part)
        }
        first, second = ([found.get((key, order)) for key in self._keys] for order in ORDERS)
        return first, second

    def spent(self) -> dict[str, Any]:
        """What all its calls took, whenever they were sent."""
        return self._calls.usage()


def read_choice(text: str) -> int:
    """The number of the better response, 1 or 2, out of an answer.

    Raises:
        UnreadableAnswerError: the answer names neither.
    """
    answer = parse_json(text)
    given = answer.get("better") if isinstance(answer, dict) else answer
    if isinstance(given, str) and (worded := re.fullmatch(r"(?:response\s*)?([12])", given.strip(), re.IGNORECASE)):
        given = int(worded[1])
    if isinstance(given, bool) or given not in (1, 2):
        raise UnreadableAnswerError(f"better is {given!r}, not 1 or 2")
    return int(given)


def asked_text(form: str, asked: str) -> str:
    """What a pair's responses answer, as a text for a prompt; of several turns each begins with its role."""
    turns = json.loads(asked) if form == "messages" else [{"role": "user", "content": asked}]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


def _choice(pair: str, order: str, right: int, better: int, finished: bool) -> list[Row]:
    return [{"pair": pair, "order": order, "right": better == right}]


def _lay_out(distinct: dict[str, Row], directory: Path) -> list[str]:
    """Write the pairs in parts, each named by the first digits of its pairs' keys."""
    by_part: dict[str, list[Row]] = {}
    for key in sorted(distinct):
        row = {name: distinct[key][name] for name in RANKED.names}
        by_part.setdefault(key[: shards.digits(len(distinct))], []).append(row)
    for part, rows in by_part.items():
        shards.write(directory, part, rows, RANKED)
    return list(by_part)
