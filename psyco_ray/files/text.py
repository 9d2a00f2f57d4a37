"""Lines of text files."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psyco_ray.files import packed


@dataclass(frozen=True)
class Text:
    """A text file and how it is decoded."""

    path: Path
    encoding: str
    mended: int = 0

    def lines(self) -> Iterator[str]:
        """The lines with their ends."""
        with packed.open_bytes(self.path) as file:
            if self.encoding not in ("utf-8", "utf-8-sig"):
                yield from io.TextIOWrapper(file, encoding=self.encoding, errors="replace", newline="")
                return
            if self.encoding == "utf-8-sig":
                file.read(len(codecs.BOM_UTF8))
            for line in file:
                try:
                    yield line.decode()
                except UnicodeDecodeError:
                    yield line.decode("cp1252", errors="replace")


def open_text(path: Path, encoding: str | None) -> Text:
    """Find the encoding of a text file."""
    with packed.open_bytes(path) as file:
        start = file.read(4)
    if encoding is not None:
        return Text(path, encoding)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Text(path, "utf-16")
    return Text(path, "utf-8-sig" if start.startswith(codecs.BOM_UTF8) else "utf-8")
