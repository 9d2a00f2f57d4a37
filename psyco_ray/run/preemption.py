"""Graceful stop on a signal: a command stops where no work is lost.

SIGTERM comes from Kubernetes, Slurm, systemd and ``ray job stop``, SIGINT from Ctrl-C, SIGHUP from a closed terminal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ONE_REQUEST_S = 1.0  # `timeout` and batch systems signal a process and then its whole group

_requested_at: float | None = None  # no threading.Event: a signal handler must not wait for a lock
_settled = threading.Condition()
_deferring = 0  # number of active `deferred` contexts


class Preempted(BaseException):
    """A signal asks for a stop; a BaseException, so that no handler of errors swallows it."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """A context in which a signal raises `Preempted` in the main thread, at once or when deferred work has ended.

    A second signal ends the process. A signal that the process was started to ignore, as by ``nohup``, stays ignored.
    In another thread than the main one the context changes nothing.

    Example:
        >>> with stop_on_signals():
        ...     with deferred():
        ...         train()  # checks `requested` between steps
    """
    global _requested_at
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested_at = None
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # None: a handler that Python cannot restore
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, _handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A context that a signal does not interrupt; its code polls `requested` and leaves soon.

    Raises:
        Preempted: at its beginning or end, if a signal has arrived.
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


@contextlib.contextmanager
def unmasked() -> Iterator[None]:
    """A context that a stop leaves as `Preempted`, where C code has made it the cause of another error.

    A signal handler runs inside C calls too. ``ray.wait`` then returns a result with an exception set, which Python
    turns into a SystemError.

    Raises:
        Preempted: in place of an error that it has caused.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__  # not __context__: an error of the stop itself, such as a full disk, is its own
        while cause is not None and not isinstance(cause, Preempted):
            cause = cause.__cause__
        if cause is None:
            raise
        raise Preempted from error


def requested() -> bool:
    """Whether a signal has asked for a stop."""
    return _requested_at is not None


def check() -> None:
    """Stops here if a signal has asked for it.

    Raises:
        Preempted: it has.
    """
    if requested():
        raise Preempted


def settle() -> None:
    """Waits until no thread is in a `deferred` context."""
    with _settled:
        _settled.wait_for(lambda: not _deferring)


def _handle(number: int, _: object) -> None:
    global _requested_at
    now = time.monotonic()
    if number == signal.SIGHUP:
        _leave_terminal()
    if _requested_at is None:
        _requested_at = now
        if not _deferring:
            raise Preempted
    elif now - _requested_at > _ONE_REQUEST_S:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _leave_terminal() -> None:
    """Write nowhere where the terminal is gone: an error of a progress line must not prevent a checkpoint."""
    for output in (1, 2):
        try:
            os.write(output, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
