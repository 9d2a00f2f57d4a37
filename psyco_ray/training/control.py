"""Status and scaling of a run in progress, through two files of its run directory.

The driver writes ``status.json`` for ``psyco-ray status`` and reads ``scale.json``, which ``psyco-ray scale`` writes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import PoolConfig
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.run import storage
from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.remote import is_remote
from psyco_ray.run.status import SCALE, STATUS

_log = logging.getLogger(__name__)

_EVERY_S = 2.0  # between polls of the files
_EVERY_REMOTE_S = 15.0  # each poll is a paid request


class Control:
    """Writes ``status.json`` and follows ``scale.json`` in a thread.

    Example:
        >>> control = Control(ledger, {"scorers": pool}, {"scorers": job.scorers}, describe)
        >>> with control.autoscaling():
        ...     score(groups)
        >>> control.close()
    """

    def __init__(
        self,
        directory: RunDirectory,
        pools: Mapping[str, ActorPool[Any]],
        settings: Mapping[str, PoolConfig],
        describe: Callable[[dict[str, list[dict[str, Any]]]], dict[str, Any]],
        fixed: Collection[str] = (),
    ) -> None:
        """Starts the thread.

        Args:
            directory: of the run.
            pools: by role.
            settings: of the pools, by role.
            describe: returns further fields of the status (stage, progress, version, figures), given the status of the
                pools' actors by role.
            fixed: roles that cannot be scaled.
        """
        self.requested: dict[str, int] = {}  # actors by role, as `scale` requested
        self._directory, self._pools, self._settings = directory, pools, settings
        self._describe, self._fixed = describe, fixed
        self._last_request: bytes | None = None
        self._failing = False
        self._began = time.time()
        self._closed = threading.Event()
        storage.remove_file(directory.run_dir, SCALE)  # may be left from an earlier driver of this run
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the thread and writes the final status."""
        self._closed.set()
        self._thread.join()
        self._attempt(lambda: self._write("ended"))

    @contextlib.contextmanager
    def autoscaling(self) -> Iterator[None]:
        """A context in which pools with `autoscale` grow to their maximum; Ray's autoscaler is asked for the room."""
        from ray.autoscaler.sdk import request_resources

        bounds = {role: settings.autoscale for role, settings in self._settings.items() if settings.autoscale}
        if not bounds:
            yield
            return
        roles = [role for role, autoscale in bounds.items() for _ in range(autoscale.max)]
        request_resources(
            bundles=[self._bundle(role) for role in roles],
            bundle_label_selectors=[placement.label_selector(self._settings[role].role) for role in roles],
        )
        self._resize({role: autoscale.max for role, autoscale in bounds.items()})
        try:
            yield
        finally:
            request_resources(bundles=[])
            self._resize({role: autoscale.min for role, autoscale in bounds.items()})

    def scale(self, counts: dict[str, int]) -> None:
        """Follows a request for other numbers of actors; learners change at the next iteration.

        Args:
            counts: actors by role.
        """
        if ignored := ", ".join(role for role in counts if role in self._fixed):
            _log.warning(f"the number of {ignored} is fixed, because they share GPUs")
        counts = {role: count for role, count in counts.items() if role not in self._fixed}
        if unknown := ", ".join(role for role in counts if role not in {*self._pools, "learners"}):
            _log.warning(f"this run has no {unknown} of its own")
        counts = {role: count for role, count in counts.items() if role in {*self._pools, "learners"}}
        if not counts:
            return
        self.requested |= counts
        _log.info("requested: " + ", ".join(f"{count} {role}" for role, count in counts.items()))
        for role in counts.keys() & self._pools.keys():
            self._pools[role].resize(counts[role])

    def _bundle(self, role: str) -> dict[str, float]:
        settings = self._settings[role]
        return {name: value for name, value in (("CPU", settings.cpus), ("GPU", settings.gpus)) if value}

    def _resize(self, sizes: Mapping[str, int]) -> None:
        for role, size in sizes.items():
            self._pools[role].resize(self.requested.get(role, size))

    def _run(self) -> None:
        every = _EVERY_REMOTE_S if is_remote(self._directory.run_dir) else _EVERY_S
        while True:
            self._attempt(self._poll)
            if self._closed.wait(every):
                return

    def _attempt(self, action: Callable[[], None]) -> None:
        """Runs an action that the run can continue without, for example on a full disk; logs the first failure."""
        try:
            action()
        except (OSError, InputError) as error:
            if not self._failing:
                _log.warning(f"{STATUS} or {SCALE} in {self._directory.run_dir}: {error}")
            self._failing = True
        else:
            self._failing = False

    def _poll(self) -> None:
        request = storage.read_file(self._directory.run_dir, SCALE)
        if request is not None and request != self._last_request:
            try:
                counts = json.loads(request)
            except ValueError:
                raise InputError(f"{SCALE} is no JSON; repeat `psyco-ray scale`") from None
            self.scale(counts)
            self._last_request = request
        self._write("going on")

    def _write(self, state: str) -> None:
        pools = {role: pool.status() for role, pool in self._pools.items()}
        times = {"began": self._began, "written": time.time()}
        status = {"state": state, **times, **self._describe(pools), "pools": pools, "wanted": self.requested}
        self._directory.write_json(STATUS, status)
