"""What was paid for: every answer is a line of a file as soon as it came, and is never asked for again.

Lines are only ever appended, by one writer a file, so that several processes and nodes share a journal, and a killed
one loses nothing that had come.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from psyco_ray.config.errors import InputError
from psyco_ray.judge.client import Answer

LINES_PER_SYNC = 64
SECONDS_PER_SYNC = 1.0

_log = logging.getLogger(__name__)


class Journal:
    """A directory of answers, ``<first two digits of the speech id>/<writer>.jsonl``, read by parts of the dataset."""

    def __init__(self, root: Path, writer: str) -> None:
        """Open a journal.

        Args:
            root: its directory, perhaps shared; made when something is written.
            writer: the name of this process's files, of which no other process may make use at the same time.
        """
        self._root, self._writer = root, writer
        self._files: dict[str, int] = {}  # descriptors by shard, of what is not yet synced
        self._unsynced = 0
        self._synced_at = time.monotonic()

    def load(self, part: str) -> dict[str, Answer]:
        """The answers to the calls about a part's speeches, by the calls' keys, of all writers.

        A line that a crash cut off is left out; so is a damaged one, with a warning.
        """
        found: dict[str, Answer] = {}
        for path in sorted(self._root.glob(f"{part[:2]}{'?' * (2 - len(part))}/*.jsonl")):
            for number, line in _lines(path):
                if not line.startswith(b'{"speech":'):
                    _damaged(path, number)
                elif line.startswith(b'{"speech":"' + part.encode()):
                    try:
                        entry = json.loads(line)
                        _, key = entry.pop("speech"), entry.pop("key")
                        found[key] = Answer(**entry)
                    except (ValueError, KeyError, TypeError):
                        _damaged(path, number)
        return found

    def add(self, speech_id: str, key: str, answer: Answer) -> None:
        """Write down an answer; from here on it outlives this process, and after the next sync the machine.

        Raises:
            InputError: the journal cannot be written.
        """
        entry = {"speech": speech_id, "key": key, **vars(answer)}
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._file(speech_id[:2]), line)  # in one piece, so that a kill cuts no line
        except OSError as error:
            raise InputError(f"journal {self._root} cannot be written: {error.strerror}; make it writable") from None
        if written < len(line):
            raise InputError(f"journal {self._root} cannot be written: the disk is full; make room")
        self._unsynced += 1
        if self._unsynced >= LINES_PER_SYNC or time.monotonic() - self._synced_at >= SECONDS_PER_SYNC:
            self.sync()

    def sync(self) -> None:
        """Bring all lines to the disk."""
        for file in self._files.values():
            os.fsync(file)
            os.close(file)
        self._files.clear()
        self._unsynced, self._synced_at = 0, time.monotonic()

    def close(self) -> None:
        """End writing."""
        self.sync()

    def _file(self, shard: str) -> int:
        if shard not in self._files:
            path = self._root / shard / f"{self._writer}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            file = self._files[shard] = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                os.write(file, b"\n")  # after a line that a crash cut off
        return self._files[shard]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The whole lines of a file and their numbers, from 1."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line


def _damaged(path: Path, number: int) -> None:
    _log.warning("journal %s: line %d is damaged and left out; its call will be paid again", path, number)
