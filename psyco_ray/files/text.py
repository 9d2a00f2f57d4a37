"""Text files: their encoding, and their lines in bounded memory.

A file is UTF-8, or has a byte-order mark, or is UTF-16 or UTF-32 beyond doubt, or has the encoding that a job declares.
Old versions of Excel write Windows-1252, and some files mix it with UTF-8, so bytes that are not UTF-8 are read as
Windows-1252 where they make the letters and marks of Western European languages. Everything else is refused: the same
bytes are letters of one alphabet in one encoding and of another in the next.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from psyco_ray.files.packed import HEAD, Content
from psyco_ray.files.table import FileError

_LINE_CHARS = 2**25  # no text is that long
_FEW = 0.02  # of the lines
_FEW_LINES, _FEW_BYTES = 3, 4  # fewer lines with fewer bytes each are damage and no other encoding
_SAMPLE = 2**15  # bytes that the encoding is guessed from

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SMALL, _CAPITALS = "àáâãäåæçèéêëìíîïñòóôõöøùúûüœß", "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜŒ"
_SIGNS = "‘’‚“”„–—…•€™£§©®°«»·¿¡´¨\u00a0½¼¾²³ªº×†"
_AFTER_LETTERS = "‘’“”–—…»"
_WESTERN = {ord(char.encode("cp1252")): char for char in _SMALL + _CAPITALS + _SIGNS}
_FOREIGN = re.compile(
    "\ufffd"
    f"|[{_SMALL}{_CAPITALS}]{{3}}"
    f"|(?<=[a-z])[{_CAPITALS}](?=[a-z])"  # as in "donÕt" of the Mac
    "|(?<=[A-Za-z])[£§©®¿¡½¼¾²³ªº¨×†](?=[A-Za-z])"  # as in "bo³em" of Polish
    "|[õÕ](?![eE])"  # Hungarian; Portuguese has õe alone
)


def _as_windows(error: UnicodeError) -> tuple[str, int]:
    """Decode what is not UTF-8 as Windows-1252, as far as it is Western and not a part of a character in UTF-8."""
    assert isinstance(error, UnicodeDecodeError)
    text = "".join(_WESTERN.get(byte, "\ufffd") for byte in error.object[error.start : error.end])
    return text if all(char in _AFTER_LETTERS for char in text[1:]) else "\ufffd", error.end


codecs.register_error("psyco_ray.windows-1252", _as_windows)


@dataclass(frozen=True)
class Text:
    """A text file and how it is decoded.

    Attributes:
        content: the bytes.
        encoding: as Python names it.
        newline: the end of its lines.
        mended: lines with bytes that are not of the encoding.
    """

    content: Content
    encoding: str
    newline: str = "\n"
    mended: int = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[TextIO]:
        """The decoded file. It splits lines at `newline` alone; NUL and other control characters stay."""
        errors = "psyco_ray.windows-1252" if self.encoding.startswith("utf-8") else "replace"
        with (
            self.content.open() as file,
            io.TextIOWrapper(file, encoding=self.encoding, errors=errors, newline=self.newline) as text,
        ):
            yield text

    def lines(self) -> Iterator[str]:
        """The lines with their ends.

        Raises:
            FileError: a line is too long for a text.
        """
        with self.open() as text:
            for line in iter(functools.partial(text.readline, _LINE_CHARS), ""):
                if len(line) == _LINE_CHARS and not line.endswith(self.newline):
                    raise FileError(f"has a line of more than {_LINE_CHARS:,} characters; it is no table of texts")
                yield line


def open_text(content: Content, encoding: str | None) -> Text:
    """Find the encoding and the end of lines of a text file; reads it once.

    Args:
        content: the bytes.
        encoding: declared by the user; a byte-order mark is stronger.

    Raises:
        FileError: the encoding is unknown, or it is not the file's.
    """
    stat = content.path.stat()
    return _open_text(content, encoding, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)  # a command opens a file several times
def _open_text(content: Content, declared: str | None, *_: int) -> Text:
    head = content.head()
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if encoding is None and declared is not None:
        try:
            encoding = codecs.lookup(declared).name
            "".encode(encoding)  # refused by codecs that are no encodings of text, such as rot13
        except LookupError:
            raise FileError(
                f"cannot be read: the encoding {declared!r} is unknown; examples are gb18030, cp1251"
            ) from None
    text = Text(content, encoding or _wide(head) or "utf-8")
    with text.open() as file:
        start = re.sub('"[^"]*"', "", file.read(HEAD))
    newline = "\r" if "\r" in start and "\n" not in start else "\n"  # CR alone: old versions of Excel on the Mac
    text = Text(content, text.encoding, newline)
    mended = _mended_of_utf8(text) if text.encoding.startswith("utf-8") else _undecodable_of(text)
    return Text(content, text.encoding, newline, mended)


def _wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, where the first two characters are ASCII: a column's name, or JSON."""
    if b"\0" not in head:
        return None
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            continue
        if text[:2].isascii() and "\0" not in text[:2]:
            return encoding
    return None


def _undecodable_of(text: Text) -> int:
    """Lines with a replaced character in a file of a declared or wide encoding.

    Raises:
        FileError: they are many.
    """
    bad = total = 0
    for line in text.lines():
        total += 1
        bad += "\ufffd" in line
    if bad > _FEW * total:
        raise FileError(f"is not in the encoding {text.encoding}: {bad} of {total} lines cannot be decoded")
    return bad


def _mended_of_utf8(text: Text) -> int:
    """Lines that are not UTF-8.

    Raises:
        FileError: they are many and not clearly Windows-1252.
    """
    if _is_utf8(text.content):
        return 0
    total = bad = foreign = wide = most = 0
    sample = b""
    with text.content.open() as file:
        for line in iter(functools.partial(file.readline, _LINE_CHARS), b""):
            total += 1
            try:
                wide += not line.isascii() and bool(line.decode())
            except UnicodeDecodeError:
                bad += 1
                if _FOREIGN.search(line.decode(errors="psyco_ray.windows-1252")):
                    foreign += 1
                    most = max(most, len(line) - len(line.decode(errors="ignore").encode()))
                    sample += line if len(sample) < _SAMPLE else b""
    is_damage = foreign < _FEW_LINES and most < _FEW_BYTES
    if foreign > max(_FEW * total, wide / 10) and not is_damage:
        raise FileError(f"is not UTF-8: {bad} of {total} lines cannot be decoded; {_guess(sample[:_SAMPLE])}")
    return bad


def _is_utf8(content: Content) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with content.open() as file:
        try:
            while chunk := file.read(2**20):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _guess(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    if all(char.isascii() or char in _SMALL + _CAPITALS + _SIGNS for char in sample.decode("mac_roman")):
        name = "mac_roman"
    else:
        best = from_bytes(sample).best()
        name = "ascii" if best is None else best.encoding
    if name in ("ascii", "utf_8"):
        return "save it as UTF-8, or declare its encoding: encoding: gb18030 in a job, #encoding=gb18030 after its name"
    return (
        f"it looks like {name}: save it as UTF-8, or, if that is right, declare it: encoding: {name} in a job, or "
        f"#encoding={name} after its name"
    )
