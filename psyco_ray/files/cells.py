"""Cells of a table as text."""

from __future__ import annotations

import datetime
import decimal
import re
from typing import Any

from psyco_ray.config.names import is_label, size_of

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


def label_of(value: Any) -> str | None:
    """A topic, a subset or another label of a row; None for a blank cell, one that is no text, and a client's words.

    Labels become keys of records and tables, and stand in messages.

    Example:
        >>> label_of("Grief and loss"), label_of("My husband left me in May and I cannot sleep")
        ('Grief and loss', None)
    """
    try:
        text = text_of(value)
    except CellError:
        return None
    return text if text and is_label(text) else None


def described(value: Any) -> str:
    """A cell in a message: a number as it is, a text by its length, for it may be a client's.

    Example:
        >>> described("both"), described(3), described([1])
        ('a text of 4 characters', '3', 'a list')
    """
    if isinstance(value, str):
        return size_of(value)
    return repr(value) if isinstance(value, int | float | None) else kind_of(value)


def quoted(value: Any) -> str:
    """A model's answer in a message: a number or a word or two as it is, else its kind, for it may be a client's.

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
