"""Exit codes of the commands, and the error that a user's input raises."""

from __future__ import annotations

INPUT_ERROR = 2  # invalid input: one sentence on stderr, no traceback
RESUMABLE = 75  # stopped early, nothing lost, the same command continues (EX_TEMPFAIL of sysexits)


class InputError(ValueError):
    """Invalid input: a job, file, model or machine that a user can change.

    The message is one sentence that names the file, key or value and the way out, without any client's words. A command
    prints it and exits with `INPUT_ERROR`. Any other exception is a bug and shows its traceback.

    Example:
        >>> raise InputError("iterations is 0; give 1 or more")
    """


class EndpointError(InputError):
    """The server answers no call to this model: it does not know it, does not let the key use it, or rejects its calls.

    Not of this class: a wrong key and an empty account, which the user puts right.

    Attributes:
        stage: name of the stage whose call it was, where several are asked together.
    """

    stage: str | None = None
