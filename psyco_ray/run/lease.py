"""A lease on a remote run directory, so that only one process writes to it."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.run.remote import RemoteDirectory

LEASE = "LOCK"  # name of the file
REFRESH_S = 10.0
EXPIRES_S = 60.0
_SETTLE_S = 1.0  # in which a competing process that saw no lease has written its own


class Lease:
    """A file that names the process that holds a run; a thread refreshes it while the process lives.

    Example:
        >>> lease = Lease(RemoteDirectory("s3://bucket/run"))
        >>> lease.check()  # before each write
        >>> lease.release()
    """

    def __init__(self, remote: RemoteDirectory) -> None:
        """Acquires the lease.

        Raises:
            InputError: another process holds it.
        """
        self._remote, self._owner = remote, uuid.uuid4().hex
        holder = self._holder()
        if holder is not None and time.time() - holder["time"] < EXPIRES_S:
            raise self._in_use(holder)
        self._write()
        time.sleep(_SETTLE_S)
        holder = self._holder()
        if holder is None or holder["owner"] != self._owner:
            raise self._in_use(holder or {})
        self._lost, self._stop = False, threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Verifies that this process still holds the lease.

        Raises:
            InputError: another process took it, or may have, because it was not refreshed in time.
        """
        if self._lost or time.monotonic() - self._written > EXPIRES_S - REFRESH_S:
            raise InputError(
                f"run_dir {self._remote.target} is no longer held by this process: its lease was taken over or could "
                "not be refreshed in time; make sure that no other process uses it, then continue with --resume"
            )

    def release(self) -> None:
        """Releases the lease."""
        self._stop.set()
        self._thread.join()
        holder = self._holder()
        if holder is not None and holder["owner"] == self._owner:
            self._remote.remove(LEASE)

    def _keep(self) -> None:
        while not self._stop.wait(REFRESH_S):
            try:
                holder = self._holder()
                self._lost = holder is None or holder["owner"] != self._owner
                if self._lost:
                    return
                self._write()
            except (InputError, json.JSONDecodeError):  # unreachable for now; `check` raises if that lasts too long
                continue

    def _holder(self) -> dict[str, Any] | None:
        data = self._remote.read(LEASE)
        return None if data is None else json.loads(data)

    def _write(self) -> None:
        record = {"owner": self._owner, "host": platform.node(), "pid": os.getpid(), "time": time.time()}
        began = time.monotonic()
        self._remote.write(LEASE, json.dumps(record).encode())
        self._written = began

    def _in_use(self, holder: dict[str, Any]) -> InputError:
        age = max(0.0, time.time() - holder.get("time", time.time()))
        return InputError(
            f"run_dir {self._remote.target} is in use by process {holder.get('pid')} on {holder.get('host')}, last "
            f"seen {age:.0f} s ago; wait for it or choose another run_dir. If it was killed, the run can continue in "
            f"{EXPIRES_S - age:.0f} s"
        )
