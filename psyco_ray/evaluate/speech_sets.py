"""The client speeches and opponent responses of a policy evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_policy import Speeches
from psyco_ray.run.types import Row

_SPEECH_COLUMNS = ("question", "speech", "text")


_RESPONSE_COLUMN = "response"


def load_speeches(wanted: Speeches, seed: int) -> list[Row]:
    """The speeches to be answered, ordered by id: `speech_id`, `speech` and `topic` (the coarse one, or None).

    Raises:
        InputError: a file or its columns do not do, or no speech is of the wanted split.
    """
    from psyco_ray.data import topics
    from psyco_ray.data.splits import speech_id, split_of
    from psyco_ray.data.tables import read_table
    from psyco_ray.run.hashing import key_of

    table = read_table(wanted.file, "speeches")
    column = _column(table.column_names, _SPEECH_COLUMNS, f"speeches file {wanted.file}")
    kept = [name for name in (column, "split", "topic", "coarse_topic") if name in table.column_names]
    coarse = topics.coarse_of()
    found: dict[str, Row] = {}
    splits: dict[str, int] = {}
    for number, row in enumerate(table.select(kept).to_pylist(), start=1):
        text = _text(row[column], f"{wanted.file}: row {number} has an empty {column}")
        try:
            split = split_of(row, text, wanted.dev_share)
        except ValueError as error:
            raise InputError(f"speeches file {wanted.file}: row {number}: {error}") from None
        key = speech_id(text)
        if key in found:
            continue
        splits[split] = splits.get(split, 0) + 1
        if wanted.split in ("all", split):
            fine, topic = (str(row.get(name) or "") for name in ("topic", "coarse_topic"))
            found[key] = {"speech_id": key, "speech": text, "topic": topic or coarse.get(fine, fine) or None}
    if not found:
        known = ", ".join(f"{split}: {count}" for split, count in sorted(splits.items()))
        raise InputError(
            f"speeches file {wanted.file} has no speech of the split {wanted.split} (it has {known}); choose another "
            "speeches.split"
        )
    if wanted.topics is not None:
        named = _topics(wanted.topics)
        found = {key: {**row, "topic": named.get(key)} for key, row in found.items()}
    drawn = sorted(found, key=lambda key: key_of(seed, "draw", key))[: wanted.limit]
    return [found[key] for key in sorted(drawn)]


def load_responses(file: str, speeches: Sequence[Row]) -> dict[str, str]:
    """The opponent's responses out of a file, by speech id.

    Raises:
        InputError: the file or its columns do not do, a speech has no response, or two different ones.
    """
    from psyco_ray.data.splits import fold, speech_id
    from psyco_ray.data.tables import read_table

    table = read_table(file, "responses")
    where = f"responses file {file}"
    column = _column(table.column_names, _SPEECH_COLUMNS, where)
    _column(table.column_names, (_RESPONSE_COLUMN,), where)
    found: dict[str, str] = {}
    for number, row in enumerate(table.select([column, _RESPONSE_COLUMN]).to_pylist(), start=1):
        key = speech_id(_text(row[column], f"{where}: row {number} has an empty {column}"))
        text = _text(row[_RESPONSE_COLUMN], f"{where}: row {number} has an empty {_RESPONSE_COLUMN}")
        if fold(found.setdefault(key, text)) != fold(text):
            raise InputError(
                f"{where}: row {number} answers a speech that an earlier row answers otherwise; keep one of the two"
            )
    missing = [row["speech_id"] for row in speeches if row["speech_id"] not in found]
    if missing:
        raise InputError(
            f"{where} has no response to {len(missing)} of the {len(speeches)} speeches, the first of them by its id "
            f"{missing[0]}; add them, or name an endpoint or a model that answers"
        )
    return {row["speech_id"]: found[row["speech_id"]] for row in speeches}


def _topics(where: str) -> Mapping[str, str | None]:
    """Coarse topics by speech id, out of a file or the parts of a directory."""
    from psyco_ray.data.tables import read_table
    from psyco_ray.run import shards

    directory = Path(where)
    if directory.is_dir():  # which holds other files too, where a data job wrote it
        rows = [row for part in shards.list_shards(directory) for row in shards.read(directory, part)]
    else:
        rows = read_table(where, "topics").to_pylist()
    columns = list(rows[0]) if rows else []
    for name in ("speech_id", "coarse_topic"):
        _column(columns, (name,), f"topics file {where}")
    return {row["speech_id"]: row["coarse_topic"] for row in rows}


def _column(columns: list[str], wanted: tuple[str, ...], where: str) -> str:
    for name in wanted:
        if name in columns:
            return name
    raise InputError(f"{where} has no column {' or '.join(wanted)}; it has {', '.join(columns) or 'none'}")


def _text(given: Any, otherwise: str) -> str:
    if given is None or not str(given).strip():
        raise InputError(f"{otherwise}; fill it in or remove the row")
    return str(given).strip()
