"""Generative models that choose the better of two responses; every pair is shown in both orders (paper table 1)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from psyco_ray.config.contexts import Context
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.evaluate_reward import REWARDBENCH, EvaluateRewardJob, ModelUnderTest
from psyco_ray.config.prompts import ContextEntry, PromptsFile, filled_messages, whole_text
from psyco_ray.files.cells import quoted
from psyco_ray.judge import injections, outside_texts
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.callers import Question
from psyco_ray.judge.calls import Call
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run import reasoning, shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.types import Row

ORDERS = ("first", "second")
"""Position of the chosen response in a question."""

PLACEHOLDERS = {
    "rank": ("{client_speech}", "{response_1}", "{response_2}"),
    "rank-general": ("{conversation}", "{response_1}", "{response_2}"),
}
"""Entries of the prompts file, one for tests, one for benchmarks outside counselling, and the placeholders they need.
`rank` may also have ``{principles}``; the paper's has not."""

FORM_LAST = """

Answer with one JSON object and nothing around it. Its key:
- better: the number of the better response, 1 or 2"""
"""Follows a prompt that does not mention JSON, as the paper's does not."""

_log = logging.getLogger(__name__)

CHOICES = pa.schema([("pair", pa.string()), ("order", pa.string()), ("right", pa.bool_())])
RANKED = pa.schema([("pair", pa.string()), ("asked", pa.string()), ("chosen", pa.string()), ("rejected", pa.string())])

CHOICE_SCHEMA = {
    "type": "object",
    "properties": {"better": {"type": "integer", "enum": [1, 2]}},
    "required": ["better"],
    "additionalProperties": False,
}
"""The JSON schema of an answer."""


@dataclass(frozen=True)
class RankStage:
    """Two calls per pair."""

    endpoint: Endpoint
    attempts: int
    max_tokens: int
    prompt: ContextEntry
    principles: str
    outgoing: Outgoing
    pairs: Path  # directory of RANKED
    out: Path
    schema = CHOICES

    def questions(self, part: str) -> Iterator[Question]:
        """A question for each pair and order."""
        for row in shards.read(self.pairs, part):
            for position, order in enumerate(ORDERS, start=1):
                shown = (row["chosen"], row["rejected"]) if position == 1 else (row["rejected"], row["chosen"])
                call = Call(self._messages(row["asked"], *shown), CHOICE_SCHEMA, self.max_tokens, temperature=0.0)
                yield Question(row["pair"], order, call)

    def check(self, question: Question, text: str) -> int:
        """The choice in an answer."""
        return read_choice(text)

    def rows(self, question: Question, value: Any, finished: bool) -> list[Row]:
        """The row of a choice."""
        right = value == ORDERS.index(question.what) + 1
        return [{"pair": question.speech_id, "order": question.what, "right": right}]

    def _messages(self, *texts: str) -> tuple[dict[str, str], ...]:
        asked, *responses = (self.outgoing.text(self.endpoint, text) for text in texts)
        prompt = self.prompt.of(asked)
        quoted = outside_texts.quote(outside_texts.shown_with(asked, responses), outside_texts.labels(prompt))
        context, first, second = quoted.texts
        values = {"{client_speech}": context, "{conversation}": context, "{principles}": self.principles}
        return quoted.ask(filled_messages(prompt, values | {"{response_1}": first, "{response_2}": second}))


class PairwiseRanker:
    """A generative model's choices on the pairs of a test, once its `calls` are done.

    Example:
        >>> ranker = PairwiseRanker(job, job.models[0], "test", table.to_pylist(), root)
        >>> dollars = ranker.calls.execute(max_cost=5.0, progress=Progress())
        >>> first_right, second_right = ranker.choices()
    """

    def __init__(
        self, job: EvaluateRewardJob, model: ModelUnderTest, test: str, rows: Sequence[Row], root: Path
    ) -> None:
        """Write the distinct pairs; nothing is asked yet.

        Args:
            job: names the prompts and the limits of an answer.
            model: the ranker, with an endpoint.
            test: name of the test, or REWARDBENCH.
            rows: pairs, as in COMPARISONS.
            root: the run directory.

        Raises:
            InputError: the prompts file lacks an entry or a placeholder, or the endpoint's key is missing.
        """
        assert model.endpoint is not None, "a ranker has an endpoint"
        pairs = [
            {**row, "asked": context_text(row["form"], row["asked"])}
            | {side: reasoning.split(row[side])[1] for side in ("chosen", "rejected")}  # as a client reads them
            for row in rows
        ]
        self._keys = [key_of(pair["asked"], pair["chosen"], pair["rejected"]) for pair in pairs]
        by_key = {key: {"pair": key, **pair} for key, pair in zip(self._keys, pairs, strict=True)}
        keys = sorted(by_key)
        prompts, counselling = PromptsFile(job.prompts.file), test != REWARDBENCH
        entry = "rank" if counselling else "rank-general"
        prompt = load_prompt(prompts, entry, any(Context.of(pair["asked"]).is_conversation for pair in pairs))
        principles = prompts.principles_text() if counselling else ""
        outgoing = Outgoing(job.scrub, job.privacy)
        settings = [
            model.endpoint.model,
            model.endpoint.structured,
            job.ranking.model_dump(),
            *prompt.key(),
            principles,
        ]
        stage = RankStage(
            endpoint=model.endpoint,
            attempts=job.ranking.attempts,
            max_tokens=job.ranking.max_tokens,
            prompt=prompt,
            principles=principles,
            outgoing=outgoing,
            pairs=root / "pairs" / key_of(keys),
            out=root / "ranks" / model.name / test / key_of(settings, keys, *outgoing.key(model.endpoint)),
        )
        parts = shards.write_by_id(stage.pairs, [by_key[key] for key in keys], "pair", RANKED)
        self.calls = CallRun(f"{model.name} on {test}", stage, parts, root / "journal", outgoing)
        texts = ((pair["pair"], pair[side]) for pair in by_key.values() for side in ("asked", "chosen", "rejected"))
        injections.report(f"{model.name} on {test}", texts)
        if self.calls.missing():  # reported now, not after hours of other work
            outgoing.check({f"the ranker {model.name}": model.endpoint})

    def choices(self) -> tuple[list[bool | None], list[bool | None]]:
        """Whether the chosen response was picked where it came first, and where it came second; None: unreadable."""
        right = {
            (row["pair"], row["order"]): row["right"]
            for part in self.calls.parts
            for row in shards.read(self.calls.stage.out, part)
        }
        first, second = ([right.get((key, order)) for key in self._keys] for order in ORDERS)
        return first, second

    def usage(self) -> dict[str, Any]:
        """Counts and cost of all calls, whenever they were sent; see `CallRun.usage`."""
        return self.calls.usage()


def load_prompt(prompts: PromptsFile, entry: str, conversations: bool = False) -> ContextEntry:
    """A ranker's entries of a prompts file, with the form of an answer added where a text does not mention JSON.

    Args:
        prompts: the file.
        entry: one of PLACEHOLDERS; `rank-general` is about speeches and conversations.
        conversations: whether the pairs of a test ask conversations too.

    Raises:
        InputError: an entry or a placeholder is missing.
    """
    if entry == "rank":
        return prompts.context_entry(entry, conversations, *PLACEHOLDERS[entry][1:]).map(_with_form_of_rank)
    general = _with_form(prompts.entry(entry, *PLACEHOLDERS[entry]), entry)
    return ContextEntry(general, general if conversations else None)


def _with_form_of_rank(prompt: dict[str, Any]) -> dict[str, Any]:
    if "{principles}" not in whole_text(prompt):
        _log.info("rank: the prompt has no {principles}; rankers choose without them")
    return _with_form(prompt, "rank")


def _with_form(prompt: dict[str, Any], entry: str) -> dict[str, Any]:
    if "json" not in whole_text(prompt).lower():
        _log.info(f"{entry}: the prompt does not mention JSON; a description of the answer follows it")
        prompt = {**prompt, "user": prompt["user"] + FORM_LAST}
    return prompt


def read_choice(text: str) -> int:
    """The number of the better response, 1 or 2, in an answer.

    Raises:
        UnreadableAnswerError: the answer names neither 1 nor 2.
    """
    answer = parse_json(text)
    better = answer.get("better") if isinstance(answer, dict) else answer
    if isinstance(better, str) and (match := re.fullmatch(r"(?:response\s*)?([12])", better.strip(), re.IGNORECASE)):
        better = int(match[1])
    if isinstance(better, bool) or better not in (1, 2):
        raise UnreadableAnswerError(f"better is {quoted(better)}, not 1 or 2")
    return int(better)


def context_text(form: str, asked: str) -> str:
    """The context or conversation that a pair responds to; of several messages, each begins with its role.

    No message can hold the beginning of another one.
    """
    turns = json.loads(asked) if form == "messages" else [{"role": "user", "content": asked}]
    if len(turns) == 1:
        return turns[0]["content"]
    labels = [f"{turn['role'].capitalize()}:" for turn in turns]
    return "\n\n".join(
        f"{label} {outside_texts.as_data(turn['content'], dict.fromkeys(labels))}"
        for label, turn in zip(labels, turns, strict=True)
    )
