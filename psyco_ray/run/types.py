"""Values that actors pass to each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Row = dict[str, Any]
"""A row of a table: values by column."""


class Rows(Protocol):
    """Rows that may be read as they are iterated, any number of times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Row]: ...


@dataclass(frozen=True)
class Prompt:
    """One speech, rendered for the policy, with the seed of its responses."""

    speech_id: str
    token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of one work item of a rollout actor; they are always sampled together."""

    key: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Response:
    """One sampled response.

    `text` is the answer, which is all that a client, a reward model or a judge reads; a thinking model's `reasoning`
    precedes it. `finished` is false if the response was cut at the token limit or has no answer.
    """

    text: str
    token_ids: Sequence[int]
    finished: bool
    logprob: float | None = None  # under the policy that sampled it, at temperature 1, nats summed over its tokens
    reasoning: str = ""  # with its tags
    reasoning_tokens: int = 0  # the first ones of `token_ids`, through the blank space before the answer

    @property
    def tokens(self) -> int:
        """Tokens of the answer, with the end of turn."""
        return len(self.token_ids) - self.reasoning_tokens


@dataclass(frozen=True)
class Group:
    """All responses to one speech, and the version of the policy that sampled them."""

    prompt: Prompt
    responses: tuple[Response, ...]
    version: int
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)  # reward model's name -> one score per response


@dataclass(frozen=True)
class PreferencePair:
    """A preference pair as token ids, the unit of training.

    `reference` holds the log-probabilities of chosen and rejected under the reference model (nats, summed over the
    response's trained tokens); a reward model needs none. `margin` is the least difference of the two rewards. The
    policy is not trained on the first `context` tokens of chosen and rejected, a thinking model's reasoning; the tokens
    after them attend to them. The pair's loss is multiplied by `weight`, above 0 and at most 1. Pairs of one
    `conversation` up to the same turn are trained one after the other.
    """

    key: str
    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    reference: tuple[float, float] | None = None
    margin: float = 0.0
    context: tuple[int, int] = (0, 0)
    weight: float = 1.0
    conversation: bool = False

    @property
    def trained_tokens(self) -> tuple[int, int]:
        """Tokens of chosen and rejected whose log-probabilities are summed."""
        return len(self.chosen_ids) - self.context[0], len(self.rejected_ids) - self.context[1]

    @property
    def tokens(self) -> int:
        """Tokens of a forward pass of this pair alone: the prompt once, then both responses."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True)
class ScoreRequest:
    """A conversation and the responses to score."""

    key: str
    messages: tuple[dict[str, str], ...]
    responses: tuple[str, ...]
    finished: tuple[bool, ...] = ()  # whether each response ended by itself; empty: all did
    token_ids: tuple[Sequence[int], ...] = ()  # of each response, as a policy sampled it; empty: unknown


@dataclass(frozen=True)
class ScoreResult:
    """Raw scores of a `ScoreRequest`'s responses; None if a response alone fills the reward model's context."""

    key: str
    values: tuple[float, ...] | None
    cut: int = 0  # prompt tokens that were cut off at the left to fit the context


@dataclass(frozen=True)
class DeltaRef:
    """The difference between two versions of the policy's weights."""

    since: str  # digest of the earlier version
    ref: Any  # object reference to a `deltas.Delta`
    bytes: int


@dataclass(frozen=True)
class Weights:
    """A version of the policy's weights in Ray's object store."""

    version: int
    digest: str
    refs: tuple[Any, ...]  # object references to {name: (int16 or int32 array, dtype name)}
    bytes: int
    keep: bool = False  # receivers keep a copy, because the next version may be a delta
    delta: DeltaRef | None = None  # for receivers that have the earlier version


@dataclass(frozen=True)
class SentWeights:
    """A version of the policy's weights that was sent to the idle rollout actors."""

    version: int
    digest: str  # by `WeightChecksum`
    bytes: int
    stored: Any  # for other actors: reference to references, digest and size of the same weights in Ray's object store


@dataclass(frozen=True)
class WeightUpdateAck:
    """A rollout actor's answer to a weight update."""

    version: int
    digest: str
    bytes: int  # received: all weights or a delta
    seconds: float


@dataclass(frozen=True)
class StepResult:
    """Result of an optimizer step: means over the pairs of its batch."""

    step: int
    steps: int
    loss: float  # nats per pair, each pair's multiplied by its weight
    learning_rate: float
    grad_norm: float | None  # before clipping; None if DeepSpeed does not report it
    metrics: dict[str, float]
    tokens: int  # that all ranks computed; prompts that a pass shares count once
    seconds: float
