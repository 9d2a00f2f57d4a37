"""The files by which commands observe and scale a run in progress: ``status.json`` and ``scale.json``.

The driver writes the first and polls the second (`psyco_ray.training.control`). This module does not import Ray, which
a command imports only after its token is set.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.run import storage
from psyco_ray.run.remote import is_remote

STATUS, SCALE = "status.json", "scale.json"
ROLES = ("rollouts", "scorers", "learners", "clients")
_STALE_S = 30.0  # age of a status from which its driver counts as gone
_STALE_REMOTE_S = 75.0  # a remote status is written less often


def read_status(run: str | Path) -> dict[str, Any]:
    """The status of a run.

    Args:
        run: its directory, a path or a URI.

    Raises:
        InputError: the directory has no readable status.
    """
    data = storage.read_file(run, STATUS)
    if data is None:
        raise InputError(f"{run} holds no {STATUS}; name the directory of a run that was started")
    try:
        status = json.loads(data)
    except ValueError:
        status = None
    keys = {"state", "written", "stage", "version", "pools", "wanted"}
    if not isinstance(status, dict) or not keys <= status.keys() or not isinstance(status["written"], int | float):
        raise InputError(f"{STATUS} in {run} is damaged; a run in progress writes it again within seconds")
    return status


def silent_s(run: str | Path, status: Mapping[str, Any]) -> float:
    """Age of a status in seconds if it is stale, so that its driver must be gone; else 0."""
    age = time.time() - status["written"]
    return age if age > (_STALE_REMOTE_S if is_remote(run) else _STALE_S) else 0.0


def request_scale(run: str | Path, counts: Mapping[str, int]) -> None:
    """Requests other numbers of actors for a run; it follows within seconds, learners from the next iteration.

    Args:
        run: its directory, a path or a URI.
        counts: actors by role.

    Raises:
        InputError: no run is in progress there.
    """
    status = read_status(run)
    if status["state"] != "going on" or silent_s(run, status):
        raise InputError(f"no run is in progress in {run}; to start with other numbers set rollouts.actors and so on")
    storage.write_bytes(run, SCALE, json.dumps({**status["wanted"], **counts}).encode())
