"""Quarantine of speeches that repeatedly kill actors, so that one speech cannot end a run."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)

_MAX_SHARE = 0.01  # of a stage's speeches
_ALWAYS_ALLOWED = 3  # speeches, however small the stage


class Quarantine:
    """The speeches that a stage gives up.

    Example:
        >>> quarantine = Quarantine("iteration-001/samples", speeches=400)
        >>> quarantine.add("3f2a", "the actor died of it twice")
        >>> quarantine.reasons
        {'3f2a': 'the actor died of it twice'}
    """

    def __init__(self, stage: str, speeches: int) -> None:
        """Start empty.

        Args:
            stage: its name, for messages.
            speeches: number of speeches of the stage.
        """
        self.reasons: dict[str, str] = {}  # by speech id
        self._stage, self._limit = stage, max(_ALWAYS_ALLOWED, int(_MAX_SHARE * speeches))

    def add(self, speech_id: str, reason: str) -> None:
        """Quarantine a speech.

        Raises:
            RuntimeError: the limit is exceeded, so the cause is not the speeches.
        """
        self.reasons[speech_id] = reason
        if len(self.reasons) > self._limit:
            raise RuntimeError(
                f"{self._stage}: {len(self.reasons)} speeches failed repeatedly, more than the {self._limit} that may "
                f"be set aside; the last: {reason}"
            )
        _log.warning(f"{self._stage}: speech {speech_id} is set aside: {reason}")
