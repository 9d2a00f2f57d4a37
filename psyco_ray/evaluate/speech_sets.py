"""The client speeches and opponent responses of a policy evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_policy import Speeches
from psyco_ray.data import crisis, topics
from psyco_ray.data.splits import fold, speech_id, split_of
from psyco_ray.data.tables import read_table
from psyco_ray.files.records import read_rows
from psyco_ray.run import reasoning, shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.types import Row

_SPEECH_COLUMNS = ("question", "speech", "text")


def load_speeches(settings: Speeches, seed: int) -> list[Row]:
    """The speeches of an evaluation, ordered by id: `speech_id`, `speech`, `topic` and `crisis`.

    `topic` is the coarse one, or None. `crisis` tells whether the speech shows signs of a crisis: by the column of that
    name, else by `crisis.signs`.

    Args:
        settings: file, split, topics and limit.
        seed: of the sample, if there is a limit.

    Raises:
        InputError: a file or its columns are invalid, or the split has no speech.
    """
    table = read_table(settings.file, "speeches")
    column = _column(table.column_names, _SPEECH_COLUMNS, f"speeches file {settings.file}")
    columns = [name for name in (column, "split", "topic", "coarse_topic", "crisis") if name in table.column_names]
    coarse = topics.coarse_of()
    speeches: dict[str, Row] = {}
    seen: set[str] = set()  # a file of pairs repeats its speeches
    splits: dict[str, int] = {}
    for number, row in enumerate(table.select(columns).to_pylist(), start=1):
        text = _text(row[column], f"{settings.file}: row {number} has an empty {column}")
        try:
            split = split_of(row, text, settings.dev_share)
        except InputError as error:
            raise InputError(f"speeches file {settings.file}: row {number}: {error}") from None
        key = speech_id(text)
        if key in seen:
            continue
        seen.add(key)
        splits[split] = splits.get(split, 0) + 1
        if settings.split in ("all", split):
            fine, topic = (str(row.get(name) or "") for name in ("topic", "coarse_topic"))
            speeches[key] = {
                "speech_id": key,
                "speech": text,
                "topic": topic or coarse.get(fine, fine) or None,
                "crisis": _has_signs(row.get("crisis"), text, f"speeches file {settings.file}: row {number}"),
            }
    if not speeches:
        known = ", ".join(f"{split}: {count}" for split, count in sorted(splits.items()))
        raise InputError(
            f"speeches file {settings.file} has no speech of the split {settings.split} (it has {known}); choose "
            "another speeches.split"
        )
    if settings.topics is not None:
        by_speech = _load_topics(settings.topics)
        speeches = {key: {**row, "topic": by_speech.get(key)} for key, row in speeches.items()}
    sample = sorted(speeches, key=lambda key: key_of(seed, "draw", key))[: settings.limit]
    return [speeches[key] for key in sorted(sample)]


def load_responses(file: str, speeches: Sequence[Row]) -> dict[str, str]:
    """The opponent's responses in a file, by speech id.

    Raises:
        InputError: the file or its columns are invalid, or a speech has no response or two different ones.
    """
    table = read_table(file, "responses")
    source = f"responses file {file}"
    column = _column(table.column_names, _SPEECH_COLUMNS, source)
    _column(table.column_names, ("response",), source)
    responses: dict[str, str] = {}
    for number, row in enumerate(table.select([column, "response"]).to_pylist(), start=1):
        key = speech_id(_text(row[column], f"{source}: row {number} has an empty {column}"))
        text = _text(reasoning.split(row["response"] or "")[1], f"{source}: row {number} has an empty response")
        if fold(responses.setdefault(key, text)) != fold(text):
            raise InputError(
                f"{source}: row {number} answers a speech that an earlier row answers otherwise; keep one of the two"
            )
    missing = [row["speech_id"] for row in speeches if row["speech_id"] not in responses]
    if missing:
        raise InputError(
            f"{source} has no response to {len(missing)} of the {len(speeches)} speeches, the first of them by its id "
            f"{missing[0]}; add them, or name an endpoint or a model that answers"
        )
    return {row["speech_id"]: responses[row["speech_id"]] for row in speeches}


def _has_signs(signs: Any, text: str, where: str) -> bool:
    """Whether a speech shows signs of a crisis; None, as in a file without the column: it is screened here."""
    if signs is None:
        return bool(crisis.signs(text))
    if not isinstance(signs, list | bool):
        raise InputError(f"{where}: crisis is {signs!r}, not a list of signs or null; remove the column or correct it")
    return bool(signs)


def _load_topics(source: str) -> Mapping[str, str | None]:
    """Coarse topics by speech id, from a file or the shards of a directory."""
    directory = Path(source)
    if directory.is_dir():  # which holds other files too if a data job wrote it
        rows = [row for part in shards.list_shards(directory) for row in shards.read(directory, part)]
    else:
        rows = read_rows(source, "topics")
    columns = list(rows[0]) if rows else []
    for name in ("speech_id", "coarse_topic"):
        _column(columns, (name,), f"topics file {source}")
    return {row["speech_id"]: row["coarse_topic"] for row in rows}


def _column(columns: list[str], names: tuple[str, ...], source: str) -> str:
    """The first of the names that is a column."""
    for name in names:
        if name in columns:
            return name
    raise InputError(f"{source} has no column {' or '.join(names)}; it has {', '.join(columns) or 'none'}")


def _text(cell: Any, complaint: str) -> str:
    if cell is None or not str(cell).strip():
        raise InputError(f"{complaint}; fill it in or remove the row")
    return str(cell).strip()
