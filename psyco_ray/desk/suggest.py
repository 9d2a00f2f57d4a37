"""The pairs to ask people about next: those that tell a reward model most, spread over the speeches (active selection).

A margin is the reward of a pair's first response less that of the second one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, expit

from psyco_ray.config.errors import InputError, require_finite
from psyco_ray.config.prompts import load_prompt, without_examples
from psyco_ray.config.resources import Scorers
from psyco_ray.config.training import Prompts
from psyco_ray.data import preferences
from psyco_ray.desk import sources
from psyco_ray.desk.store import Item, Store
from psyco_ray.desk.turns import conversation_of
from psyco_ray.evaluate import pair_scores
from psyco_ray.models.reward_model import RewardModel
from psyco_ray.run.types import ScoreRequest

_WAY_OUT = "its weights are damaged; copy the model again, or leave it out"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suggested:
    """What `suggest` did."""

    added: int  # pairs
    of: int  # pairs that could be asked about
    too_long: int  # pairs without a reward, because a response alone fills a model's context


def suggest(store: Store, source: str, models: Sequence[str], count: int, seed: int = 0) -> Suggested:
    """Add the pairs of a source that reward models disagree on or are unsure of to a desk, the most telling one first.

    Pairs that the desk has are left out, and those of dev and test speeches: what is asked here is trained on.

    Args:
        store: of the desk.
        source: of pairs, as `sources.read` takes it.
        models: reward models: directories or hub ids.
        count: of pairs.
        seed: decides between pairs that tell as much.

    Raises:
        InputError: the source has no pair to ask about, a model is none, `count` is below 1 or `seed` below 0.
    """
    if count < 1:
        raise InputError(f"--count {count} asks for nothing; ask for 1 or more")
    if seed < 0:
        raise InputError(f"--seed {seed} is below 0; give 0 or more")
    if sources.kind_of(source) == "evaluation":
        raise InputError(f"{source} is an evaluation, whose speeches are held out; name pairs to train on")
    for model in models:
        pair_scores.fingerprint(model)  # refuses what is no reward model, before anything is read
    held = store.items()
    candidates = askable(sources.read(source, sources.Request("pairs", seed=seed, split="train")), held)
    if not candidates:
        raise InputError(f"the desk has every training pair of {source} already; name another source")
    margins = np.array([margins_of(candidates, model) for model in models])
    fitting = np.flatnonzero(~np.isnan(margins).any(axis=0))
    if not len(fitting):
        raise InputError(f"no pair of {source} fits the context of {' and '.join(models)}; choose other models")
    if too_long := len(candidates) - len(fitting):
        _log.warning(f"{too_long} pairs are left out: a response alone fills the context of a reward model")
    usable, margins = [candidates[i] for i in fitting], margins[:, fitting]
    chosen = select(
        margins, [conversation_of(item) for item in usable], count, seed, [conversation_of(item) for item in held]
    )
    if len(chosen) < count:
        _log.warning(f"{source} has {len(chosen)} pairs to ask about, fewer than --count {count}")
    added = [_with_margins(usable[i], models, margins[:, i]) for i in chosen]
    return Suggested(store.add_items(added), len(usable), too_long)


def askable(items: Iterable[Item], held: Iterable[Item]) -> list[Item]:
    """The items that the desk has not, but those of dev and test speeches."""
    known = {item.id for item in held}
    return [item for item in items if item.id not in known and item.facts.get("split") in (None, "train")]


def margins_of(items: Sequence[Item], model: str) -> NDArray[np.float64]:
    """The margins of pairs under a reward model, shape [pairs]; NaN where a response alone fills its context.

    Raises:
        InputError: it is no reward model, or a reward is not finite.
    """
    import torch

    prompt = without_examples(load_prompt(Prompts()))
    scorer = RewardModel(model, Scorers(gpus=int(torch.cuda.is_available())), max_tokens=None)
    if scorer.note:
        _log.info(scorer.note)
    results = scorer.score([_request(item, prompt) for item in items])
    for result in results:
        require_finite(result.values or (), f"a reward of {model} for item {result.key}", _WAY_OUT)
    return np.array([np.nan if result.values is None else result.values[0] - result.values[1] for result in results])


def select(
    margins: ArrayLike, speeches: Sequence[str], count: int, seed: int = 0, asked: Collection[str] = ()
) -> list[int]:
    """The pairs to ask about: those that tell most, of each speech one before any speech has another.

    Args:
        margins: by reward model and pair, shape [models, pairs].
        speeches: of each pair, its id.
        count: of pairs, at most.
        seed: decides between pairs that tell as much.
        asked: the speech of each pair that was asked about before, so that other speeches come first.

    Returns:
        Indices of pairs, the most telling one first.
    """
    value = information(margins)
    drawn = np.random.default_rng(seed).permutation(len(value))
    order = sorted(drawn.tolist(), key=lambda pair: -value[pair])
    of_speech, turn = Counter(asked), {}
    for pair in order:
        turn[pair] = of_speech[speeches[pair]]
        of_speech[speeches[pair]] += 1
    return sorted(order, key=turn.__getitem__)[:count]


def information(margins: ArrayLike) -> NDArray[np.float64]:
    """How much an answer about each pair is worth: the entropy of what the models together expect it to be.

    It is high where the models disagree, and where they are unsure alike; with one model it orders pairs by their
    absolute margin, the smallest first. The probability that a model gives to an answer is the logistic function of its
    margin, which is divided by the model's root mean square: the scales of two models have nothing in common.

    Args:
        margins: by reward model and pair, shape [models, pairs].

    Returns:
        Nats, shape [pairs].
    """
    values = np.asarray(margins, float)
    scale = np.sqrt((values**2).mean(axis=1, keepdims=True))
    first = expit(values / np.where(scale > 0, scale, 1)).mean(axis=0)
    return entr(first) + entr(1 - first)


def _request(item: Item, prompt: dict[str, str]) -> ScoreRequest:
    """An item as reward models read pairs in training and evaluation."""
    form, asked = item.facts.get("form", "speech"), item.facts.get("asked", item.speech)
    turns = preferences.conversation(form, asked, prompt)
    finished = tuple(end is not False for end in item.facts.get("finished") or (None, None))
    return ScoreRequest(item.id, tuple(turns), item.responses, finished)


def _with_margins(item: Item, models: Sequence[str], margins: NDArray[np.float64]) -> Item:
    """An item with what made it worth asking about; nobody sees that before the judgement."""
    by_model = {model: float(margin) for model, margin in zip(models, margins, strict=True)}
    return replace(item, facts={**item.facts, "margins": by_model})
