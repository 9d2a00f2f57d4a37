"""Files and compressed files as streams of bytes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO


def ending_of(path: Path) -> str:
    """The ending that tells the kind of a file, in small letters and without that of a compression."""
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower()


def open_bytes(path: Path) -> IO[bytes]:
    """The content of a file, unpacked."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")
