"""Early signs of reward hacking and collapse in a policy that learns from its own responses.

The paper's recipe only reports them; with ``guards.roll_back`` an alarm returns the policy to its best checkpoint.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from scipy.stats import linregress

from psyco_ray.config.errors import InputError
from psyco_ray.config.guards import Guards
from psyco_ray.config.training import Sampling
from psyco_ray.run.types import Group
from psyco_ray.training import conversation_guards

_LEAST_ERROR = 1e-6  # of a mean fall; without it, equal falls on all speeches would be infinite
_LEAST_FINISHED = 0.5  # share of a stage's answers; with less, its figures are those of cut answers

Facts = Mapping[str, Any]
"""An evaluation's record: `mean_tokens`, `distinct_2`, perhaps `kl` and `conversation`, of each reward model its
`scores`, and `ranked` with those of whole dialogues where they rank."""


@dataclass(frozen=True)
class Outcome:
    """Rewards, lengths and ends of the responses to one speech: what is kept of a `Group` once its pair is made."""

    speech_id: str
    rewards: tuple[float, ...]
    tokens: tuple[int, ...]
    finished: tuple[bool, ...]

    @classmethod
    def of(cls, group: Group) -> Outcome:
        """The outcome of a scored group."""
        responses = group.responses
        return cls(
            group.prompt.speech_id,
            tuple(group.scores["reward"]),
            tuple(response.tokens for response in responses),
            tuple(response.finished for response in responses),
        )


@dataclass(frozen=True)
class LengthEffect:
    """How rewards vary with length among the responses to one speech, pooled over speeches."""

    slope: float  # reward per token, by least squares
    share: float  # R²: share of the rewards' variance that length explains
    deviation: float  # standard deviation of the rewards


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Share of distinct n-grams of words among all n-grams (distinct-n, Li et al. 2016); 1 without n-grams."""
    grams = [
        tuple(words[i : i + n])
        for words in (text.casefold().split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 1.0


def length_effect(outcomes: Iterable[Outcome], unfinished: str) -> LengthEffect:
    """Effect of length on the `reward` scores among the responses to a speech.

    Responses are ranked within a speech, so the effect is that of a response's deviation from the mean length of its
    group on the deviation from the group's mean reward. Between speeches it may be another one: long speeches have
    longer answers and other rewards.

    Args:
        outcomes: of speeches; the result does not depend on their order.
        unfinished: as `sampling.unfinished`. Except for `allow` only finished responses count, because the length of a
            cut one is not its own.
    """
    lengths: list[float] = []
    rewards: list[float] = []
    freedom = 0
    for outcome in sorted(outcomes, key=lambda outcome: outcome.speech_id):
        counted = [
            (tokens, reward)
            for tokens, reward, finished in zip(outcome.tokens, outcome.rewards, outcome.finished, strict=True)
            if finished or unfinished == "allow"
        ]
        if len(counted) > 1:
            # of a dozen numbers, which arrays take longer for
            mean_tokens, mean_reward = (
                reduce(operator.add, values) / len(counted) for values in zip(*counted, strict=True)
            )
            lengths += [tokens - mean_tokens for tokens, _ in counted]
            rewards += [reward - mean_reward for _, reward in counted]
            freedom += len(counted) - 1
    if not any(rewards):
        return LengthEffect(0.0, 0.0, 0.0)
    deviation = float((np.square(rewards).sum() / freedom) ** 0.5)
    if not any(lengths):
        return LengthEffect(0.0, 0.0, deviation)
    fit = linregress(lengths, rewards)  # the mean of all deviations is 0
    return LengthEffect(float(fit.slope), float(fit.rvalue**2), deviation)


def require_finished(share: float, answers: str, settings: Sampling) -> None:
    """Stop a run whose answers are mostly cut off.

    Args:
        share: of the answers that are finished.
        answers: which ones, for the message.
        settings: how they were sampled.

    Raises:
        InputError: more than half are unfinished, and `sampling.unfinished` is not `allow`.
    """
    if share < _LEAST_FINISHED and settings.unfinished != "allow":
        raise InputError(
            f"{1 - share:.0%} of {answers} were cut at sampling.max_tokens {settings.max_tokens} or are empty; raise "
            "sampling.max_tokens, or set sampling.unfinished to allow to train on cut answers as if they were whole"
        )


def _scores(facts: Facts, model: str) -> list[float]:
    """All scores of a reward model in an evaluation."""
    scores = facts[model]["scores"]
    return [score for key in sorted(scores) for score in scores[key]]


def gain(now: Facts, before: Facts, model: str) -> np.ndarray:
    """Rise of the mean score on each held-out speech that both evaluations contain."""
    new, old = now[model]["scores"], before[model]["scores"]
    return np.array([np.mean(new[key]) - np.mean(old[key]) for key in sorted(new.keys() & old.keys())])


def ranked(facts: Facts) -> Facts:
    """The measures by reward model that policies are compared by: of dialogues where these rank, else of responses."""
    measures: Facts = facts.get("ranked", facts)
    return measures


def monitors(now: Facts, base: Facts, best: Facts, length_share: float | None) -> dict[str, float]:
    """Signs of trouble in a policy's evaluation.

    Args:
        now: the policy's evaluation.
        base: the base model's evaluation.
        best: evaluation of the best policy so far.
        length_share: `LengthEffect.share` of the responses that the policy was trained on; None for offline pairs.

    Returns:
        `length_ratio` and `distinct_ratio` (against the base model), `length_share` (R² of reward and length among
        responses to the same speech), `fall` of the held-out reward below its best, in standard errors, `reward_gap`
        (how much further the training reward rose than the held-out one, in standard deviations of the base model's),
        and `kl` (as `now` has it). Of conversations also `conversation_guards.rises`.
    """
    values = {
        "length_ratio": now["mean_tokens"] / max(base["mean_tokens"], 1.0),  # reasoning that never ends has no answer
        "distinct_ratio": now["distinct_2"] / base["distinct_2"],
    }
    if length_share is not None:
        values["length_share"] = length_share
    scored, of_base = ranked(now), ranked(base)
    if "heldout" in now:
        fall = -gain(scored, ranked(best), "heldout")
        error = fall.std(ddof=1) / len(fall) ** 0.5 if len(fall) > 1 else 0.0
        values["fall"] = float(fall.mean() / max(error, _LEAST_ERROR))
    if "reward" in now and "heldout" in now:
        rises = {}
        for model in ("reward", "heldout"):
            spread = np.std(_scores(of_base, model))
            rises[model] = gain(scored, of_base, model).mean() / spread if spread else 0.0
        values["reward_gap"] = float(rises["reward"] - rises["heldout"])
    if "kl" in now:
        values["kl"] = now["kl"]
    return values | conversation_guards.rises(now, base)


def alarms(values: Mapping[str, float], guards: Guards) -> list[str]:
    """A sentence for each monitor, and for `finished_share`, beyond its bound."""
    checks = (
        ("length_ratio", 1, guards.max_length_ratio, "answers are {:.2f} times as long as the base model's"),
        (
            "distinct_ratio",
            -1,
            guards.min_distinct_ratio,
            "different word pairs are down to {:.2f} of the base model's",
        ),
        ("finished_share", -1, guards.min_finished_share, "only {:.0%} of the answers are finished"),
        ("length_share", 1, guards.max_length_share, "length alone explains {:.0%} of the reward differences"),
        ("fall", 1, guards.max_fall, "the held-out reward is {:.1f} standard errors below its best"),
        (
            "reward_gap",
            1,
            guards.max_reward_gap,
            "the training reward rose {:.1f} deviations more than the held-out one",
        ),
        ("kl", 1, guards.max_kl, "the policy is {:.0f} nats a response away from the base model"),
        *conversation_guards.checks(guards),
    )
    return [
        text.format(values[name])
        for name, sign, bound, text in checks
        if name in values and sign * (values[name] - bound) > 0
    ]
