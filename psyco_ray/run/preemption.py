"""A driver that is asked to stop by SIGTERM, as Kubernetes and ``ray job stop`` do, stops where nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_asked = False  # no Event: a handler must not wait for a lock
_settled = threading.Condition()
_deferring = 0  # how many pieces of work end by themselves after a SIGTERM


class Preempted(BaseException):
    """SIGTERM came; no `Exception`, for nothing on the way is meant to handle it."""


@contextlib.contextmanager
def handle_sigterm() -> Iterator[None]:
    """A context in which SIGTERM raises `Preempted` in the main thread, at once or when what is deferred has ended.

    A second SIGTERM ends the process. Enter it after `ray.init`, which sets a handler of its own.
    """
    global _asked
    _asked = False
    before = signal.signal(signal.SIGTERM, _hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A context that a SIGTERM does not interrupt; whoever is in it looks at `asked` and leaves soon.

    Raises:
        Stopped: at its beginning or end, if SIGTERM has come.
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


def asked() -> bool:
    """Whether SIGTERM has come."""
    return _asked


def check() -> None:
    """Stop here if SIGTERM has come.

    Raises:
        Stopped: it has.
    """
    if asked():
        raise Preempted


def settle() -> None:
    """Wait until nothing is deferred any more, in whatever thread."""
    with _settled:
        _settled.wait_for(lambda: not _deferring)


def _hear(*_: object) -> None:
    global _asked
    if _asked:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    _asked = True
    if not _deferring:
        raise Preempted
