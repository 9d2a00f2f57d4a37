"""The journal of paid answers: an answer becomes a line of a file on arrival and is never requested again.

Lines are only appended, and each file has one writer: several processes and nodes share a journal, and a killed process
loses no answer that has arrived.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psyco_ray.judge.calls import Answer
from psyco_ray.run import storage
from psyco_ray.run.disk_errors import writing_in

LINES_PER_SYNC = 64
SECONDS_PER_SYNC = 1.0

_LINE = re.compile(rb'\{"speech":"[0-9a-f]{16}","key":"')
_COST = re.compile(rb',"usd":([0-9.e+-]+)\}\n$')  # the last field of a line

_added_up: dict[tuple[Path, int], tuple[int, float]] = {}  # of files of journals: bytes that were read, dollars in them

_log = logging.getLogger(__name__)


class Journal:
    """A directory of answers, ``<first two digits of the speech id>/<writer>.jsonl``, read by part.

    Example:
        >>> journal = Journal(root / "journal", writer="node0-4711")
        >>> journal.add(speech_id, call.key(endpoint), answer)
        >>> answers = journal.load("3f")  # by key, of all writers
        >>> journal.close()
    """

    def __init__(self, root: Path, writer: str) -> None:
        """Open a journal.

        Args:
            root: its directory, which several processes may share; created on the first write.
            writer: name of this process's files; no other process may use it at the same time.
        """
        self._root, self._writer = root, writer
        self._files: dict[str, int] = {}  # by shard: descriptors of files that are not synced
        self._unsynced = 0
        self._synced_at = time.monotonic()

    def load(self, part: str) -> dict[str, Answer]:
        """The answers about a part's speeches, by call key, of all writers.

        Lines that a crash cut off are skipped, damaged ones with a warning.
        """
        answers: dict[str, Answer] = {}
        for path in sorted(self._root.glob(f"{part[:2]}{'?' * (2 - len(part))}/*.jsonl")):
            for number, line in _lines(path):
                if not line.startswith(b'{"speech":'):
                    _damaged(path, number)
                elif line.startswith(b'{"speech":"' + part.encode()):
                    try:
                        entry = json.loads(line)
                        _, key, _ = entry.pop("speech"), entry.pop("key"), entry.pop("usd", None)
                        if not entry.pop("lost", False):
                            answers[key] = Answer(**entry)
                    except (ValueError, KeyError, TypeError):
                        _damaged(path, number)
        return answers

    def add(self, speech_id: str, key: str, answer: Answer, dollars: float | None = None) -> None:
        """Append an answer. It survives this process from now on, and the machine after the next sync.

        Args:
            speech_id: the speech that the call is about.
            key: of the call.
            answer: to it.
            dollars: what it cost; None: no price is known.

        Raises:
            InputError: the journal cannot be written.
        """
        self._append(speech_id, {"key": key, **vars(answer)}, dollars)

    def add_lost(self, speech_id: str, key: str, dollars: float | None) -> None:
        """Append a call that may be billed and gave no answer; it counts for `spent` alone.

        Raises:
            InputError: the journal cannot be written.
        """
        self._append(speech_id, {"key": key, "lost": True}, dollars)

    def _append(self, speech_id: str, entry: dict[str, Any], dollars: float | None) -> None:
        entry = {"speech": speech_id, **entry} | ({} if dollars is None else {"usd": dollars})
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with writing_in(self._root):
            file = self._file(speech_id[:2])
            size = os.fstat(file).st_size
            if os.write(file, line) < len(line):  # one write: a kill cuts no line
                os.ftruncate(file, size)  # later answers need a line of their own
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._unsynced += 1
        if self._unsynced >= LINES_PER_SYNC or time.monotonic() - self._synced_at >= SECONDS_PER_SYNC:
            self.sync()

    def sync(self) -> None:
        """Flush all lines to the disk.

        Raises:
            InputError: the journal cannot be written.
        """
        with writing_in(self._root):
            for file in self._files.values():
                os.fsync(file)
                os.close(file)
        self._files.clear()
        self._unsynced, self._synced_at = 0, time.monotonic()

    def close(self) -> None:
        """Flush and stop writing."""
        self.sync()

    def _file(self, shard: str) -> int:
        if shard not in self._files:
            file = self._files[shard] = storage.append_to(self._root / shard / f"{self._writer}.jsonl")
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                os.write(file, b"\n")  # ends a line that a crash cut off
        return self._files[shard]


def without_words(line: bytes) -> bytes:
    """What stays of a line about a client who is forgotten: of a journal's line its cost, which `spent` counts.

    Other lines go whole. A journal keeps a line for each, so that files of it on other machines, which may have newer
    lines, can still be compared with it line by line.
    """
    if not _LINE.match(line) or not line.endswith(b"\n"):
        return b""
    found = _COST.search(line)
    return b'{"speech":"","key":"","lost":true' + (found[0] if found else b"}\n")


def spent(root: Path) -> float:
    """US dollars of all calls in a journal, by all commands; calls without a price cost nothing.

    Files only grow, so what one call has added up, the next one does not read again.
    """
    return sum(map(_spent_in, sorted(root.glob("??/*.jsonl"))))


def _spent_in(path: Path) -> float:
    identity = (path, path.stat().st_ino)  # a file that `forget` has written anew is another one
    read, dollars = _added_up.get(identity, (0, 0.0))
    with open(path, "rb") as file:
        file.seek(read)
        for line in file:
            if line.endswith(b"\n"):
                read += len(line)
                dollars += float(found[1]) if (found := _COST.search(line)) else 0.0
    _added_up[identity] = (read, dollars)
    return dollars


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The complete lines of a file with their numbers, from 1."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line


def _damaged(path: Path, number: int) -> None:
    _log.warning("journal %s: line %d is damaged and skipped; its call is paid again", path, number)
