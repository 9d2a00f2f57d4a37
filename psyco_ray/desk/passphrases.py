"""Passphrases: what is accepted as one, and their argon2 hashes."""

from __future__ import annotations

import functools
import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

SHORTEST = 12
LONGEST = 1024

AT_ONCE = 2
"""Hashes that are computed at the same time; each takes 64 MiB."""
_LONGEST_WAIT = 10.0  # seconds

_HASHER = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=1)
_RUNNING = threading.BoundedSemaphore(AT_ONCE)


class RefusedError(Exception):
    """A log-in, an invitation or a change of an account is refused; the message may be shown.

    Attributes:
        limited: there were too many tries; later ones may succeed (HTTP 429).
    """

    def __init__(self, message: str, limited: bool = False) -> None:
        super().__init__(message)
        self.limited = limited


def hash_new(passphrase: str, name: str) -> str:
    """The hash of a new passphrase.

    Args:
        passphrase: as given.
        name: of its person, which it must not be.

    Raises:
        RefusedError: it is too easy to guess or too long.
    """
    secret = unicodedata.normalize("NFKC", passphrase)
    if len(secret) < SHORTEST or len(set(secret)) < 4:
        raise RefusedError(f"a passphrase has {SHORTEST} characters or more, such as four words")
    if len(secret) > LONGEST:
        raise RefusedError(f"a passphrase has at most {LONGEST} characters")
    if normal(secret).casefold() == name.casefold():
        raise RefusedError("the passphrase is the name; choose another")
    with _turn():
        return _HASHER.hash(as_bytes(secret))


def verify(hashed: str | None, passphrase: str) -> bool:
    """Whether a passphrase is the hashed one; with None, for a name without an account, it takes as long.

    Raises:
        RefusedError: too many people wait.
    """
    nobody = _hash_of_nobody()
    secret = unicodedata.normalize("NFKC", passphrase[: LONGEST + 1])
    with _turn():
        try:
            return _HASHER.verify(hashed or nobody, as_bytes(secret)) and hashed is not None
        except VerifyMismatchError:
            return False


def normal(text: str) -> str:
    """A text in the form in which equal ones are equal, whatever keyboard they come from, and without outer spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def as_bytes(text: str) -> bytes:
    """The bytes of a text from a request, which may hold half of a character."""
    return text.encode("utf-8", "surrogatepass")


@functools.cache
def _hash_of_nobody() -> str:
    return _HASHER.hash(secrets.token_bytes(32))


@contextmanager
def _turn() -> Iterator[None]:
    """A context in which one of few hashes is computed.

    Raises:
        RefusedError: too many wait.
    """
    if not _RUNNING.acquire(timeout=_LONGEST_WAIT):
        raise RefusedError("many people log in right now; try again in a minute", limited=True)
    try:
        yield
    finally:
        _RUNNING.release()
