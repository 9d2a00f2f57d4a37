"""Who did what and when; never a word that a client or an annotator wrote."""

from __future__ import annotations

import re
import sqlite3
import time

_ACTION = re.compile(r"[a-z][a-z_]*")
_DETAIL = re.compile(r"(\w+=[\w.:-]+( \w+=[\w.:-]+)*)?", re.ASCII)


def record(
    db: sqlite3.Connection, person_id: int | None, action: str, item_id: str | None = None, detail: str = ""
) -> None:
    """Add a line to the audit log, in the caller's transaction.

    Args:
        db: of `Store.transaction`.
        person_id: who acts; None: the command line, or nobody who is known.
        action: a word such as `log_in` or `save`.
        item_id: the item it is about.
        detail: facts as `key=value`, such as `version=3 complete=1`.
    """
    assert _ACTION.fullmatch(action), "an action is one word"
    assert len(detail) <= 200, "a detail is short"
    assert _DETAIL.fullmatch(detail), "a detail has only facts as key=value"
    db.execute(
        "INSERT INTO audit(at, person_id, action, item_id, detail) VALUES(?,?,?,?,?)",
        (time.time(), person_id, action, item_id, detail),
    )
