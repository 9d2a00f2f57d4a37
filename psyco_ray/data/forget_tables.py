"""The rows about a client in Parquet files, which are read in parts."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psyco_ray.config.contexts import Context
from psyco_ray.data import turns
from psyco_ray.data.splits import dialogue_in
from psyco_ray.data.traces import SURELY_OWN, Traces
from psyco_ray.run import storage
from psyco_ray.run.records import ParquetReading
from psyco_ray.screening.personal_data import scrub

_KEYS = ("pair", "pair_id", "dialogue")  # columns by which other tables name a row, or rows each other
_ASKED = ("speech", "question", "asked")  # columns of contexts
_ROWS = 4096  # that are read together
_BUFFER = 2**20  # bytes of a column that are read together


def parts(path: Path) -> Iterator[pa.Table]:
    """The rows of a Parquet file in their order, in bounded memory.

    Raises:
        InputError: the file is damaged.
    """
    with ParquetReading(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
        for batch in file.iter_batches(batch_size=_ROWS):
            yield pa.Table.from_batches([batch], file.schema_arrow)


def holds(path: Path, traces: Traces) -> bool:
    """Whether a row of a Parquet file is about the client.

    Raises:
        InputError: the file is damaged.
    """
    return any(about(table, traces)[1] for table in parts(path))


def learn(path: Path, traces: Traces) -> None:
    """Add the client's words, found by the id, and the keys of rows about them.

    Raises:
        InputError: the file is damaged.
    """
    with ParquetReading(path):
        names = set(pq.read_schema(path).names)
    if not names & {*_KEYS, *_ASKED}:
        return
    for table in parts(path):
        for row in about(table, traces)[1]:
            _learn_row(row, traces)


def _learn_row(row: dict[str, Any], traces: Traces) -> None:
    """Add what a row about the client tells; of one with no more than an opening, the ids of its pairs."""
    keys = {key: row[key] for key in _KEYS if re.fullmatch("[0-9a-f]{12,}", str(row.get(key)))}
    if not traces.surely_within(list(row.values())):
        traces.add_ids([value for key, value in keys.items() if key != "dialogue"], shared=True)
        return
    is_known = dialogue_in(row.get("dialogue")) is not None
    asked = _contexts(row)
    for context in asked:
        if _is_theirs(row, context, traces):
            traces.add_context(context.text, shared=is_known)
            traces.add_context(context.map(lambda turn: scrub(turn).text).text, shared=is_known)  # as APIs got it
    if row.get("dialogue") in traces.ids and row.get("speech_id"):
        traces.add_ids([row["speech_id"]], shared=not any(context.is_conversation for context in asked))
    traces.add_ids(keys.values())


def _contexts(row: dict[str, Any]) -> list[Context]:
    """What a row asks, also as messages."""
    found = [Context.of(row[name]) for name in _ASKED if isinstance(row.get(name), str)]
    if row.get("form") == "messages":
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a column of that name in another table
            found += filter(None, [turns.of_messages(json.loads(row["asked"]))])
    return found


def _is_theirs(row: dict[str, Any], asked: Context, traces: Traces) -> bool:
    """Whether the context of a row is the client's: by its id, or as a conversation with their words."""
    if row.get("speech_id") in traces.ids or row.get("dialogue") in traces.ids:
        return True
    return asked.is_conversation and traces.surely_within(asked.text)


def remove(path: Path, traces: Traces, said: Traces) -> int:
    """Remove the client's rows from a Parquet file; returns their number.

    Args:
        path: the file.
        traces: of the client.
        said: receives the other texts of the rows, such as what models said to the client.

    Raises:
        InputError: the file is damaged or cannot be written.
    """
    stay: list[np.ndarray] = []
    gone = 0
    for table in parts(path):
        stays, rows = about(table, traces)
        stay.append(stays)
        gone += len(rows)
        for value in (value for row in rows for value in row.values()):
            _add_texts(value, said)
    if gone:
        with storage.atomic_file(path) as file, pq.ParquetWriter(file, pq.read_schema(path)) as writer:
            for table, stays in zip(parts(path), stay, strict=True):
                writer.write_table(table.filter(pa.array(stays, pa.bool_())))
    return gone


def about(table: pa.Table, traces: Traces) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """For each row, whether it stays; and the rows that do not."""
    texts = [name for name in table.column_names if _may_hold_text(table.schema.field(name).type)]
    likely = np.zeros(len(table), bool)
    for name in texts:
        likely |= _likely(table[name], traces)
    stays, about = ~np.zeros(len(table), bool), list[dict[str, Any]]()
    for number in np.flatnonzero(likely):
        row = table.select(texts).slice(number, 1).to_pylist()[0]
        if traces.within(list(row.values())) and not _is_anothers(row, traces):
            stays[number] = False
            about.append(row)
    return stays, about


def _is_anothers(row: dict[str, Any], traces: Traces) -> bool:
    """Whether a row that holds a trace is about another client."""
    if "reply" in row:  # of a dialogue with a simulated client, which begins with somebody's own words
        return False
    return traces.is_of_another(row.get("dialogue"), _contexts(row), list(row.values()))


def _add_texts(value: Any, said: Traces) -> None:
    """Add what a cell says, such as the responses, which reports show: a text, the turns of a context, or a list."""
    if isinstance(value, list):
        for inner in value:
            _add_texts(inner, said)
    elif isinstance(value, str) and (context := Context.of(value)).is_conversation:
        said.add_turns(context)
    elif isinstance(value, str) and len(value) >= SURELY_OWN:
        said.add_text(value)


def _likely(column: pa.ChunkedArray | pa.Array, traces: Traces) -> np.ndarray:
    """Which values may hold a trace: they have an id or a long word of a text."""
    kind, likely = column.type, np.zeros(len(column), bool)
    if pa.types.is_primitive(kind):
        return likely
    if pa.types.is_list(kind):
        lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        inside = _likely(pc.list_flatten(lists), traces)
        likely[np.asarray(pc.list_parent_indices(lists))[inside]] = True
        return likely
    if pa.types.is_struct(kind):
        for place in range(kind.num_fields):
            likely |= _likely(pc.struct_field(column, [place]), traces)
        return likely
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return ~likely
    for key in traces.ids:
        likely |= np.asarray(pc.match_substring(column, key).fill_null(False))
    for word in set(traces.needles.values()):
        likely |= np.asarray(pc.match_substring(column, word.decode(), ignore_case=True).fill_null(False))
    return likely


def _may_hold_text(kind: pa.DataType) -> bool:
    while pa.types.is_list(kind):
        kind = kind.value_type
    return not pa.types.is_primitive(kind)
