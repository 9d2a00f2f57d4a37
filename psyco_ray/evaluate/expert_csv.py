"""Spreadsheets that experts fill in: writes cells safely, reads what a spreadsheet program saved."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES

EXPERTS = ("expert-1", "expert-2")
"""Names of the experts' files."""

ASPECTS = (*PRINCIPLES, "overall")
"""Aspects of a preference."""

PREFERENCES = {aspect: f"{aspect} preference" for aspect in ASPECTS}
"""Columns of the preferences."""


def escape_formula(cell: str) -> str:
    """A cell that a spreadsheet shows as text instead of computing it."""
    return f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) else cell


def ordering_hash(seed: int, purpose: str, name: str) -> str:
    """Hex digits to sort or to draw by: fixed for a seed, independent between purposes."""
    return hashlib.sha256(f"{seed}:{purpose}:{name}".encode()).hexdigest()


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a spreadsheet that Excel reads as UTF-8."""
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([header, *([escape_formula(cell) for cell in row] for row in rows)])


def read_key(directory: Path, *fields: str) -> dict[str, Any]:
    """The ``key.json`` of an export.

    Raises:
        InputError: the file is missing or lacks a field.
    """
    path = directory / "key.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; name the directory that was exported to")
    key = read_json(path)
    if not isinstance(key, dict) or not set(fields) <= key.keys():
        raise InputError(f"{path} is not the key of an export; take the file that was exported")
    return key


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: the file is missing or holds no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # invalid JSON or UTF-8
        raise InputError(f"{path} cannot be read as JSON: {error}") from None


def read_items(path: Path, columns: Sequence[str], items: Container[str]) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Read a filled file.

    Args:
        path: the file, as a spreadsheet program saved it.
        columns: to read, apart from `item`.
        items: the exported items.

    Yields:
        Of every row that is not blank: its number in the spreadsheet, its item, and its cells by column.

    Raises:
        InputError: the file is missing, is no text or lacks a column, or an item is unknown or repeated.
    """
    seen: set[str] = set()
    for number, row in _rows(path, ("item", *columns)):
        item = row["item"].strip()
        if item not in items:
            raise InputError(f"{path} row {number}: item {item!r} is not in key.json; take the row as it was exported")
        if item in seen:
            raise InputError(f"{path} row {number}: item {item} comes a second time; keep one of its rows")
        seen.add(item)
        yield number, item, row


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    text = _text(path)
    names = {name.casefold(): name for name in columns}
    for separator in ",;\t":
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        header = [" ".join(name.split()).casefold() for name in next(lines, [])]
        if columns[0].casefold() in header:
            break
    missing = [name for key, name in names.items() if key not in header]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]}, separated by commas, semicolons or tabs; save it from the "
            "spreadsheet as CSV with all of its columns"
        )
    for number, cells in enumerate(lines, start=2):
        if any(cell.strip() for cell in cells):
            row = dict(zip(header, cells, strict=False))  # a spreadsheet drops empty cells at the end
            yield number, {name: row.get(key, "") for key, name in names.items()}


def _text(path: Path) -> str:
    """The text of a file: UTF-8, or Windows-1252 as old versions of Excel write."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; put the filled file there") from None
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"{path} is neither UTF-8 nor Windows-1252 text; save it as CSV UTF-8")
