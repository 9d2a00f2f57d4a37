"""Speeches that actors died of again and again are set aside with the reason, so that one cannot end a run."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)

_SHARE = 0.01  # of a stage's speeches that may be lost
_ALWAYS = 3  # as many may be, however few there are


class Quarantine:
    """What a stage gave up."""

    def __init__(self, stage: str, of: int) -> None:
        """Begin with nothing.

        Args:
            stage: its name, in messages.
            of: speeches of the stage.
        """
        self.reasons: dict[str, str] = {}  # by speech id
        self._stage, self._most = stage, max(_ALWAYS, int(_SHARE * of))

    def add(self, speech_id: str, reason: str) -> None:
        """Set a speech aside.

        Raises:
            RuntimeError: there are so many that something else must be wrong.
        """
        self.reasons[speech_id] = reason
        if len(self.reasons) > self._most:
            raise RuntimeError(
                f"{self._stage}: {len(self.reasons)} speeches failed again and again, more than the {self._most} that "
                f"are set aside; the last: {reason}"
            )
        _log.warning(f"{self._stage}: speech {speech_id} is set aside: {reason}")
