"""Items and judgements to and from other annotation tools.

A tool shows the responses of a pair in an order that a hash of the item decides, so it is as blind as the desk. People
are ids without names on both ways. What comes back finds its item by the id and the texts; an item that the desk does
not know is added.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from psyco_ray.config.errors import InputError
from psyco_ray.data.client_rows import by_count
from psyco_ray.data.conversations import UnusablePairError
from psyco_ray.data.splits import is_dev
from psyco_ray.desk import answers, argilla, audit, judgements, label_studio, sources
from psyco_ray.desk.candidates import Candidate
from psyco_ray.desk.entries import Entry, Vote
from psyco_ray.desk.export import LOCK
from psyco_ray.desk.store import Item, Store, to_json
from psyco_ray.files.records import open_records
from psyco_ray.run import storage
from psyco_ray.run.hashing import key_of
from psyco_ray.run.locks import locked

FORMATS: dict[str, ModuleType] = {"argilla": argilla, "label-studio": label_studio}

_KINDS = {"pair": 2, "scores": 2, "draft": 1}  # responses at most
_DEV_SHARE = 0.1

_log = logging.getLogger(__name__)


def write(store: Store, tool: str) -> str:
    """Write DESK/export-TOOL: a directory for each kind of item, with all complete judgements.

    Returns:
        A sentence on what was written.

    Raises:
        InputError: the files cannot be written.
    """
    by_item: dict[str, list[judgements.Judgement]] = {}
    for one in judgements.latest(store):
        by_item.setdefault(one.item_id, []).append(one)
    names = {person: _public_id(store, person) for person in _judges(store)}  # after: somebody may join meanwhile
    by_kind: dict[str, list[Entry]] = {}
    for item in store.items():
        entry = _shown(store, item, by_item.get(item.id, []), names)
        by_kind.setdefault(item.kind, []).append(entry)
    target = store.directory / f"export-{tool}"
    with locked(store.directory / LOCK), storage.atomic_dir(target) as out:
        for kind, entries in sorted(by_kind.items()):
            FORMATS[tool].write(out / kind, kind, entries, store.settings)
    counts = ", ".join(f"{len(entries)} of kind {kind}" for kind, entries in sorted(by_kind.items()))
    return f"{target}: {counts}, with {sum(map(len, by_item.values()))} judgements"


def read(store: Store, path: Path, tool: str) -> str:
    """Add the items and judgements of a tool's export; what is there already stays as it is.

    Returns:
        A sentence on what was added and left out.

    Raises:
        InputError: the file cannot be read, or has no usable record.
    """
    reader = FORMATS[tool]
    items = {item.id: item for item in store.items()}
    known = len(items)
    left_out: Counter[str] = Counter()
    votes: list[tuple[Item, Vote, bool]] = []
    records = 0
    for cells in _rows(reader.file_of(path)):
        records += 1
        try:
            entry = reader.entry(cells)
            item, swapped = _item_of(entry, items, path.name)
        except UnusablePairError as reason:
            left_out[str(reason)] += 1
            continue
        items.setdefault(item.id, item)
        votes += [(item, vote, swapped) for vote in entry.votes]
    if left_out.total() == records:
        raise InputError(f"{path} has no record that this desk can use ({by_count(left_out)})")
    added = store.add_items(list(items.values())[known:])
    ours = {_public_id(store, person): person for person in _judges(store)}
    judged: Counter[str] = Counter()
    for item, vote, swapped in votes:
        answer = answers.cleaned(answers.unswapped(dict(vote.answer), swapped))
        try:
            complete = answers.validate(item.kind, answer, store.settings)
        except answers.InvalidAnswerError as reason:
            left_out[f"an answer: {reason}"] += 1
            continue
        complete = complete or (item.kind == "pair" and "overall" in answer)  # tools may ask for less
        with store.transaction() as db:
            person = ours.get(vote.annotator) or _outside(db, f"{tool}-{vote.annotator}")
            added_now = complete and _add(db, person, item, answer, vote.seconds)
        judged["incomplete" if not complete else "new" if added_now else "known"] += 1
    if left_out:
        _log.warning(f"{path}: left out {by_count(left_out)}")
    return (
        f"{path}: {records} records, {added} new items, {judged['new']} new judgements; {judged['known']} were known "
        f"already, {judged['incomplete']} are incomplete, {left_out.total()} left out"
    )


def _outside(db: sqlite3.Connection, name: str) -> int:
    """The account of somebody who judges with another tool; nobody can log in with it."""
    row = db.execute("SELECT id FROM people WHERE name = ?", (name,)).fetchone()
    if row is not None:
        return int(row["id"])
    found = db.execute(
        "INSERT INTO people(name, role, passphrase, created_at, active) VALUES(?, 'annotator', '', ?, 0)",
        (name, time.time()),
    )
    assert found.lastrowid is not None
    return found.lastrowid


def _add(db: sqlite3.Connection, person: int, item: Item, answer: dict[str, Any], seconds: float) -> bool:
    """Add a judgement, unless the person has judged the item already; returns whether it is new."""
    key = (item.id, person)
    if db.execute("SELECT 1 FROM judgements WHERE item_id = ? AND person_id = ? AND complete", key).fetchone():
        return False
    now = time.time()
    db.execute(
        "INSERT INTO assignments(item_id, person_id, sides, position, assigned_at) VALUES(?, ?, 0, "
        "(SELECT coalesce(max(position), -1) + 1 FROM assignments WHERE person_id = ?), ?) "
        "ON CONFLICT DO UPDATE SET released_at = NULL",
        (*key, person, now),
    )
    version = db.execute(
        "SELECT coalesce(max(version), 0) + 1 AS next FROM judgements WHERE item_id = ? AND person_id = ?", key
    ).fetchone()["next"]
    db.execute(
        "INSERT INTO judgements(item_id, person_id, version, previous, answer, complete, saved_at, seconds) "
        "VALUES(?, ?, ?, ?, ?, 1, ?, ?)",
        (*key, version, version - 1, to_json(answer), now, seconds),
    )
    audit.record(db, person, "import", item.id, f"version={version}")
    return True


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    for record in open_records(path, "annotations"):
        yield record.cells or {}


def _item_of(entry: Entry, items: Mapping[str, Item], name: str) -> tuple[Item, bool]:
    """The item that an entry is about, and whether the tool showed its responses in the other order.

    Raises:
        UnusablePairError: the texts are not those of the item, or are no item.
    """
    item = items.get(entry.item_id or "")
    if item is not None:
        if item.speech.strip() != entry.speech:
            raise UnusablePairError("a speech that is not the item's")
        shown, own = list(entry.responses), [text.strip() for text in item.responses]
        if shown not in (own, own[::-1]):
            raise UnusablePairError("responses that are not the item's")
        return item, shown != own
    if entry.kind not in _KINDS or not entry.speech or not all(entry.responses):
        raise UnusablePairError("an empty text or an unknown kind")
    if entry.kind == "pair" and (len(entry.responses) != 2 or entry.responses[0] == entry.responses[1]):
        raise UnusablePairError("not two different responses")
    if len(entry.responses) > _KINDS[entry.kind]:
        raise UnusablePairError("more responses than the kind has")
    split = entry.split if entry.split in ("train", "dev", "test") else None
    split = split or ("dev" if is_dev(entry.speech, _DEV_SHARE) else "train")
    kind = cast(Literal["pair", "scores", "draft"], entry.kind)
    added = sources.item_of(Candidate(name, entry.speech, entry.responses, {"split": split}), kind)
    return items.get(added.id, added), False


def _shown(store: Store, item: Item, judged: list[judgements.Judgement], names: Mapping[int, str]) -> Entry:
    """An item as a tool shows it: with the sides of a hash."""
    swapped = len(item.responses) == 2 and int(key_of(store.settings.seed, "exchange", item.id), 16) % 2 == 1
    order = item.responses[::-1] if swapped else item.responses
    votes = tuple(
        Vote(names[one.person_id], answers.unswapped(dict(one.answer), swapped), one.seconds) for one in judged
    )
    return Entry(item.id, item.kind, item.speech, order, votes, item.facts.get("split"), item.crisis)


def _judges(store: Store) -> list[int]:
    return [row["id"] for row in store.read().execute("SELECT id FROM people ORDER BY id")]


def _public_id(store: Store, person: int) -> str:
    """An id that is a person's in other tools: the same in every export of this desk, and another in other desks."""
    row = store.read().execute("SELECT created_at FROM people WHERE id = ?", (person,)).fetchone()
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"desk {person} {row['created_at']!r}"))
