"""The log of a command: one format for everything that psyco_ray reports.

Modules log to ``logging.getLogger(__name__)``. Info is progress, a warning is something that a user may want to act on.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any


class _Formatter(logging.Formatter):
    """``[MM:SS] message``, with the level's name before anything above info."""

    def __init__(self) -> None:
        super().__init__()
        self._began = time.time()

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback where there is one."""
        minutes, seconds = divmod(max(0, int(record.created - self._began)), 60)
        level = f"{record.levelname}: " if record.levelno > logging.INFO else ""
        return f"[{minutes:02d}:{seconds:02d}] {level}{super().format(record)}"


class _StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is when a record comes, so that a caller may redirect it."""

    @property
    def stream(self) -> Any:
        """The present `sys.stderr`."""
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None: ...


def configure(verbosity: int = 0) -> None:
    """Log psyco_ray's records to stderr.

    Args:
        verbosity: 0 reports progress, 1 and more also details (``-v``), -1 and less only warnings (``-q``).
    """
    handler = _StderrHandler()
    handler.setFormatter(_Formatter())
    logger = logging.getLogger("psyco_ray")
    for old in [one for one in logger.handlers if isinstance(one, _StderrHandler)]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbosity > 0 else logging.WARNING if verbosity < 0 else logging.INFO)
