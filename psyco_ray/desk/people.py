"""Accounts, invitations, passphrases and sessions."""

from __future__ import annotations

from dataclasses import dataclass

from psyco_ray.desk.store import Store

ROLES = ("annotator", "reviewer", "lead")


class RefusedError(Exception):
    """A log-in or an invitation is refused; the message may be shown.

    Attributes:
        limited: there were too many tries; later ones may succeed (HTTP 429).
    """

    def __init__(self, message: str, limited: bool = False) -> None:
        super().__init__(message)
        self.limited = limited


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
    raise NotImplementedError


def renew(store: Store, person_id: int, by: Person | None) -> str:
    """Make an invitation with which a person sets a new passphrase; returns its token.

    Raises:
        RefusedError: `by` is no lead, or there is no such person.
    """
    raise NotImplementedError


def invited(store: Store, token: str) -> str | None:
    """The role of an invitation that can be used, else None."""
    raise NotImplementedError


def join(store: Store, token: str, name: str, passphrase: str) -> Person:
    """Use an invitation.

    Raises:
        RefusedError: the invitation is used, expired or none; the name is taken; the name or passphrase is unsuitable.
    """
    raise NotImplementedError


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
    raise NotImplementedError


def open_session(store: Store, person: Person) -> Session:
    """A new session, with a new token."""
    raise NotImplementedError


def session(store: Store, token: str) -> Session | None:
    """The session of a token; None where there is none, it has expired or its person is no longer active."""
    raise NotImplementedError


def close_session(store: Store, token: str) -> None:
    """End a session."""
    raise NotImplementedError


def deactivate(store: Store, person_id: int, by: Person) -> None:
    """Close an account: it can no longer log in, its sessions end and its unfinished items go to others.

    Raises:
        RefusedError: `by` is no lead, or closes their own account.
    """
    raise NotImplementedError


def everyone(store: Store, active: bool = True) -> list[Person]:
    """All people in the order in which they joined.

    Args:
        store: the desk.
        active: without those whose account is closed.
    """
    raise NotImplementedError
