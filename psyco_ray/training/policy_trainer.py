"""One round of DPO on the pairs of an iteration (paper §4.2)."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from psyco_ray.config.training import Job
from psyco_ray.learner.batching import batches
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.run.hashing import key_of
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.timeline import Timeline
from psyco_ray.run.types import PreferencePair
from psyco_ray.training.step_log import StepLog

_log = logging.getLogger(__name__)

Batches = list[list[PreferencePair]]


@dataclass(frozen=True)
class Trained:
    """A policy that has taken all steps of an iteration and is not saved yet."""

    iteration: int
    log: StepLog
    seconds: float  # of its steps
    mfu: float | None  # None: the peak is unknown


class PolicyTrainer:
    """Trains the policy, with checkpoints within an iteration, and saves model and state at its end.

    Example:
        >>> trainer = PolicyTrainer(job, ledger, telemetry, timeline, learner)
        >>> trainer.save(trainer.train(1, trainer.plan(1, pairs)))
    """

    def __init__(
        self, job: Job, ledger: Ledger, telemetry: Telemetry, timeline: Timeline, learner: LearnerGroup
    ) -> None:
        self._job, self._ledger, self._telemetry = job, ledger, telemetry
        self._timeline, self._learner = timeline, learner

    def plan(self, iteration: int, pairs: list[PreferencePair]) -> Batches:
        """The batches of an iteration, in the order of its steps; their order depends on job seed and iteration."""
        seed = int(key_of(self._job.seed, "train", iteration), 16) % 2**31
        return batches(pairs, self._job.dpo.optimizer, self._job.learners.actors, seed)

    def train(self, iteration: int, planned: Batches) -> Trained:
        """Takes the steps that are left; `save` ends the stage.

        Raises:
            Preempted: a signal asks for a stop; the steps so far are saved.
        """
        log = StepLog(self._ledger, stage(iteration, "training"))
        self._take_steps(iteration, planned, log)
        seconds = time.time() - log.began
        mfu = self._learner.mfu(log.facts["tokens"] / seconds)
        if mfu is not None:
            self._telemetry.rolling.set(mfu=mfu)
        return Trained(iteration, log, seconds, mfu)

    def save(self, trained: Trained) -> None:
        """Saves model and learner state, and records the stage; may run in a thread that has the learner for itself."""
        began, iteration, log = time.monotonic(), trained.iteration, trained.log
        self._learner.save_model(self._ledger.place(stage(iteration, "checkpoint")))
        self._learner.save_state(
            self._ledger.place(stage(iteration, "state")), moments=self._job.applied_dpo.keep_optimizer
        )
        ended = time.monotonic()
        self._timeline.add_span("save", began, ended)
        seconds = trained.seconds + ended - began  # without the sync between them
        self._ledger.finish(
            stage(iteration, "train"),
            time.time() - seconds,
            train_s=trained.seconds,
            save_s=ended - began,
            tokens=log.facts["tokens"],
            steps=log.facts["steps"],
            mfu=trained.mfu,
        )
        log.clear()

    def _take_steps(self, iteration: int, planned: Batches, log: StepLog) -> None:
        if log.state is not None:
            self._learner.load_state(log.state)
            _log.info(f"iteration {iteration}: {log.done} steps are done")
        first, total = schedule_position(self._job, iteration, len(planned))
        stream = self._learner.train(
            planned[log.done :],
            total,
            first + log.done,
            reset_optimizer=iteration > 1 and not self._job.applied_dpo.keep_optimizer and not log.done,
        )
        every = self._job.dpo.checkpoint_every
        earlier = [self._ledger.record(stage(k, "train")) for k in range(1, iteration)]
        done = sum(len(record["steps"]) for record in earlier if record is not None) + log.done
        with self._timeline.span(iteration, "train"):
            for step in self._telemetry.steps(stream, f"iteration {iteration}: train", "policy", done):
                log.add(step)
                log.pause(self._learner)
                if every and log.done % every == 0 and log.done < len(planned):
                    log.write(self._learner)


def schedule_position(job: Job, iteration: int, steps: int) -> tuple[int, int]:
    """First step of an iteration and total steps of its learning-rate schedule, by `dpo.schedule_over`.

    A schedule over all iterations counts the steps of full iterations, although ties leave some with fewer pairs: so
    runs with pairs of different origin have the same rates in the same iteration.

    Args:
        job: of the run.
        iteration: 1 to `job.iterations`.
        steps: that the iteration takes.
    """
    if job.applied_dpo.schedule_over == "iteration":
        return 0, steps
    optimizer = job.dpo.optimizer
    full = optimizer.epochs * -(-job.speeches_per_iteration // optimizer.batch_size)
    assert steps <= full, "an iteration has at most a pair for each speech"
    return (iteration - 1) * full, job.iterations * full


def worker_count(requested: int, planned: Batches) -> int:
    """Learner workers to train with: no more than the smallest batch has pairs, so that none is idle."""
    return min(requested, *map(len, planned))
