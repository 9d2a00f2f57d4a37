"""What people answer. No answer is overwritten: a new version is added, and the highest counts."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from psyco_ray.desk import answers, audit, queue
from psyco_ray.desk.answers import InvalidAnswerError as InvalidAnswerError
from psyco_ray.desk.answers import unswapped as unswapped
from psyco_ray.desk.answers import validate as validate
from psyco_ray.desk.people import Person
from psyco_ray.desk.queue import Assigned
from psyco_ray.desk.store import Item, Store, item_of, to_json


class ConflictError(Exception):
    """The answer was changed elsewhere meanwhile.

    Attributes:
        version: the newest one.
    """

    def __init__(self, version: int) -> None:
        super().__init__("this item was changed in another window; load it again")
        self.version = version


@dataclass(frozen=True)
class Judgement:
    """The newest answer of a person about an item.

    Attributes:
        item_id: of the item.
        person_id: of the person.
        answer: in unswapped terms: 1 is `responses[0]`, -1 is `responses[1]`, 0 is a tie.
        version: of the answer.
        saved_at: Unix seconds.
        seconds: that the person spent on the item.
    """

    item_id: str
    person_id: int
    answer: dict[str, Any]
    version: int
    saved_at: float
    seconds: float


def save(store: Store, person: Person, item_id: str, answer: Any, base_version: int, seconds: float) -> int:
    """Save an answer; returns its version. The newest answer again is no new version, whatever `base_version` is.

    Args:
        store: the desk.
        person: who answers.
        item_id: an item that the person has.
        answer: in unswapped terms.
        base_version: the version that the person saw; 0: none.
        seconds: that the person spent on the item so far.

    Raises:
        NotYoursError: of `queue`; the person does not have the item.
        InvalidAnswerError: the answer is not one to this item.
        ConflictError: `base_version` is not the newest one.
    """
    if not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0):
        raise InvalidAnswerError("the time spent is not a number of seconds")
    with store.transaction() as db:
        held = queue.find(db, person, item_id)
        answer, complete = _checked(store, held.item, answer)
        if held.version and answer == held.answer:
            return held.version
        if base_version != held.version:
            raise ConflictError(held.version)
        _append(db, person, held, held.version, answer, complete, seconds)
    return held.version + 1


def undo(store: Store, person: Person, item_id: str) -> Assigned:
    """Go back to the answer before; again: to the one before that.

    Raises:
        NotYoursError: of `queue`; the person does not have the item.
    """
    with store.transaction() as db:
        held = queue.find(db, person, item_id)
        newest = _version(db, person, item_id, held.version)
        if newest is None or held.answer is None:
            return held
        before = _version(db, person, item_id, newest["previous"])
        previous, answer, complete = (0, None, False) if before is None else (
            before["previous"], json.loads(before["answer"]), bool(before["complete"])
        )  # fmt: skip
        _append(db, person, held, previous, answer, complete, newest["seconds"], action="undo")
        return queue.find(db, person, item_id)


def latest(store: Store, kind: str | None = None, complete: bool = True, item_id: str | None = None) -> list[Judgement]:
    """The newest answers by item, in the items' order, then by person.

    Args:
        store: the desk.
        kind: of the items; None: all.
        complete: only those that say all that is asked.
        item_id: of one item; None: all.
    """
    wanted = {name: value for name, value in (("kind", kind), ("item_id", item_id)) if value is not None}
    where = "WHERE " + " AND ".join(f"{name}=:{name}" for name in wanted) if wanted else ""
    rows = store.read().execute(
        f"SELECT j.*, max(version) FROM judgements AS j JOIN items ON items.id=item_id {where} "
        "GROUP BY item_id, person_id ORDER BY items.position, person_id",
        wanted,
    )
    return [
        Judgement(
            row["item_id"], row["person_id"], json.loads(row["answer"]), row["version"], row["saved_at"], row["seconds"]
        )
        for row in rows
        if row["complete"] or (not complete and row["answer"] != "null")
    ]


def adjudicate(store: Store, person: Person, item_id: str, answer: Any) -> None:
    """Decide an item about which people disagree; a later decision replaces an earlier one.

    Raises:
        NotYoursError: of `queue`; the person is no lead, or there is no such item.
        InvalidAnswerError: the answer is incomplete or not one to this item; principles and confidence may be left out.
    """
    with store.transaction() as db:
        row = db.execute("SELECT * FROM items WHERE id=?", (item_id,)).fetchone()
        if person.role != "lead" or row is None:
            raise queue.NotYoursError
        item = item_of(row)
        if item.kind == "draft":
            raise InvalidAnswerError("a draft is approved or refused, not adjudicated")
        answer, complete = _checked(store, item, answer)
        if not complete and (item.kind != "pair" or answer.get("overall") is None):
            raise InvalidAnswerError("the decision is incomplete")
        db.execute(
            "INSERT OR REPLACE INTO adjudications VALUES(?,?,?,?)", (item_id, person.id, to_json(answer), time.time())
        )
        audit.record(db, person.id, "adjudicate", item_id)


def _checked(store: Store, item: Item, answer: Any) -> tuple[dict[str, Any], bool]:
    """The answer to an item as it is stored, and whether it is complete; an edit is, when it changes the draft.

    Raises:
        InvalidAnswerError: it is none, or has not as many scores as the item has responses.
    """
    complete = validate(item.kind, answer, store.settings)
    answer = answers.cleaned(answer)
    if item.kind == "scores" and len(answer["scores"]) != len(item.responses):
        raise InvalidAnswerError(f"this item has {len(item.responses)} responses to score")
    if answer.get("decision") == "edit" and complete:
        complete = answer["edit"].strip() != answers.cleaned(item.responses[0]).strip()
    return answer, complete


def _version(db: sqlite3.Connection, person: Person, item_id: str, version: int) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM judgements WHERE item_id=? AND person_id=? AND version=?", (item_id, person.id, version)
    ).fetchone()
    return row


def _append(
    db: sqlite3.Connection,
    person: Person,
    held: Assigned,
    previous: int,
    answer: Any,
    complete: bool,
    seconds: float,
    action: str = "save",
) -> None:
    """Add a version; `previous` is the one that an undo goes back to, 0 for no answer."""
    version = held.version + 1
    db.execute(
        "INSERT INTO judgements VALUES(?,?,?,?,?,?,?,?)",
        (held.item.id, person.id, version, previous, to_json(answer), int(complete), time.time(), seconds),
    )
    audit.record(db, person.id, action, held.item.id, f"version={version} complete={int(complete)}")
