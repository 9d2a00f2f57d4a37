"""What streams through the pools: speeches to responses to scores, and pairs to reference log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.training import Job
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import SamplingRequest
from psyco_ray.run.hashing import key_of
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.types import Group, PreferencePair, Prompt, PromptBatch
from psyco_ray.training.quarantine import Quarantine

Row = dict[str, Any]


class SamplingPipeline:
    """The work of rollout actors and scorers, each beside the other."""

    def __init__(
        self,
        job: Job,
        ledger: Ledger,
        telemetry: Telemetry,
        rollouts: ActorPool,
        scorers: ActorPool,
        rewards: tuple[str, ...],
    ) -> None:
        """Take the pools, which may still be loading, and the names of the scorers' reward models."""
        self._job, self._ledger, self._telemetry = job, ledger, telemetry
        self._rollouts, self._scorers, self._rewards = rollouts, scorers, rewards
        self._prompt = load_prompt(job.prompts)
        self._busy = {"rollout": 0.0, "scorer": 0.0}

    def taken(self) -> dict[str, float]:
        """Seconds that members worked since this was last asked, by role."""
        found, self._busy = self._busy, dict.fromkeys(self._busy, 0.0)
        return found

    def samples(self, iteration: int, rows: list[Row], version: int) -> Iterator[Group]:
        """Groups of responses to train on, by a version of the policy; scored by what ranks them."""
        sampling = self._job.sampling
        drawing = {
            "version": version,
            "responses": sampling.responses,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        models = tuple(name for name in ("reward", "safety") if name in self._rewards)
        return self._scored(
            stage(iteration, "samples"), rows, self._prompts(rows, "samples", iteration), drawing, models
        )

    def answers(self, iteration: int, rows: list[Row], version: int) -> Iterator[Group]:
        """Groups of responses to evaluate, by a version of the policy; scored by all reward models.

        They keep their seeds from one iteration to the next, so that policies are compared on equal luck.
        """
        evaluation = self._job.evaluation
        drawing = {
            "version": version,
            "responses": evaluation.responses,
            "temperature": evaluation.temperature,
            "top_p": 1.0,
            "max_tokens": self._job.sampling.max_tokens,
        }
        return self._scored(stage(iteration, "dev"), rows, self._prompts(rows, "dev", 0), drawing, self._rewards)

    def referenced(self, name: str, examples: Iterable[PreferencePair]) -> dict[str, PreferencePair]:
        """The pairs of a stage with their log-probabilities under the reference model, by key."""
        paired: dict[str, PreferencePair] = {}
        lost = Quarantine(name, self._job.speeches_per_iteration)
        for pair, seconds in self._scorers.stream(
            "reference", examples, what=f"{name}: reference", lost=lambda pair, reason: lost.add(pair.key, reason)
        ):
            paired[pair.key] = pair
            self._busy["scorer"] += seconds
        return paired

    def _prompts(self, rows: list[Row], name: str, moment: int) -> list[Prompt]:
        return [
            Prompt(
                row["speech_id"],
                tuple(row["prompt_ids"]),
                int(key_of(self._job.seed, name, moment, row["speech_id"]), 16) % 2**62,
            )
            for row in rows
        ]

    def _scored(
        self, place: str, rows: list[Row], prompts: list[Prompt], drawing: dict[str, Any], models: tuple[str, ...]
    ) -> Iterator[Group]:
        """Groups of responses to the rows' speeches, scored as they come, stored as they go."""
        speeches = {row["speech_id"]: row["speech"] for row in rows}
        size = self._job.rollouts.speeches_per_item
        batches = [tuple(prompts[i : i + size]) for i in range(0, len(prompts), size)]
        items = [PromptBatch(key_of(drawing, [[p.token_ids, p.seed] for p in batch]), batch) for batch in batches]
        lost, live = Quarantine(place, len(rows)), self._telemetry.live

        def give_up(request: SamplingRequest, reason: str) -> None:
            for prompt in request.item.prompts:
                lost.add(prompt.speech_id, reason)

        def produce(missing: list[PromptBatch]) -> Iterator[Group]:
            requests = (SamplingRequest(item, **drawing) for item in missing)

            def sampled() -> Iterator[tuple[Group, list[dict[str, str]], tuple[str, ...]]]:
                for group, seconds in self._rollouts.stream(
                    "sample",
                    requests,
                    what=place,
                    identity=lambda found: found[0].prompt.speech_id,
                    split=SamplingRequest.one_by_one,
                    lost=give_up,
                ):
                    self._busy["rollout"] += seconds
                    tokens = sum(len(response.token_ids) for response in group.responses)
                    live.count(rollout_tokens=tokens, response_tokens_sum=tokens, responses=len(group.responses))
                    assert group.version == drawing["version"], f"version {group.version} came from a stale policy"
                    yield group, prompt_messages(self._prompt, speeches[group.prompt.speech_id]), models

            for group, seconds in self._scorers.stream(
                "score",
                sampled(),
                what=f"{place}: scores",
                lost=lambda asked, reason: lost.add(asked[0].prompt.speech_id, reason),
            ):
                self._busy["scorer"] += seconds
                live.count(groups=1)
                if not place.endswith("dev"):
                    live.count(sampled=1, reward_sum=sum(group.scores["reward"]) / len(group.responses))
                yield group

        return self._ledger.groups(place, items, produce, lost.reasons)
