"""Streaming of speeches to responses to scores, and of pairs to reference log-probabilities."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import load_prompt, prompt_messages, without_examples
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Job
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest, items_in_flight
from psyco_ray.rollout.scorer import REFERENCE, GroupBatch, ScorerActor
from psyco_ray.run.hashing import key_of
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.types import Group, PreferencePair, Prompt, PromptBatch, Row, Rows
from psyco_ray.training.batches import Batches, tokens_of_call
from psyco_ray.training.quarantine import Quarantine

_Asked = tuple[Group, list[dict[str, str]]]  # a group, and the messages that it answers
_BATCHES = 2  # that a scorer has at a time: it starts the second while the first's results travel
_CHARS_PER_TOKEN, _TURN_TOKENS = 4, 6  # English text, and what a chat template adds to a turn


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled; part of an item's key."""

    version: int  # of the policy
    responses: int  # per speech
    temperature: float
    top_p: float
    max_tokens: int
    logprobs: bool = False  # whether responses have their log-probability


@dataclass(frozen=True)
class SamplingStage:
    """One stage of sampling and scoring."""

    name: str  # in the ledger
    rows: Rows  # of the SPEECHES table
    seed: tuple[str, int]  # purpose and iteration, which the seeds of the prompts depend on
    sampling: Sampling
    scored_by: tuple[str, ...]  # reward models, and the reference policy; empty: the groups are not scored
    training: bool = False  # whether the groups are trained on
    client: str = ""  # digest of the simulated clients' model, whose engines sample; empty: the policy's engines do


class SamplingPipeline:
    """Samples with the rollout actors and scores with the scorers, both at the same time.

    ::

        rows ─▶ items ──stored groups────────────────────────────┐
                  └─missing items─▶ rollouts ─▶ batches ─▶ scorers ─▶ ledger ─▶ groups

    Rows are read when an item is formed, a few items before a rollout actor takes it. Groups are scored while others
    are sampled, and yielded while others are scored. A batch has as many tokens as `tokens_of_call` says.

    Example:
        >>> pipeline = SamplingPipeline(job, ledger, telemetry, rollouts, scorers, ("reward",))
        >>> pairs = (pair_of(group) for group in pipeline.samples(1, rows, version=0))
        >>> reference = pipeline.reference("iteration-001/pairs", ([pair] for pair in pairs if pair is not None))
    """

    def __init__(
        self,
        job: Job,
        ledger: Ledger,
        telemetry: Telemetry,
        rollouts: ActorPool[RolloutActor],
        scorers: ActorPool[ScorerActor],
        reward_models: tuple[str, ...],
        clients: ActorPool[RolloutActor] | None = None,
    ) -> None:
        """Take the pools, which may still be loading.

        Args:
            job: of the run.
            ledger: of the run.
            telemetry: of the run.
            rollouts: sample.
            scorers: score and compute reference log-probabilities.
            reward_models: the scorers' names for their reward models.
            clients: sample the turns of simulated clients; None: the job has none, or they are behind an API.
        """
        self._job, self._ledger, self._telemetry = job, ledger, telemetry
        self._rollouts, self._scorers, self._reward_models = rollouts, scorers, reward_models
        self._clients = clients
        self._prompt = without_examples(load_prompt(job.prompts))  # the scorers' one
        self._busy_s = dict.fromkeys(("rollout", "scorer", *(("client",) if clients is not None else ())), 0.0)

    def pop_busy_seconds(self) -> dict[str, float]:
        """Busy seconds of the actors since the last call, by role."""
        busy_s, self._busy_s = self._busy_s, dict.fromkeys(self._busy_s, 0.0)
        return busy_s

    def samples(self, iteration: int, rows: Rows, version: int) -> Iterator[Group]:
        """Groups of responses to train on.

        Args:
            iteration: of the run.
            rows: of the SPEECHES table.
            version: of the policy that samples.

        Returns:
            Each speech's group with its `reward` scores, and `safety` scores where there is such a model.
        """
        settings = self._job.sampling
        sampling = Sampling(version, settings.responses, settings.temperature, settings.top_p, settings.max_tokens)
        models = tuple(name for name in ("reward", "safety") if name in self._reward_models)
        work = SamplingStage(stage(iteration, "samples"), rows, ("samples", iteration), sampling, models, training=True)
        return self.groups(work)

    def answers(self, iteration: int, rows: Rows, version: int) -> Iterator[Group]:
        """Groups of responses to held-out speeches, scored by all reward models.

        With the base model as reference, responses also have their log-probabilities under policy and reference.
        The seeds are the same in every iteration, so that policies are compared on equal random numbers.

        Args:
            iteration: of the run.
            rows: of the SPEECHES table.
            version: of the policy that samples.
        """
        settings = self._job.evaluation
        referenced = self._job.dpo.reference == "base"
        sampling = Sampling(
            version, settings.responses, settings.temperature, 1.0, self._job.sampling.max_tokens, logprobs=referenced
        )
        models = (*self._reward_models, REFERENCE) if referenced else self._reward_models
        return self.groups(SamplingStage(stage(iteration, "dev"), rows, ("dev", 0), sampling, models))

    def reference(self, name: str, batches: Iterable[Sequence[PreferencePair]]) -> dict[str, tuple[float, float]]:
        """Log-probabilities of a stage's pairs under the reference model, by key.

        Args:
            name: of the stage.
            batches: of pairs; those of one are computed together.
        """
        reference: dict[str, tuple[float, float]] = {}
        quarantine = Quarantine(name, self._job.speeches_per_iteration)

        def give_up(batch: Sequence[PreferencePair], reason: str) -> None:
            for failed in batch:
                quarantine.add(failed.key, reason)

        for pair in self._scorers.stream(
            ScorerActor.reference_logprobs,
            batches,
            name=f"{name}: reference",
            identity=lambda pair: pair.key,
            split=lambda batch: [[member] for member in batch],
            on_failed=give_up,
            in_flight=_BATCHES,
        ):
            reference[pair.key] = pair.reference
            self._busy_s["scorer"] += pair.seconds
        return reference

    def groups(self, work: SamplingStage) -> Iterator[Group]:
        """The groups of a stage: those stored, then new ones, stored as they complete."""
        quarantine = Quarantine(work.name, len(work.rows))
        speeches: dict[str, str] = {}  # by id, from the forming of an item to its groups

        def produced(missing: Iterator[PromptBatch]) -> Iterator[Group]:
            if not work.scored_by:
                return self._sample(work, missing, quarantine.add)
            return self._score(work, self._batch(work, missing, speeches, quarantine), quarantine)

        yield from self._ledger.stored_groups(work.name, self._items(work, {}))
        yield from self._ledger.store_missing(work.name, self._items(work, speeches), produced, quarantine.reasons)

    def _sample(
        self, work: SamplingStage, items: Iterable[PromptBatch], give_up: Callable[[str, str], None]
    ) -> Iterator[Group]:
        """Sample the items; `give_up` gets the id of each speech that fails, and the reason."""
        pool = self._clients if work.client else self._rollouts
        assert pool is not None, "simulated clients have engines"

        def failed(request: SamplingRequest, reason: str) -> None:
            for prompt in request.item.prompts:
                give_up(prompt.speech_id, reason)

        sampled: Iterator[tuple[Group, float]] = pool.stream(
            RolloutActor.sample,
            (SamplingRequest(item, **asdict(work.sampling)) for item in items),
            name=work.name,
            identity=lambda result: result[0].prompt.speech_id,
            split=SamplingRequest.split,
            on_failed=failed,
            in_flight=items_in_flight(self._engines(work), work.sampling.responses),
        )
        for group, seconds in sampled:
            assert group.version == work.sampling.version, f"version {group.version} comes from a stale policy"
            self._busy_s["client" if work.client else "rollout"] += seconds
            if not work.client:
                tokens = sum(len(response.token_ids) for response in group.responses)
                self._telemetry.rolling.add(
                    rollout_tokens=tokens, response_tokens_sum=tokens, responses=len(group.responses)
                )
            yield group

    def _batch(
        self, work: SamplingStage, items: Iterator[PromptBatch], speeches: dict[str, str], quarantine: Quarantine
    ) -> Iterator[GroupBatch]:
        """Sample the items; yields batches for the scorers, each of one item's groups in the order of its prompts."""
        batches = Batches[_Asked](tokens_of_call(self._job.scorers))
        complete: deque[tuple[_Asked, ...]] = deque()

        def opened() -> Iterator[PromptBatch]:
            for item in items:
                batches.open([prompt.speech_id for prompt in item.prompts])
                yield item

        def give_up(speech_id: str, reason: str) -> None:
            quarantine.add(speech_id, reason)
            complete.extend(batches.add(speech_id, None))

        for group in self._sample(work, opened(), give_up):
            speech = speeches.pop(group.prompt.speech_id)
            messages = prompt_messages(self._prompt, speech)
            # about what a reward model reads, whose tokenizer and prompt may be others than the policy's
            tokens = sum(len(response.token_ids) for response in group.responses)
            read = tokens + sum(len(text["content"]) for text in messages) // _CHARS_PER_TOKEN
            read += _TURN_TOKENS * (len(messages) + len(group.responses))
            history = group.prompt.token_ids if Context.of(speech).is_conversation else ()
            complete.extend(batches.add(group.prompt.speech_id, (group, messages), read, history))
            while complete:
                yield GroupBatch(complete.popleft(), work.scored_by)
        yield from (GroupBatch(batch, work.scored_by) for batch in complete)

    def _score(self, work: SamplingStage, sampled: Iterable[GroupBatch], quarantine: Quarantine) -> Iterator[Group]:
        """Score groups as they are sampled; yields them in order of completion."""
        rolling = self._telemetry.rolling
        unscored: dict[str, Group] = {}  # that the scorers have, by speech: only their scores come back

        def batches() -> Iterator[GroupBatch]:
            for batch in sampled:
                unscored.update((group.prompt.speech_id, group) for group, _ in batch.groups)
                yield batch

        def give_up(batch: GroupBatch, reason: str) -> None:
            for group, _ in batch.groups:
                quarantine.add(group.prompt.speech_id, reason)
                del unscored[group.prompt.speech_id]

        for scored in self._scorers.stream(
            ScorerActor.score,
            batches(),
            name=f"{work.name}: scores",
            identity=lambda scored: scored.key,
            split=GroupBatch.split,
            on_failed=give_up,
            in_flight=_BATCHES,
        ):
            group = replace(unscored.pop(scored.key), scores=scored.scores)
            self._busy_s["scorer"] += scored.seconds
            rolling.add(groups=1)
            if work.training:
                rolling.add(sampled=1, reward_sum=sum(group.scores["reward"]) / len(group.responses))
            yield group

    def _items(self, work: SamplingStage, speeches: dict[str, str]) -> Iterator[PromptBatch]:
        """Batches of prompts, each keyed by everything its responses depend on; the texts go to `speeches`."""
        sampling, rows = asdict(work.sampling), iter(work.rows)
        client = [work.client] if work.client else []  # the policy has its version
        while batch := list(itertools.islice(rows, self._engines(work).speeches_per_item)):
            speeches |= {row["speech_id"]: row["speech"] for row in batch}
            prompts = tuple(self._prompt_of(row, work.seed) for row in batch)
            yield PromptBatch(key_of(*client, sampling, [[p.token_ids, p.seed] for p in prompts]), prompts)

    def _engines(self, work: SamplingStage) -> Rollouts:
        """The settings of the engines that sample a stage."""
        if not work.client:
            return self._job.rollouts
        assert self._job.simulate is not None, "the job has simulated clients"
        return self._job.simulate.client.rollouts

    def _prompt_of(self, row: Row, seed: tuple[str, int]) -> Prompt:
        """The prompt of a speech; its seed depends on job seed, purpose, iteration and speech."""
        key = key_of(self._job.seed, *seed, row["speech_id"])
        return Prompt(row["speech_id"], tuple(row["prompt_ids"]), int(key, 16) % 2**62)
