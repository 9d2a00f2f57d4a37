"""The batches in progress, on disk: a killed command finds them again, and no call is sent twice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psyco_ray.run import records, storage


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
        way_out = "restore it; without it the batches in progress are lost, and paid again"
        state: dict[str, Any] = records.read_json(path, way_out) if path.exists() else {"next": 0, "batches": []}
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
        storage.private_dir(self._path.parent)
        storage.write_file(self.path(sent, "requests"), lambda file: file.writelines(line for _, _, line in rows))
        lines = "".join(json.dumps([key, speech_id]) + "\n" for key, speech_id, _ in rows)
        storage.write_text(self.path(sent, "speeches"), lines)
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
        keyed = [(json.loads(line)["custom_id"], line) for line in lines]
        rows = [(key, speeches[key], line) for key, line in keyed if key in speeches]  # others are forgotten
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
        """The speech id of each of the batch's keys, without those that `forget` has removed."""
        path = self.path(sent, "speeches")
        try:
            return dict(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as error:
            way_out = "restore it; without it its batch cannot be read"
            raise records.damaged(path, type(error).__name__, way_out) from None

    def path(self, sent: SentBatch, what: str) -> Path:
        """A local file of a batch: its `requests` or its `speeches`."""
        return self._path.with_name(f"{sent.name}.{what}.jsonl")

    def save(self) -> None:
        """Write the state atomically."""
        batches = [vars(sent) for sent in self.sent]
        state = {"next": self._next, "batches": batches, "provider_files": self.provider_files}
        storage.write_text(self._path, json.dumps(state))
