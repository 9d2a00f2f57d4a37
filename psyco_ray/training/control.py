"""A run as it is seen and steered from outside while it goes on: ``psyco-ray status`` and ``psyco-ray scale``.

Both sides speak through two files of the run directory, wherever that is: the driver writes ``status.json``, ``scale``
writes ``scale.json``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from psyco_ray.config.resources import PoolConfig
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.run import storage
from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.remote import is_remote

_log = logging.getLogger(__name__)

_EVERY_S, _STALE_S = 2.0, 30.0  # between two looks at the files, and how old a status may be while the driver lives
_EVERY_REMOTE_S, _STALE_REMOTE_S = 15.0, 75.0  # each look is a paid request
STATUS, SCALE = "status.json", "scale.json"
ROLES = ("rollouts", "scorers", "learners")


class Control:
    """Obeys `scale` and writes for `status`, in a thread of its own."""

    def __init__(
        self,
        directory: RunDirectory,
        pools: Mapping[str, ActorPool[Any]],
        settings: Mapping[str, PoolConfig],
        seen: Callable[[dict[str, list[dict[str, Any]]]], dict[str, Any]],
        fixed: Collection[str] = (),
    ) -> None:
        """Begin.

        Args:
            directory: of the run.
            pools: by role.
            settings: of the pools, by role.
            seen: what else the status tells, given that of the pools' members: stage, progress, version, figures.
            fixed: roles whose numbers stay as they are.
        """
        self.wanted: dict[str, int] = {}  # by role, where it was asked for
        self._directory, self._pools, self._settings = directory, pools, settings
        self._seen, self._fixed = seen, fixed
        self._obeyed: bytes | None = None  # the last file of `scale`
        self._failing = False
        self._began = time.time()
        self._closed = threading.Event()
        storage.remove_file(directory.run_dir, SCALE)  # of an earlier driver of this run
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write that the driver ends."""
        self._closed.set()
        self._thread.join()
        self._try(lambda: self._write("ended"))

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """While pools with `autoscale` have work they may grow; the cluster's autoscaler is asked to make room."""
        from ray.autoscaler.sdk import request_resources

        bounds = {role: settings.autoscale for role, settings in self._settings.items() if settings.autoscale}
        if not bounds:
            yield
            return
        roles = [role for role, of in bounds.items() for _ in range(of.max)]
        request_resources(
            bundles=[self._bundle(role) for role in roles],
            bundle_label_selectors=[placement.selector(self._settings[role].role) for role in roles],
        )
        self._resize({role: of.max for role, of in bounds.items()})
        try:
            yield
        finally:
            request_resources(bundles=[])
            self._resize({role: of.min for role, of in bounds.items()})

    def _bundle(self, role: str) -> dict[str, float]:
        settings = self._settings[role]
        return {name: value for name, value in (("CPU", settings.cpus), ("GPU", settings.gpus)) if value}

    def _resize(self, sizes: Mapping[str, int]) -> None:
        for role, size in sizes.items():
            self._pools[role].resize(self.wanted.get(role, size))

    def _run(self) -> None:
        every = _EVERY_REMOTE_S if is_remote(self._directory.run_dir) else _EVERY_S
        while True:
            self._try(self._look)
            if self._closed.wait(every):
                return

    def _try(self, action: Callable[[], None]) -> None:
        """Do what a run goes on without, say on a full disk; a failure is told when it begins."""
        try:
            action()
        except (OSError, ValueError) as error:
            if not self._failing:
                _log.warning(f"{STATUS} or {SCALE} in {self._directory.run_dir}: {error}")
            self._failing = True
        else:
            self._failing = False

    def _look(self) -> None:
        given = storage.read_file(self._directory.run_dir, SCALE)
        if given is not None and given != self._obeyed:
            self._obey(json.loads(given))
            self._obeyed = given
        self._write("going on")

    def _obey(self, asked: dict[str, int]) -> None:
        if kept := ", ".join(role for role in asked if role in self._fixed):
            _log.warning(f"the number of {kept} stays, for they share GPUs")
        asked = {role: count for role, count in asked.items() if role not in self._fixed}
        if not asked:
            return
        self.wanted |= asked
        _log.warning("asked for " + ", ".join(f"{count} {role}" for role, count in asked.items()))
        for role in asked.keys() & self._pools.keys():
            self._pools[role].resize(asked[role])

    def _write(self, state: str) -> None:
        pools = {role: pool.status() for role, pool in self._pools.items()}
        found = {"state": state, "began": self._began, "written": time.time(), **self._seen(pools), "pools": pools}
        self._directory.write_json(STATUS, {**found, "wanted": self.wanted})
