"""Columns that name who wrote each row of a table."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.data import speakers
from psyco_ray.data.roles import is_role, role_of
from psyco_ray.files.cells import CellError, text_of
from psyco_ray.files.records import RecordFile

_PROBE = 1000  # rows in which speakers are looked for
MOST_SPEAKERS = 20
"""Different values in a column of speakers; more are names of people who post."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keys:
    """What a job calls the settings of a file, for messages."""

    text: str  # the column of the client's words
    where: str
    dialogue: str


def columns_of(file: RecordFile, texts: Collection[str]) -> list[str]:
    """The columns that name speakers, but for columns of the client's words."""
    return [name for name in file.columns if name.strip().casefold() in speakers.ROLE_KEYS and name not in texts]


def column_of_authors(file: RecordFile, columns: Sequence[str], keys: Keys, contexts: bool) -> str | None:
    """The first of the columns, if every row may be the client's; None: there is no column.

    Raises:
        InputError: a column names speakers.
    """
    for name, found in _values(file, columns).items():
        roles = [role_of(value) for value in found]
        if set(roles) <= {"user"}:
            continue
        if len(found) > MOST_SPEAKERS and roles.count(None) > len(found) / 2:
            _log.info(f"{_name(file)}: {name} has {len(found)} values or more and is taken for names of authors")
            continue
        clients = (value for value in found if role_of(value) == "user" and is_role(value))
        client = next(clients, "the client's name in it")
        more = f", and the column with the id of each dialogue with {keys.dialogue}" if contexts else ""
        raise InputError(
            f"{_name(file)}: the column {name} names who speaks ({speakers.listed(found)}); say which rows are the "
            f"client's with {keys.where}: {{{name}: {client}}}{more}"
        )
    return columns[0] if columns else None


def check_dialogues(file: RecordFile, where: Mapping[str, Collection[str]], columns: Sequence[str], keys: Keys) -> None:
    """Check that no row is a turn of the therapist, as conversations are in several rows then.

    Args:
        file: whose rows are read one by one.
        where: the folded values of the client's rows, by column.
        columns: that name speakers.
        keys: of the job.

    Raises:
        InputError: a row is.
    """
    for name, found in _values(file, [name for name in columns if name in where]).items():
        if any(role_of(value) == "assistant" and folded(value) not in where[name] for value in found):
            raise InputError(
                f"{_name(file)}: {name} names the speaker of each row ({speakers.listed(found)}), so a conversation is "
                f"in several rows; name the column with the id of each dialogue with {keys.dialogue}"
            )


def role_in(cells: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """The role of who wrote a row, by the first of the columns that tells."""
    return next(filter(None, (role_of(plain(cells.get(name))) for name in columns)), None)


def plain(value: Any) -> str | None:
    """A cell as text without white space around it; None: it is blank or not text."""
    if value is None:
        return None
    try:
        return (str(value).lower() if isinstance(value, bool) else text_of(value)).strip() or None
    except CellError:
        return None


def folded(value: str) -> str:
    """A value of `where`, whose case does not matter."""
    return value.strip().casefold()


def _values(file: RecordFile, columns: Sequence[str]) -> dict[str, dict[str, None]]:
    """The values of columns in the first rows, in their order."""
    values: dict[str, dict[str, None]] = {name: {} for name in columns}
    for record in islice(file.read(columns), _PROBE) if columns else ():
        for name in columns:
            if record.cells is not None and (value := plain(record.cells.get(name))):
                values[name][value] = None
    return values


def _name(file: RecordFile) -> str:
    return f"{file.what} file {file.path}"
