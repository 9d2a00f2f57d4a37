"""Early signs of reward hacking and collapse in a policy that learns from its own responses.

The paper's recipe only reports them; with ``guards.roll_back`` an alarm returns the policy to its best checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import linregress

from psyco_ray.config.training import Guards

_LEAST_ERROR = 1e-6  # of a mean fall; without it, equal falls on all speeches would be infinite

Facts = Mapping[str, Any]
"""An evaluation's record: `mean_tokens`, `distinct_2`, `tokens` by speech, and of each reward model its `scores`."""


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Share of distinct n-grams of words among all n-grams (distinct-n, Li et al. 2016); 1 without n-grams."""
    grams = [
        tuple(words[i : i + n])
        for words in (text.casefold().split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 1.0


def length_effect(rewards: Sequence[float], tokens: Sequence[float]) -> tuple[float, float]:
    """Linear effect of length on rewards, by least squares: slope in reward per token, and R²."""
    x, y = np.asarray(tokens, float), np.asarray(rewards, float)
    if len(x) < 3 or not x.std() or not y.std():
        return 0.0, 0.0
    fit = linregress(x, y)
    return float(fit.slope), float(fit.rvalue**2)


def scores_and_lengths(facts: Facts, model: str) -> tuple[list[float], list[float]]:
    """All scores of a reward model in an evaluation, and the lengths of the scored responses in tokens."""
    scores, tokens = facts[model]["scores"], facts["tokens"]
    return (
        [score for key in sorted(scores) for score in scores[key]],
        [count for key in sorted(scores) for count in tokens[key]],
    )


def gain(now: Facts, before: Facts, model: str) -> np.ndarray:
    """Rise of the mean score on each held-out speech that both evaluations contain."""
    new, old = now[model]["scores"], before[model]["scores"]
    return np.array([np.mean(new[key]) - np.mean(old[key]) for key in sorted(new.keys() & old.keys())])


def monitors(now: Facts, base: Facts, best: Facts, kl: float | None) -> dict[str, float]:
    """Signs of trouble in a policy's evaluation.

    Args:
        now: the policy's evaluation.
        base: the base model's evaluation.
        best: evaluation of the best policy so far.
        kl: KL divergence of the policy from its reference in nats per response, if known.

    Returns:
        `length_ratio` and `distinct_ratio` (against the base model), `length_share` (R² of reward and length), `fall`
        of the held-out reward below its best, in standard errors, `reward_gap` (how much further the training reward
        rose than the held-out one, in standard deviations of the base model's), and `kl`.
    """
    values = {
        "length_ratio": now["mean_tokens"] / base["mean_tokens"],
        "distinct_ratio": now["distinct_2"] / base["distinct_2"],
    }
    if "reward" in now:
        values["length_share"] = length_effect(*scores_and_lengths(now, "reward"))[1]
    if "heldout" in now:
        fall = -gain(now, best, "heldout")
        error = fall.std(ddof=1) / len(fall) ** 0.5 if len(fall) > 1 else 0.0
        values["fall"] = float(fall.mean() / max(error, _LEAST_ERROR))
    if "reward" in now and "heldout" in now:
        rises = {}
        for model in ("reward", "heldout"):
            spread = np.std(scores_and_lengths(base, model)[0])
            rises[model] = gain(now, base, model).mean() / spread if spread else 0.0
        values["reward_gap"] = float(rises["reward"] - rises["heldout"])
    return values if kl is None else {**values, "kl": kl}


def alarms(values: Mapping[str, float], guards: Guards) -> list[str]:
    """A sentence for each monitor beyond its bound."""
    checks = (
        ("length_ratio", 1, guards.max_length_ratio, "answers are {:.2f} times as long as the base model's"),
        (
            "distinct_ratio",
            -1,
            guards.min_distinct_ratio,
            "different word pairs are down to {:.2f} of the base model's",
        ),
        ("length_share", 1, guards.max_length_share, "length alone explains {:.0%} of the reward"),
        ("fall", 1, guards.max_fall, "the held-out reward is {:.1f} standard errors below its best"),
        (
            "reward_gap",
            1,
            guards.max_reward_gap,
            "the training reward rose {:.1f} deviations more than the held-out one",
        ),
        ("kl", 1, guards.max_kl, "the policy that sampled is {:.0f} nats a response away from its reference"),
    )
    return [
        text.format(values[name])
        for name, sign, bound, text in checks
        if name in values and sign * (values[name] - bound) > 0
    ]
