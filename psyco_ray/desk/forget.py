"""Removes a client from a desk: items, judgements, approvals and what the database's files keep of deleted rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from psyco_ray.config.errors import InputError
from psyco_ray.data.forget_seen import Outcome
from psyco_ray.data.traces import Traces
from psyco_ray.desk import audit
from psyco_ray.desk.store import Store, item_of
from psyco_ray.desk.turns import context_of
from psyco_ray.run import manifests, records, storage

DATABASE = "desk.db"

_ABOUT = ("assignments", "judgements", "approvals", "adjudications")
_TEXTS = (("judgements", "answer"), ("approvals", "reason"), ("adjudications", "answer"))


def is_desk(root: Path) -> bool:
    """Whether a directory is a desk's."""
    return (root / DATABASE).is_file()


def learn(root: Path, traces: Traces) -> None:
    """Add the client's words, found by the id, and the ids of items about them.

    Args:
        root: directory of a desk; others are left as they are.
        traces: of the client.

    Raises:
        InputError: the database is damaged.
    """
    if not is_desk(root):
        return
    for row in _about(Store.open(root), traces):
        if not traces.surely_within([*row]):  # it has the opening alone, as another client's may
            traces.add_ids([row["id"]], shared=True)
            continue
        context = context_of(item_of(row))
        if not context.is_conversation:
            traces.add_context(row["speech"])
        elif row["speech_id"] in traces.ids or traces.surely_within([row["speech"], context.text]):
            traces.add_context(context.text)
        traces.add_ids([row["id"], row["speech_id"]])


def remove(root: Path, traces: Traces, said: Traces, outcome: Outcome) -> None:
    """Remove a client's items with all that people said of them; no byte of these stays in the database's files.

    Words of the client in comments and reasons about other items are masked. The audit keeps its lines without the
    items' ids, and gets one that counts what was removed.

    Args:
        root: directory of a desk; others are left as they are.
        traces: of the client, after `learn`.
        said: receives the responses and edits.
        outcome: receives what is done.

    Raises:
        InputError: the database is damaged or in use.
    """
    if not is_desk(root):
        return
    store = Store.open(root)
    about = list(_about(store, traces))
    gone = [(row["id"], json.loads(row["responses"])) for row in about]
    edits = [
        row["text"]
        for key, _ in gone
        for row in store.read().execute("SELECT text FROM approvals WHERE item_id = ?", (key,))
    ]
    for text in (*(text for _, responses in gone for text in responses), *edits):
        said.add_text(text)
    for row in about:
        said.add_turns(context_of(item_of(row)))
    removed = 0
    store.read().execute("PRAGMA secure_delete = ON")
    with store.transaction() as db:
        for key, _ in gone:
            for table in _ABOUT:
                removed += db.execute(f"DELETE FROM {table} WHERE item_id = ?", (key,)).rowcount
            db.execute("DELETE FROM items WHERE id = ?", (key,))
            db.execute("UPDATE audit SET item_id = NULL WHERE item_id = ?", (key,))
        masked = sum(_mask(db, table, column, traces) for table, column in _TEXTS)
        if gone or masked:
            audit.record(db, None, "forget", detail=f"items={len(gone)} rows={removed} masked={masked}")
    if gone or masked:
        _rewrite(store.read())
        outcome.rows += len(gone) + removed
        outcome.files.append(DATABASE)
    for directory in sorted(root.glob("export-*/")):
        _remove_records(root, directory, traces, outcome)


def _about(store: Store, traces: Traces) -> Iterator[sqlite3.Row]:
    """The items about the client: by the speech or its id, or with the client's words in a response."""
    for row in store.read().execute("SELECT * FROM items"):
        texts = [row["speech"], row["responses"], row["facts"]]
        if row["speech_id"] in traces.ids or traces.within(texts):
            dialogue = json.loads(row["facts"]).get("dialogue")
            if not traces.is_of_another(dialogue, [context_of(item_of(row))], [row["speech_id"], *texts]):
                yield row


def _mask(db: sqlite3.Connection, table: str, column: str, traces: Traces) -> int:
    """Mask the client's words in what people wrote of other items; returns the number of changed texts."""
    texts = {row[0] for row in db.execute(f"SELECT DISTINCT {column} FROM {table}")}
    changed = [(_masked(text, traces), text) for text in texts if traces.within(text)]
    db.executemany(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", changed)
    return len(changed)


def _masked(text: str, traces: Traces) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return traces.masked(text)
    return json.dumps(_without(value, traces))


def _without(value: object, traces: Traces) -> object:
    if isinstance(value, str):
        return traces.masked(value) if traces.within(value) else value
    if isinstance(value, dict):
        return {key: _without(inner, traces) for key, inner in value.items()}
    return [_without(inner, traces) for inner in value] if isinstance(value, list) else value


def _remove_records(root: Path, directory: Path, traces: Traces, outcome: Outcome) -> None:
    """Remove the client's records, whole, from what was written for other tools."""
    for path in sorted(directory.rglob("*.json")):
        entries = records.read_json(path, "remove it, and export again", object)
        if not isinstance(entries, list):
            continue
        kept = [entry for entry in entries if not traces.within(entry)]
        if len(kept) < len(entries):
            storage.write_text(path, json.dumps(kept, indent=1) + "\n")
            outcome.rows += len(entries) - len(kept)
            outcome.files.append(str(path.relative_to(root)))
            manifests.seal(directory)


def _rewrite(db: sqlite3.Connection) -> None:
    """Write the database anew without free pages, and empty its log."""
    db.execute("PRAGMA temp_store = MEMORY")
    db.execute("VACUUM")
    busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if busy:
        raise InputError("the desk's database is in use by another command; wait for it, and run this one again")
