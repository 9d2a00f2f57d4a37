"""The client speeches and opponent responses of a policy evaluation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob, Speeches
from psyco_ray.data import speakers, topics
from psyco_ray.data.client_rows import COLUMNS, ClientFile, ClientRow, by_count
from psyco_ray.data.speaker_columns import Keys
from psyco_ray.data.speakers import UnknownSpeakerError
from psyco_ray.data.splits import conversation_of, dialogue_in, fold, speech_id, split_of
from psyco_ray.data.turns import dialogue_of
from psyco_ray.files.cells import CellError, described, label_of, text_of
from psyco_ray.files.records import open_records, read_rows
from psyco_ray.files.table import shown
from psyco_ray.run import reasoning, shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.types import Row
from psyco_ray.screening import crisis

_PLACE = ("dialogue", "turn")  # columns of a dataset with conversations
_SPEECH_COLUMNS = ("question", "speech", "text")

_log = logging.getLogger(__name__)


def check(job: PolicyEvaluationJob) -> None:
    """Look at the columns and the first rows of the speeches and the opponent's responses, before Ray starts.

    Raises:
        InputError: a file cannot be read or lacks a column.
    """
    _opened(job.speeches).check()
    if job.opponent.responses is not None:
        next(read_responses(job.opponent.responses), None)


def load_speeches(settings: Speeches, seed: int) -> list[Row]:
    """The speeches of an evaluation, ordered by id: `speech_id`, `speech`, those of `_place`, `topic` and `crisis`.

    `topic` is the coarse one, or None. `crisis` tells whether the speech
    shows signs of a crisis: by the column of that name, else by `crisis.signs`; None: the screen cannot read its
    language.

    Args:
        settings: file, split, topics and limit.
        seed: of the sample, if there is a limit.

    Raises:
        InputError: a file or its columns are invalid, or the split has no speech.
    """
    source = f"speeches file {settings.file}"
    file = _opened(settings)
    coarse = topics.coarse_of()
    speeches: dict[str, Row] = {}
    seen: set[str] = set()  # a file of pairs repeats its speeches
    splits, left_out = Counter[str](), Counter[str]()
    for row in file.rows(["crisis", *_PLACE]):
        if row.text is None:
            left_out["outside speeches.where" if row.skipped else row.problem or f"with an empty {file.column}"] += 1
            continue
        try:
            split = split_of({"split": row.split}, row.begins or row.text, settings.dev_share)
        except InputError as error:
            raise InputError(f"{source}: row {row.number}: {error}") from None
        key = speech_id(row.text)
        if key in seen:
            continue
        seen.add(key)
        splits[split] += 1
        if settings.split in ("all", split):
            speeches[key] = {
                "speech_id": key,
                "speech": row.text,
                **_place(row, row.text),
                "topic": coarse.get(row.topic or "") or label_of(row.topic),
                "crisis": _has_signs(row.more["crisis"], row.text, f"{source}: row {row.number}"),
            }
    if left_out:
        _log.warning(f"{source}: left out {by_count(left_out)}")
    if not speeches:
        known = ", ".join(f"{split}: {count}" for split, count in sorted(splits.items()))
        reasons = f" (left out: {by_count(left_out)})" if left_out else ""
        raise InputError(
            f"{source} has no speech of the split {settings.split} (it has {known or 'none'}){reasons}; choose another "
            "speeches.split"
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
    source = f"responses file {file}"
    conversations = any(Context.of(row["speech"]).is_conversation for row in speeches)
    responses: dict[str, str] = {}
    for number, speech, response in read_responses(file, conversations):
        key = speech_id(speech)
        if fold(responses.setdefault(key, response)) != fold(response):
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


def _opened(settings: Speeches) -> ClientFile:
    columns = [settings.speech_column] if settings.speech_column else COLUMNS
    keys = Keys("speeches.speech_column", "speeches.where", "speeches.dialogue")
    return ClientFile(settings.file, "speeches", columns, keys, settings, topic=("coarse_topic", "topic"))


def read_responses(file: str, conversations: bool = False) -> Iterator[tuple[int, str, str]]:
    """The rows of a file of responses, without reasoning.

    Args:
        file: of any kind that `files.records` reads, with the columns `response` and `question`, `speech` or `text`.
        conversations: whether a list of messages or a whole conversation is the context that is answered, up to the
            client's last turn. Otherwise its first turn is the speech.

    Yields:
        Number of the row, speech or context, and response.

    Raises:
        InputError: the file or a column is invalid, or a row lacks a text.
    """
    records = open_records(file, "responses")
    column = records.column(COLUMNS if conversations else _SPEECH_COLUMNS, "the first row")
    records.column(["response"], "the first row")
    for number, cells, problem in records.read([column, "response"]):
        if cells is None:
            reason = f"cannot be read: {problem}"
        else:
            try:
                speech = _asked(cells.get(column), conversations)
                response = reasoning.split(text_of(cells.get("response")))[1].strip()
            except (CellError, UnknownSpeakerError) as error:
                reason = f"has {error} instead of a text"
            else:
                if speech and response:
                    yield number, speech, response
                    continue
                reason = f"has an empty {'response' if speech else column}"
        raise InputError(f"responses file {file}: row {number} {reason}; fill it in or remove the row")


def _asked(cell: Any, conversations: bool) -> str:
    """The speech or context in a cell, as in a file of speeches.

    Raises:
        CellError, UnknownSpeakerError: there is none.
    """
    if isinstance(cell, list | dict):
        return _context(speakers.turns(cell)) if conversations else text_of(speakers.first_turn(cell)).strip()
    text = text_of(cell)
    if (stored := Context.stored(text)) is not None:
        return stored.text
    if conversations:
        return _context(speakers.conversation(text))
    return speakers.client_words(text).strip() if text.strip() else ""


def _context(said: Iterable[tuple[str, str]]) -> str:
    dialogue = dialogue_of((role, text_of(words)) for role, words in said)
    return "" if dialogue is None else dialogue.text


def _place(row: ClientRow, text: str) -> Row:
    """Where a context is in its conversation, of which a limit may have left the beginning out.

    Returns:
        `opening`: the client's first turn; in a dataset that does not have it, the context's first one. `conversation`:
        the id of the conversation. `turn`: the number of the client's turn that is answered.
    """
    context = Context.of(text)
    opening, turn = row.opening or context.opening, row.turn or context.turn
    dialogue = dialogue_in(row.more["dialogue"]) if row.opening is None else None  # as `data build` writes it
    if dialogue is not None and isinstance(row.more["turn"], int):
        turn = row.more["turn"]
    return {"opening": opening, "conversation": conversation_of(row.begins or text, dialogue), "turn": turn}


def _has_signs(signs: Any, text: str, where: str) -> bool | None:
    """Whether a speech shows signs of a crisis; None: not screened. Without a list of signs, it is screened here."""
    if signs in (None, ""):
        found = crisis.signs(text)
        return None if found is None else bool(found)
    if not isinstance(signs, list | bool):
        raise InputError(
            f"{where}: crisis is {described(signs)}, not a list of signs or null; remove the column or correct it"
        )
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
    return {row["speech_id"]: label_of(row["coarse_topic"]) for row in rows}


def _column(columns: list[str], names: tuple[str, ...], source: str) -> str:
    """The first of the names that is a column."""
    for name in names:
        if name in columns:
            return name
    raise InputError(f"{source} has no column {' or '.join(names)}; it has {shown(columns) or 'none'}")
