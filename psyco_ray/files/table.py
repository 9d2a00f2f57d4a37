"""What a reader of one format gives to `records`."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator
from typing import Any

Cells = dict[str, Any] | str
"""The cells of a row by column, or the reason why it cannot be read."""


class Table(abc.ABC):
    """A table of one format, with the attributes of `records.RecordFile`."""

    kind: str
    encoding: str | None = None
    mended: int = 0
    columns: list[str]

    def all_columns(self) -> list[str]:
        """The columns of all rows; reads the file where `columns` is of its first rows."""
        return self.columns

    @abc.abstractmethod
    def rows(self, columns: Collection[str] | None) -> Iterator[Cells]:
        """The rows from the first, with all columns or some of them."""
