"""States of a slot of a pool.

The members are also names of this module: in Python 3.11 the class finds one through a hook, five times slower, and a
pool of a thousand actors compares thousands of states at every look.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """State of a slot; the values are those of `status.json`."""

    ABSENT = "absent"  # no actor; one is created after a backoff
    STARTING = "starting"  # pending in Ray, or loading
    UPDATING = "preparing"
    IDLE = "idle"
    BUSY = "busy"
    ENDING = "ending"  # its processes are being removed


ABSENT, STARTING, UPDATING, IDLE, BUSY, ENDING = State
