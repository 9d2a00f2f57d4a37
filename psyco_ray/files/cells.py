"""Cells of a table as text."""

from __future__ import annotations

import datetime
import decimal
import re
from typing import Any

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL, and halves of characters that JSON can hold


class CellError(ValueError):
    """A cell is not text. The message is the reason, such as "a list", without the content."""


def text_of(value: Any) -> str:
    """A cell as text: blank for None, digits for a number.

    NUL and halves of surrogate pairs are left out, which neither UTF-8 nor Parquet stores.

    Args:
        value: a cell of a `records.Record`.

    Raises:
        CellError: the cell is a list, an object, true or false, or bytes that are not UTF-8.

    Example:
        >>> text_of(7), text_of(None), text_of(b"caf\\xc3\\xa9")
        ('7', '', 'café')
    """
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise CellError("bytes that are not UTF-8") from None
    if isinstance(value, str):
        return value if value.isascii() and "\0" not in value else _UNSTORABLE.sub("", value)
    if isinstance(value, int | float | decimal.Decimal | datetime.date | datetime.time) and not isinstance(value, bool):
        return str(value)
    raise CellError(kind_of(value))


def quoted(value: Any) -> str:
    """A cell or an answer in a message: a number or a word or two as it is, else its kind, for it may be a client's.

    Example:
        >>> quoted("both"), quoted(3), quoted("I have not slept since my mother moved in")
        ("'both'", '3', 'a text of 41 characters')
    """
    if isinstance(value, str) and (len(value) > 24 or len(value.split()) > 2):
        return f"a text of {len(value)} characters"
    return repr(value) if isinstance(value, str | int | float | None) else kind_of(value)


def kind_of(value: Any) -> str:
    """What a cell is, for messages.

    Example:
        >>> kind_of([1, 2])
        'a list'
    """
    kinds = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
        type(None): "nothing",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")
