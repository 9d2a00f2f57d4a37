"""Measures of held-out dialogues by turn, against those of the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.simulate import Simulate
from psyco_ray.data import splits
from psyco_ray.evaluate import stats
from psyco_ray.rollout.scorer import REFERENCE
from psyco_ray.simulate.dialogue import Answer, Dialogue
from psyco_ray.training.dialogue import mean_rewards, value_of

Record = dict[str, Any]

_TELLING = 40
"""Characters of a client's turn that only contexts of one conversation share."""


def measure_turns(dialogues: Sequence[Dialogue], base: Sequence[Record] | None, seed: int) -> list[Record]:
    """Rewards, lengths and drop-out of dialogues, turn by turn.

    Args:
        dialogues: of one policy.
        base: the base model's measures of the same dialogues; None for the base model itself.
        seed: of the bootstrap.

    Returns:
        For each `turn` the number of `speeches` whose dialogues have it, `mean_tokens` and `finished_share` of its
        responses, `failed` (number of dialogues given up before it), `drop_out` (share of the others that the client
        has left before it), and for each reward model the mean `reward` over speeches with its `ci95`, the mean by
        speech as `scores`, and against the base model the mean `gain` over the speeches whose dialogues have the turn
        under both, with its paired `gain_ci95`; None without such a speech. Bootstraps draw whole conversations, whose
        contexts are not independent.
    """
    last = max(len(dialogue.answers) for dialogue in dialogues)
    conversation = conversations({dialogue.speech_id: dialogue.start for dialogue in dialogues})
    return [
        _measure(
            turn, dialogues, conversation, base[turn - 1] if base is not None and turn <= len(base) else None, seed
        )
        for turn in range(1, last + 1)
    ]


def measure_ranked(dialogues: Sequence[Dialogue], base: Record | None, settings: Simulate, seed: int) -> Record | None:
    """Rewards of held-out dialogues over the turns that rank responses in training.

    Args:
        dialogues: of one policy.
        base: the base model's measures of the same dialogues; None for the base model itself.
        settings: say which turns.
        seed: of the bootstrap.

    Returns:
        For each reward model the mean `reward` over speeches with its `ci95`, the `scores` of the dialogues by speech,
        and against the base model the mean `gain` over the speeches that both have, with its paired `gain_ci95`. A
        dialogue that lacks some of the turns is valued as `value_of` says. None where the first turn ranks alone.
    """
    if settings.ranking_turns == (1,):
        return None
    in_order = sorted(dialogues, key=lambda dialogue: (dialogue.speech_id, dialogue.index))
    conversation = conversations({dialogue.speech_id: dialogue.start for dialogue in dialogues})
    measures: Record = {}
    for model in (name for name in in_order[0].answers[0].scores if name != REFERENCE):
        means = mean_rewards(dialogues, model)
        turns = [turn for turn in settings.ranking_turns if turn in means] or [max(means)]
        scores: dict[str, list[float]] = {}
        for dialogue in in_order:
            scores.setdefault(dialogue.speech_id, []).append(value_of(dialogue.rewards(model), turns, means))
        mean = _mean_by_speech(scores)
        measures[model] = {
            "reward": sum(mean.values()) / len(mean),
            "ci95": _interval(mean, conversation, seed),
            "scores": scores,
            **({} if base is None else _gain(mean, _mean_by_speech(base[model]["scores"]), conversation, seed)),
        }
    return measures


def _mean_by_speech(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {key: sum(values) / len(values) for key, values in scores.items()}


def conversations(contexts: Mapping[str, Context]) -> dict[str, str]:
    """The conversation of each speech id, named by one of its ids; contexts of a conversation are not independent.

    The table of speeches does not tell. Contexts that begin alike are of one conversation, though not those that only
    greet alike, and so are those that share a turn of the client with at least `_TELLING` characters, as windows of a
    conversation do; also by way of a third.
    """
    parent: dict[str, str] = {}
    first: dict[str, str] = {}  # a speech id by what it shares with others

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    for key, context in sorted(contexts.items()):
        parent[key] = key
        for turn in (splits.begins(context), *(turn for turn in context.client_turns if len(turn) >= _TELLING)):
            parent[root(key)] = root(first.setdefault(turn, key))
    return {key: root(key) for key in parent}


def _measure(
    turn: int, dialogues: Sequence[Dialogue], conversation: Mapping[str, str], base: Record | None, seed: int
) -> Record:
    by_speech: dict[str, list[Answer]] = {}
    for dialogue in sorted(dialogues, key=lambda dialogue: (dialogue.speech_id, dialogue.index)):
        if len(dialogue.answers) >= turn:
            by_speech.setdefault(dialogue.speech_id, []).append(dialogue.answers[turn - 1])
    answers = [answer for said in by_speech.values() for answer in said]
    failed = sum(dialogue.failed is not None and len(dialogue.answers) < turn for dialogue in dialogues)
    measures: Record = {
        "turn": turn,
        "speeches": len(by_speech),
        "mean_tokens": sum(answer.tokens for answer in answers) / len(answers),
        "finished_share": sum(answer.finished for answer in answers) / len(answers),
        "drop_out": sum(dialogue.left and len(dialogue.answers) < turn for dialogue in dialogues)
        / max(1, len(dialogues) - failed),
        "failed": failed,
    }
    for model in answers[0].scores:
        if model == REFERENCE:
            continue
        scores = {key: sum(answer.scores[model] for answer in said) / len(said) for key, said in by_speech.items()}
        measures[model] = {
            "reward": sum(scores.values()) / len(scores),
            "ci95": _interval(scores, conversation, seed),
            "scores": scores,
            **({} if base is None else _gain(scores, base[model]["scores"], conversation, seed)),
        }
    return measures


def _gain(scores: Mapping[str, float], base: Mapping[str, float], conversation: Mapping[str, str], seed: int) -> Record:
    gains = {key: score - base[key] for key, score in scores.items() if key in base}
    if not gains:
        return {"gain": None, "gain_ci95": None}
    return {"gain": sum(gains.values()) / len(gains), "gain_ci95": _interval(gains, conversation, seed)}


def _interval(values: Mapping[str, float], conversation: Mapping[str, str], seed: int) -> stats.Interval:
    """The interval of the mean of values by speech, with the contexts of a conversation as one cluster."""
    clusters: dict[str, list[float]] = {}
    for key, value in values.items():
        clusters.setdefault(conversation[key], []).append(value)
    return stats.bootstrap_clusters([*clusters.values()], seed)
