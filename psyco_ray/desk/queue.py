"""What a person gets next, in an order and on sides of their own."""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.data.splits import speech_id
from psyco_ray.desk import audit
from psyco_ray.desk.people import Person
from psyco_ray.desk.store import Item, Store, item_of

KINDS = {"annotator": ("pair", "scores", "draft"), "reviewer": ("draft",), "lead": ()}
"""The kinds of items that a role gets. A lead sees the labels of others, so that no judgement of theirs is blind."""


_PACE_OVER = 20  # finished items
_PACE_FROM = 3
_BLOCKS = sorted(set(itertools.permutations((0, 0, 1, 1))))
_PRIME = 2**31 - 1

_COMPLETE = """coalesce((SELECT complete FROM judgements AS j WHERE j.item_id=a.item_id AND j.person_id=a.person_id
    ORDER BY version DESC LIMIT 1), 0)"""  # of an assignment a

_MAY_GET = """FROM items WHERE kind IN (SELECT value FROM json_each(:kinds))
    AND NOT EXISTS(SELECT 1 FROM assignments WHERE item_id=items.id AND person_id=:person)
    AND (SELECT count(*) FROM assignments WHERE item_id=items.id AND released_at IS NULL)
        < CASE kind WHEN 'draft' THEN 1 ELSE :overlap END"""


class NotYoursError(Exception):
    """The item is not the person's: of somebody else, given back, or none."""


@dataclass(frozen=True)
class Assigned:
    """An item that a person has.

    Attributes:
        item: as stored.
        sides: whether the responses are shown swapped; see `shown`.
        number: how many items the person got before, plus 1.
        answer: the newest one, in unswapped terms; None: nothing is saved, or all of it is undone.
        version: of the newest saved answer; 0: nothing is saved.
        complete: whether the answer says all that is asked.
    """

    item: Item
    sides: bool
    number: int
    answer: dict[str, Any] | None
    version: int
    complete: bool


@dataclass(frozen=True)
class Counts:
    """How far a person is.

    Attributes:
        done: items with a complete answer.
        open: items that the person has and that are unfinished.
        left: items that the person may still get.
        per_hour: at the pace of the newest 20; None before there are 3.
    """

    done: int
    open: int
    left: int
    per_hour: float | None


def next_item(store: Store, person: Person) -> Assigned | None:
    """What the person works on: an unfinished item of theirs, else a new one; None: nothing is left.

    New ones with flags of risk come first, and of a conversation its earlier turns; else the order is the person's own.
    An item goes to at most as many people as the overlap says, a draft to one.
    """
    if (unfinished := _unfinished(store.read(), person)) is not None:
        return unfinished
    with store.transaction() as db:
        if (unfinished := _unfinished(db, person)) is not None:  # given in another window meanwhile
            return unfinished
        if (row := _new_item(db, store, person)) is None:
            return None
        before, before_with_sides = db.execute(
            "SELECT count(*), coalesce(sum(json_array_length(responses)=2), 0) FROM assignments "
            "JOIN items ON items.id=item_id WHERE person_id=?",
            (person.id,),
        ).fetchone()
        sides = row["responses"] == 2 and _side(store, person, before_with_sides)
        db.execute(
            "INSERT INTO assignments VALUES(?,?,?,?,?,NULL)", (row["id"], person.id, int(sides), before, time.time())
        )
        audit.record(db, person.id, "assign", row["id"])
        return find(db, person, row["id"])


def assigned(store: Store, person: Person, item_id: str) -> Assigned:
    """An item that the person has.

    Raises:
        NotYoursError: they do not have it.
    """
    return find(store.read(), person, item_id)


def find(db: sqlite3.Connection, person: Person, item_id: str) -> Assigned:
    """`assigned`, within the caller's transaction."""
    row = db.execute(
        "SELECT items.*, a.sides, a.position AS number FROM assignments AS a JOIN items ON items.id=item_id "
        "WHERE item_id=? AND person_id=? AND released_at IS NULL",
        (item_id, person.id),
    ).fetchone()
    if row is None:
        raise NotYoursError
    newest = db.execute(
        "SELECT * FROM judgements WHERE item_id=? AND person_id=? ORDER BY version DESC LIMIT 1", (item_id, person.id)
    ).fetchone()
    answer, version, complete = (newest["answer"], newest["version"], newest["complete"]) if newest else ("null", 0, 0)
    return Assigned(item_of(row), bool(row["sides"]), row["number"] + 1, json.loads(answer), version, bool(complete))


def counts(store: Store, person: Person) -> Counts:
    """How far the person is."""
    db = store.read()
    held, done = db.execute(
        f"SELECT count(*), coalesce(sum({_COMPLETE}), 0) FROM assignments AS a "
        "WHERE person_id=? AND released_at IS NULL",
        (person.id,),
    ).fetchone()
    left = db.execute(f"SELECT count(*) {_MAY_GET}", _wanted(store, person)).fetchone()[0]
    seconds = db.execute(
        f"SELECT seconds FROM (SELECT item_id, person_id, seconds, max(version), saved_at FROM judgements WHERE "
        f"person_id=? GROUP BY item_id) AS a WHERE {_COMPLETE} ORDER BY saved_at DESC LIMIT {_PACE_OVER}",
        (person.id,),
    ).fetchall()
    spent = sum(row["seconds"] for row in seconds)
    pace = len(seconds) / spent * 3600 if len(seconds) >= _PACE_FROM and spent > 0 else None
    return Counts(done, held - done, left, pace)


def release(store: Store, item_id: str, person_id: int, by: Person | None = None) -> None:
    """Take an unfinished item from a person, who does not get it again, so that it goes to somebody else.

    Args:
        store: the desk.
        item_id: of the item.
        person_id: who has it.
        by: a lead; None: the command line.

    Raises:
        NotYoursError: the person does not have it, or has finished it.
    """
    with store.transaction() as db:
        released = db.execute(
            f"UPDATE assignments AS a SET released_at=? WHERE item_id=? AND person_id=? AND released_at IS NULL "
            f"AND NOT {_COMPLETE}",
            (time.time(), item_id, person_id),
        )
        if not released.rowcount:
            raise NotYoursError
        audit.record(db, by.id if by else None, "release", item_id, f"person={person_id}")


def shown(item: Item, sides: bool) -> tuple[str, ...]:
    """The responses as a person sees them, from left to right."""
    return item.responses[::-1] if sides else item.responses


def _unfinished(db: sqlite3.Connection, person: Person) -> Assigned | None:
    row = db.execute(
        f"SELECT item_id FROM assignments AS a WHERE person_id=? AND released_at IS NULL AND NOT {_COMPLETE} "
        "ORDER BY position LIMIT 1",
        (person.id,),
    ).fetchone()
    return row and find(db, person, row["item_id"])


def _new_item(db: sqlite3.Connection, store: Store, person: Person) -> sqlite3.Row | None:
    """The `id` of the item that the person gets next, and its number of `responses`.

    Of a conversation the earlier turns come first: a later one shows how the therapist went on.
    """
    wanted = _wanted(store, person)
    asked = f"SELECT id, speech, json_array_length(responses) AS responses {_MAY_GET}"
    # A random cubic modulo a prime: any four items are in a random order, and SQLite computes it by itself.
    row: sqlite3.Row | None = db.execute(
        f"{asked} ORDER BY crisis='[]', "
        f"(((:a * position + :b) % {_PRIME} * position + :c) % {_PRIME} * position + :d) % {_PRIME}, position "
        "LIMIT 1",
        wanted | dict(zip("abcd", _numbers(store, person), strict=True)),
    ).fetchone()
    earlier = [] if row is None else [speech_id(context.text) for context in Context.of(row["speech"]).earlier]
    if not earlier:
        return row
    first: sqlite3.Row | None = db.execute(
        f"{asked} AND speech_id IN (SELECT value FROM json_each(:earlier)) ORDER BY length(speech), position LIMIT 1",
        wanted | {"earlier": json.dumps(earlier)},
    ).fetchone()
    return first or row


def _wanted(store: Store, person: Person) -> dict[str, Any]:
    """The parameters of `_MAY_GET`."""
    overlap = store.settings.overlap
    return {
        "kinds": json.dumps(KINDS[person.role]),
        "person": person.id,
        "overlap": _PRIME if overlap == "all" else overlap,
    }


def _numbers(store: Store, person: Person) -> list[int]:
    """Four random numbers below `_PRIME` of the person's order."""
    digest = hashlib.sha256(f"{store.settings.seed} order {person.id}".encode()).digest()
    return [int.from_bytes(digest[at : at + 8], "big") % _PRIME for at in (0, 8, 16, 24)]


def _side(store: Store, person: Person, number: int) -> bool:
    """Whether the responses of a person's item are swapped: those of two out of any four in a row, at random."""
    block, place = divmod(number, len(_BLOCKS[0]))
    digest = hashlib.sha256(f"{store.settings.seed} sides {person.id} {block}".encode()).digest()
    return bool(_BLOCKS[int.from_bytes(digest[:8], "big") % len(_BLOCKS)][place])
