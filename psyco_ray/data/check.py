"""What a command would make of a file of speeches or preference pairs, without running it.

Rows are counted, and equal texts found, over the file or the first part of a large one. All else is of up to 1,000
rows, so that the check of any file takes seconds and little memory.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.reading import Reading
from psyco_ray.data import duplicates, preferences, sources, speakers
from psyco_ray.data.clean import clean
from psyco_ray.data.client_cells import CellReader
from psyco_ray.data.client_rows import ClientFile
from psyco_ray.data.roles import is_role, role_of
from psyco_ray.data.shapes import table
from psyco_ray.data.shapes.table import Shape
from psyco_ray.data.speaker_columns import MOST_SPEAKERS, Keys
from psyco_ray.data.table_sample import SAMPLE_ROWS, Counts, cells_of, columns_of, first_rows, median_chars, scan
from psyco_ray.files.records import Record, RecordFile, open_records
from psyco_ray.files.table import shown_each
from psyco_ray.run.types import Row
from psyco_ray.screening import crisis
from psyco_ray.screening.languages import UNKNOWN, language_of
from psyco_ray.screening.personal_data import personal_data

KEYS = Keys("--column NAME", "where in the job (here --where COLUMN=VALUE)", "dialogue (here --dialogue COLUMN)")
_CELL_CHARS = 50_000  # of a cell in which the client's words are looked for
_TEXT_CHARS = 2000  # of a text that are kept
_PROBE = 100  # rows that a format of pairs is recognised by
_NEAR = 0.6  # of collect.near_duplicates
_LEAST_CHARS = 20  # median of a column that may hold speeches
_REPLIES = re.compile(  # names of columns that are not a client's
    r"answer|respon|repl(?:y|ies)|output|completion|therapist|counsell?or|system|chosen|rejected", re.IGNORECASE
)


@dataclass
class Check:
    """What was found in a file.

    Attributes:
        name: of the file, as a job names it.
        what: speeches or pairs.
        kind: the format in words.
        encoding: of a text file.
        mended: lines with bytes that are not of the encoding.
        columns: what each column holds, in words.
        counts: of the rows.
        sampled: rows that all the following is of.
        left_out: rows without a speech or pair, by reason.
        read_as: the column of the speeches, or the format of the pairs.
        guessed: no command knows a column of this name.
        speakers: values of columns that name who speaks.
        reading: the settings that choose the client's rows.
        pairs: their number.
        chosen_longer: those whose chosen response is the longer one.
        texts: the first characters of the speeches or questions, cleaned.
        lengths: of the whole speeches or questions, characters.
        conversations: rows, or dialogues over several rows, in which the therapist speaks too.
        contexts: of these, one at each of the client's turns.
    """

    name: str
    what: str
    kind: str
    encoding: str | None
    mended: int
    columns: dict[str, str]
    counts: Counts = field(default_factory=Counts)
    sampled: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    read_as: str = ""
    guessed: bool = False
    speakers: dict[str, Counter[str]] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    pairs: int = 0
    chosen_longer: int = 0
    texts: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    conversations: int = 0
    contexts: int = 0

    def add(self, text: str, chars: int) -> None:
        """Add a speech or question of a number of characters."""
        self.texts.append(text)
        self.lengths.append(chars)

    def languages(self) -> Counter[str]:
        """Texts by the code of their language; `unknown`: without one."""
        codes = Counter(language_of(text)[0] for text in self.texts)
        codes["unknown"] = codes.pop(UNKNOWN, 0)
        return codes

    def crisis(self) -> Counter[str]:
        """Texts by sign of a crisis; `any`: those with one; `not screened`: those whose language the screen lacks."""
        signs = [crisis.signs(text) for text in self.texts]
        counts = {"any": sum(map(bool, signs)), "not screened": signs.count(None)}
        return Counter(counts) + Counter(kind for kinds in signs for kind in kinds or ())

    def personal_data(self) -> Counter[str]:
        """Texts by kind of personal data; `any`: those with some."""
        kinds = [{span.kind for span in personal_data(text)} for text in self.texts]
        return Counter({"any": sum(map(bool, kinds))}) + Counter(kind for found in kinds for kind in found)

    def examples(self, count: int, most: int) -> list[str]:
        """The first characters of some texts, with all letters and digits replaced."""
        return [masked(text, most) for text in islice(dict.fromkeys(self.texts), count)]

    def near(self) -> int:
        """Texts of the sample that nearly or fully repeat another one of it."""
        return len(duplicates.near(duplicates.signatures(self.texts), self.texts.__getitem__, _NEAR))


@dataclass(frozen=True)
class _Look:
    """What is kept of a row: why it has no speech, or the beginning of the speech and its length."""

    left_out: str | None = None
    text: str = ""
    chars: int = 0
    turns: int = 1  # of the client


def check(name: str, what: str | None = None, column: str | None = None, reading: Reading | None = None) -> Check:
    """Look at a file.

    Args:
        name: the file, as a job names it.
        what: speeches or pairs; None: pairs if it has their columns.
        column: of the speeches; None: one that commands know, else the one with the longest texts.
        reading: which rows are the client's; without `where` those that a column of speakers names as the client's.

    Raises:
        InputError: no command could read it.
    """
    reading = reading or Reading()
    file = open_records(name, what or "data", reading.encoding)
    probe = first_rows(file)
    found = Check(name, what or "pairs", file.kind, file.encoding, file.mended, columns_of(file, cells_of(probe)))
    if what != "speeches":
        shape = table.recognise(file.columns, cells_of(probe[:_PROBE]))
        if shape is None and what == "pairs":
            preferences.shape_of(name, file)  # says what is accepted
        if shape is not None:
            found.counts, _ = scan(file, probe, lambda row: None, lambda record: None)
            return _pairs(found, file, shape)
    found.what = "speeches"
    return _speeches(found, file, probe, column, reading)


def masked(text: str, most: int) -> str:
    """The beginning of a text with x for each letter and 9 for each digit: its form without its words.

    Example:
        >>> masked("I'm Ana, 24.", 80)
        "X'x Xxx, 99."
    """
    line = " / ".join(text[: most + 1].splitlines())
    return "".join(map(_mask, line[:most])) + ("…" if len(line) > most else "")


def _mask(char: str) -> str:
    if char.isdigit():
        return "9"
    if char.isalpha() or unicodedata.category(char).startswith("M"):
        return "X" if char.isupper() else "x"
    return char


def _pairs(found: Check, file: RecordFile, shape: Shape) -> Check:
    found.read_as = shape.name
    asked: dict[str, int] = {}  # with their lengths
    for rows, reason in islice(preferences.converted(found.name, file, shape), SAMPLE_ROWS):
        found.sampled += 1
        found.pairs += len(rows)
        found.chosen_longer += sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
        for question in filter(None, (clean(_question(row)) for row in rows)):
            asked[question[:_TEXT_CHARS]] = len(question)
        if reason is not None:
            found.left_out[reason] += 1
    if not found.pairs and found.counts.whole and found.counts.rows <= SAMPLE_ROWS:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in found.left_out.most_common())
        raise InputError(f"pairs file {found.name} has no usable pair ({reasons}); it is read as {shape.name}")
    for text in asked:
        found.add(text, asked[text])
    return found


def _question(row: Row) -> str:
    """What the responses of a pair answer: the speech, or the last message of the user."""
    if row["form"] != "messages":
        return Context.of(row["asked"]).last
    said = [message["content"] for message in json.loads(row["asked"]) if message["role"] == "user"]
    return said[-1] if said else ""


def _speeches(found: Check, file: RecordFile, probe: Sequence[Record], column: str | None, reading: Reading) -> Check:
    cells = cells_of(probe)
    found.read_as = column or _text_column(file, cells)
    found.guessed = column is None and found.read_as not in _known_columns()
    found.speakers = _speakers(file, cells, found.read_as)
    if not reading.where:
        reading = reading.model_copy(update={"where": _clients(found.speakers)})
    found.reading = reading
    client = ClientFile(found.name, "speeches", [found.read_as], KEYS, reading)
    client.check()
    cell_reader = CellReader(reading.model_copy(update={"conversations": "contexts"}))
    text = found.read_as
    found.counts, looks = scan(
        file,
        probe,
        lambda row: row.get(text) if client.chosen(row) else None,
        lambda record: _look(client, cell_reader, record, text),
    )
    for look in looks:
        found.sampled += 1
        if look.left_out is not None:
            found.left_out[look.left_out] += 1
        else:
            found.add(look.text, look.chars)
            found.conversations += look.turns > 1
            found.contexts += look.turns if look.turns > 1 else 0
    if reading.dialogue is not None and reading.conversations == "contexts":
        _count_dialogues(found, client)
    if not found.texts and found.counts.whole and found.counts.rows <= SAMPLE_ROWS:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in found.left_out.most_common())
        raise InputError(f"speeches file {found.name} has no speech in its column {found.read_as} ({reasons})")
    return found


def _count_dialogues(found: Check, client: ClientFile) -> None:
    """Count the first dialogues over several rows, and their contexts."""
    for row in islice(client.dialogues(), SAMPLE_ROWS):
        if row.text is not None and (turn := Context.of(row.text).turn) > 1:
            found.conversations += 1
            found.contexts += turn
        elif row.problem is not None:
            found.left_out[row.problem] += 1


def _look(client: ClientFile, contexts: CellReader, record: Record, column: str) -> _Look:
    """A row, of which the beginning is enough if it is very long.

    Args:
        client: the file.
        contexts: reads cells as whole conversations.
        record: the row.
        column: of the client's words.
    """
    cell = (record.cells or {}).get(column)
    whole = len(cell) if isinstance(cell, str) else 0
    if record.cells is not None and isinstance(cell, str) and whole > _CELL_CHARS:
        record = record._replace(cells=record.cells | {column: cell[:_CELL_CHARS]})
    row = client.row(record)
    if row.skipped:
        return _Look("outside where")
    speech = clean(Context.of(row.text or "").client_words)
    if not speech:
        return _Look(row.problem or f"with an empty {column}")
    chars = whole if whole > _CELL_CHARS and len(speech) > _CELL_CHARS / 2 else len(speech)
    return _Look(None, speech[:_TEXT_CHARS], chars, _client_turns(contexts, (record.cells or {}).get(column), column))


def _client_turns(contexts: CellReader, cell: Any, column: str) -> int:
    """The client's turns in a cell; 1 if it is no conversation that can be read."""
    try:
        read = contexts.read(cell, column)
    except speakers.UnknownSpeakerError:
        return 1
    return 1 if read is None else Context.of(read.text).turn


def _text_column(file: RecordFile, rows: Sequence[Row]) -> str:
    """The column of the client's words: one that commands know, a list of messages, or the longest texts.

    A column is guessed only if its name is shown: the report and the lines for a job repeat it.

    Raises:
        InputError: no column has texts.
    """
    known = [*(name for name in _known_columns() if name not in speakers.LIST_KEYS), *speakers.LIST_KEYS]
    if (column := next((name for name in known if name in file.columns), None)) is not None:
        return column
    named = [name for name, shown in zip(file.columns, shown_each(file.columns), strict=True) if name == shown]
    lengths = {
        name: median_chars(row[name] for row in rows if row.get(name)) for name in named if not _REPLIES.search(name)
    }
    column = max(lengths, key=lambda name: lengths[name], default=None)
    if column is None or lengths[column] < _LEAST_CHARS:
        raise InputError(
            f"data file {file.path} has neither the columns of preference pairs nor one with a client's texts; "
            f"it has {file.shown_columns()}; name the column with {KEYS.text}"
        )
    return column


def _known_columns() -> list[str]:
    """Columns that some adapter of collect reads, those of `generic` first."""
    return list(dict.fromkeys(column for adapter in sources.adapters().values() for column in adapter.text))


def _speakers(file: RecordFile, rows: Sequence[Row], text: str) -> dict[str, Counter[str]]:
    """Values of the columns that name who speaks, the commonest first."""
    columns = [name for name in file.columns if name != text and name.strip().casefold() in speakers.ROLE_KEYS]
    found = {name: Counter(str(row[name]) for row in rows if row.get(name) not in (None, "")) for name in columns}
    return {name: Counter(dict(values.most_common())) for name, values in found.items() if values}


def _clients(found: Mapping[str, Counter[str]]) -> dict[str, list[str]]:
    """The roles that stand for a client, where a column has others too."""
    for name, values in found.items():
        roles = {value: role_of(value) for value in values}
        if len(roles) <= MOST_SPEAKERS and "user" in roles.values() and set(roles.values()) != {"user"}:
            clients = [value for value, role in roles.items() if role == "user" and is_role(value)]
            return {name: clients} if clients else {}
    return {}
