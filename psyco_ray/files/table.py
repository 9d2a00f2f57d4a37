"""What a reader of one format gives to `records`."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator
from typing import Any

Cells = dict[str, Any] | str
"""The cells of a row by column, or the reason why it cannot be read."""


class FileError(ValueError):
    """A file cannot be read. The message follows the name of the file: "is a web page; ..."."""


class Table(abc.ABC):
    """A table of one format, with the attributes of `records.RecordFile`."""

    kind: str
    encoding: str | None = None
    mended: int = 0
    has_header: bool = False  # a row with the names of the columns
    columns: list[str]

    def all_columns(self) -> list[str]:
        """The columns of all rows; reads the file where `columns` is of its first rows."""
        return self.columns

    @abc.abstractmethod
    def rows(self, columns: Collection[str] | None) -> Iterator[Cells]:
        """The rows from the first, with all columns or some of them."""


def shown(names: Collection[str]) -> str:
    """Names of columns for a message; what may be a client's words in a file without names is counted.

    Example:
        >>> shown(["id", "I cannot sleep since my mother moved in", "Thank you."])
        'id, (a text of 39 characters), (a text of 10 characters)'
    """
    are_names = not any(map(is_data, names))
    return ", ".join(
        name if are_names or name.replace("_", "").isalnum() else f"(a text of {len(name)} characters)"
        for name in names
    )


def is_data(name: str) -> bool:
    """Whether a column's name looks like a cell: more than 40 characters or four words, or a number."""
    return len(name) > 40 or len(name.split()) > 4 or "\n" in name or name.replace(".", "").isdecimal()
