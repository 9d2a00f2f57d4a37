"""Preference pairs from scored responses, and their rows of the PAIRS table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psyco_ray.run.types import Group, PreferencePair


def best_and_worst(scores: Sequence[float]) -> tuple[int, int] | None:
    """Positions of the highest and the lowest score, the first of equal ones; None if all are equal (paper §4.2)."""
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return None if scores[best] == scores[worst] else (best, worst)


def pair_of(group: Group, slope: float = 0.0, min_margin: float = 0.0) -> PreferencePair | None:
    """The preference pair of a group by its `reward` scores.

    With `safety` scores, the chosen response is the best of those at least as safe as the rejected one.

    Args:
        group: a speech's responses with their scores.
        slope: length bias to subtract, in reward per token (Park et al. 2024).
        min_margin: least difference of the two rewards.

    Returns:
        The pair; None if no response is better than another, the margin is too small, or the two texts are equal.
    """
    ranks = [
        score - slope * len(response.token_ids)
        for score, response in zip(group.scores["reward"], group.responses, strict=True)
    ]
    ends = best_and_worst(ranks)
    if ends is None:
        return None
    best, worst = ends
    if safety := group.scores.get("safety"):
        best = max((i for i in range(len(ranks)) if safety[i] >= safety[worst]), key=lambda i: (ranks[i], -i))
    margin = ranks[best] - ranks[worst]
    if margin <= 0 or margin < min_margin:
        return None
    chosen, rejected = group.responses[best], group.responses[worst]
    if chosen.text.split() == rejected.text.split():
        return None
    return PreferencePair(group.prompt.speech_id, group.prompt.token_ids, chosen.token_ids, rejected.token_ids)


def row_of(pair: PreferencePair, group: Group) -> dict[str, Any]:
    """A pair of sampled responses as a row of the PAIRS table."""
    sides: dict[str, Any] = {
        "speech_id": pair.key,
        "prompt_ids": list(pair.prompt_ids),
        "policy_version": group.version,
    }
    assert pair.reference is not None
    by_ids = {r.token_ids: i for i, r in reversed(list(enumerate(group.responses)))}
    for side, ids, reference in (
        ("chosen", pair.chosen_ids, pair.reference[0]),
        ("rejected", pair.rejected_ids, pair.reference[1]),
    ):
        index = by_ids[ids]
        sides |= {
            side: group.responses[index].text,
            f"{side}_ids": list(ids),
            f"{side}_score": group.scores["reward"][index],
            f"{side}_reference": reference,
        }
    return sides


def offline_row(pair: PreferencePair, texts: Mapping[str, Any]) -> dict[str, Any]:
    """A pair from a file as a row of the PAIRS table."""
    assert pair.reference is not None
    return {
        "speech_id": pair.key,
        "prompt_ids": list(pair.prompt_ids),
        "chosen": texts["chosen"],
        "rejected": texts["rejected"],
        "chosen_ids": list(pair.chosen_ids),
        "rejected_ids": list(pair.rejected_ids),
        "chosen_reference": pair.reference[0],
        "rejected_reference": pair.reference[1],
    }


def example_of(row: Mapping[str, Any]) -> PreferencePair:
    """The pair of a row of the PAIRS table."""
    return PreferencePair(
        key=row["speech_id"],
        prompt_ids=tuple(row["prompt_ids"]),
        chosen_ids=tuple(row["chosen_ids"]),
        rejected_ids=tuple(row["rejected_ids"]),
        reference=(row["chosen_reference"], row["rejected_reference"]),
    )
