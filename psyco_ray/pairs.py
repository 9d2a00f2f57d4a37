"""From scored responses to preference pairs."""

from __future__ import annotations

from collections.abc import Sequence

from psyco_ray.records import Example, Group


def best_and_worst(scores: Sequence[float]) -> tuple[int, int] | None:
    """Positions of the highest and the lowest score, the first of equals; None where all are equal (paper §4.2)."""
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return None if scores[best] == scores[worst] else (best, worst)


def pair_of(group: Group, model: str) -> Example | None:
    """The preference pair of a group by a reward model; None where no response is better than another.

    Two responses of the same text teach nothing and make no pair either.
    """
    ends = best_and_worst(group.scores[model])
    if ends is None:
        return None
    best, worst = (group.responses[i] for i in ends)
    if best.token_ids == worst.token_ids:
        return None
    return Example(group.prompt.speech_id, group.prompt.token_ids, best.token_ids, worst.token_ids)
