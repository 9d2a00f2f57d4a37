"""Rows of small files, read as users' tables are."""

from pathlib import Path
from typing import Any

from psyco_ray.files.records import open_records
from support.files import write_content


def rows_of(
    directory: Path, name: str, content: str | bytes, encoding: str | None = None
) -> list[dict[str, Any] | str]:
    """The cells of each row of a file with some content, or the reason why the row is bad."""
    records = list(open_records(write_content(directory / name, content), "speeches", encoding))
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    return [record.problem if record.cells is None else record.cells for record in records]
