"""All actors of an iterative run behind the verbs that the driver speaks in."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from psyco_ray import pairs, placement, sync
from psyco_ray.batches import batches
from psyco_ray.config import Job
from psyco_ray.data import speeches as speech_data
from psyco_ray.data.mixture import Encoder
from psyco_ray.evaluate import heldout, verdicts
from psyco_ray.judge.client import key_for
from psyco_ray.learner import LearnerGroup
from psyco_ray.ledger import Ledger, key_of, write_table
from psyco_ray.losses import Dpo
from psyco_ray.pool import ActorPool
from psyco_ray.records import PAIRS, Example, Group, Item, Prompt
from psyco_ray.rollout import RolloutActor, SamplingRequest, environment
from psyco_ray.scorer import ScorerActor
from psyco_ray.standing import Standing, stage
from psyco_ray.telemetry import Telemetry

Row = dict[str, Any]


class Crew:
    """Rollout actors, scorers and learner ranks; they live from the first iteration to the last."""

    def __init__(self, job: Job, ledger: Ledger, telemetry: Telemetry) -> None:
        """Find out how far the run is; entering the context starts the actors, each loading beside the others."""
        self.job, self.ledger, self.telemetry = job, ledger, telemetry
        self.version = 0  # of the rollouts' weights: the iteration that made them
        self.standing = Standing(job, ledger)
        self.trained = self.standing.last_trained()
        # the learner's weights are those of that iteration, unless it was rolled back
        self.weights = self.standing.going_on_from(self.trained)
        named = {"reward": job.scorers.reward_model, "heldout": job.scorers.heldout_model}
        named["safety"] = job.scorers.safety_model
        self._rewards = {name: model for name, model in named.items() if model is not None}
        self._prompt = speech_data.load_prompt(job.prompts)
        if job.evaluation.judge is not None:
            verdicts.load_entry(job.prompts.file)  # what lacks it is refused before anything is trained
            key_for(job.evaluation.judge)
        self._busy = {"rollout": 0.0, "scorer": 0.0}

    def __enter__(self) -> Self:
        job, deadlines = self.job, self.job.deadlines
        limits = {"start_s": deadlines.start_s, "item_s": deadlines.item_s}
        rollout, scorer = ray.remote(RolloutActor), ray.remote(ScorerActor)
        self.rollouts = ActorPool(
            "rollout",
            lambda index: rollout.options(**placement.pool_options(job.rollouts, environment(job.rollouts))).remote(
                f"rollout-{index}", job.model, job.rollouts, job.seed
            ),
            job.rollouts.actors,
            **limits,
        )
        self.scorers = ActorPool(
            "scorer",
            lambda index: scorer.options(**placement.pool_options(job.scorers)).remote(
                f"scorer-{index}", self._rewards, job.model, job.scorers
            ),
            job.scorers.actors,
            **limits,
        )
        self.learner = LearnerGroup(
            job.model,
            Dpo(job.dpo),
            job.learners,
            job.dpo.optimizer,
            seed=job.seed,
            state=str((self.ledger.root / _state(self.weights)).absolute()) if self.trained else None,
            start_s=deadlines.start_s,
            step_s=deadlines.step_s,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.rollouts.close()
        self.scorers.close()
        self.learner.close()

    def wait_ready(self) -> None:
        """Wait until every actor has its model."""
        self.rollouts.wait_ready()
        self.scorers.wait_ready()
        self.learner.wait_ready()
        if self.job.guards.roll_back and not self.trained:
            self.learner.save_state(self.ledger.path(_state(0)))

    def pairs(self, iteration: int, drawn: list[Row]) -> list[Example]:
        """Sample responses to the drawn speeches, score them as they come, pair best and worst, add the reference.

        The three run at the same time: a group is scored while others are still being sampled, and the reference
        log-probabilities of its pair are computed as soon as there is one.
        """
        name = stage(iteration, "pairs")
        if self.ledger.record(name) is None:
            began = time.time()
            groups: dict[str, Group] = {}
            slope, least = self.standing.worth(iteration)

            def made() -> Iterator[Example]:
                scored = self._scored(iteration, "samples", drawn, self.job.sampling.responses, None)
                for group in self.telemetry.track(scored, f"iteration {iteration}: sample and score", len(drawn)):
                    groups[group.prompt.speech_id] = group
                    if (pair := pairs.pair_of(group, slope, least)) is not None:
                        yield pair

            paired = self._with_reference(made())
            if not paired:
                raise ValueError(
                    f"iteration {iteration} has no pair to train on: {self.job.scorers.reward_model} ranks no response "
                    "above another" + (" beyond what length explains (guards.length_debias)" if slope else "")
                )
            ordered = [row["speech_id"] for row in drawn]
            rows = [pairs.row_of(paired[key], groups[key]) for key in ordered if key in paired]
            write_table(self.ledger.path(f"{name}.parquet"), pa.Table.from_pylist(rows, schema=PAIRS))
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
                busy=dict(self._busy),
            )
            self._busy = dict.fromkeys(self._busy, 0.0)
        return self._read_pairs(iteration)

    def offline_pairs(self, iteration: int, drawn: list[str], table: pa.Table) -> list[Example]:
        """The drawn rows of a file of preference pairs, with their reference log-probabilities."""
        name = stage(iteration, "pairs")
        if self.ledger.record(name) is None:
            began = time.time()
            encoder = Encoder(self.job, for_policy=True)
            texts = table.take(pa.array([int(row) for row in drawn]))
            found = encoder.examples(texts)
            paired = self._with_reference(self.telemetry.track(found, f"iteration {iteration}: reference", len(found)))
            by_id = {row["pair_id"]: row for row in texts.to_pylist()}
            rows = [pairs.offline_row(paired[example.key], by_id[example.key]) for example in found]
            write_table(self.ledger.path(f"{name}.parquet"), pa.Table.from_pylist(rows, schema=PAIRS))
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
                busy=dict(self._busy),
            )
            self._busy = dict.fromkeys(self._busy, 0.0)
        return self._read_pairs(iteration)

    def train(self, iteration: int, examples: list[Example]) -> None:
        """One round of DPO on the pairs, then the model and the state that a resumed run continues from."""
        name = stage(iteration, "train")
        if self.ledger.record(name) is not None:
            return
        began = time.time()
        how, keep = self.job.dpo.optimizer, self.job.keeps_optimizer
        if iteration > 1 and not keep:
            self.learner.reset_optimizer()
        seed = int(key_of(self.job.seed, "train", iteration), 16) % 2**31
        planned = batches(examples, how, self.job.learners.actors, seed)
        # one schedule over all iterations goes by the steps that each was to have, ties and all
        each = how.epochs * -(-self.job.speeches_per_iteration // how.batch_size)
        first, total = ((iteration - 1) * each, self.job.iterations * each) if keep else (0, len(planned))
        stream = self.learner.train(planned, max(total, first + len(planned)), first)
        steps = list(self.telemetry.steps(stream, f"iteration {iteration}: train"))
        trained = time.time()
        self.learner.save_model(self.ledger.path(stage(iteration, "checkpoint")))
        self.learner.save_state(self.ledger.path(_state(iteration)), moments=keep)
        self.ledger.finish(
            name,
            began,
            train_s=trained - began,
            save_s=time.time() - trained,
            tokens=sum(step.tokens for step in steps),
            steps=[{"loss": s.loss, "lr": s.learning_rate, "grad_norm": s.grad_norm, **s.metrics} for s in steps],
        )
        self.trained = self.weights = iteration
        # other states would only be needed if this one were not whole, and it is; or for a roll-back
        kept = {iteration, *([self.standing.best(iteration - 1)] if self.job.guards.roll_back else [])}
        for other in range(iteration):
            if other not in kept:
                shutil.rmtree(self.ledger.root / _state(other), ignore_errors=True)

    def sync(self) -> None:
        """Bring the learner's weights to all rollout actors, unless they have them."""
        if self.version == self.weights:
            return
        probe = next(iter(self._read_pairs(self.trained)))
        report = sync.push(self.learner, self.rollouts, self.weights, probe, self.job.sync)
        self.version = self.weights
        self.ledger.write_json(
            f"iteration-{self.trained:03d}/sync.json",
            {"export_s": report.export_s, "load_s": report.load_s, "bytes": report.bytes, "gap": report.gap},
        )
        self.telemetry.say(
            f"iteration {self.version}: {report.bytes / 2**20:.0f} MiB of weights synced to "
            f"{self.job.rollouts.actors} rollout actor(s) in {report.export_s + report.load_s:.1f} s"
        )

    def evaluate(self, iteration: int, dev: list[Row]) -> dict[str, Any]:
        """Answer the held-out speeches with the current policy and compare it with the base model.

        The base model (iteration 0) is only measured; a policy is judged against it, watched, and perhaps rolled back.
        """
        name = stage(iteration, "evaluate")
        if (found := self.ledger.record(name)) is not None:
            return found
        began = time.time()
        job = self.job.evaluation
        scored = self._scored(iteration, "dev", dev, job.responses, job.temperature)
        groups = {
            group.prompt.speech_id: group
            for group in self.telemetry.track(scored, f"iteration {iteration}: held-out speeches", len(dev))
        }
        base = self.ledger.record(stage(0, "evaluate"))
        assert (base is None) == (iteration == 0), "the base model is evaluated first"
        measured = heldout.measured(groups, tuple(self._rewards), base, self.job.seed)
        facts: dict[str, Any] = {"version": self.version, **measured}
        if iteration and job.judge is not None:
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
                self.telemetry.say(f"iteration {iteration}: ALARM, {alarm}")
        found = self.ledger.finish(name, began, **facts)
        if iteration and found["going_on_from"] != iteration:
            self.weights = found["going_on_from"]
            self.learner.load_state(self.ledger.root / _state(self.weights))
            self.telemetry.say(f"iteration {iteration}: rolled back to iteration {self.weights}")
        return found

    def _with_reference(self, examples: Iterable[Example]) -> dict[str, Example]:
        """The pairs with their log-probabilities under the reference, by key."""
        if self.job.dpo.reference == "previous":
            found = list(examples)
            return {e.key: replace(e, reference=v) for e, v in zip(found, self.learner.values(found), strict=True)}
        paired: dict[str, Example] = {}
        for pair, seconds in self.scorers.stream("reference", examples):
            paired[pair.key] = pair
            self._busy["scorer"] += seconds
        return paired

    def _scored(
        self, iteration: int, name: str, rows: list[Row], responses: int, temperature: float | None
    ) -> Iterator[Group]:
        """Groups of responses to the rows' speeches by the current policy, scored as they come, stored as they go.

        `temperature` None samples for training, by the reward model only; else for evaluation, by all.
        """
        job = self.job
        ranks = tuple(name for name in ("reward", "safety") if name in self._rewards)
        models = ranks if temperature is None else tuple(self._rewards)
        drawing: dict[str, Any] = {
            "version": self.version,
            "responses": responses,
            "temperature": job.sampling.temperature if temperature is None else temperature,
            "top_p": job.sampling.top_p if not temperature else 1.0,
            "max_tokens": job.sampling.max_tokens,
        }
        speeches = {row["speech_id"]: row["speech"] for row in rows}
        prompts = [self._seeded(row, iteration, name) for row in rows]
        size = job.rollouts.speeches_per_item
        batches = [tuple(prompts[i : i + size]) for i in range(0, len(prompts), size)]
        items = [Item(key_of(drawing, [[p.token_ids, p.seed] for p in batch]), batch) for batch in batches]

        def produce(missing: list[Item]) -> Iterator[Group]:
            requests = (SamplingRequest(item, **drawing) for item in missing)

            def sampled() -> Iterator[tuple[Group, list[dict[str, str]], tuple[str, ...]]]:
                for group, seconds in self.rollouts.stream("sample", requests):
                    self._busy["rollout"] += seconds
                    assert group.version == self.version, f"a group of version {group.version} came from a stale policy"
                    yield group, speech_data.messages(self._prompt, speeches[group.prompt.speech_id]), models

            for group, seconds in self.scorers.stream("score", sampled()):
                self._busy["scorer"] += seconds
                yield group

        return self.ledger.groups(stage(iteration, name), items, produce)

    def _read_pairs(self, iteration: int) -> list[Example]:
        """The pairs of an iteration from the ledger."""
        path = self.ledger.path(stage(iteration, "pairs.parquet"))
        return [pairs.example_of(row) for row in pq.read_table(path).to_pylist()]

    def _seeded(self, row: Row, iteration: int, name: str) -> Prompt:
        # dev responses keep their seed from one iteration to the next, so that policies are compared on equal luck
        moment = iteration if name == "samples" else 0
        seed = int(key_of(self.job.seed, name, moment, row["speech_id"]), 16) % 2**62
        return Prompt(row["speech_id"], tuple(row["prompt_ids"]), seed)


def _state(iteration: int) -> str:
    return stage(iteration, "state")
