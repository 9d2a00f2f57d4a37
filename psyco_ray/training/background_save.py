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
        self._lock = threading.Lock()  # of what follows
        self._planned: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def plan(self, work: Callable[[], None]) -> None:
        """Set what `start` runs, when the last save has ended."""
        self.wait()
        self._planned = work

    def start(self) -> None:
        """Begin what is planned; no-op if nothing is."""
        with self._lock:
            work, self._planned = self._planned, None
            if work is not None:
                self._thread = threading.Thread(target=self._run, args=(work,), name="save", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Return when nothing is left to save; starts what is planned. See `join`."""
        self.start()
        self.join()

    def join(self) -> None:
        """Return when no save is running, in any thread; no-op for the save itself.

        Raises:
            BaseException: what ended a save, every time: nothing may be recorded after it.
        """
        with self._lock:
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by `join`, in the threads that can act on it
            self._error = error
