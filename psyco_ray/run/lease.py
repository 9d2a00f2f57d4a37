"""A lease on a remote run directory, so that only one process writes to it.

Machines need not agree on the time: a process that finds a lease watches by its own clock whether the lease changes.
The holder stops writing before another process can have watched for long enough. `pyarrow.fs` has no conditional
writes, so of two processes that take a lease at the same time, the one that wrote last keeps it, and the other one sees
that.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid

from psyco_ray.config.errors import InputError
from psyco_ray.run.remote import RemoteDirectory

LEASE = "LOCK"  # name of the file
REFRESH_S = 10.0
EXPIRES_S = 60.0
_SETTLE_S = 1.0  # in which a competing process that saw no lease has written its own

_log = logging.getLogger(__name__)


class Lease:
    """A file that names the process that holds a run; a thread refreshes it while the process lives.

    Example:
        >>> lease = Lease(RemoteDirectory("s3://bucket/run"))
        >>> lease.check()  # before each write
        >>> lease.release()
    """

    def __init__(self, remote: RemoteDirectory) -> None:
        """Acquires the lease; takes `EXPIRES_S` if a process held it and did not release it.

        Raises:
            InputError: another process holds it.
        """
        self._remote, self._owner, self._refreshed = remote, uuid.uuid4().hex, 0
        self._wait_until_free()
        began = _now()
        self._write()
        slow = _now() - began > _SETTLE_S  # another process may hold the lease already, and has to notice that it lost
        time.sleep(EXPIRES_S if slow else _SETTLE_S)
        if not self._is_ours():
            raise self._in_use()
        if slow:
            self._write()
        self._lost, self._stop = False, threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Verifies that this process still holds the lease.

        Raises:
            InputError: another process took it, or may have, because it was not refreshed in time.
        """
        if self._lost or _now() - self._written > EXPIRES_S - REFRESH_S:
            raise InputError(
                f"run_dir {self._remote.target} is no longer held by this process: its lease was taken over or could "
                "not be refreshed in time; make sure that no other process uses it, then continue with --resume"
            )

    def release(self) -> None:
        """Releases the lease."""
        self._stop.set()
        self._thread.join()
        if self._is_ours():
            self._remote.remove(LEASE)

    def _wait_until_free(self) -> None:
        """Waits until there is no lease, or one that nobody refreshes, whatever it holds."""
        found = seen = self._remote.read(LEASE)
        if seen is None:
            return
        _log.info(f"run_dir {self._remote.target} was not released; {EXPIRES_S:.0f} s will show whether it is in use")
        since = _now()
        while found is not None and _now() - since < EXPIRES_S:
            time.sleep(REFRESH_S / 2)
            found = self._remote.read(LEASE)
            if found is not None and found != seen:
                raise self._in_use()

    def _keep(self) -> None:
        while not self._stop.wait(REFRESH_S):
            try:
                self._lost = not self._is_ours()
                before = self._written
                if not self._lost:
                    self._write()
                    self._lost = _now() - before > EXPIRES_S  # another process may have taken it meanwhile
                if self._lost:
                    return
            except InputError:  # unreachable for now; `check` raises if that lasts too long
                continue

    def _is_ours(self) -> bool:
        return _holder(self._remote).get("owner") == self._owner

    def _write(self) -> None:
        self._refreshed += 1
        record = {"owner": self._owner, "host": platform.node(), "pid": os.getpid(), "refreshed": self._refreshed}
        began = _now()
        self._remote.write(LEASE, json.dumps(record).encode())
        self._written = began

    def _in_use(self) -> InputError:
        holder = _holder(self._remote)
        return InputError(
            f"run_dir {self._remote.target} is in use by process {holder.get('pid', 'unknown')} on "
            f"{holder.get('host', 'an unknown host')}; wait for it or choose another run_dir"
        )


def _holder(remote: RemoteDirectory) -> dict[str, object]:
    """The record in the lease; empty if there is none, or one that cannot be read."""
    try:
        record = json.loads(remote.read(LEASE) or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _now() -> float:
    """Seconds of this machine, also those in which it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
