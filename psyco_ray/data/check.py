"""What a command would make of a file of speeches or preference pairs, without running it.

Rows are counted, and equal texts found, over the file or the first part of a large one. All else is of up to 1,000
rows, so that the check of any file takes seconds and little memory.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

from psyco_ray.config.errors import InputError
from psyco_ray.config.reading import Reading
from psyco_ray.data import crisis, duplicates, preferences, sources, speakers
from psyco_ray.data.clean import clean
from psyco_ray.data.client_rows import ClientFile, Keys
from psyco_ray.data.shapes import table
from psyco_ray.data.shapes.table import Shape
from psyco_ray.files import parquet
from psyco_ray.files.cells import kind_of
from psyco_ray.files.records import Record, RecordFile, open_records, shown
from psyco_ray.run.types import Row
from psyco_ray.screening.languages import UNKNOWN, language_of
from psyco_ray.screening.personal_data import personal_data

SAMPLE_ROWS = 1000
KEYS = Keys("--column NAME", "where in the job (here --where COLUMN=VALUE)")
_READ_CHARS = 2**28
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
        rows: that were read.
        whole: they are all rows of the file.
        total: rows of a file that was not read whole; None: unknown.
        bad: rows that cannot be read, by reason.
        equal: rows with a text that a row before has.
        sampled: rows that all the following is of.
        left_out: rows without a speech or pair, by reason.
        read_as: the column of the speeches, or the format of the pairs.
        guessed: no command knows a column of this name.
        speakers: values of columns that name who speaks.
        reading: the settings that choose the client's rows.
        pairs: their number.
        chosen_longer: those whose chosen response is the longer one.
        texts: the speeches or questions, cleaned.
    """

    name: str
    what: str
    kind: str
    encoding: str | None
    mended: int
    columns: dict[str, str]
    rows: int = 0
    whole: bool = True
    total: int | None = None
    bad: Counter[str] = field(default_factory=Counter)
    equal: int = 0
    sampled: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    read_as: str = ""
    guessed: bool = False
    speakers: dict[str, Counter[str]] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    pairs: int = 0
    chosen_longer: int = 0
    texts: list[str] = field(default_factory=list)

    def languages(self) -> Counter[str]:
        """Texts by the code of their language; `unknown`: without one."""
        codes = Counter(language_of(text)[0] for text in self.texts)
        codes["unknown"] = codes.pop(UNKNOWN, 0)
        return codes

    def crisis(self) -> Counter[str]:
        """Texts by sign of a crisis; `any`: those with one."""
        signs = [crisis.signs(text) for text in self.texts]
        return Counter({"any": sum(map(bool, signs))}) + Counter(kind for kinds in signs for kind in kinds)

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
    probe = list(islice(file, SAMPLE_ROWS))
    found = Check(name, what or "pairs", file.kind, file.encoding, file.mended, _columns(file, _cells(probe)))
    if what != "speeches":
        shape = table.recognise(file.columns, _cells(probe[:_PROBE]))
        if shape is None and what == "pairs":
            preferences.shape_of(name, file)  # says what is accepted
        if shape is not None:
            _scan(found, file, probe)
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


def _cells(records: Iterable[Record]) -> list[Row]:
    return [record.cells for record in records if record.cells is not None]


def _columns(file: RecordFile, rows: Sequence[Row]) -> dict[str, str]:
    """What each column holds: the commonest kind of cell, and the median length of texts."""
    described = {}
    for column in file.columns:
        cells = [row[column] for row in rows if row.get(column) not in (None, "")]
        kinds = Counter(kind_of(cell) for cell in cells).most_common(1)
        described[column] = kinds[0][0] if kinds else "nothing"
        if described[column] == "text":
            described[column] += f" of {_median_chars(cells):,.0f} characters"
        if 0 < len(cells) < len(rows):
            described[column] += f", {1 - len(cells) / len(rows):.0%} empty"
    return described


def _median_chars(cells: Iterable[Any]) -> float:
    return statistics.median([len(cell) if isinstance(cell, str) else 0 for cell in cells] or [0])


def _scan(
    found: Check, file: RecordFile, probe: Sequence[Record], text: Callable[[Row], Any] = lambda row: None
) -> list[Record]:
    """Read the file, count its rows, bad ones and equal texts, and draw a sample.

    Args:
        found: takes the counts.
        file: is read up to a number of characters, which the first rows tell by their length.
        probe: the first rows.
        text: the text of a row, if any.
    """
    chars = sum(len(str(cell)) + 1 for row in _cells(probe) for cell in row.values()) / max(1, len(probe))
    most = max(SAMPLE_ROWS, int(_READ_CHARS / max(1, chars)))
    draw, sample = random.Random(0), list[Record]()
    hashes: list[int] = []
    for record in file:
        if found.rows == most:
            found.whole, found.total = False, _total(file, chars)
            break
        found.rows += 1
        if record.cells is None:
            found.bad[record.problem or ""] += 1
        elif cell := text(record.cells):
            hashes.append(xxhash.xxh3_64_intdigest(str(cell).strip().encode(errors="surrogatepass")))
        if len(sample) < SAMPLE_ROWS:
            sample.append(record)
        elif (place := draw.randrange(found.rows)) < SAMPLE_ROWS:
            sample[place] = record
    found.equal = len(hashes) - len(np.unique(np.array(hashes, dtype=np.uint64)))
    return sorted(sample, key=lambda record: record.number)


def _total(file: RecordFile, chars: float) -> int | None:
    """Rows of a large file: those of Parquet files, else an estimate by its size; None for a compressed file."""
    if file.kind.startswith("Parquet"):
        paths = parquet.files_of(file.path) if file.path.is_dir() else [file.path]
        return sum(pq.read_metadata(path).num_rows for path in paths)
    if file.path.suffix.lower() in (".gz", ".zip", ".xlsx"):
        return None
    return round(file.path.stat().st_size / max(1, chars))


def _pairs(found: Check, file: RecordFile, shape: Shape) -> Check:
    found.read_as = shape.name
    asked: dict[str, None] = {}
    for rows, reason in islice(preferences.converted(found.name, file, shape), SAMPLE_ROWS):
        found.sampled += 1
        found.pairs += len(rows)
        found.chosen_longer += sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
        asked |= dict.fromkeys(_question(row) for row in rows)
        if reason is not None:
            found.left_out[reason] += 1
    if not found.pairs and found.whole and found.rows <= SAMPLE_ROWS:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in found.left_out.most_common())
        raise InputError(f"pairs file {found.name} has no usable pair ({reasons}); it is read as {shape.name}")
    found.texts = [clean(text) for text in asked if text.strip()]
    return found


def _question(row: Row) -> str:
    """What the responses of a pair answer: the speech, or the last message of the user."""
    if row["form"] != "messages":
        return row["asked"]
    said = [message["content"] for message in json.loads(row["asked"]) if message["role"] == "user"]
    return said[-1] if said else ""


def _speeches(found: Check, file: RecordFile, probe: Sequence[Record], column: str | None, reading: Reading) -> Check:
    cells = _cells(probe)
    found.read_as = column or _text_column(file, cells)
    found.guessed = column is None and found.read_as not in _known_columns()
    found.speakers = _speakers(file, cells, found.read_as)
    if not reading.where:
        reading = reading.model_copy(update={"where": _clients(found.speakers)})
    found.reading = reading
    client = ClientFile(found.name, "speeches", [found.read_as], KEYS, reading)
    client.check()
    text = found.read_as
    for record in _scan(found, file, probe, lambda row: row.get(text) if client.chosen(row) else None):
        found.sampled += 1
        row = client.row(record)
        if row.skipped:
            found.left_out["outside where"] += 1
        elif not row.text:
            found.left_out[row.problem or f"with an empty {found.read_as}"] += 1
        elif speech := clean(row.text):
            found.texts.append(speech)
    if not found.texts and found.whole and found.rows <= SAMPLE_ROWS:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in found.left_out.most_common())
        raise InputError(f"speeches file {found.name} has no speech in its column {found.read_as} ({reasons})")
    return found


def _text_column(file: RecordFile, rows: Sequence[Row]) -> str:
    """The column of the client's words: one that commands know, a list of messages, or the longest texts.

    Raises:
        InputError: no column has texts.
    """
    known = [*_known_columns(), *speakers.LIST_KEYS]
    if (column := next((name for name in known if name in file.columns), None)) is not None:
        return column
    lengths = {name: _median_chars(row[name] for row in rows if row.get(name)) for name in file.columns}
    lengths = {name: length for name, length in lengths.items() if not _REPLIES.search(name)}
    column = max(lengths, key=lambda name: lengths[name], default=None)
    if column is None or lengths[column] < _LEAST_CHARS:
        raise InputError(
            f"data file {file.path} has neither the columns of preference pairs nor one with a client's texts; "
            f"it has {shown(file.columns)}; name the column with {KEYS.text}"
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
    """The values that stand for a client, where a column has others too."""
    for name, values in found.items():
        roles = {value: speakers.role_of(value) for value in values}
        if "user" in roles.values() and set(roles.values()) != {"user"}:
            return {name: [value for value, role in roles.items() if role == "user"]}
    return {}
