"""Spreadsheets that experts fill in: what is written for them, and whatever their program makes of it."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from psyco_ray.config.errors import InputError


def escape_formula(cell: str) -> str:
    """A cell that a spreadsheet shows as text and does not compute."""
    return f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) else cell


def ordering_hash(seed: int, purpose: str, name: str) -> str:
    """Hex digits to order or to toss by: the same for the same seed, unrelated between purposes."""
    return hashlib.sha256(f"{seed}:{purpose}:{name}".encode()).hexdigest()


def rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a filled file that are not blank, with their numbers in the spreadsheet, cut down to the columns.

    Raises:
        InputError: the file is missing, no text, or lacks a column.
    """
    text = _text(path)
    folded = {name.casefold(): name for name in wanted}
    for separator in ",;\t":
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        header = [" ".join(name.split()).casefold() for name in next(lines, [])]
        if wanted[0].casefold() in header:
            break
    missing = [name for key, name in folded.items() if key not in header]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]}, separated by commas, semicolons or tabs; save it from the "
            "spreadsheet as CSV with all of its columns"
        )
    for number, cells in enumerate(lines, start=2):
        if any(cell.strip() for cell in cells):
            row = dict(zip(header, cells, strict=False))  # a spreadsheet drops empty cells at the end
            yield number, {name: row.get(key, "") for key, name in folded.items()}


def _text(path: Path) -> str:
    """The text of a file that a spreadsheet saved: UTF-8, or what old versions of Excel write."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; put the filled file there") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        raise InputError(f"{path} is neither UTF-8 nor Windows-1252 text; save it as CSV UTF-8") from None
