"""Preference pairs from scored responses, and their rows of the PAIRS table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.run.token_ids import TokenIds
from psyco_ray.run.types import Group, PreferencePair

_SEEN = 32  # characters at each end of a text


def pair_of(
    group: Group,
    unfinished: str = "exclude",
    slope: float = 0.0,
    min_margin: float = 0.0,
    trained: str = "answer",
) -> PreferencePair | None:
    """The preference pair of a group by its `reward` scores.

    The chosen response is the best of those that may be chosen, the rejected one the worst of all with a token to train
    on. Only finished
    responses may be chosen, unless `unfinished` is `allow`; with `safety` scores, only those at least as safe as the
    rejected one.

    Args:
        group: a speech's responses with their scores.
        unfinished: as `sampling.unfinished`. `penalise` ranks every unfinished response below every finished one,
            whatever the scores.
        slope: length bias to subtract, in reward per token (Park et al. 2024).
        min_margin: least difference of the two rewards; not asked of a penalised response.
        trained: as `dpo.reasoning`. With `answer`, reasoning that never ends has nothing to train on.

    Returns:
        The pair; None if no response may be chosen or is better than another, the margin is too small, or the two texts
        are equal.
    """
    responses = group.responses
    ranks = [score - slope * response.tokens for score, response in zip(group.scores["reward"], responses, strict=True)]
    penalised = [unfinished == "penalise" and not response.finished for response in responses]
    trainable = [i for i, response in enumerate(responses) if response.tokens or trained == "all"]
    if not trainable:
        return None
    worst = min(trainable, key=lambda i: (not penalised[i], ranks[i]))
    safety = group.scores.get("safety") or (0.0,) * len(ranks)
    choosable = [
        i for i in trainable if (responses[i].finished or unfinished == "allow") and safety[i] >= safety[worst]
    ]
    if not choosable:
        return None
    best = max(choosable, key=lambda i: (ranks[i], -i))
    margin = ranks[best] - ranks[worst]
    if not penalised[worst] and (margin <= 0 or margin < min_margin):
        return None
    chosen, rejected = responses[best], responses[worst]
    if _same_words(chosen.text, rejected.text):
        return None
    context = (0, 0) if trained == "all" else (chosen.reasoning_tokens, rejected.reasoning_tokens)
    return PreferencePair(
        group.prompt.speech_id, group.prompt.token_ids, chosen.token_ids, rejected.token_ids, context=context
    )


def _same_words(a: str, b: str) -> bool:
    """Whether texts differ in white space alone; nearly all differ in their first or last words."""
    return _ends(a) == _ends(b) and a.split() == b.split()


def _ends(text: str) -> tuple[list[str], list[str]]:
    """First and last word, of long ones the first and the last letters; does not copy the text."""
    first = text.lstrip()[:_SEEN].split(maxsplit=1)[:1]
    return first, text.rstrip()[-_SEEN:].rsplit(maxsplit=1)[-1:]


def row_of(pair: PreferencePair, group: Group) -> dict[str, Any]:
    """A pair of sampled responses as a row of the PAIRS table without its reference.

    Token ids share their bytes with the response: as Python numbers an iteration's take ten times the memory.
    """
    sides: dict[str, Any] = {
        "speech_id": pair.key,
        "prompt_ids": TokenIds(pair.prompt_ids),
        "policy_version": group.version,
    }
    for side, ids, context in (
        ("chosen", pair.chosen_ids, pair.context[0]),
        ("rejected", pair.rejected_ids, pair.context[1]),
    ):
        index = next(index for index, response in enumerate(group.responses) if response.token_ids == ids)
        sides |= {
            side: group.responses[index].text,
            f"{side}_ids": TokenIds(ids),
            f"{side}_context": context,
            f"{side}_score": group.scores["reward"][index],
            f"{side}_finished": group.responses[index].finished,
        }
    return sides


def with_reference(row: dict[str, Any], reference: tuple[float, float]) -> dict[str, Any]:
    """A row with the log-probabilities of chosen and rejected under the reference model."""
    return {**row, "chosen_reference": reference[0], "rejected_reference": reference[1]}


def offline_row(pair: PreferencePair, texts: Mapping[str, Any]) -> dict[str, Any]:
    """A pair from a file as a row of the PAIRS table, with the columns of PAIRS_OF_FILES, without its reference."""
    return {
        "speech_id": pair.key,
        "prompt_ids": list(pair.prompt_ids),
        "chosen": texts["chosen"],
        "rejected": texts["rejected"],
        "chosen_ids": list(pair.chosen_ids),
        "rejected_ids": list(pair.rejected_ids),
        "chosen_context": pair.context[0],
        "rejected_context": pair.context[1],
        "chosen_finished": texts["chosen_finished"],
        "rejected_finished": texts["rejected_finished"],
        "weight": pair.weight,
        "conversation": Context.of(texts["asked"]).is_conversation,
    }


def example_of(row: Mapping[str, Any]) -> PreferencePair:
    """The pair of a row of the PAIRS table."""
    return PreferencePair(
        key=row["speech_id"],
        prompt_ids=TokenIds(row["prompt_ids"]),
        chosen_ids=TokenIds(row["chosen_ids"]),
        rejected_ids=TokenIds(row["rejected_ids"]),
        reference=(row["chosen_reference"], row["rejected_reference"]),
        context=(row.get("chosen_context") or 0, row.get("rejected_context") or 0),  # older tables have none
        weight=row.get("weight", 1.0),
        conversation=row.get("conversation", False),
    )
