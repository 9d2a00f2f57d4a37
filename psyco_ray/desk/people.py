"""Accounts, invitations, passphrases and sessions."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from dataclasses import dataclass

from psyco_ray.desk import audit, passphrases
from psyco_ray.desk.passphrases import RefusedError as RefusedError
from psyco_ray.desk.store import Store

ROLES = ("annotator", "reviewer", "lead")

LOGIN_WINDOW = 15 * 60
"""Seconds over which failed log-ins are counted."""
LOGINS_PER_NAME = 5
LOGINS_PER_ADDRESS = 20
"""More than for a name, since a whole clinic may have one address."""

_LONGEST_NAME = 64
_SEEN_EVERY = 300  # seconds between two writes of when a session was seen

_NO_INVITATION = "this invitation is used or has expired; ask for a new one"


@dataclass(frozen=True)
class Person:
    """Somebody with an account; `role` is one of `ROLES`."""

    id: int
    name: str
    role: str


@dataclass(frozen=True)
class Session:
    """An open session.

    Attributes:
        token: for the cookie; the store has only its hash.
        csrf: what each POST of the session has to send.
        person: whose it is.
    """

    token: str
    csrf: str
    person: Person


def invite(store: Store, role: str, by: Person | None) -> str:
    """Make an invitation, which can be used once; returns its token.

    Args:
        store: the desk.
        role: of the person who will join.
        by: a lead; None: the command line.

    Raises:
        RefusedError: `by` is no lead, or there is no such role.
    """
    _require_lead(by, "invites")
    if role not in ROLES:
        raise RefusedError(f"a role is one of {', '.join(ROLES)}")
    with store.transaction() as db:
        return _new_invitation(store, db, role, by, None)


def renew(store: Store, person_id: int, by: Person | None) -> str:
    """Make an invitation with which a person sets a new passphrase; returns its token.

    Raises:
        RefusedError: `by` is no lead, or there is no such person.
    """
    _require_lead(by, "renews a passphrase")
    with store.transaction() as db:
        row = db.execute("SELECT role FROM people WHERE id=? AND active", (person_id,)).fetchone()
        if row is None:
            raise RefusedError("there is no such account")
        return _new_invitation(store, db, row["role"], by, person_id)


def invited(store: Store, token: str) -> str | None:
    """The role of an invitation that can be used, else None."""
    row = _invitation(store.read(), token)
    return None if row is None else row["role"]


def join(store: Store, token: str, name: str, passphrase: str) -> Person:
    """Use an invitation: make an account or, with one of `renew`, set its passphrase and end its sessions.

    Raises:
        RefusedError: the invitation is used, expired or none; the name is taken; the name or passphrase is unsuitable.
    """
    if _invitation(store.read(), token) is None:  # before the work of a hash
        raise RefusedError(_NO_INVITATION)
    name = _suitable_name(name)
    hashed = passphrases.hash_new(passphrase, name)
    with store.transaction() as db:
        row = _invitation(db, token)
        if row is None:
            raise RefusedError(_NO_INVITATION)
        of_name = _by_name(db, name)
        if row["person_id"] is None:
            if of_name is not None:
                raise RefusedError("this name is taken; choose another")
            person_id = db.execute(
                "INSERT INTO people(name, role, passphrase, created_at) VALUES(?,?,?,?)",
                (name, row["role"], hashed, time.time()),
            ).lastrowid
            assert person_id is not None
        else:
            person_id = row["person_id"]
            if of_name is None or of_name["id"] != person_id or not of_name["active"]:
                raise RefusedError("this invitation is for another name")
            db.execute("UPDATE people SET passphrase=? WHERE id=?", (hashed, person_id))
            db.execute("DELETE FROM sessions WHERE person_id=?", (person_id,))
        db.execute(
            "UPDATE invitations SET used_at=?, person_id=? WHERE token_hash=?", (time.time(), person_id, _digest(token))
        )
        audit.record(db, person_id, "join" if of_name is None else "renew", detail=f"role={row['role']}")
        return Person(person_id, name if of_name is None else of_name["name"], row["role"])


def log_in(store: Store, name: str, passphrase: str, address: str) -> Person:
    """The person with a name and passphrase.

    Args:
        store: the desk.
        name: as given; case does not matter.
        passphrase: as given.
        address: of the client, for the limit of tries.

    Raises:
        RefusedError: one of them is wrong, which takes the same time whichever it is, or there were too many tries.
    """
    name = passphrases.normal(name)
    attempt = _begin_attempt(store, name, address)
    row = _by_name(store.read(), name)
    known = row is not None and bool(row["active"])
    right = passphrases.verify(row["passphrase"] if row is not None and known else None, passphrase)
    with store.transaction() as db:
        if row is None or not right:
            audit.record(db, row["id"] if row is not None else None, "log_in_refused")
        else:
            # an account closed meanwhile opens no session: `session` looks again
            db.execute("DELETE FROM logins WHERE name=? OR rowid=?", (_digest(name.casefold()), attempt))
            audit.record(db, row["id"], "log_in")
    if row is None or not right:
        raise RefusedError("the name or the passphrase is wrong")
    return _person(row)


def open_session(store: Store, person: Person) -> Session:
    """A new session, with a new token."""
    token, csrf, now = secrets.token_urlsafe(32), secrets.token_urlsafe(32), time.time()
    with store.transaction() as db:
        db.execute("DELETE FROM sessions WHERE expires_at<=?", (now,))
        expires = now + store.settings.session_hours * 3600
        db.execute("INSERT INTO sessions VALUES(?,?,?,?,?,?)", (_digest(token), person.id, csrf, now, now, expires))
    return Session(token, csrf, person)


def session(store: Store, token: str) -> Session | None:
    """The session of a token; None where there is none, it has expired or its person is no longer active."""
    now = time.time()
    row = (
        store.read()
        .execute(
            "SELECT people.*, csrf, seen_at FROM sessions JOIN people ON people.id=person_id "
            "WHERE token_hash=? AND expires_at>? AND active",
            (_digest(token), now),
        )
        .fetchone()
    )
    if row is None:
        return None
    if now - row["seen_at"] > _SEEN_EVERY:
        with store.transaction() as db:
            db.execute("UPDATE sessions SET seen_at=? WHERE token_hash=?", (now, _digest(token)))
    return Session(token, row["csrf"], _person(row))


def close_session(store: Store, token: str) -> None:
    """End a session."""
    with store.transaction() as db:
        row = db.execute("DELETE FROM sessions WHERE token_hash=? RETURNING person_id", (_digest(token),)).fetchone()
        if row is not None:
            audit.record(db, row["person_id"], "log_out")


def deactivate(store: Store, person_id: int, by: Person | None) -> None:
    """Close an account: it can no longer log in, its sessions end and its unfinished items go to others.

    Raises:
        RefusedError: `by` is no lead, or closes their own account.
    """
    _require_lead(by, "closes an account")
    if by is not None and by.id == person_id:
        raise RefusedError("nobody closes their own account")
    with store.transaction() as db:
        db.execute("UPDATE people SET active=0 WHERE id=?", (person_id,))
        db.execute("DELETE FROM sessions WHERE person_id=?", (person_id,))
        db.execute(
            "UPDATE assignments AS a SET released_at=? WHERE person_id=? AND released_at IS NULL AND NOT coalesce("
            "(SELECT complete FROM judgements AS j WHERE j.item_id=a.item_id AND j.person_id=a.person_id "
            "ORDER BY version DESC LIMIT 1), 0)",
            (time.time(), person_id),
        )
        audit.record(db, by.id if by else None, "deactivate", detail=f"person={person_id}")


def everyone(store: Store, active: bool = True) -> list[Person]:
    """All people in the order in which they joined.

    Args:
        store: the desk.
        active: without those whose account is closed.
    """
    rows = store.read().execute("SELECT * FROM people WHERE active OR ? ORDER BY id", (not active,))
    return [_person(row) for row in rows]


def _require_lead(by: Person | None, what: str) -> None:
    if by is not None and by.role != "lead":
        raise RefusedError(f"only a lead {what}")


def _new_invitation(store: Store, db: sqlite3.Connection, role: str, by: Person | None, person_id: int | None) -> str:
    token, now = secrets.token_urlsafe(32), time.time()
    db.execute("DELETE FROM invitations WHERE expires_at<=?", (now,))
    db.execute(
        "INSERT INTO invitations VALUES(?,?,?,?,?,NULL,?)",
        (_digest(token), role, by.id if by else None, now, now + store.settings.invitation_hours * 3600, person_id),
    )
    audit.record(
        db, by.id if by else None, "invite", detail=f"role={role}" + (f" person={person_id}" if person_id else "")
    )
    return token


def _invitation(db: sqlite3.Connection, token: str) -> sqlite3.Row | None:
    """An invitation that can be used."""
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM invitations WHERE token_hash=? AND used_at IS NULL AND expires_at>?",
        (_digest(token), time.time()),
    ).fetchone()
    return row


def _begin_attempt(store: Store, name: str, address: str) -> int:
    """Count a log-in as failed before it is checked, so that many at once are limited too; returns its row.

    Names are stored as digests: what is typed there may be a passphrase.

    Raises:
        RefusedError: too many failed.
    """
    digest, now = _digest(name.casefold()), time.time()
    with store.transaction() as db:
        db.execute("DELETE FROM logins WHERE at<=?", (now - LOGIN_WINDOW,))
        of_name, of_address = db.execute(
            "SELECT coalesce(sum(name=?), 0), coalesce(sum(address=?), 0) FROM logins", (digest, address)
        ).fetchone()
        if of_name >= LOGINS_PER_NAME or of_address >= LOGINS_PER_ADDRESS:
            raise RefusedError(f"too many tries; wait {LOGIN_WINDOW // 60} minutes", limited=True)
        attempt = db.execute("INSERT INTO logins VALUES(?,?,?)", (digest, address, now)).lastrowid
        assert attempt is not None
        return attempt


def _suitable_name(name: str) -> str:
    name = passphrases.normal(name)
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise RefusedError(f"a name has 1 to {_LONGEST_NAME} characters that can be seen")
    return name


def _by_name(db: sqlite3.Connection, name: str) -> sqlite3.Row | None:
    """The account of a name; SQLite itself ignores the case of ASCII alone."""
    wanted = name.casefold()
    return next((row for row in db.execute("SELECT * FROM people") if row["name"].casefold() == wanted), None)


def _person(row: sqlite3.Row) -> Person:
    return Person(row["id"], row["name"], row["role"])


def _digest(text: str) -> str:
    return hashlib.sha256(passphrases.as_bytes(text)).hexdigest()
