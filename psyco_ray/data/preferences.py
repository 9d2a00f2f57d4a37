"""Preference pairs from files of many formats, converted to the COMPARISONS table."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psyco_ray.config.contexts import CLIENT
from psyco_ray.config.errors import InputError
from psyco_ray.config.names import is_id
from psyco_ray.config.prompts import PRINCIPLES, Messages, prompt_messages
from psyco_ray.data import pair_files, turns
from psyco_ray.data.conversations import UnusablePairError
from psyco_ray.data.shapes import table
from psyco_ray.data.shapes.pairs import SYSTEM, number
from psyco_ray.data.shapes.table import Shape
from psyco_ray.data.splits import begins, dialogue_in, is_dev, text_hash
from psyco_ray.files.cells import CellError, described, label_of, text_of
from psyco_ray.files.parquet import SPLITS
from psyco_ray.files.records import SAMPLES, Record, RecordFile
from psyco_ray.run.changes import Changes
from psyco_ray.run.schemas import COMPARISONS
from psyco_ray.run.types import Row

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
IDS = ("prefID", "pair_id", "id")
"""Columns of a pair's id, the preferred one first."""

_PROBE = 100  # rows that a format is recognised by
_BATCH_ROWS = 4096
_FINISHED = ("chosen_finished", "rejected_finished")  # optional columns
_LEAST_WEIGHT = float(np.finfo(np.float32).tiny)  # a smaller one is 0 in float32
_TRUTH = {"true": True, "1": True, "false": False, "0": False}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparisons:
    """The usable pairs of a file, and the number of unusable rows by reason, the commonest first."""

    table: pa.Table  # COMPARISONS
    left_out: Mapping[str, int]
    digest: str  # of the file


def check(name: str, changes: Changes, digest: str | None = None) -> None:
    """Look at the columns and the first rows of a file, before Ray starts.

    Args:
        name: as in `read`.
        changes: refuses or accepts that the file has changed since this run read it.
        digest: of the file as this run read it; None: it was not read yet.

    Raises:
        InputError: the file cannot be read or has no known format, or it has changed since it was read.
    """
    if digest is not None and pair_files.is_gone(name):
        _log.warning(f"pairs file {name} is gone; the run goes on where it does not read it again")
        return
    file = pair_files.opened(name)
    shape_of(name, file)
    if digest is not None and name not in SAMPLES and digest != file.digest():
        changes.found(f"pairs file {name} has changed since this run read it")


def read(name: str, dev_share: float = 0.1, by_hash: bool = False) -> Comparisons:
    """Read preference pairs, and log the format, the pairs, and the rows that are left out by reason.

    Args:
        name: a file of any kind that `files.records` reads, a directory of Parquet files, `sample` or
            `sample-conversations` (the packaged ones), a file of a hub dataset as ``hub:owner/name/path/to/file``, or
            ``hub:owner/name@revision/path/to/file``, or what a desk has exported as ``desk:DIR``.
        dev_share: share of the pairs held out by a hash of the prompt, if the file has no `split` column.
        by_hash: split by that hash even if it has one.

    Raises:
        InputError: the file is invalid, has no known format, has a column that changes the question and is not read,
            names an unknown split, says neither true nor false whether a response is finished, has a weight that is not
            above 0 and at most 1, or has no usable pair.
    """
    file = pair_files.opened(name)
    shape = shape_of(name, file)
    kept: list[pa.Table] = []
    batch: list[Row] = []
    left_out: Counter[str] = Counter()
    rows = 0
    for pairs, reason in converted(name, file, shape, dev_share, by_hash):
        rows += 1
        batch += pairs
        if reason is not None:
            left_out[reason] += 1
        if len(batch) >= _BATCH_ROWS:
            kept.append(pa.Table.from_pylist(batch, schema=COMPARISONS))
            batch = []
    usable = pa.concat_tables([*kept, pa.Table.from_pylist(batch, schema=COMPARISONS)])
    if (by_hash or "split" not in file.columns) and not set(SYSTEM).isdisjoint(file.columns):
        usable = _in_one_split(usable, dev_share)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.most_common())
    unit = "prompts" if shape.grouped else "rows"
    found = f"pairs file {name} is read as {shape.name}, {file.kind}: {rows} {unit}, {usable.num_rows} pairs"
    if reasons:
        _log.warning(f"{found}; {left_out.total()} of {rows} {unit} are left out ({reasons})")
    else:
        _log.info(found)
    if weighted := pc.sum(pc.less(usable["weight"], 1)).as_py():
        _log.info(f"pairs file {name}: {weighted} pairs have a weight below 1, by which their loss is multiplied")
    if not usable.num_rows:
        raise InputError(f"pairs file {name} has no usable pair ({reasons}); it is read as {shape.name}")
    return Comparisons(usable, dict(left_out.most_common()), file.digest())


def shape_of(name: str, file: RecordFile) -> Shape:
    """The format of a file.

    Raises:
        InputError: it has none of the known ones.
    """
    probe = [record.cells for record in itertools.islice(file, _PROBE) if record.cells is not None]
    if (shape := table.recognise(file.columns, probe)) is None:
        raise InputError(
            f"pairs file {name} has the columns {file.shown_columns()}; accepted are {table.accepted(file.columns)}; "
            "rename the columns to one of these"
        )
    return shape


def converted(
    name: str, file: RecordFile, shape: Shape, dev_share: float = 0.1, by_hash: bool = False
) -> Iterator[tuple[list[Row], str | None]]:
    """The pairs of each row in the COMPARISONS schema, or none and the reason.

    Args:
        name: of the file, for messages.
        file: the rows.
        shape: their format.
        dev_share: as of `read`.
        by_hash: as of `read`.

    Raises:
        InputError: as `read` does.
    """
    for place, record in enumerate(_rows(file, shape), start=1):
        if record.cells is None:
            yield [], record.problem or ""
            continue
        try:
            yield _pairs(name, record, place, shape, None if by_hash else record.cells.get("split"), dev_share), None
        except UnusablePairError as reason:
            yield [], str(reason)


def _rows(file: RecordFile, shape: Shape) -> Iterator[Record]:
    """The records of a file with every column of its format; of a grouped format one record for each prompt."""
    lacking = dict.fromkeys(shape.columns)
    records = (record._replace(cells=record.cells and lacking | record.cells) for record in file)
    if not shape.grouped:
        yield from records
        return
    for asked, group in itertools.groupby(records, key=lambda record: record.cells and [record.cells["prompt"]]):
        if asked is None:  # rows that cannot be read
            yield from group
        else:
            first, *others = group
            cells = first.cells or {}
            yield first._replace(cells={**cells, "responses": [cells, *(other.cells for other in others)]})


def _pairs(name: str, record: Record, number: int, shape: Shape, split: Any, dev_share: float) -> list[Row]:
    """The pairs of a row in the COMPARISONS schema.

    Raises:
        UnusablePairError: the row has no usable pair.
        InputError: it has a column that is not read, or an invalid split, weight or mark of finished responses.
    """
    cells = record.cells
    assert cells is not None
    if column := table.unread(shape, cells):
        raise InputError(
            f"pairs file {name}: row {record.number} has a {column}, which changes what its responses answer and is "
            "not read; put it into prompt as a list of messages, or drop the column"
        )
    _check_scores(cells)
    pairs = shape.pairs(cells)
    pair_id = id_of(cells, number)
    shared = {
        "topic": label_of(cells.get("coarse_topic")) or label_of(cells.get("topic")),
        "subset": label_of(cells.get("subset")) or label_of(cells.get("source")),
        "item": pair_id if len(pairs) > 1 else None,
        **{column: _finished(name, record.number, column, cells.get(column)) for column in _FINISHED},
        **_gaps(cells),
        "weight": _weight(name, record.number, cells.get("weight")),
        "dialogue": (dialogue := dialogue_in(cells.get("dialogue"))),
    }
    return [
        {
            **pair,
            **shared,
            "pair_id": f"{pair_id}-{place}" if len(pairs) > 1 else pair_id,
            "split": _split(name, record.number, split, dialogue or _question(pair), dev_share),
        }
        for place, pair in enumerate(pairs, start=1)
    ]


def id_of(cells: Mapping[str, Any], number: int) -> str:
    """The id of a row's pair, by which messages and tables name it.

    Args:
        cells: of the row.
        number: of the row, or of the prompt in a grouped format; stands for an id that is missing or reads as a text.
    """
    for column in IDS:
        try:
            text = text_of(cells.get(column)).strip()
        except CellError:
            continue
        if is_id(text):
            return text
    return str(number)


def conversation(form: str, asked: str, prompt: dict[str, str]) -> Messages:
    """The conversation that a pair's responses continue.

    Args:
        form: of `asked`, as in COMPARISONS.
        asked: a client speech, a text, or messages as JSON.
        prompt: the respond prompt, which a speech is inserted into.
    """
    if form == "speech":
        return prompt_messages(prompt, asked)
    return json.loads(asked) if form == "messages" else [{"role": "user", "content": asked}]


def parted_by(form: str, asked: str) -> str:
    """The text whose hash decides the split and the half of a pair; of messages at a later turn, how they begin.

    Args:
        form: of `asked`, as in COMPARISONS.
        asked: a client speech, a text, or messages as JSON.
    """
    context = turns.of_messages(json.loads(asked)) if form == "messages" else None
    if context is None or not context.is_conversation:
        return asked
    return json.dumps([{"role": CLIENT, "content": begins(context)}])  # as the pair at the first turn has it


def _check_scores(row: Row) -> None:
    """Refuse a pair whose own scores do not prefer the chosen response."""
    for better, worse in _SCORES:
        chosen, rejected = number(row.get(better)), number(row.get(worse))
        if chosen is not None and rejected is not None and chosen <= rejected:
            relation = "equals" if chosen == rejected else "is below"
            raise UnusablePairError(f"{better} {relation} {worse}")


def _gaps(row: Row) -> Row:
    """Rating gaps, overall and by principle; empty unless both sides have all seven ratings."""
    gaps: dict[str, float] = {}
    for principle in PRINCIPLES:
        chosen, rejected = (number(row.get(f"{side}_{principle}_rating")) for side in ("chosen", "rejected"))
        if chosen is None or rejected is None:
            return {}
        gaps[f"{principle}_gap"] = chosen - rejected
    return {"gap": sum(gaps.values()) / len(gaps), **gaps}


def _finished(name: str, row: int, column: str, value: Any) -> bool | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool | int | str) and (truth := _TRUTH.get(str(value).strip().lower())) is not None:
        return truth
    raise InputError(f"pairs file {name}: row {row}: {column} is neither true, false nor empty; correct it")


def _weight(name: str, row: int, value: Any) -> float | None:
    if value is None or value == "":
        return None
    weight = None if isinstance(value, bool) else number(value)
    if weight is None or not _LEAST_WEIGHT <= weight <= 1:
        raise InputError(
            f"pairs file {name}: row {row}: weight is not a number above 0 and at most 1; correct it, leave it empty "
            "for 1, or rename the column if it means something else"
        )
    return weight


def _question(row: Row) -> str:
    """What a pair asks, without a system message: the same question under two of them is in one split."""
    if (text := parted_by(row["form"], row["asked"])) != row["asked"] or row["form"] != "messages":
        return text
    first, *later = json.loads(row["asked"])
    return json.dumps(later) if first["role"] == "system" and later else str(row["asked"])


def _in_one_split(table: pa.Table, dev_share: float) -> pa.Table:
    """Put a question under a system message into the split that it has without one in the same file."""
    rows = list(zip(*(table[name].to_pylist() for name in ("form", "asked", "split")), strict=True))
    alone = {text_hash("split", asked) for form, asked, _ in rows if form != "messages"}
    found = []
    for form, asked, split in rows:
        turns = json.loads(asked) if form == "messages" and alone else []
        if len(turns) == 2 and turns[0]["role"] == "system" and text_hash("split", turns[1]["content"]) in alone:
            split = "dev" if is_dev(turns[1]["content"], dev_share) else "train"
        found.append(split)
    return table.set_column(table.schema.get_field_index("split"), "split", pa.array(found, pa.string()))


def _split(name: str, row: int, split: Any, asked: str, dev_share: float) -> str:
    if split in (None, ""):
        return "dev" if is_dev(asked, dev_share) else "train"
    if not isinstance(split, str) or split not in SPLITS:
        raise InputError(
            f"pairs file {name}: row {row} has {described(split)} as its split; known are {', '.join(SPLITS)}"
        )
    return SPLITS[split]
