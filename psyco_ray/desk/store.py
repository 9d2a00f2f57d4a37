"""The store of a desk: one SQLite file, in which whatever has been acknowledged survives a crash."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.config.desk import Desk
from psyco_ray.config.errors import InputError
from psyco_ray.run import manifests, storage
from psyco_ray.run.locks import locked

SCHEMA_VERSION = 1
_APPLICATION = 0x7072646B  # PRAGMA application_id of a desk

_SCHEMA = """
CREATE TABLE people(
    id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL COLLATE NOCASE,
    role TEXT NOT NULL CHECK(role IN ('annotator', 'reviewer', 'lead')),
    passphrase TEXT NOT NULL, created_at REAL NOT NULL, active INTEGER NOT NULL DEFAULT 1);
CREATE TABLE invitations(
    token_hash TEXT PRIMARY KEY, role TEXT NOT NULL, created_by INTEGER, created_at REAL NOT NULL,
    expires_at REAL NOT NULL, used_at REAL, person_id INTEGER REFERENCES people(id)) WITHOUT ROWID;
CREATE TABLE sessions(
    token_hash TEXT PRIMARY KEY, person_id INTEGER NOT NULL REFERENCES people(id), csrf TEXT NOT NULL,
    created_at REAL NOT NULL, seen_at REAL NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE logins(name TEXT NOT NULL, address TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE items(
    id TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK(kind IN ('pair', 'scores', 'draft')), source TEXT NOT NULL,
    speech_id TEXT NOT NULL, speech TEXT NOT NULL, responses TEXT NOT NULL, crisis TEXT NOT NULL, facts TEXT NOT NULL,
    position INTEGER NOT NULL UNIQUE, added_at REAL NOT NULL);
CREATE TABLE assignments(
    item_id TEXT NOT NULL REFERENCES items(id), person_id INTEGER NOT NULL REFERENCES people(id),
    sides INTEGER NOT NULL, position INTEGER NOT NULL, assigned_at REAL NOT NULL, released_at REAL,
    PRIMARY KEY(item_id, person_id)) WITHOUT ROWID;
CREATE INDEX assignments_of_person ON assignments(person_id, position);
CREATE TABLE judgements(
    item_id TEXT NOT NULL REFERENCES items(id), person_id INTEGER NOT NULL REFERENCES people(id),
    version INTEGER NOT NULL, previous INTEGER NOT NULL, answer TEXT NOT NULL, complete INTEGER NOT NULL,
    saved_at REAL NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY(item_id, person_id, version)) WITHOUT ROWID;
CREATE TABLE approvals(
    item_id TEXT NOT NULL REFERENCES items(id), person_id INTEGER NOT NULL REFERENCES people(id),
    text_hash TEXT NOT NULL, text TEXT NOT NULL, approved INTEGER NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY(item_id, person_id, text_hash)) WITHOUT ROWID;
CREATE TABLE adjudications(
    item_id TEXT PRIMARY KEY REFERENCES items(id), person_id INTEGER NOT NULL REFERENCES people(id),
    answer TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE audit(
    id INTEGER PRIMARY KEY, at REAL NOT NULL, person_id INTEGER, action TEXT NOT NULL, item_id TEXT,
    detail TEXT NOT NULL);
"""


_WAYS_OUT = {
    sqlite3.SQLITE_FULL: "make room",
    sqlite3.SQLITE_IOERR: "check the disk",
    sqlite3.SQLITE_READONLY: "make the directory writable",
    sqlite3.SQLITE_CANTOPEN: "make the directory writable",
    sqlite3.SQLITE_BUSY: "end the other program that writes to it",
    sqlite3.SQLITE_CORRUPT: "restore it from a copy",
    sqlite3.SQLITE_NOTADB: "name another directory",
}


@dataclass(frozen=True)
class Item:
    """One thing to judge.

    Attributes:
        id: digest of kind, source and the id of the pair or speech.
        kind: pair, scores or draft.
        source: where it comes from, such as a run.
        speech_id: id of the context.
        speech: text of the context: the client's speech, or a conversation.
        responses: of a pair 2, the source's chosen or the policy's first; of scores 1 or 2; of a draft 1.
        crisis: flags of risk; none: empty.
        facts: what is known of it and must not be shown before the judgement, such as labels of judges.
    """

    id: str
    kind: str
    source: str
    speech_id: str
    speech: str
    responses: tuple[str, ...]
    crisis: tuple[str, ...]
    facts: Mapping[str, Any]


class Store:
    """A desk's directory: its settings and its database.

    Each thread has a connection of its own, which ends with the thread.

    Attributes:
        directory: of the desk.
        settings: of `desk.yaml`.
    """

    def __init__(self, directory: Path) -> None:
        """Of a directory with a desk; see `open`."""
        self.directory = directory
        self.settings: Desk = job_file.load_as(Desk, directory / "desk.yaml")
        self._threads = threading.local()
        self._writing = threading.Lock()

    @classmethod
    def open(cls, directory: Path, create: bool = False) -> Store:
        """The store of a directory.

        Args:
            directory: of the desk.
            create: make a desk where there is none.

        Raises:
            InputError: it is no desk, of a newer version, or cannot be read or written.
        """
        file = directory / "desk.db"
        if not create and not file.is_file():
            raise InputError(f"{directory} is no desk: it has no desk.db; make one with psyco-ray desk serve")
        storage.private_dir(directory)
        with locked(directory / ".lock"):
            if create and not (directory / "desk.yaml").exists():
                storage.write_text(directory / "desk.yaml", job_file.dump(Desk()))
            store = cls(directory)
            if not file.exists():
                os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                manifests.fsync(directory)
            store._prepare()
        return store

    def _prepare(self) -> None:
        """Make the tables of a new file; refuse one that is not a desk's."""
        with self.transaction() as db:
            application, version = (
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            if application == 0 and version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id={_APPLICATION}")
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                return
        if application != _APPLICATION:
            raise InputError(f"{self.directory / 'desk.db'} is no desk's database; name another directory")
        if version > SCHEMA_VERSION:
            raise InputError(f"{self.directory / 'desk.db'} is of a newer psyco-ray; install that version")

    def read(self) -> sqlite3.Connection:
        """The connection of this thread, to read with; rows are `sqlite3.Row`."""
        if not hasattr(self._threads, "db"):
            self._threads.db = self._connect()
        db: sqlite3.Connection = self._threads.db
        return db

    def _connect(self) -> sqlite3.Connection:
        with self._explained():
            db = sqlite3.connect(self.directory / "desk.db", isolation_level=None)
            db.row_factory = sqlite3.Row
            for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                db.execute(f"PRAGMA {pragma}")
            mode = db.execute("PRAGMA journal_mode").fetchone()[0]
        if mode != "wal":
            raise InputError(f"{self.directory} is on a file system without shared memory; name one on a local disk")
        return db

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A context in which what the file or its disk refuses is an `InputError`."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            way_out = _WAYS_OUT.get(getattr(error, "sqlite_errorcode", -1) & 0xFF)
            if way_out is None:
                raise
            raise InputError(f"{self.directory / 'desk.db'}: {error}; {way_out}, then go on") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A context whose writes are durable together when it ends, or undone when it raises.

        Raises:
            InputError: the disk is full or broken, or another process has written for seconds.
        """
        db = self.read()
        assert not db.in_transaction, "transactions are not nested"
        with self._writing, self._explained():  # SQLite's own wait for a writer would let some threads wait for long
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def add_items(self, items: Sequence[Item]) -> int:
        """Store the items that are new, by id; returns how many were."""
        with self.transaction() as db:
            first = db.execute("SELECT coalesce(max(position), -1) + 1 FROM items").fetchone()[0]
            known = {row[0] for row in db.execute("SELECT id FROM items")}
            new = list({item.id: item for item in items if item.id not in known}.values())
            db.executemany(
                "INSERT INTO items VALUES(?,?,?,?,?,?,?,?,?,?)",
                [
                    (
                        item.id, item.kind, item.source, item.speech_id, item.speech, to_json(item.responses),
                        to_json(item.crisis), to_json(item.facts), first + number, time.time(),
                    )
                    for number, item in enumerate(new)
                ],
            )  # fmt: skip
        return len(new)

    def items(self, kind: str | None = None) -> list[Item]:
        """All items, or those of a kind, in the order in which they were added."""
        where = ("", ()) if kind is None else ("WHERE kind=?", (kind,))
        return [
            item_of(row) for row in self.read().execute(f"SELECT * FROM items {where[0]} ORDER BY position", where[1])
        ]

    def ids(self) -> set[str]:
        """The ids of all items."""
        return {row["id"] for row in self.read().execute("SELECT id FROM items")}

    def item(self, item_id: str) -> Item | None:
        """The item with an id."""
        row = self.read().execute("SELECT * FROM items WHERE id=?", (item_id,)).fetchone()
        return row and item_of(row)


def item_of(row: sqlite3.Row) -> Item:
    """The item in a row of `items`."""
    return Item(
        id=row["id"],
        kind=row["kind"],
        source=row["source"],
        speech_id=row["speech_id"],
        speech=row["speech"],
        responses=tuple(json.loads(row["responses"])),
        crisis=tuple(json.loads(row["crisis"])),
        facts=json.loads(row["facts"]),
    )


def to_json(value: Any) -> str:
    """A value as compact JSON with a fixed order of keys."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
