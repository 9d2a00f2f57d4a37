"""Rows of raw sources, cleaned and filtered by length: speeches, and the contexts of conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from psyco_ray.config.contexts import Context
from psyco_ray.config.data import Collect, DataJob
from psyco_ray.data import containment, crisis_flags, duplicates, turns
from psyco_ray.data.clean import clean
from psyco_ray.data.splits import share_of, speech_id
from psyco_ray.run.schemas import COLLECTED
from psyco_ray.run.types import Row
from psyco_ray.screening import crisis
from psyco_ray.screening.personal_data import scrub_turns

BAD_ROW = "bad row"
"""Reason for dropping a row that cannot be read."""

SCREENED = ("crisis", "language", "crisis_flags", "screened_by")
"""Columns of the crisis screen."""

_MAX_RAW_FACTOR = 20  # times max_chars: longer raw texts are not cleaned

RAW = pa.schema(
    [
        ("source", pa.int32()),  # index in the job's list
        ("row", pa.int64()),
        ("text", pa.string()),
        ("topic", pa.string()),
        ("problem", pa.string()),
        ("skipped", pa.bool_()),
        ("dialogue", pa.bool_()),  # whether the text is a whole dialogue
    ]
)
"""Rows as they are read."""

CLEANED = pa.schema(
    [
        ("source", pa.int32()),
        ("row", pa.int64()),
        ("turn", pa.int32()),  # of the dialogue: number of the client's turn, from 1
        ("reason", pa.string()),  # why the row is dropped; null: it has a speech
        ("detail", pa.string()),
        ("speech", pa.string()),
        ("key", pa.uint64()),  # speech_id as a number
        ("dialogue", pa.uint64()),  # likewise of the whole dialogue, whose contexts stay or go together
        ("words", pa.string()),  # what the client says in the whole dialogue, in its first row; null: the speech
        ("signed", pa.bool_()),  # whether the row has the signature and the marks of its dialogue
        ("signature", pa.binary(4 * duplicates.PERMUTATIONS)),  # zeros without
        ("marks", pa.list_(pa.uint64())),  # of passages
        ("split", pa.string()),
        ("topic", pa.string()),
        *[COLLECTED.field(name) for name in SCREENED],
        ("scrubbed", pa.list_(pa.string())),  # kind of each replacement
    ]
)
"""Speeches, contexts and dropped rows."""


@dataclass(frozen=True)
class _Cleaned:
    """A cleaned dialogue, or a speech or context by itself."""

    whole: Context
    scrubbed: Sequence[Sequence[str]]  # kind of each replacement, by turn
    contexts: Sequence[Context]
    is_dialogue: bool
    min_chars: int  # of the client in a context

    @property
    def key(self) -> str:
        """The id of the dialogue; contexts that files hold in their stored form belong together by how they begin."""
        return speech_id(self.whole.text) if self.is_dialogue else speech_id(self.begins)

    @property
    def begins(self) -> str:
        """The words whose hash decides the split: dialogues that begin alike are in one, but for greetings.

        Contexts in which the client says less are known by their opening; they are too short to be kept.
        """
        return turns.beginning(self.whole, self.min_chars) or self.whole.opening

    def places(self, context: Context, number: int) -> range:
        """The turns of the whole that a context has, by the place of the context among all."""
        end = 2 * number + 1 if self.is_dialogue else len(self.whole.turns)
        return range(end - len(context.turns), end)


def clean_batch(batch: pa.Table, job: DataJob) -> pa.Table:
    """The rows of a RAW table as rows of a CLEANED one."""
    rows = [row for raw in batch.to_pylist() for row in _rows(raw, job)]
    signed = np.zeros((len(rows), duplicates.PERMUTATIONS), dtype=np.uint32)
    heads = [n for n, row in enumerate(rows) if row.get("signed")]
    words = [row["speech"] if row["words"] is None else row["words"] for row in (rows[n] for n in heads)]
    signed[heads] = duplicates.signatures(words)
    field = CLEANED.field("signature")
    column = pa.FixedSizeBinaryArray.from_buffers(field.type, len(rows), [None, pa.py_buffer(signed)])
    return pa.Table.from_pylist(rows, schema=CLEANED).set_column(CLEANED.get_field_index(field.name), field, column)


def _rows(raw: Row, job: DataJob) -> Iterator[Row]:
    """The speech or the contexts of a raw row, or why it is dropped."""
    place = {"source": raw["source"], "row": raw["row"]}
    cleaned, reason, detail = _cleaned(raw, job)
    if cleaned is None:
        yield {**place, "turn": 1, "reason": reason, "detail": detail}
        return
    topic, dialogue = clean(raw["topic"] or "") or None, int(cleaned.key, 16)
    split, is_signed = _split(cleaned.begins, job.collect), False
    said = cleaned.whole.client_words
    for number, context in enumerate(cleaned.contexts):
        turn = number + 1 if cleaned.is_dialogue else context.turn
        row = {**place, "turn": turn}
        reason, detail = _outside(context, job.collect)
        if reason is not None:
            at = f"turn {turn}: " if cleaned.whole.is_conversation else ""
            yield {**row, "reason": reason, "detail": f"{at}{detail}"}
            continue
        text = context.text
        yield {
            **row,
            "speech": text,
            "key": int(speech_id(text), 16),
            "dialogue": dialogue,
            "words": None if is_signed or said == text else said,
            "signed": not is_signed,
            "marks": None if is_signed else containment.marks(said),
            "split": split,
            "topic": topic,
            **(_screened(text) if job.crisis.enabled else crisis_flags.columns({})),
            "scrubbed": [kind for n in cleaned.places(context, number) for kind in cleaned.scrubbed[n]],
        }
        is_signed = True


def _cleaned(raw: Row, job: DataJob) -> tuple[_Cleaned | None, str | None, str]:
    """A raw row without what does not belong to the client's words; or the reason to drop it, and its detail."""
    if raw["problem"] is not None:
        return None, BAD_ROW, raw["problem"]
    if raw["skipped"]:
        return None, "outside where", ""
    read = Context.of(raw["text"] or "")
    longest = max(map(len, read.turns))
    if longest > _MAX_RAW_FACTOR * job.collect.max_chars:
        return None, "too long", f"{longest} characters uncleaned"
    whole = turns.changed(read, clean)
    if whole is None:
        return None, "empty", ""
    scrubbed: list[list[str]] = [[] for _ in whole.turns]
    if job.scrub.enabled:
        replaced = scrub_turns(whole.turns, job.scrub.presidio)
        whole, scrubbed = Context(tuple(one.text for one in replaced)), [one.kinds for one in replaced]
    reading = job.sources[raw["source"]]
    is_dialogue = bool(raw["dialogue"])
    contexts = list(turns.contexts(whole, reading.max_turns, reading.max_context_chars)) if is_dialogue else [whole]
    return _Cleaned(whole, scrubbed, contexts, is_dialogue, job.collect.min_chars), None, ""


def _outside(context: Context, bounds: Collect) -> tuple[str | None, str]:
    """Why a context is dropped (None: it is kept), and a detail of the reason."""
    length, longest = len(context.client_words), max(map(len, context.client_turns))
    if length < bounds.min_chars:
        return "too short", f"{length} characters"
    if longest > bounds.max_chars:
        return "too long", f"{longest} characters"
    return None, ""


def _screened(speech: str) -> dict[str, Any]:
    found = crisis.screen(speech)
    flags = [crisis_flags.flag(one.kind, crisis_flags.LEXICON, one.start, one.end) for one in found.flags]
    by_lexicon = {} if found.kinds is None else {crisis_flags.LEXICON: flags}
    return {"language": found.language, **crisis_flags.columns(by_lexicon)}


def _split(text: str, shares: Collect) -> str:
    if share_of("test", text) < shares.test_share:
        return "test"
    return "dev" if share_of("split", text) < shares.dev_share else "train"
