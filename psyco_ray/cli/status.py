"""Looking at a run that goes on, and scaling it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.run import storage, throughput
from psyco_ray.run.remote import is_remote
from psyco_ray.training.control import _STALE_REMOTE_S, _STALE_S, ROLES, SCALE, STATUS


def scale(run: str | Path, wishes: Mapping[str, int]) -> None:
    """Ask a run that goes on for other numbers of actors; it obeys within seconds, learners from the next iteration.

    Args:
        run: its directory, a path or a URI.
        wishes: numbers by role.

    Raises:
        InputError: no run goes on there.
    """
    found = _status(run)
    if found["state"] != "going on" or _silent_s(run, found):
        raise InputError(f"no run goes on in {run}; to begin with other numbers set rollouts.actors and so on")
    storage.write_bytes(run, SCALE, json.dumps({**found["wanted"], **wishes}).encode())


def described(run: str | Path) -> str:
    """What a run does, in a few lines for a terminal.

    Args:
        run: its directory, a path or a URI.

    Raises:
        InputError: there is no run.
    """
    found = _status(run)
    state = found["state"]
    if state == "going on" and (age := _silent_s(run, found)):
        state = f"its driver was last heard {age:.0f} s ago; go on with --resume"
    done = f", {found['done']} of {found['total']}" if found.get("total") else ""
    lines = [f"{run}: {state}", f"stage: {found['stage'] or 'starting'}{done}; policy version {found['version']}"]
    if "now" in found and found["state"] == "going on":
        lines.append(throughput.described(found["now"]))
    for role, members in found["pools"].items():
        wanted = f" ({found['wanted'][role]} asked for)" if role in found["wanted"] else ""
        lines.append(f"{role}: {len(members)}{wanted}")
        for one in members:
            idle = "" if one["idle_share"] is None else f", idle {100 * one['idle_share']:.0f} %"
            lines.append(
                f"  {one['member']:>3}  {one['state']:<10}{one['seconds']:>7.0f} s  version {one['version']}, "
                f"{one['items']} items{idle}, replaced {one['restarts']} times, {one['node'] or 'no node yet'}"
            )
    return "\n".join(lines)


def wishes(given: list[str]) -> dict[str, int]:
    """Numbers of actors by role, out of ROLE=NUMBER.

    Raises:
        InputError: one is not of that form.
    """
    found: dict[str, int] = {}
    for text in given:
        role, _, count = text.partition("=")
        if role not in ROLES or not count.isdigit() or int(count) < 1:
            raise InputError(
                f"{text!r} is not of the form ROLE=NUMBER with a role of {', '.join(ROLES)}, as rollouts=6"
            )
        found[role] = int(count)
    return found


def _status(run: str | Path) -> dict[str, Any]:
    written = storage.read_file(run, STATUS)
    if written is None:
        raise InputError(f"{run} holds no {STATUS}; name the directory of a run that was started")
    found: dict[str, Any] = json.loads(written)
    return found


def _silent_s(run: str | Path, found: dict[str, Any]) -> float:
    """Seconds since a status was written, if that is so long that its driver must be gone; else 0."""
    age = time.time() - found["written"]
    return age if age > (_STALE_REMOTE_S if is_remote(run) else _STALE_S) else 0.0
