"""What a reader of one format gives to `records`."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator
from typing import Any

from psyco_ray.config.names import is_key, is_name, size_of

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
    """Names of columns, lists or sheets for a message, without those that may be a client's words.

    Example:
        >>> shown(["id", "I cannot sleep since my mother moved in", "Thank you."])
        'id, (a text of 39 characters), (a text of 10 characters)'
    """
    return ", ".join(shown_each(names))


def shown_each(names: Collection[str]) -> list[str]:
    """Names for a message, each in its place.

    One name that reads as a text makes the others doubtful, too: a file without a header has a row of a client's cells
    in its place. Of these only single words are shown.

    Args:
        names: all names of the header, object or workbook, also where a message needs one of them.
    """
    are_names = all(map(is_name, names))
    return [name if are_names or is_key(name) else f"({size_of(name)})" for name in names]


def shown_among(name: str, names: Collection[str]) -> str:
    """One of some names for a message, as `shown_each` has it."""
    return dict(zip(names, shown_each(names), strict=True))[name]


def is_data(name: str) -> bool:
    """Whether a column's name looks like a cell: more than 40 characters or four words, or a number."""
    return len(name) > 40 or len(name.split()) > 4 or "\n" in name or name.replace(".", "").isdecimal()
