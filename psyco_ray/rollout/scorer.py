"""The actor that computes rewards and log-probabilities under the reference policy."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from psyco_ray.config.errors import InputError, require_finite
from psyco_ray.config.resources import Scorers
from psyco_ray.models.reward_model import RewardModel
from psyco_ray.models.reward_tokens import Tokenized
from psyco_ray.run.cuda_driver import check_driver
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.types import Group, PreferencePair, ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from psyco_ray.models.sharing import Tree

REFERENCE = "reference"
"""Name of the reference policy among the models that score a group: its scores are log-probabilities in nats."""

_WAY_OUT = "its weights are damaged, or too large for scorers.dtype; copy the model again, or choose float32"


@dataclass(frozen=True)
class GroupBatch:
    """Groups that are scored together, each with the conversation that it answers, and the models that score them.

    With REFERENCE among them, the log-probabilities under the reference policy are scores too.
    """

    groups: tuple[tuple[Group, list[dict[str, str]]], ...]
    names: tuple[str, ...]

    def split(self) -> list[GroupBatch]:
        """One batch for each group."""
        return [GroupBatch((group,), self.names) for group in self.groups]

    def __reduce__(self) -> Any:
        # Ray's pickler, which is for functions of a program too, calls Python for each object: twice the driver's time
        return _unpickled, (pickle.dumps((self.groups, self.names), pickle.HIGHEST_PROTOCOL),)


def _unpickled(batch: bytes) -> GroupBatch:
    return GroupBatch(*pickle.loads(batch))


class GroupScores(NamedTuple):
    """The scores of a group, without the group, which the caller has."""

    key: str  # speech
    scores: dict[str, tuple[float, ...]]  # by model
    seconds: float  # share of the seconds that its batch took


class PairReference(NamedTuple):
    """The reference log-probabilities of a pair's chosen and rejected response, in nats over the trained tokens."""

    key: str
    reference: tuple[float, float]
    seconds: float  # share of the seconds that its batch took


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
        check_driver(self._settings.gpus)
        import torch

        from psyco_ray.models import loading, selftest
        from psyco_ray.models.packing import ResponseLogprobs

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

    def score(self, batch: GroupBatch) -> list[GroupScores]:
        """Score the responses of a batch of groups.

        Raises:
            InputError: a response alone fills a reward model's context.
            NonFiniteError: a score is not finite.
        """
        began = time.perf_counter()
        groups = [group for group, _ in batch.groups]
        requests = [
            ScoreRequest(
                group.prompt.speech_id,
                tuple(messages),
                tuple(response.text for response in group.responses),
                tuple(response.finished for response in group.responses),
                tuple(response.token_ids for response in group.responses),
            )
            for group, messages in batch.groups
        ]
        scores: list[dict[str, tuple[float, ...]]] = [{} for _ in groups]
        tokens: dict[str, Tokenized] = {}
        for name in batch.names:
            values = self._of_groups(groups) if name == REFERENCE else self._values(name, requests, tokens)
            for of_group, value in zip(scores, values, strict=True):
                of_group[name] = value
        seconds = (time.perf_counter() - began) / len(groups)
        keys = [group.prompt.speech_id for group in groups]
        return [GroupScores(key, found, seconds) for key, found in zip(keys, scores, strict=True)]

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
        [values] = self._values(name, [request], {})
        return list(values)

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

    def reference_logprobs(self, pairs: Sequence[PreferencePair]) -> list[PairReference]:
        """Compute the reference log-probabilities of a batch of pairs.

        Raises:
            NonFiniteError: a log-probability is not finite.
        """
        began = time.perf_counter()
        trees = [(pair.prompt_ids, (pair.chosen_ids, pair.rejected_ids)) for pair in pairs]
        values = self._logprobs([pair.key for pair in pairs], trees, [pair.context for pair in pairs])
        seconds = (time.perf_counter() - began) / len(pairs)
        return [
            PairReference(pair.key, (chosen, rejected), seconds)
            for pair, (chosen, rejected) in zip(pairs, values, strict=True)
        ]

    def _score(self, name: str, requests: Sequence[ScoreRequest], tokens: Tokenized | None = None) -> list[ScoreResult]:
        """Finite scores of a reward model; `tokens` are those of a model of the same tokenizer."""
        model = self._rewards[name]
        scored = model.score(requests, tokens)
        for result in scored:
            what = f"a score of {result.key} by {name} model {self._reward_specs[name]}"
            require_finite(result.values or (), what, _WAY_OUT)
        return scored

    def _values(
        self, name: str, requests: Sequence[ScoreRequest], tokens: dict[str, Tokenized]
    ) -> list[tuple[float, ...]]:
        """Scores of a reward model; texts are tokenised unless a model of the same tokenizer has left them in `tokens`.

        Raises:
            InputError: a response alone fills the model's context.
        """
        model = self._rewards[name]
        key = model.tokens.key
        if key not in tokens:
            tokens[key] = model.tokens.tokenize(requests)
        values = []
        for scored in self._score(name, requests, tokens[key]):
            if scored.values is None:
                raise InputError(
                    f"a response alone fills the context of reward model {self._reward_specs[name]}; lower "
                    "sampling.max_tokens or choose another reward model"
                )
            values.append(scored.values)
        return values

    def _of_groups(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """Log-probabilities of groups' responses under the reference policy, in nats."""
        trees = [(group.prompt.token_ids, [response.token_ids for response in group.responses]) for group in groups]
        return self._logprobs([group.prompt.speech_id for group in groups], trees)

    def _logprobs(
        self, keys: Sequence[str], trees: Sequence[Tree], context: Sequence[Sequence[int]] = ()
    ) -> list[tuple[float, ...]]:
        """Log-probability of each response of each tree under the reference policy, in nats, summed as `pack` says."""
        import torch

        from psyco_ray.models.layout import common_start
        from psyco_ray.models.sharing import plan_trees

        assert self._reference is not None, "the scorer has a reference model"
        computed = self._reference.computed(self._device)
        start = common_start([prompt for prompt, _ in trees]) if computed == "shared" else 0
        logprobs: list[tuple[float, ...]] = [()] * len(trees)
        for row in plan_trees(trees, self._settings.row_tokens, computed, start):
            skipped = [tokens for index in row for tokens in context[index]] if context else ()
            with torch.inference_mode():
                packed = self._reference.pack([trees[index] for index in row], skipped, self._device)
                values = iter(self._reference(packed).tolist())
            for index in row:
                logprobs[index] = tuple(next(values) for _ in trees[index][1])
                what = f"a log-probability of {keys[index]} under reference {self._reference_spec}"
                require_finite(logprobs[index], what, _WAY_OUT)
        return logprobs
