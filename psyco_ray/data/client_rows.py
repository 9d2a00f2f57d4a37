"""The client's words in each row of a file: the one way in which every command reads speeches."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from psyco_ray.config.errors import InputError
from psyco_ray.config.reading import Reading
from psyco_ray.data import speakers
from psyco_ray.data.roles import role_of
from psyco_ray.files import records
from psyco_ray.files.cells import CellError, kind_of, text_of

_PROBE = 1000  # rows in which speakers are looked for
MOST_SPEAKERS = 20
"""Different values in a column of speakers; more are names of people who post."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keys:
    """What a job calls the settings of a file, for messages."""

    text: str  # the column of the client's words
    where: str


class ClientRow(NamedTuple):
    """A row of a file.

    Attributes:
        number: from 1.
        text: the client's words, uncleaned; None: the row has none, or `problem` or `skipped` says why they are not
            read.
        topic: the row's own topic.
        split: the row's `split`, as text.
        problem: why the row cannot be read, without its content.
        skipped: whether the job's `where` or `dialogue` leaves the row out.
        more: other cells that the caller asked for, as the file has them.
    """

    number: int
    text: str | None = None
    topic: str | None = None
    split: str | None = None
    problem: str | None = None
    skipped: bool = False
    more: Mapping[str, Any] = _NOTHING


class ClientFile:
    """A file whose rows hold a client's words.

    Example:
        >>> file = ClientFile("notes.csv", "speeches", ["text"], Keys("data.speech_column", "data.where"), Reading())
        >>> texts = [row.text for row in file.rows() if row.text]
    """

    def __init__(
        self,
        name: str | Path,
        what: str,
        columns: Sequence[str],
        keys: Keys,
        reading: Reading,
        topic: Sequence[str] = ("topic",),
        openings: Sequence[str] = (),
    ) -> None:
        """Open the file and look at its columns and first rows.

        Args:
            name: the path, or `sample`.
            what: the kind of file, for messages.
            columns: accepted columns of the client's words; the first non-empty one of a row is read.
            keys: of the job.
            reading: which rows are the client's.
            topic: accepted columns of the topic.
            openings: patterns of other text at the beginning, such as an instruction to a model.

        Raises:
            InputError: the file cannot be read, has none of the columns, or names speakers that `where` does not
                choose among.
        """
        self.file = records.open_records(name, what, reading.encoding)
        self.column = self.file.column(columns, keys.text)
        self._columns, self._topic = columns, topic
        for column in (*reading.where, *filter(None, [reading.dialogue])):
            self.file.column([column], keys.where)
        self._reading, self._keys = reading, keys
        self._where = {column: {_folded(value) for value in values} for column, values in reading.where.items()}
        self._strip = [re.compile(pattern) for pattern in reading.strip]
        self._openings = [re.compile(rf"\s*{pattern}", re.IGNORECASE | re.DOTALL) for pattern in openings]
        self._speaker = self._speaker_column()

    def check(self) -> None:
        """Look for a row that `where` names.

        Raises:
            InputError: there is none.
        """
        if not self._where:
            return
        values: dict[str, Counter[str]] = {column: Counter() for column in self._where}
        for record in self.file.read(list(self._where)):
            if record.cells is not None and self.chosen(record.cells):
                return
            for column, found in values.items():
                if record.cells is not None and len(found) <= MOST_SPEAKERS:
                    found[_plain(record.cells.get(column)) or ""] += 1
        have = "; ".join(f"{column} is {speakers.listed(found)}" for column, found in values.items())
        raise InputError(f"{self._name}: no row is chosen by {self._keys.where}; {have}")

    def rows(self, columns: Sequence[str] = ()) -> Iterator[ClientRow]:
        """All rows of the file, in their order.

        Args:
            columns: whose cells `more` of a row holds.

        Raises:
            InputError: the file is damaged; the rows before the damage are yielded.
        """
        more = [*self._where, self._reading.dialogue, self._speaker, "split", *self._topic, *columns]
        heard: set[str] = set()  # dialogues whose first turn was read
        by = self._reading.dialogue
        for record in self.file.read([*self._columns, *filter(None, more)]):
            dialogue = _plain((record.cells or {}).get(by)) if by else None
            row = ClientRow(record.number, skipped=True) if dialogue in heard else self.row(record, columns)
            if dialogue is not None and row.text:
                heard.add(dialogue)
            yield row

    def row(self, record: records.Record, columns: Sequence[str] = ()) -> ClientRow:
        """A record of the file as `rows` yields it, if no other row of its dialogue was read before."""
        cells = record.cells
        if cells is None:
            return ClientRow(record.number, problem=record.problem)
        if self._where and not self.chosen(cells):
            return ClientRow(record.number, skipped=True)
        try:
            text = self._text(cells)
        except speakers.UnknownSpeakerError as error:
            return ClientRow(record.number, problem=str(error))
        others = {name: cells.get(name) for name in columns} if columns else _NOTHING
        return ClientRow(record.number, text, self._topic_of(cells), _plain(cells.get("split")), more=others)

    @property
    def _name(self) -> str:
        return f"{self.file.what} file {self.file.path}"

    def _speaker_column(self) -> str | None:
        """A column that names who wrote each row, if every row may be the client's.

        Raises:
            InputError: it names speakers, and `where` does not choose among them.
        """
        columns = [name for name in self.file.columns if name.strip().casefold() in speakers.ROLE_KEYS]
        columns = [name for name in columns if name not in self._columns]
        if not columns or any(name in self._where for name in columns):
            return None
        values: dict[str, dict[str, None]] = {name: {} for name in columns}
        for record in islice(self.file.read(columns), _PROBE):
            for name in columns:
                if record.cells is not None and (value := _plain(record.cells.get(name))):
                    values[name][value] = None
        for name, found in values.items():
            roles = [role_of(value) for value in found]
            if set(roles) <= {"user"}:
                continue
            if len(found) > MOST_SPEAKERS and roles.count(None) > len(found) / 2:
                _log.info(f"{self._name}: {name} has {len(found)} values or more and is taken for names of authors")
                continue
            client = next((value for value in found if role_of(value) == "user"), "the client's name in it")
            raise InputError(
                f"{self._name}: the column {name} names who speaks ({speakers.listed(found)}); say which rows are the "
                f"client's with {self._keys.where}: {{{name}: {client}}}"
            )
        return columns[0]

    def chosen(self, cells: Mapping[str, Any]) -> bool:
        """Whether `where` chooses a row."""
        return all(_folded(_plain(cells.get(column)) or "") in values for column, values in self._where.items())

    def _text(self, cells: Mapping[str, Any]) -> str | None:
        """The client's words; None if every column is empty.

        Raises:
            UnknownSpeakerError: they cannot be told.
        """
        if self._speaker and role_of(_plain(cells.get(self._speaker))) in ("assistant", "system"):
            raise speakers.UnknownSpeakerError(f"{self._speaker} names another speaker than the client")
        for column in self._columns:
            if text := self._words(cells.get(column), column):
                return text
        return None

    def _words(self, value: Any, column: str) -> str:
        try:
            if value is None or isinstance(value, str | bytes):
                text = text_of(value)
            elif isinstance(value, list | dict):
                text = text_of(speakers.first_turn(value))
            else:
                raise CellError(kind_of(value))
        except CellError as error:
            raise speakers.UnknownSpeakerError(f"{column} is {error}, not text") from None
        except speakers.UnknownSpeakerError as error:
            raise speakers.UnknownSpeakerError(f"{column} is {error}") from None
        for pattern in self._strip:
            text = pattern.sub("", text)
        if text and not isinstance(value, list | dict) and not text.isspace():
            try:
                text = speakers.client_words(text)
            except speakers.UnknownSpeakerError as error:
                raise speakers.UnknownSpeakerError(f"{column} is {error}") from None
        for pattern in self._openings:
            if match := pattern.match(text):
                text = text[match.end() :]
        return text.strip()

    def _topic_of(self, cells: Mapping[str, Any]) -> str | None:
        for column in self._topic:
            value = cells.get(column)
            if isinstance(value, list):
                value = "; ".join(part for part in value if isinstance(part, str))
            if topic := _plain(value):
                return topic
        return None


def by_count(reasons: Mapping[str, int]) -> str:
    """Numbers of rows by reason, the commonest first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered)


def _plain(value: Any) -> str | None:
    """A cell as text without white space around it; None: it is blank or not text."""
    if value is None:
        return None
    try:
        return (str(value).lower() if isinstance(value, bool) else text_of(value)).strip() or None
    except CellError:
        return None


def _folded(value: str) -> str:
    return value.strip().casefold()
