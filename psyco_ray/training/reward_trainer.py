"""Training a Bradley-Terry reward model on preference pairs (paper §4.1)."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from psyco_ray.config.training import Job
from psyco_ray.data.mixture import Encoder, Mixture, mix
from psyco_ray.evaluate import metrics
from psyco_ray.learner import batching
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import BradleyTerryObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.pool import fit
from psyco_ray.report.model_cards import reward_card
from psyco_ray.run import preemption, storage
from psyco_ray.run.directory import versions
from psyco_ray.run.hashing import key_of
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.types import PreferencePair
from psyco_ray.training.step_log import StepLog

_log = logging.getLogger(__name__)

Record = dict[str, Any]


def train_reward(jobs: dict[str, Job], ledger: Ledger, telemetry: Telemetry) -> dict[str, Record]:
    """Train reward models side by side, each under its name: on the pairs whose speeches are not held out.

    Returns:
        Each one's record: accuracy on the held-out pairs with its interval, losses, sizes.

    Raises:
        InputError: the pairs or the model do not do, or the loss became NaN.
    """
    missing = {name: job for name, job in jobs.items() if ledger.record(name) is None}
    for job in missing.values():
        phase = fit.reward_phase(job, groups=len(missing))
        fit.check("reward training", phase, fit.cluster_nodes())
    trainings: list[RewardTrainer] = []
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(missing)))
    try:
        for name, job in missing.items():
            how = job.reward
            mixture = mix(how.mixture, job.data, job.seed, how.half, how.dev_pairs)
            trainings.append(RewardTrainer(name, job, mixture, ledger, telemetry))
        running = [pool.submit(training.run) for training in trainings]
        for one in concurrent.futures.as_completed(running):
            one.result()
    except preemption.Preempted:
        preemption.settle()  # each training writes its state
        raise
    finally:
        for training in trainings:
            training.learner.close()
        pool.shutdown(wait=False)
    return {name: ledger.record(name) or {} for name in jobs}


class RewardTrainer:
    """One reward model on its way; `progress.json` says how far, and everything that a resumed one needs."""

    def __init__(self, name: str, job: Job, mixture: Mixture, ledger: Ledger, telemetry: Telemetry) -> None:
        self._name, self._job, self._mixture = name, job, mixture
        self._ledger, self._telemetry = ledger, telemetry
        self._place = f"{name}-training"
        self._log = StepLog(ledger, self._place, evaluations=[], best=None, cut=0, too_long=0)
        self._facts = self._log.facts
        optimizer, ranks = job.reward.optimizer, job.reward.learners.actors
        self._plan = batching.plan(mixture.train.num_rows, optimizer, ranks, job.seed)
        self._encoder = Encoder(job, cut=self._facts["cut"], too_long=self._facts["too_long"])
        spec = WorkerSpec(
            model=job.model,
            objective=BradleyTerryObjective(centre=job.reward.centre),
            settings=job.reward.learners,
            optimizer=optimizer,
            seed=int(key_of(job.seed, name), 16) % 2**31,
            deadlines=job.deadlines,
            lora=job.reward.lora,
        )
        self.learner = LearnerGroup(spec, state=self._log.state)

    def run(self) -> None:
        """Train on, evaluate and keep checkpoints; then save the best one and record it."""
        dev = Encoder(self._job).examples(self._mixture.dev)
        done, total = self._log.done, len(self._plan)
        # the first batch is made while the learner loads, and those after it while it computes
        stream = self._encoder.batches(self._mixture.train, self._plan[done:])
        given = itertools.chain([next(stream)], stream) if done < total else iter(())
        self.learner.wait_ready()
        told = f"; {done} of {total} steps are done" if done else ""
        _log.info(f"{self._name}: {self._mixture.train.num_rows} pairs to train on, {len(dev)} held out{told}")
        taken = self.learner.train(given, total, first_step=done, batches_from=self._again)
        with preemption.deferred():
            for step in self._telemetry.steps(taken, self._name):
                self._log.add(step)
                if self._due(self._job.reward.evaluate_every):
                    self._evaluate(dev)
                self._facts |= {"cut": self._encoder.cut, "too_long": self._encoder.too_long}
                self._log.pause(self.learner, *self._kept())
                if self._due(self._job.reward.checkpoint_every) and self._log.done < total:
                    self._log.write(self.learner, *self._kept())
            self._finish(len(dev))

    def _again(self, step: int) -> Iterator[list[PreferencePair]]:
        """The batches from a step on, for a learner that lost a rank; what was cut in them is counted already."""
        return Encoder(self._job).batches(self._mixture.train, self._plan[step:])

    def _due(self, every: int | None) -> bool:
        """Whether a step was the last of an epoch, or of so many."""
        done, total = self._log.done, len(self._plan)
        return done == total or done % (every or total // self._job.reward.optimizer.epochs) == 0

    def _evaluate(self, dev: list[PreferencePair]) -> None:
        """Measure the current weights on the held-out pairs, and keep them if they are the best so far."""
        step, best = self._log.done, self._facts["best"]
        found = {"step": step, **_measured(self.learner.evaluate_pairs(dev))}
        self._facts["evaluations"].append(found)
        if "accuracy" in found:
            _log.info(f"{self._name}: accuracy {found['accuracy']:.3f} on {len(dev)} held-out pairs")
        # without held-out pairs the last step is as good as any
        if best is None or "accuracy" not in found or _merit(found) > _merit(best):
            self._facts["best"] = found
            self.learner.save_model(self._ledger.place(self._best(step)))

    def _finish(self, dev_pairs: int) -> None:
        """Put the best checkpoint with its card into place, and record it."""
        best, reward, name = self._facts["best"], self._job.reward, self._name
        facts = {
            "best_step": best["step"],
            "mixture": self._mixture.parts,
            "cut": self._encoder.cut // reward.optimizer.epochs,  # every epoch meets every pair once
            "too_long": self._encoder.too_long // reward.optimizer.epochs,
        }
        kept = self._best(best["step"])
        source, target = self._ledger.place(kept), self._ledger.place(name)
        if storage.exists(source):  # else a run that was killed here has moved it already
            card = reward_card(
                {
                    **facts,
                    "name": self._ledger.root.name if name == "reward" else f"{self._ledger.root.name} {name}",
                    "base": self._job.model,
                    "seed": self._job.seed,
                    "steps": len(self._plan),
                    "optimizer": reward.optimizer.model_dump(),
                    "learners": reward.learners.model_dump(),
                    "margin": reward.margin,
                    "centre": reward.centre,
                    "lora": reward.lora.model_dump() if reward.lora else None,
                    "max_tokens": reward.max_tokens,
                    "truncated": facts["cut"],
                    "dev": best if dev_pairs else None,
                    "versions": versions(),
                }
            )
            self._ledger.write_text(f"{kept}/README.md", card)
            storage.move_dir(source, target)
        self._ledger.finish(
            name,
            self._log.began,
            **facts,
            pairs=self._mixture.train.num_rows,
            heldout_pairs=dev_pairs,
            accuracy=best.get("accuracy"),
            accuracy_ci95=best.get("accuracy_ci95", (0.0, 1.0)),
            steps=self._facts["steps"],
            evaluations=self._facts["evaluations"],
        )
        self._log.clear()

    def _kept(self) -> list[str]:
        """What a new state does not replace."""
        return [self._best(self._facts["best"]["step"])] if self._facts["best"] else []

    def _best(self, step: int) -> str:
        return f"{self._place}/best-{step:06d}"


def _measured(values: list[tuple[float, float]]) -> Record:
    """Figures of the held-out pairs; none where there are no such pairs."""
    if not values:
        return {}
    chosen, rejected = np.array(values, dtype=float).T
    found = metrics.measure(chosen, rejected)
    return {name: value for name, value in found.items() if name not in ("reliability", "histogram")}


def _merit(found: Record) -> tuple[float, float]:
    """By what checkpoints are compared: accuracy, and among equals the loss."""
    return found["accuracy"], -found["nll"]
