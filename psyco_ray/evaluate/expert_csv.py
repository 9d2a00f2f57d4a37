"""Spreadsheets that experts fill in: writes cells safely, reads what a spreadsheet program saved."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data.splits import conversation_of
from psyco_ray.files.cells import CellError, described, text_of
from psyco_ray.files.records import open_records, read_rows
from psyco_ray.files.table import shown_among
from psyco_ray.run import records, storage

EXPERTS = ("expert-1", "expert-2")
"""Names of the experts' files."""

ASPECTS = (*PRINCIPLES, "overall")
"""Aspects of a preference."""

PREFERENCES = {aspect: f"{aspect} preference" for aspect in ASPECTS}
"""Columns of the preferences."""


_VERDICTS = {"ours": 1.0, "theirs": -1.0, "tie": 0.0}
_MARK = "\u200c"  # zero width, and no program trims it

# A spreadsheet whose list separator is not the file's splits texts at its own and ignores quotes inside of such cells,
# so a formula may start after any separator or line end, blanks and quotes. Programs also take the full-width signs.
_BLANKS = rf"(?:\A|[,;\t\r\n])[\s\"'{_MARK}]*"
_FORMULA = re.compile(rf"({_BLANKS})(?=[=+\-@＝＋－＠])")
_MARKED = re.compile(rf"({_BLANKS}){_MARK}(?=[=+\-@＝＋－＠])")


def neutral(cell: str) -> str:
    """A text in which no spreadsheet finds a formula, whatever it takes for the separator of cells.

    A zero-width character before the sign makes it text. `original` takes it away again.

    Example:
        >>> neutral("I feel bad;=1+1").replace("\u200c", "·")
        'I feel bad;·=1+1'
    """
    return _FORMULA.sub(rf"\g<1>{_MARK}", cell)


def original(cell: str) -> str:
    """The text that `neutral` was given."""
    return _MARKED.sub(r"\g<1>", cell)


def ordering_hash(seed: int, purpose: str, name: str) -> str:
    """Hex digits to sort or to draw by: fixed for a seed, independent between purposes."""
    return hashlib.sha256(f"{seed}:{purpose}:{name}".encode()).hexdigest()


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a spreadsheet that Excel reads as UTF-8, and that holds no formula for any program."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *([neutral(cell) for cell in row] for row in rows)])
    storage.write_text(path, f"\ufeff{text.getvalue()}")


def read_key(directory: Path, *fields: str) -> dict[str, Any]:
    """The ``key.json`` of an export.

    Raises:
        InputError: the file is missing or lacks a field.
    """
    path = directory / "key.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; name the directory that was exported to")
    key: dict[str, Any] = records.read_json(path, "take the file that was exported")
    if not set(fields) <= key.keys():
        raise InputError(f"{path} is not the key of an export; take the file that was exported")
    return key


def read_items(path: Path, columns: Sequence[str], items: Container[str]) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Read a filled file.

    Args:
        path: the file, as a spreadsheet program saved it.
        columns: to read, apart from `item`.
        items: the exported items.

    Yields:
        Of every row that is not blank: its number in the spreadsheet, its item, and its cells by column.

    Raises:
        InputError: the file is missing, cannot be read or lacks a column, or an item is unknown or repeated.
    """
    seen: set[str] = set()
    for number, row in _rows(path, ("item", *columns)):
        item = row["item"].strip()
        if item not in items:
            raise InputError(
                f"{path} row {number}: its item, {described(item)}, is not in key.json; take the row as it was exported"
            )
        if item in seen:
            raise InputError(f"{path} row {number}: item {item} comes a second time; keep one of its rows")
        seen.add(item)
        yield number, item, row


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbers and cells of the rows that are not blank, whatever the case and white space of the columns' names."""
    if not path.exists():
        raise InputError(f"{path} does not exist; put the filled file there")
    file = open_records(path, "annotation", pad=True)
    names: dict[str, str] = {}
    for name in file.columns:
        if names.setdefault(" ".join(name.split()).casefold(), name) != name:
            raise InputError(f"{path} has two columns {shown_among(name, file.columns)}; keep the one of the export")
    missing = [name for name in columns if name.casefold() not in names]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]}; it is read as {file.kind} with {file.shown_columns()}; save it from "
            "the spreadsheet as CSV or Excel with all of its columns"
        )
    for record in file:
        number = record.number + 1  # below the header
        if record.cells is None:
            raise InputError(
                f"{path} row {number} cannot be read: {record.problem}; save it from the spreadsheet again"
            )
        try:
            cells = {name: original(text_of(record.cells.get(names[name.casefold()]))) for name in columns}
        except CellError as kind:
            raise InputError(
                f"{path} row {number} has {kind} instead of a text; take the row as it was exported"
            ) from None
        if any(cell.strip() for cell in cells.values()):
            yield number, cells


def read_verdicts(path: str) -> dict[str, float]:
    """A judge's choices by speech: 1 for the policy, -1 for the opponent, 0 for a tie, without unreadable ones.

    Args:
        path: a file of any kind that `files.records` reads, of rows with a `key`, the speech's id, and `better`: ours,
            theirs or tie, and null where the judge's answer was unreadable. Evaluate-policy writes such files.

    Raises:
        InputError: the file is unreadable, or a row is invalid.
    """
    rows = read_rows(path, "verdicts")
    if not all({"key", "better"} <= row.keys() for row in rows):
        raise InputError(f"verdicts file {path} does not hold rows with key and better; write both for every speech")
    choices: dict[str, float] = {}
    for number, row in enumerate(rows, start=1):
        if row["better"] in (None, ""):  # CSV has no null
            continue
        if row["better"] not in list(_VERDICTS):
            raise InputError(
                f"verdicts file {path}: row {number} has {described(row['better'])} as better; {', '.join(_VERDICTS)} "
                "are known, and null where the judge's answer was unreadable"
            )
        if row["key"] in choices:
            raise InputError(
                f"verdicts file {path}: row {number} has the key of an earlier row again; keep one of the rows"
            )
        choices[row["key"]] = _VERDICTS[row["better"]]
    return choices


def conversations(
    contexts: Mapping[str, str], dialogues: Mapping[str, str | None] = MappingProxyType({})
) -> dict[str, str]:
    """The id of the conversation of each item; empty if all are about single speeches.

    Args:
        contexts: what each item is about.
        dialogues: ids of their dialogues, where they are known.
    """
    if not any(Context.of(text).is_conversation for text in contexts.values()):
        return {}
    return {item: conversation_of(text, dialogues.get(item)) for item, text in contexts.items()}
