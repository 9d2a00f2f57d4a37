"""Exit codes and the error that a user caused."""

from __future__ import annotations

RESUMABLE = 75  # exit code: stopped early, nothing lost, the same command goes on (sysexits' EX_TEMPFAIL)


BAD_INPUT = 2
