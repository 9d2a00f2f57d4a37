"""The actor that computes rewards and log-probabilities under the reference policy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from psyco_ray.config.errors import InputError, require_finite
from psyco_ray.config.resources import Scorers
from psyco_ray.models.reward_model import RewardModel
from psyco_ray.run.cuda_driver import check_driver
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.types import Group, PreferencePair, ScoreRequest, ScoreResult

REFERENCE = "reference"
"""Name of the reference policy among the models that score a group: its scores are log-probabilities in nats."""

_WAY_OUT = "its weights are damaged, or too large for scorers.dtype; copy the model again, or choose float32"


class ScorerActor:
    """Frozen reward models, by name, and the frozen reference policy.

    Example:
        >>> scorer = ScorerActor("scorer-0", {"reward": "runs/reward/model"}, reference=None, settings=Scorers())
        >>> scorer.ready()
        'scorer-0'
        >>> scorer.score_texts("reward", [{"role": "user", "content": "I feel lost."}], ["Tell me more.", "Oh."])
        [1.25, -0.5]
    """

    def __init__(
        self,
        name: str,
        rewards: dict[str, str],
        reference: str | None,
        settings: Scorers,
        *,
        max_tokens: int | None = None,
        logit_token: int | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Set the models; `ready` loads them.

        Args:
            name: of this actor, in messages.
            rewards: name of a reward model (`reward`, `heldout`, `safety`) -> its directory or hub id.
            reference: directory or hub id of the reference policy; None: `reference_logprobs` is unavailable.
            settings: dtype, device, tokens of a row.
            max_tokens: of a conversation with its response, for the reward models; None: each model's positions.
            logit_token: the reward models are language models, whose score is this token's logit; None: classifiers.
            template_options: of the reward models' chat templates, beside those that they were saved with.
        """
        self.name, self._settings, self._max_tokens, self._logit_token = name, settings, max_tokens, logit_token
        self._reward_specs, self._reference_spec = rewards, reference
        self._template_options = template_options
        self.notes: tuple[str, ...] = ()  # what a user should know about the loaded models

    @gc_paused()
    def ready(self) -> str:
        """Load the models.

        Raises:
            InputError: a directory is incomplete, or a reward model is of the wrong kind.
        """
        import torch

        from psyco_ray.models import loading, selftest
        from psyco_ray.models.packing import ResponseLogprobs

        check_driver(self._settings.gpus)
        torch.set_num_threads(self._settings.threads)
        self._device = torch.device("cuda" if self._settings.gpus else "cpu")
        self._rewards = {
            key: RewardModel(
                spec,
                self._settings,
                self._max_tokens,
                logit_token=self._logit_token,
                template_options=self._template_options,
            )
            for key, spec in self._reward_specs.items()
        }
        self.notes = tuple(model.note for model in self._rewards.values() if model.note)
        self._reference: Any = None
        if self._reference_spec:
            policy = loading.load_causal_lm(loading.resolve(self._reference_spec), self._settings.dtype)
            self._reference = ResponseLogprobs(policy.to(self._device), backend=self._settings.attention)
            choice = selftest.choose(self._reference, self._reference_spec)
            if choice.plain:
                self.notes += (choice.note(f"reference {self._reference_spec}"),)
        return self.name

    def score(self, item: tuple[Group, list[dict[str, str]], tuple[str, ...]]) -> Iterator[tuple[Group, float]]:
        """Score a group's responses.

        Args:
            item: the group, the conversation that it answers, the names of the reward models to apply; with REFERENCE
                among them, the log-probabilities under the reference policy are scores too.

        Yields:
            The group with its scores, and the seconds taken.

        Raises:
            InputError: a response alone fills a reward model's context.
            NonFiniteError: a score is not finite.
        """
        began = time.perf_counter()
        group, messages, names = item
        speech_id = group.prompt.speech_id
        texts = [response.text for response in group.responses]
        finished = [response.finished for response in group.responses]
        sampled = [response.token_ids for response in group.responses]
        scores = {
            name: tuple(self.score_texts(name, messages, texts, finished, sampled, key=speech_id))
            for name in names
            if name != REFERENCE
        }
        if REFERENCE in names:
            scores[REFERENCE] = self._logprobs(speech_id, group.prompt.token_ids, sampled)
        yield (
            Group(group.prompt, group.responses, group.version, {**group.scores, **scores}),
            time.perf_counter() - began,
        )

    def score_texts(
        self,
        name: str,
        messages: list[dict[str, str]],
        responses: list[str],
        finished: Sequence[bool] = (),
        token_ids: Sequence[tuple[int, ...]] = (),
        key: str = "of a text",
    ) -> list[float]:
        """Raw scores of responses to one conversation.

        Args:
            name: of the reward model.
            messages: the conversation, as chat messages.
            responses: to its last message.
            finished: as in `ScoreRequest`.
            token_ids: as in `ScoreRequest`.
            key: of the conversation, for messages.

        Raises:
            InputError: a response alone fills the reward model's context.
            NonFiniteError: a score is not finite.
        """
        request = ScoreRequest(key, tuple(messages), tuple(responses), tuple(finished), tuple(token_ids))
        [scored] = self._score(name, [request])
        if scored.values is None:
            raise InputError(
                f"a response alone fills the context of reward model {self._reward_specs[name]}; lower "
                "sampling.max_tokens or choose another reward model"
            )
        return list(scored.values)

    def score_many(self, item: tuple[str, tuple[ScoreRequest, ...]]) -> Iterator[tuple[list[ScoreResult], float]]:
        """Score the responses to many conversations.

        Args:
            item: the name of the reward model, and the conversations.

        Yields:
            Once: the scores in the order of the conversations, and the seconds taken.

        Raises:
            NonFiniteError: a score is not finite.
        """
        began = time.perf_counter()
        scored = self._score(*item)
        yield scored, time.perf_counter() - began

    def reference_logprobs(self, pair: PreferencePair) -> Iterator[tuple[PreferencePair, float]]:
        """Yields the pair with its reference log-probabilities (nats, over the trained tokens), and the seconds taken.

        Raises:
            NonFiniteError: a log-probability is not finite.
        """
        began = time.perf_counter()
        responses = [pair.chosen_ids, pair.rejected_ids]
        chosen, rejected = self._logprobs(pair.key, pair.prompt_ids, responses, pair.context)
        yield replace(pair, reference=(chosen, rejected)), time.perf_counter() - began

    def _score(self, name: str, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Finite scores of a reward model."""
        scored = self._rewards[name].score(requests)
        for result in scored:
            what = f"a score of {result.key} by {name} model {self._reward_specs[name]}"
            require_finite(result.values or (), what, _WAY_OUT)
        return scored

    def _logprobs(
        self, key: str, prompt: Sequence[int], responses: Sequence[Sequence[int]], context: Sequence[int] = ()
    ) -> tuple[float, ...]:
        """Log-probability of each response under the reference policy, in nats, summed as `pack` says."""
        import torch

        assert self._reference is not None, "the scorer has a reference model"
        with torch.inference_mode():
            packed = self._reference.pack([(prompt, responses)], context, self._device)
            values = tuple(self._reference(packed).tolist())
        require_finite(values, f"a log-probability of {key} under reference {self._reference_spec}", _WAY_OUT)
        return values
