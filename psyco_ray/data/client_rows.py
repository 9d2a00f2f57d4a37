"""The client's words in each row of a file: the one way in which every command reads speeches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from psyco_ray.config.contexts import CLIENT, THERAPIST, Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.reading import Reading
from psyco_ray.data import speaker_columns, speakers, splits, turns
from psyco_ray.data.client_cells import CellReader, ClientText
from psyco_ray.data.roles import role_of
from psyco_ray.data.speaker_columns import MOST_SPEAKERS, Keys, folded, plain
from psyco_ray.files import records

COLUMNS = ("question", "speech", "text", *speakers.LIST_KEYS)
"""Columns of a speech or a conversation that commands know."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class ClientRow(NamedTuple):
    """A speech or a context of a file.

    Attributes:
        number: of the row, from 1; of a dialogue over several rows, of the client's first one.
        text: the speech or the context, uncleaned; None: the row has none, or `problem` or `skipped` says why they are
            not read.
        topic: the row's own topic.
        split: the row's `split`, as text.
        problem: why the row cannot be read, without its content.
        skipped: whether the job's `where` or `dialogue` leaves the row out.
        more: other cells that the caller asked for, as the file has them.
        dialogue: whether `text` is a whole dialogue, of which contexts are to be made.
        opening: the client's first turn in the dialogue that the context is a part of; None: it is the context's own.
        begins: how the client begins that dialogue, which decides its split; None: as the context does.
        turn: of the client in that dialogue, which the context ends with; None: as many as the context has.
    """

    number: int
    text: str | None = None
    topic: str | None = None
    split: str | None = None
    problem: str | None = None
    skipped: bool = False
    more: Mapping[str, Any] = _NOTHING
    dialogue: bool = False
    opening: str | None = None
    begins: str | None = None
    turn: int | None = None


class ClientFile:
    """A file whose rows hold a client's words.

    Attributes:
        file: as it is.
        column: the first of the columns of the client's words.
        seen: number of the last row that was read.

    Example:
        >>> keys = Keys("data.speech_column", "data.where", "data.dialogue")
        >>> file = ClientFile("notes.csv", "speeches", ["text"], keys, Reading())
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
            columns: accepted columns of the client's words; the first non-empty one of a row is read. Names of lists
                of messages at the end count if the file has none of the others.
            keys: of the job.
            reading: which rows are the client's.
            topic: accepted columns of the topic.
            openings: patterns of other text at the beginning, such as an instruction to a model.

        Raises:
            InputError: the file cannot be read, has none of the columns, or names speakers that `where` does not
                choose among, or whose dialogues nothing tells apart.
        """
        self.file = records.open_records(name, what, reading.encoding)
        self._columns = self._of_file(columns)
        self.column = self.file.column(self._columns, keys.text)
        self._topic, self.seen = topic, 0
        for column in (*reading.where, *filter(None, [reading.dialogue])):
            self.file.column([column], keys.where)
        self._reading, self._keys = reading, keys
        self._contexts = reading.conversations == "contexts"
        self._where = {column: {folded(value) for value in values} for column, values in reading.where.items()}
        self._cells = CellReader(reading, openings)
        self._speakers = speaker_columns.columns_of(self.file, self._columns)
        self._speakers.sort(key=lambda name: name not in self._where)  # the job's own column knows best
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
                    found[plain(record.cells.get(column)) or ""] += 1
        have = "; ".join(f"{column} is {speakers.listed(found)}" for column, found in values.items())
        raise InputError(f"{self._name}: no row is chosen by {self._keys.where}; {have}")

    def rows(self, columns: Sequence[str] = ()) -> Iterator[ClientRow]:
        """All rows of the file, in their order; with `conversations: contexts` a row at each of the client's turns.

        Args:
            columns: whose cells `more` of a row holds.

        Raises:
            InputError: the file is damaged; the rows before the damage are yielded.
        """
        for row in self.dialogues(columns):
            if row.text is None or not row.dialogue:
                yield row
                continue
            dialogue = Context.of(row.text)
            contexts = turns.contexts(dialogue, self._reading.max_turns, self._reading.max_context_chars)
            row = row._replace(dialogue=False, opening=dialogue.opening, begins=splits.begins(dialogue))
            for turn, context in enumerate(contexts, start=1):
                yield row._replace(text=context.text, turn=turn)

    def dialogues(self, columns: Sequence[str] = ()) -> Iterator[ClientRow]:
        """As `rows`, with one row for each dialogue."""
        by = self._reading.dialogue
        more = [*self._where, by, self._speaker, "split", *self._topic, *columns]
        of_rows = self._speakers if by is not None and self._contexts else []
        found = self._counted(self.file.read(list(dict.fromkeys([*self._columns, *filter(None, more), *of_rows]))))
        if by is None:
            yield from (self.row(record, columns) for record in found)
        elif self._contexts:
            yield from self._gathered(found, by, columns)
        else:
            yield from self._first_turns(found, by, columns)

    def _counted(self, found: Iterable[records.Record]) -> Iterator[records.Record]:
        for record in found:
            self.seen = record.number
            yield record

    def row(self, record: records.Record, columns: Sequence[str] = ()) -> ClientRow:
        """A record of the file as `dialogues` yields it, if its dialogue is in no other row."""
        cells = record.cells
        if cells is None:
            return ClientRow(record.number, problem=record.problem)
        if self._where and not self.chosen(cells):
            return ClientRow(record.number, skipped=True)
        try:
            read = self._read(cells)
        except speakers.UnknownSpeakerError as error:
            return ClientRow(record.number, problem=str(error))
        return self._row(record.number, cells, read, columns)

    def _row(self, number: int, cells: Mapping[str, Any], read: ClientText | None, columns: Sequence[str]) -> ClientRow:
        """A row with its text, which may be a whole dialogue."""
        text, is_dialogue = read or (None, False)
        others = {name: cells.get(name) for name in columns} if columns else _NOTHING
        split = plain(cells.get("split"))
        return ClientRow(number, text, self._topic_of(cells), split, more=others, dialogue=is_dialogue)

    def _first_turns(self, found: Iterable[records.Record], by: str, columns: Sequence[str]) -> Iterator[ClientRow]:
        """All rows, of which the client's first one of each dialogue is read."""
        heard: set[str] = set()  # dialogues whose first turn was read
        for record in found:
            dialogue = plain((record.cells or {}).get(by))
            row = ClientRow(record.number, skipped=True) if dialogue in heard else self.row(record, columns)
            if dialogue is not None and row.text:
                heard.add(dialogue)
            yield row

    def _gathered(self, found: Iterable[records.Record], by: str, columns: Sequence[str]) -> Iterator[ClientRow]:
        """One row for each dialogue over several rows, and those that cannot be read."""
        keys = (plain((record.cells or {}).get(by)) for record in self.file.read([by]) if record.cells is not None)
        scattered = turns.scattered(keys)
        current: turns.Gathered | None = None
        bad: str | None = None  # why the rows before cannot be read, which may be of the current dialogue
        for record in found:
            if record.cells is None:
                bad = record.problem
                yield ClientRow(record.number, problem=record.problem)
                continue
            key = plain(record.cells.get(by))
            if current is not None and key != current.key:
                yield self._of_gathered(current, scattered, columns)
                current = None
            if key is None:
                yield ClientRow(record.number, problem=f"{by}, which names the dialogue, is empty")
                continue
            if current is None:
                current, bad = turns.Gathered(key, record.number), None
            if (role := self._role(record.cells)) is None:
                continue
            try:
                current.add(record, role, self._utterance(record.cells), bad)
            except speakers.UnknownSpeakerError as error:
                current.add(record, role, None, str(error))
        if current is not None:
            yield self._of_gathered(current, scattered, columns)

    def _role(self, cells: Mapping[str, Any]) -> str | None:
        """Whose turn a row of a dialogue is; None: nobody's, as one of the client's that `where` does not choose."""
        if self.chosen(cells):
            return CLIENT
        return None if speaker_columns.role_in(cells, self._speakers) in ("user", "system") else THERAPIST

    def _of_gathered(self, found: turns.Gathered, scattered: Collection[str], columns: Sequence[str]) -> ClientRow:
        if found.key in scattered:
            by = self._reading.dialogue
            return ClientRow(found.number, problem=f"a dialogue whose rows are not together; sort the file by {by}")
        if found.problem is not None:
            return ClientRow(found.number, problem=found.problem)
        if found.cells is None:
            return ClientRow(found.number, skipped=True)
        dialogue = turns.dialogue_of(found.said)
        text = None if dialogue is None else ClientText(dialogue.text, dialogue=True)
        return self._row(found.number, found.cells, text, columns)

    def _of_file(self, columns: Sequence[str]) -> Sequence[str]:
        """The columns before the lists of messages at the end, or those lists if the file has no other."""
        end = max((place for place, name in enumerate(columns, 1) if name not in speakers.LIST_KEYS), default=0)
        texts, lists = columns[:end], columns[end:]
        have = self.file.columns
        return texts if any(name in have for name in texts) or not any(name in have for name in lists) else lists

    @property
    def _name(self) -> str:
        return f"{self.file.what} file {self.file.path}"

    def _speaker_column(self) -> str | None:
        """A column that names who wrote each row, if every row may be the client's.

        Raises:
            InputError: it names speakers, and `where` does not choose among them, or nothing tells their dialogues.
        """
        if not any(name in self._where for name in self._speakers):
            return speaker_columns.column_of_authors(self.file, self._speakers, self._keys, self._contexts)
        if self._contexts and self._reading.dialogue is None and self.column not in speakers.LIST_KEYS:
            speaker_columns.check_dialogues(self.file, self._where, self._speakers, self._keys)
        return None

    def chosen(self, cells: Mapping[str, Any]) -> bool:
        """Whether `where` chooses a row."""
        return all(folded(plain(cells.get(column)) or "") in values for column, values in self._where.items())

    def _read(self, cells: Mapping[str, Any]) -> ClientText | None:
        """The client's words; None if every column is empty.

        Raises:
            UnknownSpeakerError: they cannot be told.
        """
        if self._speaker and role_of(plain(cells.get(self._speaker))) in ("assistant", "system"):
            raise speakers.UnknownSpeakerError(f"{self._speaker} names another speaker than the client")
        return next(filter(None, (self._cells.read(cells.get(column), column) for column in self._columns)), None)

    def _utterance(self, cells: Mapping[str, Any]) -> str | None:
        """What a row of a dialogue over several rows says.

        Raises:
            UnknownSpeakerError: its cell is not text.
        """
        return next(filter(None, (self._cells.utterance(cells.get(column), column) for column in self._columns)), None)

    def _topic_of(self, cells: Mapping[str, Any]) -> str | None:
        for column in self._topic:
            value = cells.get(column)
            if isinstance(value, list):
                value = "; ".join(part for part in value if isinstance(part, str))
            if topic := plain(value):
                return topic
        return None


def by_count(reasons: Mapping[str, int]) -> str:
    """Numbers of rows by reason, the commonest first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered)
