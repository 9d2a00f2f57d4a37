"""The frame of a command that works in a run directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from psyco_ray.run.directory import RunDirectory

RESUME = "the same command with --resume continues from here"
REPEAT = "answers are kept and the same command continues from here"


class StoppedError(Exception):
    """A command stopped early: nothing is lost and the same command continues."""


def unwrapped(error: BaseException) -> BaseException:
    """The error itself where Ray wrapped it: a RayTaskError reads as its remote traceback."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


@contextlib.contextmanager
def run_session(directory: RunDirectory, continues: str) -> Iterator[None]:
    """A context that holds a run directory; at its end Ray is shut down and the directory released.

    Args:
        directory: locked by this process.
        continues: completes the sentence about an early stop (`RESUME` or `REPEAT`).

    Raises:
        StoppedError: a signal came, a judge's server is unavailable, or the calls reached their budget.

    Example:
        >>> with run_session(Ledger(job, resume=True), RESUME):
        ...     ray_session.connect(None)
        ...     train(job)
    """
    import ray

    from psyco_ray.judge.client import UnavailableError
    from psyco_ray.judge.rate_limit import BudgetExceededError
    from psyco_ray.run import preemption

    try:
        try:
            with preemption.unmasked():
                yield
        finally:
            ray.shutdown()
    except preemption.Preempted:
        raise StoppedError(f"stopped; {continues}") from None
    except Exception as error:
        cause = unwrapped(error)
        if preemption.requested() and isinstance(cause, ray.exceptions.RayError):  # the signal reached Ray, too
            raise StoppedError(f"stopped, and Ray with it; {continues}") from None
        if not isinstance(cause, BudgetExceededError | UnavailableError):
            raise
        raise StoppedError(f"{cause}; {continues}") from None
    finally:
        directory.close()
