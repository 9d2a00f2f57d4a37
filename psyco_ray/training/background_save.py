"""What the learner does beside the stages that follow a training: checking a weight update, and saving the policy."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundSave:
    """Runs one save at a time in a thread, and what must be done with the learner before.

    Invariant: nothing that depends on a policy is recorded before the policy is on disk and the engines have shown that
    they compute with it. The ledger calls `wait` before each record, and so does whatever uses the learner.

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

    def start(self, first: Callable[[], None] | None = None) -> None:
        """Begin what is planned, even if `first` fails, which runs before it; no-op without both."""
        with self._lock:
            work = [part for part in (first, self._planned) if part is not None]
            self._planned = None
            if work:
                self._thread = threading.Thread(target=self._run, args=(work,), name="save", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Return when nothing is left to save; starts what is planned. See `join`."""
        self.start()
        self.join()

    def join(self) -> None:
        """Return when no save is running, in any thread; no-op for the save itself.

        Raises:
            BaseException: what ended a save or what came before it, every time: nothing may be recorded after it.
        """
        with self._lock:
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, work: list[Callable[[], None]]) -> None:
        for part in work:
            try:
                part()
            except BaseException as error:  # noqa: BLE001 - raised again by `join`, in the threads that can act on it
                self._error = self._error or error
