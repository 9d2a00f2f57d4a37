"""Saving a trained policy beside the stages that follow it, which need the rollouts but not the learner."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundSave:
    """Runs one save at a time in a thread.

    Invariant: nothing that depends on a policy is recorded before the policy is on disk. The ledger calls `wait` before
    each record, and so does whatever uses the learner.

    Example:
        >>> save = BackgroundSave()
        >>> save.plan(lambda: learner.save_model("/models/policy"))
        >>> save.start()
        >>> save.wait()
    """

    def __init__(self) -> None:
        self._planned: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def plan(self, work: Callable[[], None]) -> None:
        """Set what `start` runs; the last save has ended."""
        assert self._planned is None, "one save at a time"
        assert self._thread is None, "one save at a time"
        self._planned = work

    def start(self) -> None:
        """Begin what is planned; no-op if nothing is."""
        work, self._planned = self._planned, None
        if work is not None:
            self._thread = threading.Thread(target=self._run, args=(work,), name="save", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Return when nothing is left to save; starts what is planned. See `join`."""
        self.start()
        self.join()

    def join(self) -> None:
        """Return when no save is running; no-op for the save itself.

        Raises:
            BaseException: what ended the save, once.
        """
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by `wait`, in the thread that can act on it
            self._error = error
