"""All actors of an iterative run behind the verbs that the driver speaks in."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.util import remove_placement_group

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.data.mixture import Encoder
from psyco_ray.evaluate import verdicts
from psyco_ray.judge.client import key_for
from psyco_ray.learner.batching import batches
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor, actor_environment
from psyco_ray.rollout.scorer import ScorerActor
from psyco_ray.run import preemption
from psyco_ray.run.hashing import key_of
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.schemas import PAIRS
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.timeline import Timeline
from psyco_ray.run.types import Group, PreferencePair, Row
from psyco_ray.training import heldout, pairs, weight_sync
from psyco_ray.training.colocation import ColocationManager
from psyco_ray.training.control import Control
from psyco_ray.training.pipeline import SamplingPipeline
from psyco_ray.training.run_state import RunState
from psyco_ray.training.step_log import StepLog

_log = logging.getLogger(__name__)


class Orchestrator:
    """Rollout actors, scorers and learner ranks; they live from the first iteration to the last."""

    def __init__(self, job: Job, ledger: Ledger, telemetry: Telemetry) -> None:
        """Find out how far the run is; entering the context starts the actors, each loading beside the others."""
        self.job, self.ledger, self.telemetry = job, ledger, telemetry
        self.version = 0  # of the rollouts' weights: the iteration that made them
        self.standing = RunState(job, ledger)
        self.trained = self.standing.last_trained()
        # the learner's weights are those of that iteration, unless it was rolled back
        self.weights = self.standing.going_on_from(self.trained)
        named = {"reward": job.scorers.reward_model, "heldout": job.scorers.heldout_model}
        named["safety"] = job.scorers.safety_model
        self.timeline = Timeline(ledger, self._sizes)
        self._rewards = {name: model for name, model in named.items() if model is not None}
        if job.evaluation.judge is not None:
            verdicts.load_judge_prompt(job.prompts.file)  # what lacks it is refused before anything is trained
            key_for(job.evaluation.judge)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as made:  # closed at once where not all of it can be had
            self._start(made)
            self._made = made.pop_all()
        return self

    def _start(self, made: contextlib.ExitStack) -> None:
        job, deadlines = self.job, self.job.deadlines
        rollout, scorer = ray.remote(RolloutActor), ray.remote(ScorerActor)
        # any other reference is the learner's own policy
        reference = job.model if job.dpo.reference == "base" else None
        rooms = placement.shared_rooms(job) if job.colocated else None
        if rooms is not None:
            made.callback(remove_placement_group, rooms)
        self.rollouts: ActorPool[RolloutActor] = ActorPool(
            "rollout",
            lambda index: rollout.options(
                **placement.pool_options(job.rollouts, actor_environment(job.rollouts), rooms, index)
            ).remote(f"rollout-{index}", job.model, job.rollouts, job.seed, shared=job.colocated),
            job.rollouts.actors,
            deadlines,
            on_busy=functools.partial(self.timeline.add_busy, "rollouts"),
            suspended=job.colocated,
        )
        made.callback(self.rollouts.close)
        self.scorers: ActorPool[ScorerActor] = ActorPool(
            "scorer",
            lambda index: scorer.options(**placement.pool_options(job.scorers)).remote(
                f"scorer-{index}", self._rewards, reference, job.scorers
            ),
            job.scorers.actors,
            deadlines,
            on_busy=functools.partial(self.timeline.add_busy, "scorers"),
        )
        made.callback(self.scorers.close)
        self._flow = SamplingPipeline(
            job, self.ledger, self.telemetry, self.rollouts, self.scorers, tuple(self._rewards)
        )
        spec = WorkerSpec(
            model=job.model,
            objective=DpoObjective(job.dpo),
            settings=job.learners,
            optimizer=job.dpo.optimizer,
            seed=job.seed,
            start_s=deadlines.start_s,
            step_s=deadlines.step_s,
        )
        self.learner = LearnerGroup(
            spec,
            state=self.ledger.place(_state(self.weights)) if self.trained else None,
            placement_group=rooms,
            on_busy=functools.partial(self.timeline.add_busy, "learners"),
        )
        made.callback(self.learner.close)
        self._turns = ColocationManager(job.colocated, self.rollouts, self.learner, job.sync.deadline_s)
        self.control = Control(
            self.ledger,
            {"rollouts": self.rollouts, "scorers": self.scorers},
            {"rollouts": job.rollouts, "scorers": job.scorers},
            self._seen,
            fixed=("rollouts", "learners") if job.colocated else (),
        )
        made.callback(self.control.close)

    def __exit__(self, *_: object) -> None:
        self._made.close()

    def wait_ready(self) -> None:
        """Wait until every actor has its model; scorers load soonest: what is wrong with theirs is told soon."""
        self.scorers.wait_ready()
        self.learner.wait_ready()
        if self.job.guards.roll_back and not self.trained:
            self.learner.save_state(self.ledger.place(_state(0)))
        self._turns.sampling()
        self.rollouts.wait_ready()

    def pairs(self, iteration: int, drawn: list[Row]) -> list[PreferencePair]:
        """Sample responses to the drawn speeches, score them as they come, pair best and worst, add the reference.

        The three run at the same time: a group is scored while others are still being sampled, and the reference
        log-probabilities of its pair are computed as soon as there is one.
        """
        name = stage(iteration, "pairs")
        if self.ledger.record(name) is None:
            began = time.time()
            self._turns.sampling()
            groups: dict[str, Group] = {}
            slope, least = self.standing.worth(iteration)

            def made() -> Iterator[PreferencePair]:
                scored = self._flow.samples(iteration, drawn, self.version)
                for group in self.telemetry.track(scored, f"iteration {iteration}: sample and score", len(drawn)):
                    groups[group.prompt.speech_id] = group
                    if (pair := pairs.pair_of(group, slope, least)) is not None:
                        yield pair

            with self.control.working(), self.timeline.span(iteration, "sample"):
                paired = self._referenced(name, made())
            if not paired:
                raise InputError(
                    f"iteration {iteration} has no pair to train on: {self.job.scorers.reward_model} ranks no response "
                    "above another" + (" beyond what length explains (guards.length_debias)" if slope else "")
                )
            ordered = [row["speech_id"] for row in drawn]
            rows = [pairs.row_of(paired[key], groups[key]) for key in ordered if key in paired]
            self.ledger.write_table(f"{name}.parquet", pa.Table.from_pylist(rows, schema=PAIRS))
            means = [sum(g.scores["reward"]) / len(g.responses) for g in groups.values()]
            lengths = [len(r.token_ids) for g in groups.values() for r in g.responses]
            finished = [r.finished for g in groups.values() for r in g.responses]
            self.ledger.finish(
                name,
                began,
                rows=len(rows),
                speeches=len(drawn),
                reward=sum(means) / len(means),
                tokens=sum(lengths),
                mean_tokens=sum(lengths) / len(lengths),
                finished_share=sum(finished) / len(finished),
                quarantined=self.ledger.quarantined(stage(iteration, "samples")),
                busy=self._flow.pop_busy_seconds(),
            )
        return self._read_pairs(iteration)

    def offline_pairs(self, iteration: int, drawn: list[str], table: pa.Table) -> list[PreferencePair]:
        """The drawn rows of a file of preference pairs, with their reference log-probabilities."""
        name = stage(iteration, "pairs")
        if self.ledger.record(name) is None:
            began = time.time()
            encoder = Encoder(self.job, for_policy=True)
            texts = table.take(pa.array([int(row) for row in drawn]))
            # with their places: files of a mixture may use the same ids, and a file may use one for several pairs
            named = [f"{row}:{given}" for row, given in zip(drawn, texts["pair_id"].to_pylist(), strict=True)]
            column = texts.schema.get_field_index("pair_id")
            found = encoder.examples(texts.set_column(column, "pair_id", pa.array(named, pa.string())))
            if not found:
                raise InputError(
                    f"iteration {iteration} has no pair to train on: none of {len(drawn)} fits rollouts.max_model_len"
                )
            shown = self.telemetry.track(found, f"iteration {iteration}: reference", len(found))
            with self.timeline.span(iteration, "sample"):
                paired = self._referenced(name, shown)
            by_name = dict(zip(named, texts.to_pylist(), strict=True))
            rows = [pairs.offline_row(paired[e.key], by_name[e.key]) for e in found if e.key in paired]
            self.ledger.write_table(f"{name}.parquet", pa.Table.from_pylist(rows, schema=PAIRS))
            lengths = [len(ids) for example in found for ids in (example.chosen_ids, example.rejected_ids)]
            self.ledger.finish(
                name,
                began,
                rows=len(rows),
                speeches=len(drawn),
                cut=encoder.cut,
                too_long=encoder.too_long,
                reward=None,
                tokens=0,
                mean_tokens=sum(lengths) / len(lengths),
                finished_share=1.0,
                busy=self._flow.pop_busy_seconds(),
            )
        return self._read_pairs(iteration)

    def train(self, iteration: int, examples: list[PreferencePair]) -> None:
        """One round of DPO on the pairs, then the model and the state that a resumed run continues from."""
        if self.ledger.record(stage(iteration, "train")) is not None:
            return
        seed = int(key_of(self.job.seed, "train", iteration), 16) % 2**31
        planned = batches(examples, self.job.dpo.optimizer, self.job.learners.actors, seed)
        # more ranks than pairs of a batch would have nothing to do
        wanted = min(self.control.wanted.get("learners", len(self.learner.workers)), *map(len, planned))
        if wanted != len(self.learner.workers):
            self.learner.resize(wanted)
        with preemption.deferred():
            self._train(iteration, planned)

    def _train(self, iteration: int, planned: list[list[PreferencePair]]) -> None:
        self._turns.learning()
        how, keep = self.job.dpo.optimizer, self.job.keeps_optimizer
        log = StepLog(self.ledger, stage(iteration, "training"))
        if log.state is not None:
            self.learner.load_state(log.state)
            _log.info(f"iteration {iteration}: {log.done} steps are done")
        # one schedule over all iterations goes by the steps that each was to have, ties and all
        each = how.epochs * -(-self.job.speeches_per_iteration // how.batch_size)
        first, total = ((iteration - 1) * each, self.job.iterations * each) if keep else (0, len(planned))
        stream = self.learner.train(
            planned[log.done :],
            max(total, first + len(planned)),
            first + log.done,
            reset_optimizer=iteration > 1 and not keep and not log.done,
        )
        every = self.job.dpo.checkpoint_every
        with self.timeline.span(iteration, "train"):
            for step in self.telemetry.steps(stream, f"iteration {iteration}: train"):
                log.add(step)
                log.pause(self.learner)
                if every and log.done % every == 0 and log.done < len(planned):
                    log.write(self.learner)
        trained = time.time()
        used = self.learner.mfu(log.facts["tokens"] / (trained - log.began))
        if used is not None:
            self.telemetry.rolling.set(mfu=used)
        with self.timeline.span(iteration, "save"):
            self.learner.save_model(self.ledger.place(stage(iteration, "checkpoint")))
            self.learner.save_state(self.ledger.place(_state(iteration)), moments=keep)
        self.ledger.finish(
            stage(iteration, "train"),
            log.began,
            train_s=trained - log.began,
            save_s=time.time() - trained,
            tokens=log.facts["tokens"],
            steps=log.facts["steps"],
            mfu=used,
        )
        log.clear()
        self.trained = self.weights = iteration
        # other states would only be needed if this one were not whole, and it is; or for a roll-back
        kept = {iteration, *([self.standing.best(iteration - 1)] if self.job.guards.roll_back else [])}
        for other in range(iteration):
            if other not in kept:
                self.ledger.remove(_state(other))

    def sync(self) -> None:
        """Bring the learner's weights to all rollout actors, unless they have them."""
        if self.version == self.weights:
            return
        probe = next(iter(self._read_pairs(self.trained)))
        push = functools.partial(
            weight_sync.push_weights,
            *(self.learner, self.rollouts, self.weights, probe, self.job.sync),
            transport=self.job.transport,
            workers=self.job.rollouts.tensor_parallel,
            handover=self._turns.sampling,
        )
        # an iteration that was evaluated is over: after a resume the next one begins with this
        over = self.standing.evaluation(self.trained) is not None
        with self.timeline.span(self.trained + over, "sync"):
            self._turns.learning()
            try:
                report = push()
            except RuntimeError as error:  # where no actor at all took them, the fault may be with what was sent
                _log.info(f"{error}; the weights are sent anew")
                self._turns.learning()
                report = push()
        self.version = self.weights
        self.ledger.write_json(
            f"iteration-{self.trained:03d}/sync.json",
            {"export_s": report.export_s, "load_s": report.load_s, "bytes": report.bytes, "gap": report.gap},
        )
        self.telemetry.rolling.set(sync_seconds=report.export_s + report.load_s, sync_bytes=report.bytes)
        _log.info(
            f"iteration {self.version}: {report.bytes / 2**20:.0f} MiB of weights synced to "
            f"{report.actors} rollout actor(s) in {report.export_s + report.load_s:.1f} s"
        )

    def evaluate(self, iteration: int, dev: list[Row]) -> dict[str, Any]:
        """Answer the held-out speeches with the current policy and compare it with the base model.

        The base model (iteration 0) is only measured; a policy is judged against it, watched, and perhaps rolled back.
        """
        name = stage(iteration, "evaluate")
        if (found := self.ledger.record(name)) is not None:
            return found
        began = time.time()
        self._turns.sampling()
        job = self.job.evaluation
        scored = self._flow.answers(iteration, dev, self.version)
        with self.control.working(), self.timeline.span(iteration, "evaluate"):
            groups = {
                group.prompt.speech_id: group
                for group in self.telemetry.track(scored, f"iteration {iteration}: held-out speeches", len(dev))
            }
        base = self.ledger.record(stage(0, "evaluate"))
        assert (base is None) == (iteration == 0), "the base model is evaluated first"
        measured = heldout.measured(groups, tuple(self._rewards), base, self.job.seed)
        facts: dict[str, Any] = {
            "version": self.version,
            **measured,
            "quarantined": self.ledger.quarantined(stage(iteration, "dev")),
            "busy": self._flow.pop_busy_seconds(),
        }
        if iteration and job.judge is not None:
            with self.ledger.mirrored("judge"), self.timeline.span(iteration, "judge"):
                facts["judge"] = heldout.judged(
                    job,
                    groups,
                    self.ledger.responses(stage(0, "dev")),
                    {row["speech_id"]: row["speech"] for row in dev},
                    self.ledger,
                    self.telemetry,
                    self.job.prompts.file,
                    self.job.seed,
                )
        if iteration:
            facts |= self.standing.watched(iteration, facts)
            for alarm in facts["alarms"]:
                _log.info(f"iteration {iteration}: ALARM, {alarm}")
        found = self.ledger.finish(name, began, **facts)
        for old in set(range(1, iteration)) - self.standing.kept(iteration):
            self.ledger.remove(stage(old, "checkpoint"))
        if iteration and found["going_on_from"] != iteration:
            self.weights = found["going_on_from"]
            self._turns.learning()
            self.learner.load_state(self.ledger.place(_state(self.weights)))
            _log.info(f"iteration {iteration}: rolled back to iteration {self.weights}")
        return found

    def _referenced(self, name: str, examples: Iterable[PreferencePair]) -> dict[str, PreferencePair]:
        """The pairs with their log-probabilities under the reference, base model or learner's policy, by key."""
        if self.job.dpo.reference == "base":
            return self._flow.add_reference(name, examples)
        found = list(examples)
        self._turns.learning(keep_weights=True)
        return {e.key: replace(e, reference=v) for e, v in zip(found, self.learner.evaluate_pairs(found), strict=True)}

    def _seen(self, pools: dict[str, list[Row]]) -> dict[str, Any]:
        now = self.telemetry
        figures = now.rolling.snapshot(pools, {"rollouts": self.rollouts.waiting(), "scorers": self.scorers.waiting()})
        now.export(figures)
        return {"stage": now.stage, "done": now.done, "total": now.total, "version": self.version, "now": figures}

    def _sizes(self) -> dict[str, int]:
        counts = {"rollouts": len(self.rollouts.actors), "scorers": len(self.scorers.actors)}
        return {**counts, "learners": len(self.learner.workers)}

    def _read_pairs(self, iteration: int) -> list[PreferencePair]:
        """The pairs of an iteration from the ledger."""
        path = self.ledger.path(stage(iteration, "pairs.parquet"))
        return [pairs.example_of(row) for row in pq.read_table(path).to_pylist()]


def _state(iteration: int) -> str:
    return stage(iteration, "state")
