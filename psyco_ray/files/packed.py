"""The content of a file as a stream of bytes, unpacked; what it is by its first bytes."""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from psyco_ray.files.table import FileError

HEAD = 2**16  # bytes that tell what a file is
ZIP = b"PK\x03\x04"  # also begins an Excel file

_PACKED = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-zip",
    b"Rar!": "RAR",
    b"\x1f\x8b": "gzip twice",
}
_OTHER = {
    b"version https://git-lfs": "is a pointer of Git LFS and not the file itself; run git lfs pull",
    b"\xd0\xcf\x11\xe0": "is a workbook of Excel 97-2003; save it as .xlsx or CSV",
    b"%PDF": "is a PDF; export the table as CSV",
    b"ARROW1": "is an Arrow file; save it as Parquet",
    b"SQLite format 3": "is an SQLite database; export the table as CSV",
}


@dataclass(frozen=True)
class Content:
    """A file, or the one member of a compressed file.

    Attributes:
        path: the file.
        packing: "", "gzip" or "zip".
        member: of the zip file.
        name: of the content, without the ending of a compression.
    """

    path: Path
    packing: str
    member: str
    name: str

    @property
    def ending(self) -> str:
        """The ending of the name, in small letters."""
        return Path(self.name).suffix.lower()

    def open(self) -> IO[bytes]:
        """The bytes from the first."""
        if self.packing == "gzip":
            return gzip.open(self.path, "rb")  # type: ignore[return-value]
        if self.packing == "zip":
            try:
                return zipfile.ZipFile(self.path).open(self.member)
            except RuntimeError:  # a password, or a method that Python does not know
                raise FileError("is a zip file with a password or an unknown method; unpack it first") from None
        return self.path.open("rb")

    def head(self) -> bytes:
        """The first bytes.

        Raises:
            FileError: they tell that the content is no table.
        """
        with self.open() as file:
            head = file.read(HEAD)
        for start, packer in _PACKED.items():
            if head.startswith(start):
                raise FileError(f"is compressed with {packer}; unpack it first")
        if head[257:262] == b"ustar":
            raise FileError("is a tar archive; unpack it first")
        for start, message in _OTHER.items():
            if head.startswith(start):
                raise FileError(message)
        if head.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            raise FileError("is a web page or XML and not a table; download the file itself")
        return head


def find(path: Path, member: str | None) -> tuple[Content, str | None]:
    """The content of a file.

    Args:
        path: the file.
        member: what a user names in it: a member of a zip file with several, else left for the format.

    Returns:
        The content, and the name that is left.

    Raises:
        FileError: a zip file has no such member, several or none.
    """
    with path.open("rb") as file:
        start = file.read(4)
    bare = path.name[: -len(path.suffix)] if path.suffix.lower() in (".gz", ".gzip", ".zip") else path.name
    if start.startswith(b"\x1f\x8b"):
        return Content(path, "gzip", "", bare), member
    if not start.startswith((ZIP, b"PK\5\6")):  # the latter is an empty one
        return Content(path, "", "", bare), member
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info.filename for info in archive.infolist() if not (info.is_dir() or _is_hidden(info.filename))]
    except (zipfile.BadZipFile, RuntimeError, LookupError, ValueError):  # what zipfile raises on a damaged directory
        raise FileError("cannot be read: it is a damaged zip file") from None
    if "xl/workbook.xml" in members:
        return Content(path, "", "", path.name), member
    if {"content.xml", "[Content_Types].xml"} & set(members):
        raise FileError("is a document of an office program and no Excel workbook; save its table as .xlsx or CSV")
    if member in members:
        return Content(path, "zip", member, member), None
    if not members:
        raise FileError("is a zip file without a file in it")
    if len(members) > 1:
        raise FileError(f"is a zip file with {len(members)} files; {choice(path, members)}")
    return Content(path, "zip", members[0], members[0]), member


def choice(path: Path, names: list[str]) -> str:
    """How a user names one part of a file.

    Args:
        path: the file.
        names: of the parts, as `table.shown_each` gives them where they may be a client's words.
    """
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    one = next((name for name in names if not name.startswith("(")), "NAME")
    return f"name one as {path.name}#{one}; it has {', '.join(names[:10])}{more}"


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)
