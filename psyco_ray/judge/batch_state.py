"""The batches in progress, on disk: a killed command finds them again, and no call is sent twice."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class SentBatch:
    """A batch in progress: name of its local files, and the server's ids."""

    name: str
    file_id: str | None = None
    batch_id: str | None = None
    ended_files: list[str] | None = None  # at the provider, to be deleted; None: the answers are not collected yet


class BatchState:
    """The batches in progress, on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"next": 0, "batches": []}
        self._next: int = state["next"]
        self.provider_files: dict[str, bool] = state.get("provider_files", {})
        """Whether each file that the provider got or made is deleted there, by its id."""
        self.sent = [SentBatch(**entry) for entry in state["batches"]]

    def add(self, rows: list[tuple[str, str, bytes]]) -> None:
        """Store the requests of a new batch: key, speech id and line."""
        self._write(rows)
        self.save()

    def _write(self, rows: list[tuple[str, str, bytes]]) -> None:
        sent = SentBatch(f"{self._path.stem}-{self._next:03}")
        with open(self.path(sent, "requests"), "wb") as file:
            file.writelines(line for _, _, line in rows)
        with open(self.path(sent, "speeches"), "w", encoding="utf-8") as speeches:
            json.dump({key: speech_id for key, speech_id, _ in rows}, speeches)
        self._next += 1
        self.sent.append(sent)

    def postpone(self, sent: SentBatch) -> None:
        """Submit a refused batch again later, from the same file."""
        sent.batch_id = None
        self.save()

    def halve(self, sent: SentBatch) -> None:
        """Replace a batch by two of half its requests, which come first."""
        speeches = self.speeches(sent)
        lines = self.path(sent, "requests").read_bytes().splitlines(keepends=True)
        rows = [(key, speeches[key], line) for line in lines for key in [json.loads(line)["custom_id"]]]
        others = [other for other in self.sent if other is not sent]
        for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            self._write(part)
        self.sent = [*self.sent[-2:], *others]
        self.save()
        self._remove_files(sent)

    def remove(self, sent: SentBatch) -> None:
        """Remove a batch that ended."""
        self.sent.remove(sent)
        self.save()
        self._remove_files(sent)

    def _remove_files(self, sent: SentBatch) -> None:
        for what in ("requests", "speeches"):
            self.path(sent, what).unlink(missing_ok=True)

    def speeches(self, sent: SentBatch) -> dict[str, str]:
        """The speech id of each of the batch's keys."""
        speeches: dict[str, str] = json.loads(self.path(sent, "speeches").read_text(encoding="utf-8"))
        return speeches

    def path(self, sent: SentBatch, what: str) -> Path:
        """A local file of a batch: its `requests` or its `speeches`."""
        return self._path.with_name(f"{sent.name}.{what}.jsonl")

    def save(self) -> None:
        """Write the state atomically."""
        unfinished = self._path.with_name(f".{self._path.name}.partial")
        with open(unfinished, "w", encoding="utf-8") as file:
            batches = [vars(sent) for sent in self.sent]
            json.dump({"next": self._next, "batches": batches, "provider_files": self.provider_files}, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path)
