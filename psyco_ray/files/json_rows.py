"""JSON files: an array of objects, one object that holds such an array, or one object per line."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, TextIO

from psyco_ray.files.cells import kind_of
from psyco_ray.files.packed import Content, choice
from psyco_ray.files.table import Cells, FileError, Table, shown, shown_each
from psyco_ray.files.text import Text, open_text

_PROBE = 1000  # rows that give the columns
_CHUNK = 2**18
_VALUE_CHARS = 2**25  # of a row
_LINE_CHARS = 2**20  # of the first line; a longer one is the file, or a row of a JSONL file
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonTable(Table):
    """Objects of a JSON file; their keys are the columns."""

    def __init__(self, text: Text, kind: str, key: str | None = None) -> None:
        """Read the first rows.

        Args:
            text: the file.
            kind: "JSONL", or "JSON" for an array and for objects of several lines.
            key: of the array in the one object of the file.
        """
        self._text, self.kind, self._key = text, kind, key
        self.encoding, self.mended = text.encoding, text.mended
        # names and reasons alone are kept: 1,000 long rows may take gigabytes
        probe = [
            cells if isinstance(cells, str) else list(cells) for cells in itertools.islice(self.rows(None), _PROBE)
        ]
        self.columns = list(dict.fromkeys(name for names in probe if not isinstance(names, str) for name in names))
        if probe and isinstance(probe[0], str) and all(isinstance(names, str) for names in probe):
            raise FileError(f"has no JSON object in its first {len(probe)} rows ({probe[0]})")

    def all_columns(self) -> list[str]:
        """The keys of all rows."""
        return _keys(self.rows(None))

    def rows(self, columns: Collection[str] | None) -> Iterator[Cells]:
        """The objects."""
        for cells in self._objects():
            if columns is None or isinstance(cells, str):
                yield cells
            else:
                yield {name: cells[name] for name in columns if name in cells}

    def _objects(self) -> Iterator[Cells]:
        if self.kind == "JSONL":
            yield from (_object_of(line) for line in self._text.lines() if not line.isspace())
            return
        with self._text.open() as file:
            values = _Values(file)
            start = values.peek()
            if self._key is not None:
                found = (elements for key, elements in values.members() if key == self._key and elements is not None)
                yield from map(_checked, next(found, iter(())))
            elif start == "[":
                yield from map(_checked, values.elements())
            else:
                while values.peek():
                    yield _checked(values.value())


def open_table(content: Content, encoding: str | None, part: str | None) -> JsonTable:
    """Open a JSON or JSONL file, whatever its ending says.

    Args:
        content: the bytes.
        encoding: declared by the user.
        part: key of the array in a file with one object.

    Raises:
        FileError: it is one object without an array of objects, or with several.
    """
    text = open_text(content, encoding)
    with text.open() as file:
        if file.read(_CHUNK).lstrip().startswith("["):
            return JsonTable(text, "JSON")
    with text.open() as file:
        lines = (line for line in iter(functools.partial(file.readline, _LINE_CHARS), "") if not line.isspace())
        first, more = next(lines, ""), next(lines, None) is not None
    is_row = len(first) == _LINE_CHARS or _begins_with_object(first.lstrip())
    if content.ending != ".json" and is_row:
        return JsonTable(text, "JSONL")
    if (len(first) < _LINE_CHARS and is_row and more) or not first.lstrip().startswith("{"):
        return JsonTable(text, "JSONL")
    try:
        members, is_alone = _survey(text)
    except FileError as damage:
        try:  # perhaps the first line alone is torn
            return JsonTable(text, "JSONL")
        except FileError:
            raise damage from None
    arrays = [key for key, kind in members.items() if kind == "array"]
    if part is not None or (is_alone and len(arrays) == 1):
        if part not in (None, *arrays):
            raise FileError(f"has no list {part}; it has {shown(arrays)}")
        return JsonTable(text, "JSON", part or arrays[0])
    if is_alone and arrays:
        raise FileError(f"is one JSON object with several lists of rows; {choice(content.path, shown_each(arrays))}")
    if is_alone and "value" not in members.values():
        raise FileError(f"is one JSON object and not a list of rows; its keys are {shown([*members][:10])}")
    return JsonTable(text, "JSON")


def _begins_with_object(line: str) -> bool:
    """Whether a line holds a whole object, perhaps with damage after it."""
    try:
        _DECODER.raw_decode(line)
    except TwiceError:
        return True
    except (ValueError, RecursionError):
        return False
    return True


def _survey(text: Text) -> tuple[dict[str, str], bool]:
    """What the first object of a file holds by key: an array of objects, a nested or a plain value; if it is alone."""
    kinds = {}
    with text.open() as file:
        values = _Values(file)
        for key, elements in values.members():
            if elements is None:
                kinds[key] = "nested" if isinstance(values.last, dict) else "value"
            else:
                are_objects = [isinstance(element, dict) for element in elements]
                kinds[key] = "array" if any(are_objects) else "nested"
        return kinds, not values.peek()


class _Values:
    """JSON values of a text file, one after another in bounded memory."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._buffer, self._start, self._ended = file, "", 0, False
        self._rows = 0
        self.last: Any = None  # value of the last member that is no array

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            self._start = _SPACE.match(self._buffer, self._start).end()  # type: ignore[union-attr]
            if self._start < len(self._buffer):
                return self._buffer[self._start]
            if not self._read(_CHUNK):
                return ""

    def value(self) -> Any:
        """The next value.

        Raises:
            FileError: it is not JSON, or has too many characters.
        """
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._start)
                if end < len(self._buffer) or self._ended:  # else more digits may follow
                    self._start = end
                    return value
                problem = ""
            except TwiceError:
                raise FileError(f"is not valid JSON: {_TWICE}, {self._where()}") from None
            except (ValueError, RecursionError) as error:
                problem = str(error).partition(":")[0]
            if len(self._buffer) - self._start > _VALUE_CHARS or not self._read(size):
                if not problem and self._ended:
                    continue
                raise FileError(f"is not valid JSON: {problem or 'a value is too long'}, {self._where()}")
            size *= 2

    def elements(self) -> Iterator[Any]:
        """The elements of the next value, an array."""
        self._expect("[")
        self._rows = 0
        if self.peek() == "]":
            self._expect("]")
            return
        while True:
            yield self.value()
            self._rows += 1
            if self._expect(",", "]") == "]":
                return

    def members(self) -> Iterator[tuple[str, Iterator[Any] | None]]:
        """The keys of the next value, an object: with the elements of an array, to be read first, else None."""
        self._expect("{")
        if self.peek() == "}":
            self._expect("}")
            return
        while True:
            key = self.value() if self.peek() == '"' else self._expect('"')
            self._expect(":")
            if self.peek() == "[":
                elements = self.elements()
                yield key, elements
                for _ in elements:  # those that the caller left
                    pass
            else:
                self.last = self.value()
                yield key, None
            if self._expect(",", "}") == "}":
                return

    def _expect(self, *chars: str) -> str:
        char = self.peek()
        if char not in chars or not char:
            raise FileError(f"is not valid JSON: no {' or '.join(chars)} {self._where()}")
        self._start += 1
        return char

    def _where(self) -> str:
        return f"after {self._rows} rows"

    def _read(self, size: int) -> bool:
        more = self._file.read(size)
        self._ended = not more
        self._buffer, self._start = self._buffer[self._start :] + more, 0
        return bool(more)


class TwiceError(ValueError):
    """An object has a key twice."""


_TWICE = "an object with a key twice"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise TwiceError(_TWICE)
    return value


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_distinct)


def _keys(rows: Iterable[Cells]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(row for row in rows if not isinstance(row, str))))


def _object_of(line: str) -> Cells:
    try:
        return _checked(_DECODER.decode(line))
    except TwiceError:
        return _TWICE
    except (ValueError, RecursionError) as error:
        return f"invalid JSON: {str(error).partition(':')[0]}"


def _checked(value: Any) -> Cells:
    return value if isinstance(value, dict) else f"{kind_of(value)} instead of an object"
