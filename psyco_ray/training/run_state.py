"""State of a run, derived from its ledger: progress, best policy, next weights, and which checkpoints are kept."""

from __future__ import annotations

from typing import Any

from psyco_ray.config.training import Job
from psyco_ray.run import storage
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.training import guards

Record = dict[str, Any]

_MEASURES = {
    "judge": "win rate against the base model by the judge",
    "heldout": "mean reward by the held-out reward model",
    "reward": "mean reward by the training reward model",
}


class RunState:
    """Decisions that follow from a run's records; after a resume the same records give the same decisions.

    Example:
        >>> run_state = RunState(job, ledger)
        >>> while not run_state.ended():
        ...     weights = run_state.resume_iteration(run_state.last_trained())
    """

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self._job, self._ledger = job, ledger
        simulate = job.simulate
        self._turns = (1,) if simulate is None else simulate.ranking_turns
        # a judge or held-out model is preferred: the policy was not trained on its scores; a judge sees the first turn
        judged = job.evaluation.judge is not None and self._turns == (1,)
        self.judge = "judge" if judged else "heldout" if job.scorers.heldout_model else "reward"

    @property
    def measure(self) -> str:
        """What policies are compared by, in words."""
        by = _MEASURES[self.judge]
        if self._turns == (1,):
            return f"{by} on the held-out speeches"
        first, last = self._turns[0], self._turns[-1]
        return f"{by} {f'over turns {first} to {last}' if first < last else f'at turn {last}'} of held-out dialogues"

    def evaluation(self, iteration: int) -> Record | None:
        """Record of an iteration's evaluation; None before it is done."""
        return self._ledger.record(stage(iteration, "evaluate"))

    def last_trained(self) -> int:
        """The last iteration that has trained; 0 before the first."""
        iteration = 0
        while self._ledger.record(stage(iteration + 1, "train")) is not None:
            iteration += 1
        return iteration

    def last_evaluated(self) -> int | None:
        """The last iteration that has been evaluated."""
        evaluated = [k for k in range(self._job.iterations + 1) if self.evaluation(k) is not None]
        return evaluated[-1] if evaluated else None

    def ended(self) -> bool:
        """Whether all iterations are done, or `guards.patience` of them were rolled back."""
        last = self.last_evaluated()
        if last is None or last < self.last_trained():
            return False
        rolled_back = sum(self.resume_iteration(k) != k for k in range(1, last + 1))
        return last == self._job.iterations or rolled_back >= self._job.guards.patience

    def resume_iteration(self, iteration: int) -> int:
        """The iteration whose weights training continues from: `iteration` itself unless it was rolled back."""
        return int((self.evaluation(iteration) or {}).get("going_on_from", iteration))

    def best(self, until: int, kept: bool = False) -> int:
        """The iteration with the best score on the held-out speeches; 0 is the base model.

        With `guards.roll_back` an iteration with an alarm is never the best.

        Args:
            until: the last iteration to consider.
            kept: consider only iterations whose checkpoint exists.
        """
        evaluations = {k: record for k in range(until + 1) if (record := self.evaluation(k)) is not None}
        if kept:
            checkpoints = {k: self._ledger.place(stage(k, "checkpoint")) for k in evaluations}
            evaluations = {k: record for k, record in evaluations.items() if not k or storage.exists(checkpoints[k])}
        vetoes = self._job.guards.roll_back
        scores = {k: self.score_of(k, e) for k, e in evaluations.items() if not (vetoes and e.get("alarms"))}
        return max(scores, key=lambda k: scores[k], default=0)

    def score_of(self, iteration: int, evaluation: Record) -> float:
        """The score that policies are compared by: the judge's win rate against the base model, or the mean reward."""
        if self.judge == "judge":
            return float(evaluation["judge"]["win_rate_vs_base"]) if iteration else 0.5
        return float(guards.ranked(evaluation)[self.judge]["reward"])

    def kept_checkpoints(self, until: int) -> set[int]:
        """Iterations up to `until` whose checkpoints are kept; a removed one can never become the best later."""
        settings = self._job.checkpoints
        if settings.keep_last is None:
            return set(range(until + 1))
        last = set(range(until + 1)[-settings.keep_last :])
        return last | {self.best(until)} if settings.keep_best else last

    def remove_checkpoints(self, iteration: int) -> None:
        """Removes the checkpoints before an evaluated iteration that are not kept."""
        for earlier in set(range(1, iteration)) - self.kept_checkpoints(iteration):
            self._ledger.remove(stage(earlier, "checkpoint"))

    def remove_states(self, iteration: int) -> None:
        """Removes the learner states before a trained iteration, except the one that a roll-back needs."""
        best = self.best(iteration - 1) if self._job.guards.roll_back else None
        for earlier in range(iteration):
            if earlier != best:
                self._ledger.remove(stage(earlier, "state"))

    def check_guards(self, iteration: int, evaluation: Record) -> Record:
        """Monitors and alarms of an iteration, and the iteration to continue from.

        Args:
            iteration: the one that was evaluated.
            evaluation: its measurements, not yet recorded.

        Returns:
            `monitors`, `alarms` and `going_on_from`.
        """
        best_before = self.best(iteration - 1)
        base, best = self.evaluation(0), self.evaluation(best_before)
        assert base is not None, "the base model is evaluated first"
        assert best is not None, "the best policy was evaluated"
        pairs = self._ledger.record(stage(iteration, "pairs"))
        assert pairs is not None, "the policy was trained on pairs"
        monitors = guards.monitors(evaluation, base, best, pairs.get("length_share"))
        finished = {"finished_share": evaluation["finished_share"]}
        alarms = guards.alarms(monitors | finished, self._job.guards)
        roll_back = bool(alarms) and self._job.guards.roll_back
        return {
            "monitors": monitors,
            "alarms": alarms,
            "going_on_from": best_before if roll_back else iteration,
        }
