"""Pairwise verdicts of an LLM judge that sees all seven principles (paper §4.2), on responses or on whole dialogues.

Calls go through the journal, so an answer is paid for once, even if another command, or another checkpoint with the
same response to the same speech, asks again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa

from psyco_ray.config.contexts import Context
from psyco_ray.config.endpoint import Endpoint, Judging, Order
from psyco_ray.config.prompts import ContextEntry, PromptsFile, filled_messages
from psyco_ray.data.splits import speech_id
from psyco_ray.evaluate.winrates import Outcome, strict
from psyco_ray.files.cells import quoted
from psyco_ray.judge import injections, outside_texts
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.callers import Question
from psyco_ray.judge.calls import Call
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run import shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Row

ENTRY, DIALOGUES = "judge", "judge-dialogue"
"""Entries of the prompts file: the better of two responses to a context, and of two dialogues with one opening."""

_PRINCIPLES = "{principles}"
_SIDES = {ENTRY: ("{response_a}", "{response_b}"), DIALOGUES: ("{dialogue_a}", "{dialogue_b}")}

COMPARED = pa.schema([(name, pa.string()) for name in ("key", "speech_id", "speech", "ours", "theirs")])
VERDICTS = pa.schema(
    [
        ("key", pa.string()),  # of the pair
        ("ours_first", pa.bool_()),  # whether our response was shown as A
        ("ours", pa.bool_()),  # whether it was chosen
        ("rationale", pa.string()),
    ]
)


class ResponsePair(TypedDict):
    """Two responses to one context, or two dialogues after one opening, as transcripts."""

    key: str  # unique among the pairs
    speech: str  # the text of the context, or the opening
    ours: str
    theirs: str


@dataclass(frozen=True)
class JudgeSetup:
    """A judge and how it is asked."""

    endpoint: Endpoint
    judging: Judging
    outgoing: Outgoing
    prompts: str = "default"  # a prompts file, or `default`
    seed: int = 0  # decides, with key and speech, which response is shown first


@dataclass(frozen=True)
class JudgeStage:
    """What all stages of calls to a judge have in common."""

    setup: JudgeSetup

    @property
    def endpoint(self) -> Endpoint:
        """The judge's API."""
        return self.setup.endpoint

    @property
    def attempts(self) -> int:
        """Attempts per question before it is set aside."""
        return self.setup.judging.attempts


@dataclass(frozen=True)
class VerdictStage(JudgeStage):
    """One call per pair, or two in strict order."""

    prompt: ContextEntry
    sides: tuple[str, str]  # placeholders of what is compared
    principles: str
    pairs: Path  # directory of COMPARED
    out: Path
    schema = VERDICTS

    def questions(self, part: str) -> Iterator[Question]:
        """A question for each pair and order; a pair with a `certain` outcome needs none."""
        judging, seed = self.setup.judging, self.setup.seed
        schema = verdict_schema(judging.rationale_chars)
        for row in shards.read(self.pairs, part):
            prompt = self.prompt.of(row["speech"])
            labels = outside_texts.labels(prompt)
            placeholders = (_PRINCIPLES, self.prompt.placeholder(row["speech"]), *self.sides)
            for ours_first in orders(judging.order, seed, row):
                a, b = (row["ours"], row["theirs"]) if ours_first else (row["theirs"], row["ours"])
                speech, *sides = (self.setup.outgoing.text(self.endpoint, text) for text in (row["speech"], a, b))
                quoted = outside_texts.quote(outside_texts.shown_with(speech, sides), labels)
                values = dict(zip(placeholders, (self.principles, *quoted.texts), strict=True))
                messages = quoted.ask(filled_messages(prompt, values))
                call = Call(messages, schema, judging.max_tokens, temperature=0.0)
                yield Question(row["speech_id"], row["key"], call, {"ours_first": ours_first})

    def check(self, question: Question, text: str) -> tuple[str, str]:
        """The verdict in an answer."""
        return read_verdict(text)

    def rows(self, question: Question, value: Any, finished: bool) -> list[Row]:
        """The row of a verdict."""
        (better, rationale), ours_first = value, question.about["ours_first"]
        ours = (better == "A") == ours_first
        return [{"key": question.what, "ours_first": ours_first, "ours": ours, "rationale": rationale}]


class Verdicts:
    """A judge's verdicts on pairs of responses, once its `calls` are done.

    Example:
        >>> verdicts = Verdicts(pairs, JudgeSetup(endpoint, Judging(order="strict"), outgoing), root, "judge on policy")
        >>> dollars = verdicts.calls.execute(max_cost=5.0, progress=Progress())
        >>> verdicts.outcomes()["policy:3f"]
        0.5
    """

    def __init__(
        self,
        pairs: Sequence[ResponsePair],
        setup: JudgeSetup,
        root: Path,
        name: str = "verdicts",
        entry: str = ENTRY,
    ) -> None:
        """Write the pairs; nothing is asked yet.

        Args:
            pairs: the responses to compare.
            setup: the judge.
            root: directory of the verdicts and of the journal of paid answers; runs may share it.
            name: on the progress line and in messages.
            entry: of the prompts file: ENTRY or DIALOGUES.

        Raises:
            InputError: the prompts file lacks an entry or a placeholder.
        """
        self._keys = [pair["key"] for pair in pairs]
        assert len(set(self._keys)) == len(self._keys), "two pairs have the same key"
        self._strict = setup.judging.order == "strict"
        self._certain = {pair["key"]: outcome for pair in pairs if (outcome := certain(pair)) is not None}
        conversations = any(Context.of(pair["speech"]).is_conversation for pair in pairs)
        prompt, principles = load_judge_prompt(setup.prompts, conversations, entry)
        rows = [{**pair, "speech_id": speech_id(pair["speech"])} for pair in pairs]
        texts = key_of(sorted([row[column] for column in COMPARED.names] for row in rows))
        endpoint = setup.endpoint
        key = key_of(
            [
                *(endpoint.model, endpoint.structured, setup.judging.model_dump(), setup.seed),
                *(*prompt.key(), principles, texts),
            ],
            *setup.outgoing.key(endpoint),
        )
        stage = VerdictStage(setup, prompt, _SIDES[entry], principles, root / "pairs" / texts, root / "verdicts" / key)
        rows.sort(key=lambda row: (row["speech_id"], row["key"]))
        parts = shards.write_by_id(stage.pairs, rows, "speech_id", COMPARED)  # parts as in the journal
        self.calls = CallRun(name, stage, parts, root / "journal", setup.outgoing)
        injections.report(
            name, ((str(row["speech_id"]), str(row[side])) for row in rows for side in ("speech", "ours", "theirs"))
        )

    def readable(self) -> dict[str, list[Row]]:
        """The readable verdicts on each pair, as rows of VERDICTS, by the pair's key."""
        by_key: dict[str, list[Row]] = {key: [] for key in self._keys}
        for part in self.calls.parts:
            for row in shards.read(self.calls.stage.out, part):
                by_key[row["key"]].append(row)
        return by_key

    def outcomes(self) -> dict[str, Outcome]:
        """By the pair's key: 1 ours won, 0 theirs won, 0.5 a tie, None unreadable; see `certain`."""
        return {key: self._certain.get(key, _outcome(rows, self._strict)) for key, rows in self.readable().items()}

    def usage(self) -> dict[str, Any]:
        """Counts and cost of all calls, whenever they were sent; see `CallRun.usage`."""
        return self.calls.usage()


def judge(
    pairs: Sequence[ResponsePair],
    setup: JudgeSetup,
    root: Path,
    progress: Progress,
    max_cost: float | None = None,
    name: str = "verdicts",
) -> dict[str, Outcome]:
    """Let a judge compare pairs of responses. Answers under `root` are reused. Ray must be running.

    Args:
        pairs: the responses to compare.
        setup: the judge.
        root: directory of the verdicts and of the journal of paid answers; runs may share it.
        progress: receives finished parts and dollars.
        max_cost: limit on the cost of the calls, in US dollars; None: no limit.
        name: on the progress line and in messages.

    Returns:
        The outcomes by the pairs' keys; see `Verdicts.outcomes`.

    Raises:
        BudgetExceededError: the limit is reached; everything paid for is kept.
        UnavailableError: the server failed repeatedly.
        InputError: the prompts file is invalid, or the server refuses the key or the model.
    """
    verdicts = Verdicts(pairs, setup, root, name)
    verdicts.calls.execute(max_cost, progress)
    return verdicts.outcomes()


def orders(order: Order, seed: int, pair: ResponsePair | Row) -> list[bool]:
    """Whether our response is shown first, for each question about a pair."""
    if certain(pair) is not None:
        return []
    if order == "strict":
        return [True, False]
    return [int(key_of(seed, "order", pair["key"], pair["speech"]), 16) % 2 == 0]


def certain(pair: ResponsePair | Row) -> float | None:
    """The outcome of a pair that no judge needs to see: equal texts tie, and an empty response loses; else None."""
    ours, theirs = pair["ours"].strip(), pair["theirs"].strip()
    if ours == theirs:
        return 0.5
    return None if ours and theirs else float(bool(ours))


def verdict_schema(rationale_chars: int | None) -> dict[str, Any]:
    """The JSON schema of an answer. The rationale comes first, so that the choice follows from it."""
    rationale: dict[str, Any] = {"type": "string"}
    if rationale_chars is not None:
        rationale["maxLength"] = rationale_chars
    properties = {"rationale": rationale, "better": {"type": "string", "enum": ["A", "B"]}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def read_verdict(text: str) -> tuple[str, str]:
    """The better response, A or B, and the rationale of an answer.

    Raises:
        UnreadableAnswerError: the answer names neither A nor B.
    """
    answer = parse_json(text)
    better = answer.get("better") if isinstance(answer, dict) else answer
    match = re.fullmatch(r"(?:response\s*)?([AB])", better.strip(), re.IGNORECASE) if isinstance(better, str) else None
    if match is None:
        raise UnreadableAnswerError(f"better is {quoted(better)}, not A or B")
    return match[1].upper(), str(answer.get("rationale", "")) if isinstance(answer, dict) else ""


def load_judge_prompt(file: str, conversations: bool = False, entry: str = ENTRY) -> tuple[ContextEntry, str]:
    """The judge's prompt, and titles and texts of the seven principles.

    Args:
        file: a prompts file, or `default`.
        conversations: whether a context is a conversation, about which an entry of its own asks.
        entry: ENTRY or DIALOGUES; the opening of dialogues is a speech.

    Raises:
        InputError: an entry or a placeholder is missing.
    """
    prompts = PromptsFile(file)
    return prompts.context_entry(entry, conversations, _PRINCIPLES, *_SIDES[entry]), prompts.principles_text()


def _outcome(rows: Sequence[Row], both_orders: bool) -> Outcome:
    by_order = {row["ours_first"]: row["ours"] for row in rows}
    if both_orders:
        return strict(by_order.get(True), by_order.get(False))
    return next((float(ours) for ours in by_order.values()), None)
