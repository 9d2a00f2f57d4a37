"""Exit codes of the commands, and the error that a user's input raises."""

from __future__ import annotations

import math
from collections.abc import Iterable

INPUT_ERROR = 2  # invalid input: one sentence on stderr, no traceback
RESUMABLE = 75  # stopped early, nothing lost, the same command continues (EX_TEMPFAIL of sysexits)


class InputError(ValueError):
    """Invalid input: a job, file, model or machine that a user can change.

    The message is one sentence that names the file, key or value and the way out, without any client's words. A command
    prints it and exits with `INPUT_ERROR`. Any other exception is a bug and shows its traceback.

    Example:
        >>> raise InputError("iterations is 0; give 1 or more")
    """


class NonFiniteError(InputError):
    """A model computes NaN or an infinite value: a reward, a log-probability, a loss, a gradient or a weight.

    It is raised where the value arises, before anything that depends on it is stored.
    """


def require_finite(values: Iterable[float], what: str, way_out: str) -> None:
    """Check computed values.

    Args:
        values: to check.
        what: the values and their origin, for the message.
        way_out: what the user can change.

    Raises:
        NonFiniteError: a value is NaN or infinite.

    Example:
        >>> require_finite([0.5], "the reward of speech 3f2a by models/reward", "set scorers.dtype to float32")
    """
    for value in values:
        if not math.isfinite(value):
            raise NonFiniteError(f"{what} is {value}; {way_out}")


class EndpointError(InputError):
    """The server answers no call to this model: it does not know it, does not let the key use it, or rejects its calls.

    Not of this class: a wrong key and an empty account, which the user puts right.

    Attributes:
        stage: name of the stage whose call it was, where several are asked together.
    """

    stage: str | None = None
