"""Sequences the actors and the stages of a policy training run.

::

    speeches ─▶ rollouts ─▶ scorers ─▶ pairs ─▶ scorers (reference) ─▶ pairs.parquet
                   ▲                                                        │ read back
                   └── weight sync ── learner ◀── batches ◀─────────────────┘
                   │
    held-out ─▶ rollouts ─▶ scorers ─▶ measures ─▶ judge ─▶ guards ─▶ evaluate.json ─▶ roll-back

Invariants:
    - Every sample carries the version of the policy that produced it; a stale version is an error.
    - A stage is skipped when the ledger has its record, so a resumed run takes the same path as a fresh one.
    - Stages communicate through tables that are read back, so fresh and resumed runs use the same bytes.
    - A weight update is complete before the next item is sampled, and verified before a result of it is used.
    - A weight update is verified, and a trained policy saved, while the rollouts sample with it (saved before, where it
      shares their GPUs); their samples are stored once the policy is on disk.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa

from psyco_ray.config.training import Job
from psyco_ray.evaluate import verdicts
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.run import preemption
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.timeline import Timeline
from psyco_ray.run.types import PreferencePair, Rows
from psyco_ray.training import weight_sync
from psyco_ray.training.actors import RunActors, pool_settings, reward_models
from psyco_ray.training.background_save import BackgroundSave
from psyco_ray.training.control import Control
from psyco_ray.training.dialogue_stages import Dialogues
from psyco_ray.training.heldout import HeldoutEvaluation
from psyco_ray.training.pair_stage import PairStage
from psyco_ray.training.pipeline import SamplingPipeline
from psyco_ray.training.policy_trainer import PolicyTrainer, Trained, worker_count
from psyco_ray.training.run_state import RunState

_log = logging.getLogger(__name__)

Row = dict[str, Any]


class Orchestrator:
    """Rollouts, scorers and learner of a run behind the verbs of the training loop.

    Example:
        >>> with Orchestrator(job, ledger, telemetry, RunState(job, ledger)) as orchestrator:
        ...     orchestrator.wait_ready()
        ...     pairs = orchestrator.sample_pairs(1, rows)
        ...     orchestrator.train(1, pairs)
        ...     orchestrator.sync_weights()
    """

    def __init__(self, job: Job, ledger: Ledger, telemetry: Telemetry, run_state: RunState) -> None:
        """Checks the judge's settings; entering the context starts the actors."""
        self.job, self.ledger, self.telemetry, self.run_state = job, ledger, telemetry, run_state
        self._save = BackgroundSave()
        self.rollout_version = 0  # the iteration whose weights the rollouts have
        self.trained = run_state.last_trained()
        self.learner_version = run_state.resume_iteration(self.trained)  # the iteration whose weights the learner has
        if job.evaluation.judge is not None:  # invalid settings fail before anything is trained
            verdicts.load_judge_prompt(job.prompts.file)
            Outgoing(job.scrub, job.privacy).check({"evaluation.judge": job.evaluation.judge})

    def __enter__(self) -> Self:
        job, ledger, telemetry = self.job, self.ledger, self.telemetry
        with contextlib.ExitStack() as started:
            self.timeline = Timeline(ledger, lambda: self.actors.counts())
            state = self._state(self.learner_version) if self.trained else None
            self.actors = RunActors(job, state, self.timeline)
            started.callback(self.actors.close)
            rollouts, scorers = self.actors.rollouts, self.actors.scorers
            models, clients = tuple(reward_models(job)), self.actors.clients
            self._pipeline = SamplingPipeline(job, ledger, telemetry, rollouts, scorers, models, clients)
            self._dialogues = None
            if job.simulate is not None:
                self._dialogues = Dialogues(job, ledger, telemetry, self._pipeline, models)
            self._pairs = PairStage(job, ledger, telemetry, self._reference)
            self._trainer = PolicyTrainer(job, ledger, telemetry, self.timeline, self.actors.learner)
            ledger.wait_before_results(self._save.wait)
            self._heldout = HeldoutEvaluation(job, ledger, self.run_state, telemetry)
            self.control = Control(
                ledger,
                self.actors.pools,
                pool_settings(job),
                self._status,
                fixed=("rollouts", "learners") if job.colocated else (),
            )
            started.callback(self.control.close)
            self._close = started.pop_all().close
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self._save.wait()
        except Exception as unsaved:
            if error is None:
                raise
            if unsaved is not error:
                _log.warning(f"the policy of iteration {self.trained} was not saved: {unsaved}")
        finally:
            self._close()

    @property
    def _learner(self) -> LearnerGroup:
        """The learner, which has saved what it trained."""
        self._save.wait()
        return self.actors.learner

    def wait_ready(self) -> None:
        """Waits until every actor has loaded; scorers first, because they load fastest and fail earliest."""
        self.actors.scorers.wait_ready()
        self.actors.learner.wait_ready()
        if self.job.guards.roll_back and not self.trained:
            self.actors.learner.save_state(self._state(0))
        self.actors.colocation.to_rollouts()
        self.actors.rollouts.wait_ready()
        if self.actors.clients is not None:
            self.actors.clients.wait_ready()

    def sample_pairs(self, iteration: int, rows: Rows) -> list[PreferencePair]:
        """Samples and scores responses to speeches and pairs the best with the worst of each (paper §4.2).

        Sampling, scoring and reference log-probabilities overlap; see `SamplingPipeline` and `PairStage`.

        Args:
            iteration: of the run.
            rows: of the SPEECHES table.
        """
        name = stage(iteration, "pairs")
        if self.ledger.record(name) is None:
            began = time.time()
            self.actors.colocation.to_rollouts()
            with self.control.autoscaling(), self.timeline.span(iteration, "sample"):
                if self._dialogues is None:
                    groups = self._pipeline.samples(iteration, rows, self.rollout_version)
                    facts = self._pairs.make_sampled(iteration, rows, groups)
                else:
                    rows, groups = self._dialogues.samples(iteration, rows, self.rollout_version)
                    facts = self._pairs.make_sampled(iteration, rows, groups) | self._dialogues.facts()
            self.ledger.finish(name, began, **facts, busy=self._pipeline.pop_busy_seconds())
        return self._pairs.read(iteration)

    def load_offline_pairs(self, iteration: int, rows: np.ndarray, table: pa.Table) -> list[PreferencePair]:
        """Rows of a file of preference pairs, with their reference log-probabilities.

        Args:
            iteration: of the run.
            rows: numbers of the rows.
            table: of the COMPARISONS schema.
        """
        name = stage(iteration, "pairs")
        if self.ledger.record(name) is None:
            began = time.time()
            with self.timeline.span(iteration, "sample"):
                facts = self._pairs.make_offline(iteration, rows, table)
            self.ledger.finish(name, began, **facts, busy=self._pipeline.pop_busy_seconds())
        return self._pairs.read(iteration)

    def train(self, iteration: int, pairs: list[PreferencePair]) -> None:
        """Trains the policy on the pairs (one round of DPO); it is saved after the next sync."""
        if self.ledger.record(stage(iteration, "train")) is not None:
            return
        learner, planned = self._learner, self._trainer.plan(iteration, pairs)
        count = worker_count(self.control.requested.get("learners", len(learner.workers)), planned)
        if count != len(learner.workers):
            learner.resize(count)
        with preemption.deferred():
            self.actors.colocation.to_learner()
            trained = self._trainer.train(iteration, planned)
            self._save.plan(functools.partial(self._end_training, trained))
            self.trained = self.learner_version = iteration
            if self.job.colocated:  # the learner leaves its GPUs before anything is sampled
                self._save.wait()

    def _end_training(self, trained: Trained) -> None:
        self._trainer.save(trained)
        self.run_state.remove_states(trained.iteration)

    def sync_weights(self) -> None:
        """Sends the learner's weights to all rollout actors, unless they have them."""
        if self.rollout_version == self.learner_version:
            return
        with preemption.deferred():  # a transfer is whole, and the policy is saved after it
            self._save.join()
            verify = None
            try:
                pushed = self._push()
                verify = functools.partial(self._verify, stage(self.trained, "sync"), pushed)
            finally:
                self._save.start(verify)
        self.rollout_version = self.learner_version
        seconds = pushed.export_s + pushed.load_s
        self.telemetry.rolling.set(sync_seconds=seconds, sync_bytes=pushed.bytes)
        _log.info(
            f"iteration {self.rollout_version}: {pushed.bytes / 2**20:.0f} MiB of weights synced to "
            f"{pushed.actors} rollout actor(s) in {seconds:.1f} s"
        )

    def _verify(self, name: str, pushed: weight_sync.PushedWeights) -> None:
        """Records a sync when the engines have shown that they compute with the weights."""
        facts = {"export_s": pushed.export_s, "load_s": pushed.load_s, "bytes": pushed.bytes}
        self.ledger.write_json(f"{name}.json", {**facts, "gap": pushed.verify()})

    def _push(self) -> weight_sync.PushedWeights:
        """Sends the learner's weights, a second time if no actor accepts them."""
        actors = self.actors
        push = functools.partial(
            weight_sync.push_weights,
            *(actors.learner, actors.rollouts, self.learner_version, self._pairs.first(self.trained), self.job.sync),
            transport=self.job.transport,
            workers=self.job.rollouts.tensor_parallel,
            colocation=actors.colocation if self.job.colocated else None,
        )
        # after a resume the first sync belongs to the next iteration: the last one has been evaluated
        evaluated = self.run_state.evaluation(self.trained) is not None
        with self.timeline.span(self.trained + evaluated, "sync"):
            actors.colocation.to_learner()
            try:
                return push()
            except RuntimeError as error:  # if no actor accepts the weights, the data sent may be at fault
                _log.warning(f"{error}; the weights are sent again")
                actors.colocation.to_learner()
                return push()

    def evaluate(self, iteration: int, rows: Rows) -> None:
        """Evaluates the policy on held-out speeches and rolls it back if a guard requires that.

        Args:
            iteration: of the policy; 0 is the base model.
            rows: of the SPEECHES table.
        """
        if self.run_state.evaluation(iteration) is not None:
            return
        began, total = time.time(), len(rows)
        self.actors.colocation.to_rollouts()
        with self.control.autoscaling(), self.timeline.span(iteration, "evaluate"):
            scored = self._pipeline.answers(iteration, rows, self.rollout_version)
            tracked = self.telemetry.track(scored, f"iteration {iteration}: held-out speeches", total)
            groups = {group.prompt.speech_id: group for group in tracked}
            dialogues = None
            if self._dialogues is not None:
                dialogues = self._dialogues.heldout(iteration, rows, groups, self.rollout_version)
        speeches = {row["speech_id"]: row["speech"] for row in rows}
        facts: Row = {
            "version": self.rollout_version,
            **self._heldout.measure(iteration, groups, speeches, dialogues),
            "quarantined": self.ledger.quarantined(stage(iteration, "dev")),
            "busy": self._pipeline.pop_busy_seconds(),
        }
        if iteration and self.job.evaluation.judge is not None:
            with self.timeline.span(iteration, "judge"):
                facts["judge"] = self._heldout.judge(groups, speeches)
        facts |= self._heldout.check_guards(iteration, facts)
        self.ledger.finish(stage(iteration, "evaluate"), began, **facts)
        self.run_state.remove_checkpoints(iteration)
        self._roll_back(iteration)

    def _roll_back(self, iteration: int) -> None:
        """Loads the state that the run continues from, if that is another iteration's."""
        self.learner_version = self.run_state.resume_iteration(iteration)
        if self.learner_version != iteration:
            self.actors.colocation.to_learner()
            self._learner.load_state(self._state(self.learner_version))
            _log.warning(f"iteration {iteration}: rolled back to iteration {self.learner_version}")

    def _reference(self, name: str, batches: Iterable[Sequence[PreferencePair]]) -> dict[str, tuple[float, float]]:
        """Log-probabilities of pairs under the reference (base model or learner's policy), by key."""
        if self.job.dpo.reference == "base":
            return self._pipeline.reference(name, batches)
        # sorted, because rounding depends on what is computed together
        pairs = sorted((pair for batch in batches for pair in batch), key=lambda pair: pair.key)
        self.actors.colocation.to_learner(keep_weights=True)
        values = self._learner.evaluate_pairs(pairs)
        return {pair.key: value for pair, value in zip(pairs, values, strict=True)}

    def _status(self, pools: dict[str, list[Row]]) -> Row:
        """What `status.json` holds besides the pools' actors."""
        telemetry, actors = self.telemetry, self.actors
        waiting = {role: pool.waiting() for role, pool in actors.pools.items()}
        figures = telemetry.rolling.snapshot(pools, waiting)
        telemetry.export(figures)
        return {
            "stage": telemetry.stage,
            "done": telemetry.done,
            "total": telemetry.total,
            "version": self.rollout_version,
            "now": figures,
        }

    def _state(self, iteration: int) -> str:
        """Path or URI of an iteration's learner state."""
        return self.ledger.place(stage(iteration, "state"))
