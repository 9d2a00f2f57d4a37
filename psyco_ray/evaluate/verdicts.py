"""Which of two responses is the better one, as a judge says who sees all seven principles (paper §4.2).

Calls go through the journal, so that an answer is paid for once, whoever asks again: another command, or another
checkpoint that gives the same response to the same speech.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from psyco_ray.config.endpoint import Endpoint, Judging, Order
from psyco_ray.config.prompts import PromptsFile, filled_messages
from psyco_ray.data.splits import speech_id
from psyco_ray.evaluate.winrates import Outcome, strict
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.client import Call
from psyco_ray.judge.pipeline import Question
from psyco_ray.run import shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Row

ENTRY = "judge"
PLACES = ("{principles}", "{client_speech}", "{response_a}", "{response_b}")
"""The entry of the prompts file, and the places in it."""

COMPARED = pa.schema([(name, pa.string()) for name in ("key", "speech_id", "speech", "ours", "theirs")])
VERDICTS = pa.schema(
    [
        ("key", pa.string()),  # of the pair
        ("ours_first", pa.bool_()),  # whether our response was shown as A
        ("ours", pa.bool_()),  # whether it was chosen
        ("rationale", pa.string()),
    ]
)


@dataclass(frozen=True)
class VerdictStage:
    """One call a pair, or two in strict order."""

    endpoint: Endpoint
    attempts: int
    max_tokens: int
    rationale_chars: int | None
    order: Order
    seed: int
    prompt: Mapping[str, str]
    principles: str
    pairs: Path  # directory of COMPARED
    out: Path
    schema = VERDICTS

    def questions(self, part: str) -> Iterator[Question]:
        """A question for each pair and order; responses that are the same need none."""
        form = verdict_schema(self.rationale_chars)
        for row in shards.read(self.pairs, part):
            for ours_first in orders(self.order, self.seed, row):
                shown = (row["ours"], row["theirs"]) if ours_first else (row["theirs"], row["ours"])
                call = Call(self._messages(row["speech"], *shown), form, self.max_tokens, temperature=0.0)
                yield Question(row["speech_id"], row["key"], call, read_verdict, partial(_row, row["key"], ours_first))

    def _messages(self, speech: str, a: str, b: str) -> tuple[dict[str, str], ...]:
        places = {"{principles}": self.principles, "{client_speech}": speech, "{response_a}": a, "{response_b}": b}
        return filled_messages(self.prompt, places)


class Verdicts:
    """A judge's verdicts on pairs of responses."""

    def __init__(
        self,
        pairs: Sequence[Row],
        endpoint: Endpoint,
        root: Path,
        settings: Judging,
        prompts: str = "default",
        seed: int = 0,
        what: str = "verdicts",
    ) -> None:
        """Lay the pairs out; nothing is asked yet.

        Args:
            pairs: of a `key` of its own, `speech`, and the responses `ours` and `theirs`.
            endpoint: the judge.
            root: directory of the verdicts and of the journal of paid calls; runs may share it.
            settings: how the judge is asked.
            prompts: a prompts file, or `default`.
            seed: decides, with key and speech, which response is shown first.
            what: the name of this work on the progress line.

        Raises:
            InputError: the prompts file lacks something.
        """
        keys = [pair["key"] for pair in pairs]
        assert len(set(keys)) == len(keys), "two pairs have the same key"
        entry, principles = load_entry(prompts)
        rows = [{**pair, "speech_id": speech_id(pair["speech"])} for pair in pairs]
        self._keys, self._strict = keys, settings.order == "strict"
        self._same = {pair["key"] for pair in pairs if same(pair)}
        texts = key_of(sorted([row[name] for name in COMPARED.names] for row in rows))
        how = [endpoint.model, endpoint.structured, settings.model_dump(), seed, entry, principles, texts]
        stage = VerdictStage(
            endpoint=endpoint,
            attempts=settings.attempts,
            max_tokens=settings.max_tokens,
            rationale_chars=settings.rationale_chars,
            order=settings.order,
            seed=seed,
            prompt=entry,
            principles=principles,
            pairs=root / "pairs" / texts,
            out=root / "verdicts" / key_of(how),
        )
        self._calls = CallRun(what, stage, _lay_out(rows, stage.pairs), root / "journal")

    def ask(self, max_cost: float | None, progress: Progress) -> float:
        """Ask what was not asked before; the dollars that this took (0 where prices are not known).

        Raises:
            BudgetExceededError, UnavailableError, InputError: as `CallRun.execute`.
        """
        return self._calls.execute(max_cost, progress)

    def given(self) -> dict[str, list[Row]]:
        """The readable verdicts on each pair, as rows of VERDICTS."""
        found: dict[str, list[Row]] = {key: [] for key in self._keys}
        for part in self._calls.parts:
            for row in shards.read(self._calls.stage.out, part):
                found[row["key"]].append(row)
        return found

    def outcomes(self) -> dict[str, Outcome]:
        """1 where ours won, 0 where theirs did, 0.5 for a tie, None where nothing could be read; by the pairs' keys.

        Two responses that are the same tie without being asked about.
        """
        return {key: 0.5 if key in self._same else _outcome(rows, self._strict) for key, rows in self.given().items()}

    def spent(self) -> dict[str, Any]:
        """What all its calls took, whenever they were sent."""
        return self._calls.usage()


def judge(
    pairs: Sequence[Row],
    endpoint: Endpoint,
    root: Path,
    settings: Judging,
    progress: Progress,
    prompts: str = "default",
    seed: int = 0,
    max_cost: float | None = None,
    what: str = "verdicts",
) -> dict[str, Outcome]:
    """Let a judge compare pairs of responses; what was asked before under `root` is not asked again.

    Ray must have been started.

    Args:
        pairs: of a `key` of its own, `speech`, and the responses `ours` and `theirs`.
        endpoint: the judge.
        root: directory of the verdicts and of the journal of paid calls; runs may share it.
        settings: how the judge is asked.
        progress: shows how far it is.
        prompts: a prompts file, or `default`.
        seed: decides, with key and speech, which response is shown first.
        max_cost: dollars that the calls may cost; None: no limit.
        what: the name of this work on the progress line.

    Returns:
        1 where ours won, 0 where theirs did, 0.5 for a tie, None where no verdict could be read; by the pairs' keys.

    Raises:
        BudgetExceededError: the limit was reached; everything paid for is kept.
        UnavailableError: the server failed again and again.
        InputError: the prompts file lacks something, or the server refuses the key or the model.
    """
    verdicts = Verdicts(pairs, endpoint, root, settings, prompts, seed, what)
    verdicts.ask(max_cost, progress)
    return verdicts.outcomes()


def orders(order: Order, seed: int, pair: Row) -> list[bool]:
    """Whether ours is shown first, for each question about a pair."""
    if same(pair):
        return []
    if order == "strict":
        return [True, False]
    return [int(key_of(seed, "order", pair["key"], pair["speech"]), 16) % 2 == 0]


def same(pair: Row) -> bool:
    """Whether both responses are one text."""
    return pair["ours"].strip() == pair["theirs"].strip()


def verdict_schema(rationale_chars: int | None) -> dict[str, Any]:
    """The JSON schema of an answer: reason first, so that the choice follows from it."""
    rationale: dict[str, Any] = {"type": "string"}
    if rationale_chars is not None:
        rationale["maxLength"] = rationale_chars
    properties = {"rationale": rationale, "better": {"type": "string", "enum": ["A", "B"]}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def read_verdict(text: str) -> tuple[str, str]:
    """The better response, A or B, and the reason, out of an answer.

    Raises:
        UnreadableAnswerError: the answer names neither.
    """
    answer = parse_json(text)
    given = answer.get("better") if isinstance(answer, dict) else answer
    worded = re.fullmatch(r"(?:response\s*)?([AB])", given.strip(), re.IGNORECASE) if isinstance(given, str) else None
    if worded is None:
        raise UnreadableAnswerError(f"better is {given!r}, not A or B")
    return worded[1].upper(), str(answer.get("rationale", "")) if isinstance(answer, dict) else ""


def load_entry(prompts: str) -> tuple[dict[str, str], str]:
    """The judge's prompt, and titles and texts of the seven principles, out of a prompts file.

    Raises:
        InputError: one of them is missing, or a placeholder of the prompt is.
    """
    texts = PromptsFile(prompts)
    return texts.entry(ENTRY, *PLACES), texts.principles_text()


def _row(key: str, ours_first: bool, verdict: tuple[str, str], finished: bool) -> list[Row]:
    better, rationale = verdict
    return [{"key": key, "ours_first": ours_first, "ours": (better == "A") == ours_first, "rationale": rationale}]


def _outcome(rows: Sequence[Row], strictly: bool) -> Outcome:
    chosen = {row["ours_first"]: row["ours"] for row in rows}
    if strictly:
        return strict(chosen.get(True), chosen.get(False))
    return next((float(ours) for ours in chosen.values()), None)


def _lay_out(rows: Sequence[Row], directory: Path) -> list[str]:
    """Write the pairs in parts, each named by the first digits of its speeches' ids, as the journal is."""
    by_part: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["speech_id"], row["key"])):
        by_part.setdefault(row["speech_id"][: shards.digits(len(rows))], []).append(row)
    for part, of in by_part.items():
        shards.write(directory, part, of, COMPARED)
    return list(by_part)
