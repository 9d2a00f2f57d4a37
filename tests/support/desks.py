"""Desks for tests: real ones in a directory, and people without the time that a passphrase takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.config.desk import Desk
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.desk import judgements, queue
from psyco_ray.desk.people import Person
from psyco_ray.desk.store import Item, Store


def new_desk(directory: Path, items: list[Item] | None = None, **settings: Any) -> Store:
    """A new desk with settings and items."""
    directory.mkdir(mode=0o700, parents=True)
    (directory / "desk.yaml").write_text(job_file.dump(Desk(**settings)))
    store = Store.open(directory, create=True)
    store.add_items(items or [])
    return store


def add_person(store: Store, role: str = "annotator", name: str | None = None) -> Person:
    """A person whom no passphrase lets in; `people.invite` and `join` make others."""
    with store.transaction() as db:
        number = db.execute("SELECT count(*) FROM people").fetchone()[0] + 1
        name = name or f"{role} {number}"
        row = db.execute(
            "INSERT INTO people(name, role, passphrase, created_at) VALUES(?,?,'none',?)", (name, role, time.time())
        )
    assert row.lastrowid is not None
    return Person(row.lastrowid, name, role)


def pair_item(number: int, crisis: bool = False) -> Item:
    """A pair about which a judge prefers the first response."""
    responses = (f"That sounds hard ({number}).", f"Cheer up ({number}).")
    facts = {"pair_id": f"pair-{number}", "labels": {"overall": 1}}
    return Item(
        f"p{number}", "pair", "test", f"s{number}", f"speech {number}", responses, ("suicide",) * crisis, facts
    )  # fmt: skip


def scores_item(number: int, responses: int = 2, crisis: bool = False) -> Item:
    """One or two responses to score."""
    texts = tuple(f"response {letter} to {number}" for letter in "ab"[:responses])
    return Item(f"r{number}", "scores", "test", f"s{number}", f"speech {number}", texts, ("suicide",) * crisis, {})


def draft_item(number: int, crisis: bool = False, text: str = "I hear you.") -> Item:
    """A draft to approve, edit or reject."""
    return Item(f"d{number}", "draft", "test", f"s{number}", f"speech {number}", (text,), ("suicide",) * crisis, {})


def pair_answer(overall: int = 1, confidence: int = 3, **others: Any) -> dict[str, Any]:
    """A complete answer about a pair."""
    principles = dict.fromkeys(PRINCIPLES, overall)
    return {"overall": overall, "principles": principles, "confidence": confidence, "comment": ""} | others


def scores_answer(*levels: int) -> dict[str, Any]:
    """Complete scores, one level for each response."""
    return {"scores": [dict.fromkeys(PRINCIPLES, level) for level in levels], "comment": ""}


def draft_answer(decision: str, edit: str | None = None, *reasons: str) -> dict[str, Any]:
    """A decision about a draft."""
    return {"decision": decision, "edit": edit, "reasons": list(reasons), "comment": ""}


def answer_all(store: Store, person: Person, answers: dict[str, dict[str, Any]]) -> None:
    """Lets a person answer the items that they get, by the item's id, until one has no answer."""
    while (assigned := queue.next_item(store, person)) is not None and assigned.item.id in answers:
        judgements.save(store, person, assigned.item.id, answers[assigned.item.id], assigned.version, 12.5)
