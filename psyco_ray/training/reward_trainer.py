"""Training a Bradley-Terry reward model on preference pairs (paper §4.1)."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from psyco_ray.config.contexts import Context
from psyco_ray.config.training import Job
from psyco_ray.data import trained_pairs
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
    """Trains reward models at the same time, on the pairs whose speeches are not held out.

    Args:
        jobs: by the name of the reward model.
        ledger: of the run.
        telemetry: of the run.

    Returns:
        Each model's record: accuracy on the held-out pairs with its interval, losses, sizes.

    Raises:
        InputError: the pairs or the model are invalid, or the loss became NaN.
    """
    missing = {name: job for name, job in jobs.items() if ledger.record(name) is None}
    for job in missing.values():
        phase = fit.reward_phase(job, groups=len(missing))
        fit.check("reward training", phase, fit.cluster_nodes())
    trainers: list[RewardTrainer] = []
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(missing)))
    try:
        for name, job in missing.items():
            reward = job.reward
            mixture = mix(reward.mixture, job.data, job.seed, reward.half, reward.dev_pairs, job.sampling.unfinished)
            trainers.append(RewardTrainer(name, job, mixture, ledger, telemetry))
        running = [pool.submit(trainer.run) for trainer in trainers]
        with preemption.unmasked():
            for future in concurrent.futures.as_completed(running):
                future.result()
    except preemption.Preempted:
        preemption.settle()  # each trainer writes its state
        raise
    finally:
        for trainer in trainers:
            trainer.learner.close()
        pool.shutdown(wait=False)
    return {name: ledger.record(name) or {} for name in jobs}


class RewardTrainer:
    """Training of one reward model; `progress.json` in its directory holds all that a resume needs.

    Example:
        >>> trainer = RewardTrainer("reward", job, mixture, ledger, telemetry)
        >>> trainer.run()
        >>> trainer.learner.close()
    """

    def __init__(self, name: str, job: Job, mixture: Mixture, ledger: Ledger, telemetry: Telemetry) -> None:
        self._name, self._job, self._mixture = name, job, mixture
        self._ledger, self._telemetry = ledger, telemetry
        self._directory = f"{name}-training"
        self._log = StepLog(
            ledger, self._directory, evaluations=[], best=None, cut=0, too_long=0, mixture=mixture.parts
        )
        self._facts = self._log.facts
        optimizer, ranks = job.reward.optimizer, job.reward.learners.actors
        asked = mixture.train["asked"].to_pylist()
        prompts = batching.numbered(text if Context.of(text).is_conversation else None for text in asked)
        self._plan = batching.plan(mixture.train.num_rows, optimizer, ranks, job.seed, prompts)
        self._encoder = Encoder(job, cut=self._facts["cut"], too_long=self._facts["too_long"])
        spec = WorkerSpec(
            model=job.model,
            objective=BradleyTerryObjective(centre=job.reward.centre),
            settings=job.reward.learners,
            optimizer=optimizer,
            seed=int(key_of(job.seed, name), 16) % 2**31,
            deadlines=job.deadlines,
            lora=job.reward.lora,
            template_options=job.template_options,
        )
        self.learner = LearnerGroup(spec, state=self._log.state)

    def run(self) -> None:
        """Trains, evaluates and keeps checkpoints; then saves the best one and records it."""
        dev = Encoder(self._job).examples(self._mixture.dev)
        done, total = self._log.done, len(self._plan)
        # the first batch is encoded while the learner loads, later batches while it computes
        stream = self._encoder.batches(self._mixture.train, self._plan[done:])
        batches = itertools.chain([next(stream)], stream) if done < total else iter(())
        self.learner.wait_ready()
        resumed = f"; {done} of {total} steps are done" if done else ""
        _log.info(f"{self._name}: {self._mixture.train.num_rows} pairs to train on, {len(dev)} held out{resumed}")
        steps = self.learner.train(batches, total, first_step=done, batches_from=self._batches_from)
        with preemption.deferred():
            for step in self._telemetry.steps(steps, self._name, self._name, done):
                self._log.add(step)
                if self._due(self._job.reward.evaluate_every):
                    self._evaluate(dev)
                self._facts |= {"cut": self._encoder.cut, "too_long": self._encoder.too_long}
                self._log.pause(self.learner, *self._kept())
                if self._due(self._job.reward.checkpoint_every) and self._log.done < total:
                    self._log.write(self.learner, *self._kept())
            self._finish(len(dev))

    def _batches_from(self, step: int) -> Iterator[list[PreferencePair]]:
        """The batches from a step on, for a replay; another encoder, because their truncations are counted already."""
        return Encoder(self._job).batches(self._mixture.train, self._plan[step:])

    def _due(self, every: int | None) -> bool:
        """Whether the last step completed an interval of this many steps; None: an epoch."""
        done, total = self._log.done, len(self._plan)
        return done == total or done % (every or total // self._job.reward.optimizer.epochs) == 0

    def _evaluate(self, dev: list[PreferencePair]) -> None:
        """Measures the current weights on the held-out pairs and keeps them if they are the best so far."""
        step, best = self._log.done, self._facts["best"]
        evaluation = {"step": step, **_measured(self.learner.evaluate_pairs(dev))}
        self._facts["evaluations"].append(evaluation)
        if "accuracy" in evaluation:
            _log.info(f"{self._name}: accuracy {evaluation['accuracy']:.3f} on {len(dev)} held-out pairs")
            figures = {f"dev_{name}": evaluation[name] for name in ("accuracy", "auc", "nll", "ece10", "brier")}
            self._telemetry.track_figures(self._name, step, figures)
        # without held-out pairs the last step is as good as any
        if best is None or "accuracy" not in evaluation or checkpoint_score(evaluation) > checkpoint_score(best):
            self._facts["best"] = evaluation
            self.learner.save_model(self._ledger.place(self._best(step)))

    def _finish(self, dev_pairs: int) -> None:
        """Moves the best checkpoint with its model card into place and records it."""
        best, reward, name = self._facts["best"], self._job.reward, self._name
        facts = {
            "best_step": best["step"],
            "mixture": self._mixture.parts,
            "half": reward.half,
            "cut": self._encoder.cut // reward.optimizer.epochs,  # every epoch encodes every pair once
            "too_long": self._encoder.too_long // reward.optimizer.epochs,
        }
        kept = self._best(best["step"])
        source, target = self._ledger.place(kept), self._ledger.place(name)
        if storage.exists(source):  # else an earlier driver moved it before it was killed
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
            self._ledger.write_text(f"{kept}/{trained_pairs.FILE}", trained_pairs.dump(self._mixture.train))
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
        self._telemetry.summarise(
            {name: {"accuracy": best.get("accuracy"), "best_step": best["step"], "pairs": self._mixture.train.num_rows}}
        )
        self._log.clear()

    def _kept(self) -> list[str]:
        """Directories that a new state does not replace."""
        return [self._best(self._facts["best"]["step"])] if self._facts["best"] else []

    def _best(self, step: int) -> str:
        return f"{self._directory}/best-{step:06d}"


def _measured(values: list[tuple[float, float]]) -> Record:
    """Metrics of the held-out pairs; empty without pairs."""
    if not values:
        return {}
    chosen, rejected = np.array(values, dtype=float).T
    measures = metrics.measure(chosen, rejected)
    return {name: value for name, value in measures.items() if name not in ("reliability", "histogram")}


def checkpoint_score(evaluation: Record) -> tuple[float, float]:
    """The score that checkpoints are compared by: accuracy, then loss."""
    return evaluation["accuracy"], -evaluation["nll"]
