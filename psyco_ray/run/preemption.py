"""Graceful stop on SIGTERM, as Kubernetes and ``ray job stop`` send it: a driver stops where no work is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_requested = False  # no threading.Event: a signal handler must not wait for a lock
_settled = threading.Condition()
_deferring = 0  # number of active `deferred` contexts


class Preempted(BaseException):
    """SIGTERM arrived; a BaseException, so that no handler of errors swallows it."""


@contextlib.contextmanager
def handle_sigterm() -> Iterator[None]:
    """A context in which SIGTERM raises `Preempted` in the main thread, at once or when deferred work has ended.

    A second SIGTERM ends the process. Enter the context after `ray.init`, which sets its own handler.

    Example:
        >>> with handle_sigterm():
        ...     with deferred():
        ...         train()  # checks `requested` between steps
    """
    global _requested
    _requested = False
    before = signal.signal(signal.SIGTERM, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A context that SIGTERM does not interrupt; its code polls `requested` and leaves soon.

    Raises:
        Preempted: at its beginning or end, if SIGTERM has arrived.
    """
    global _deferring
    with _settled:
        check()
        _deferring += 1
    try:
        yield
    finally:
        with _settled:
            _deferring -= 1
            _settled.notify_all()
    check()


def requested() -> bool:
    """Whether SIGTERM has arrived."""
    return _requested


def check() -> None:
    """Stops here if SIGTERM has arrived.

    Raises:
        Preempted: it has.
    """
    if requested():
        raise Preempted


def settle() -> None:
    """Waits until no thread is in a `deferred` context."""
    with _settled:
        _settled.wait_for(lambda: not _deferring)


def _handle(*_: object) -> None:
    global _requested
    if _requested:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    _requested = True
    if not _deferring:
        raise Preempted
