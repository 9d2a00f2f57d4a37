"""Whether a model keeps to what was said in a dialogue: what it repeats, and what a judge finds contradicted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from psyco_ray.config.prompts import PromptsFile, filled_messages
from psyco_ray.data.splits import speech_id
from psyco_ray.evaluate import stats
from psyco_ray.evaluate.verdicts import JudgeSetup, JudgeStage
from psyco_ray.judge import outside_texts
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.callers import Question
from psyco_ray.judge.calls import Call
from psyco_ray.run import shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.types import Row

ENTRY, DIALOGUE = "consistency", "{dialogue}"
"""The entry of the prompts file and its placeholder."""

REPEATED = 0.5
"""Share of a response's runs of words that were said before, from which on it repeats."""

WHAT = ("contradiction", "forgotten")
"""What the judge is asked for: the model contradicts itself; it forgets what the client said."""

CHECKED = pa.schema([(name, pa.string()) for name in ("key", "speech_id", "dialogue")])
FOUND = pa.schema([("key", pa.string()), *((what, pa.bool_()) for what in WHAT), ("rationale", pa.string())])

_RUN = 4  # words
_SPACELESS = "\u3040-\u30ff\u3400-\u9fff"  # Japanese and Chinese: characters are words
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")


def overlap(response: str, earlier: Sequence[str]) -> float | None:
    """Share of a response's runs of four words that occur in earlier texts; of a shorter one, of its whole.

    Args:
        response: a turn of a therapist.
        earlier: turns of the same therapist before it.

    Returns:
        0 to 1; None without a word or an earlier text.

    Example:
        >>> overlap("Tell me more about your mother.", ["Tell me more about your work."])
        0.6666666666666666
    """
    words = _words(response)
    if not words or not earlier:
        return None
    size = min(_RUN, len(words))
    said = {run for text in earlier for run in _runs(_words(text), size)}
    own = _runs(words, size)
    return sum(run in said for run in own) / len(own)


def repetition(dialogues: Sequence[Sequence[str]], seed: int) -> dict[str, Any] | None:
    """How much a model repeats itself.

    Args:
        dialogues: its turns in each.
        seed: of the bootstrap, over dialogues.

    Returns:
        Over the `responses` after a first one: the `share` that repeats (`REPEATED`) with `ci95`, and the
        `mean_overlap` with `overlap_ci95`. None without such a response.
    """
    shares: list[float] = []
    of: list[int] = []
    for number, turns in enumerate(dialogues):
        for place, turn in enumerate(turns):
            if (share := overlap(turn, turns[:place])) is not None:
                shares.append(share)
                of.append(number)
    if not shares:
        return None
    repeats = [float(share >= REPEATED) for share in shares]
    return {
        "responses": len(shares),
        "share": sum(repeats) / len(repeats),
        "ci95": list(stats.clustered_mean(repeats, of, seed)),
        "mean_overlap": sum(shares) / len(shares),
        "overlap_ci95": list(stats.clustered_mean(shares, of, seed)),
    }


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


@dataclass(frozen=True)
class ConsistencyStage(JudgeStage):
    """One call per dialogue."""

    prompt: Mapping[str, str]
    dialogues: Path  # directory of CHECKED
    out: Path
    schema = FOUND

    def questions(self, part: str) -> Iterator[Question]:
        """A question for each dialogue."""
        judging, labels = self.setup.judging, outside_texts.labels(self.prompt)
        for row in shards.read(self.dialogues, part):
            quoted = outside_texts.quote([self.setup.outgoing.text(self.endpoint, row["dialogue"])], labels)
            messages = quoted.ask(filled_messages(self.prompt, {DIALOGUE: quoted.texts[0]}))
            call = Call(messages, answer_schema(judging.rationale_chars), judging.max_tokens, temperature=0.0)
            yield Question(row["speech_id"], row["key"], call)

    def check(self, question: Question, text: str) -> Row:
        """What an answer says."""
        return read_answer(text)

    def rows(self, question: Question, value: Row, finished: bool) -> list[Row]:
        """The row of an answer."""
        return [{"key": question.what, **value}]


class Consistency:
    """A judge's answers about dialogues, once its `calls` are done.

    Example:
        >>> checked = Consistency({"3f": transcript}, setup, root, "judge on dpo, consistency")
        >>> checked.calls.execute(max_cost=None, progress=Progress())
        >>> checked.shares()["contradiction"]["share"]
        0.1
    """

    def __init__(self, dialogues: Mapping[str, str], setup: JudgeSetup, root: Path, name: str) -> None:
        """Write the dialogues; nothing is asked yet.

        Args:
            dialogues: transcripts by id.
            setup: the judge.
            root: directory of the answers and of the journal.
            name: on the progress line and in messages.

        Raises:
            InputError: the prompts file lacks the entry or its placeholder.
        """
        self._keys = [*dialogues]
        prompt = load_prompt(setup.prompts)
        rows = [
            {"key": key, "speech_id": speech_id(transcript), "dialogue": transcript}
            for key, transcript in dialogues.items()
        ]
        rows.sort(key=lambda row: (row["speech_id"], row["key"]))
        texts, endpoint = key_of(rows), setup.endpoint
        judging = setup.judging.model_dump(exclude={"order"})
        key = key_of(endpoint.model, endpoint.structured, judging, prompt, texts, *setup.outgoing.key(endpoint))
        stage = ConsistencyStage(setup, prompt, root / "checked" / texts, root / "consistency" / key)
        parts = shards.write_by_id(stage.dialogues, rows, "speech_id", CHECKED)
        self.calls = CallRun(name, stage, parts, root / "journal", setup.outgoing)

    def found(self) -> dict[str, Row]:
        """The readable answers by the dialogue's id."""
        return {row["key"]: row for part in self.calls.parts for row in shards.read(self.calls.stage.out, part)}

    def shares(self) -> dict[str, Any]:
        """For each of WHAT the `share` of dialogues with `wilson95`; `dialogues` and `unreadable` answers."""
        found = self.found()
        shares: dict[str, Any] = {"dialogues": len(self._keys), "unreadable": len(self._keys) - len(found)}
        for what in WHAT:
            count = sum(row[what] for row in found.values())
            share = count / len(found) if found else None
            shares[what] = {"share": share, "wilson95": list(stats.wilson(count, len(found)))}
        return shares


def load_prompt(file: str) -> dict[str, Any]:
    """The entry that asks about a dialogue.

    Raises:
        InputError: it or its placeholder is missing.
    """
    return PromptsFile(file).entry(ENTRY, DIALOGUE)


def answer_schema(rationale_chars: int | None) -> dict[str, Any]:
    """The JSON schema of an answer."""
    rationale: dict[str, Any] = {"type": "string"}
    if rationale_chars is not None:
        rationale["maxLength"] = rationale_chars
    properties = {"rationale": rationale} | {what: {"type": "boolean"} for what in WHAT}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def read_answer(text: str) -> Row:
    """The values in an answer.

    Raises:
        UnreadableAnswerError: one of them is missing.
    """
    answer = parse_json(text)
    if not isinstance(answer, dict):
        raise UnreadableAnswerError("the answer is no JSON object")
    said = {"true": True, "yes": True, "false": False, "no": False}
    row: Row = {what: said.get(str(answer.get(what)).strip().casefold()) for what in WHAT}
    for what, value in row.items():
        if value is None:
            raise UnreadableAnswerError(f"{what} is neither true nor false")
    return {**row, "rationale": str(answer.get("rationale", ""))}
