"""Where a run stands, by what its ledger says: which policy is best, what went wrong, what comes next."""

from __future__ import annotations

import statistics
from typing import Any

from psyco_ray.config.training import Job
from psyco_ray.run import storage
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.training import guards

Record = dict[str, Any]


class RunState:
    """Reads the records of a run's evaluations; the same records give the same decisions after a resume."""

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self._job, self._ledger = job, ledger
        # the other reward model trained the policy
        self.judge = "judge" if job.evaluation.judge else "heldout" if job.scorers.heldout_model else "reward"

    def evaluation(self, iteration: int) -> Record | None:
        """The evaluation of an iteration's policy; None if there was none yet."""
        return self._ledger.record(stage(iteration, "evaluate"))

    def last_trained(self) -> int:
        """The last iteration that trained."""
        done = 0
        while self._ledger.record(stage(done + 1, "train")) is not None:
            done += 1
        return done

    def last_evaluated(self) -> int | None:
        """The last iteration whose policy was evaluated."""
        found = [k for k in range(self._job.iterations + 1) if self.evaluation(k) is not None]
        return found[-1] if found else None

    def ended(self) -> bool:
        """Whether all iterations are done, or so many were rolled back that the run ends early."""
        last = self.last_evaluated()
        if last is None or last < self.last_trained():
            return False
        back = sum(self.going_on_from(k) != k for k in range(1, last + 1))
        return last == self._job.iterations or back >= self._job.guards.patience

    def going_on_from(self, iteration: int) -> int:
        """Whose weights are trained on after an iteration: its own, unless it was rolled back."""
        return int((self.evaluation(iteration) or {}).get("going_on_from", iteration))

    def best(self, until: int, kept: bool = False) -> int:
        """The iteration up to `until` whose policy did best on the held-out speeches, of those without an alarm.

        0 is the base model. The judge decides where there is one, else the held-out reward model. `kept`: only of
        those whose checkpoints are there.
        """
        known = {k: found for k in range(until + 1) if (found := self.evaluation(k)) is not None}
        if kept:
            there = [k for k in known if not k or storage.exists(self._ledger.place(stage(k, "checkpoint")))]
            known = {k: known[k] for k in there}
        fine = {k: self.worth_of(k, found) for k, found in known.items() if not found.get("alarms")}
        return max(fine, key=lambda k: fine[k], default=0)

    def kept(self, until: int) -> set[int]:
        """The iterations up to `until` whose checkpoints stay; one that goes can never be the best of all later."""
        how = self._job.checkpoints
        if how.keep_last is None:
            return set(range(until + 1))
        last = set(range(until + 1)[-how.keep_last :])
        return last | {self.best(until)} if how.keep_best else last

    def worth_of(self, iteration: int, facts: Record) -> float:
        """By what a policy is chosen: its win rate against the base model as the judge sees it, or its mean reward."""
        if self.judge == "judge":
            return float(facts["judge"]["win_rate_vs_base"]) if iteration else 0.5
        return float(facts[self.judge]["reward"])

    def worth(self, iteration: int) -> tuple[float, float]:
        """Reward that a token of length earns, and reward that the two of a pair must differ by, in an iteration.

        Both come from the evaluation of the policy that samples, so that pairs can be made while groups still come.
        """
        how = self._job.guards
        if not (how.length_debias or how.min_margin):
            return 0.0, 0.0
        sampler = self.going_on_from(iteration - 1) if self._job.pairs_from == "policy" else 0
        facts = self.evaluation(sampler)
        assert facts is not None, "the policy that samples was evaluated"
        scores, tokens = guards.of_evaluation(facts, "reward")
        slope, _ = guards.length_effect(scores, tokens)
        return (slope if how.length_debias else 0.0), how.min_margin * statistics.pstdev(scores)

    def watched(self, iteration: int, facts: Record) -> Record:
        """Monitors and alarms of an iteration's evaluation, and whose weights the next one goes on from.

        Args:
            iteration: whose.
            facts: what was measured, not yet recorded.
        """
        best_before = self.best(iteration - 1)
        base, best = self.evaluation(0), self.evaluation(best_before)
        assert base is not None, "the base model is evaluated first"
        assert best is not None, "the best policy was evaluated"
        steps = (self._ledger.record(stage(iteration, "train")) or {"steps": []})["steps"]
        # before its first step the policy is the one that sampled, so that the shift estimates its divergence; from
        # the base model, as long as that is the reference
        known = steps and self._job.pairs_from == "policy" and self._job.dpo.reference == "base"
        kl = (steps[0]["chosen_shift"] + steps[0]["rejected_shift"]) / 2 if known else None
        found = guards.monitors(facts, base, best, kl)
        heard = guards.alarms(found, self._job.guards)
        back = bool(heard) and self._job.guards.roll_back
        return {"monitors": found, "alarms": heard, "going_on_from": best_before if back else iteration}
