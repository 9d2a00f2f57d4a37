"""Pairs of several rated or ranked responses to one prompt: the best one against the worst one.

One pair of a prompt, with the widest gap: every prompt counts once, whatever the number of its responses. Of equal
responses the first in the file is taken, and a prompt whose responses are all equal has no preference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psyco_ray.data.conversations import UnusablePairError
from psyco_ray.data.shapes.pairs import NO_PREFERENCE, answered, number, system_of
from psyco_ray.run.types import Row

RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""HelpSteer's ratings of a response."""

_REWARD_WEIGHTS = dict(zip(RATINGS, (65, 80, 45, 55, -40), strict=True))
"""A response's reward from its ratings, in hundredths: the weights of HelpSteer2's 70B model (Wang et al. 2024)."""

_TURN = "<extra_id_1>"  # begins each later turn of a HelpSteer2 prompt; the role follows
_ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")  # of UltraFeedback
_OVERALL = ("overall_score", "fine-grained_score", "score", "rating")

Score = float | tuple[float, ...]
"""Of a response; higher is better."""


def extremes(responses: Sequence[tuple[Any, Score | None]]) -> tuple[Any, Any]:
    """The best and the worst of responses with scores; those without a score are left out.

    Raises:
        UnusablePairError: there are no two with different scores.
    """
    scored = [(response, score) for response, score in responses if score is not None]
    if not scored:
        raise UnusablePairError(NO_PREFERENCE)
    best, worst = (pick(scored, key=lambda entry: entry[1]) for pick in (max, min))
    if best[1] == worst[1]:
        raise UnusablePairError(NO_PREFERENCE)
    return best[0], worst[0]


def ultrafeedback(cells: Row) -> list[Row]:
    """Completions of several models: by the mean of the four aspects' ratings, else by the overall score.

    Where the ratings are complete they come first: the dataset's overall scores have errors (a 10 for a 1). Without an
    overall score the aspects count that are rated in all completions.
    """
    completions = _list_of_dicts(cells["completions"], "completions")
    rated = [_ratings(completion.get("annotations")) for completion in completions]
    common = [aspect for aspect in _ASPECTS if all(aspect in ratings for ratings in rated)]
    measures = (name for name in _OVERALL if any(number(completion.get(name)) for completion in completions))
    measure = None if len(common) == len(_ASPECTS) else next(measures, None)
    if measure is not None:
        scores = [number(completion.get(measure)) for completion in completions]
    else:
        scores = [sum(ratings[aspect] for aspect in common) for ratings in rated]
    responses = [completion.get("response") for completion in completions]
    chosen, rejected = extremes(list(zip(responses, scores, strict=True)))
    return [answered(cells["instruction"], chosen, rejected, system_of(cells))]


def _ratings(annotations: Any) -> dict[str, float]:
    """The ratings of a completion by aspect."""
    ratings = {}
    for aspect in _ASPECTS if isinstance(annotations, dict) else ():
        value = annotations.get(aspect)
        rating = number(value.get("Rating") if isinstance(value, dict) else value)
        if rating is not None:
            ratings[aspect] = rating
    return ratings


def nectar(cells: Row) -> list[Row]:
    """Answers with ranks, 1 the best."""
    ranks = [(answer, number(answer.get("rank"))) for answer in _list_of_dicts(cells["answers"], "answers")]
    chosen, rejected = extremes([(answer.get("answer"), None if rank is None else -rank) for answer, rank in ranks])
    return [answered(cells["prompt"], chosen, rejected, system_of(cells))]


def helpsteer(cells: Row) -> list[Row]:
    """Rated responses in consecutive rows of one prompt, in `responses` (HelpSteer and HelpSteer2).

    The response with the higher helpfulness is better, as in HelpSteer2's own preference pairs. HelpSteer2 discards
    equal ones, 29 % of its prompts; here the reward of all five ratings decides them.
    """
    if len(cells["responses"]) < 2:
        raise UnusablePairError("a prompt with one response")
    chosen, rejected = extremes([(row["response"], _helpfulness_and_reward(row)) for row in cells["responses"]])
    return [answered(_with_turns(cells["prompt"]), chosen, rejected, system_of(cells))]


def _helpfulness_and_reward(row: Row) -> Score | None:
    ratings = {name: rating for name in RATINGS if (rating := number(row[name])) is not None}
    if len(ratings) < len(RATINGS):
        return None
    return ratings["helpfulness"], sum(weight * ratings[name] for name, weight in _REWARD_WEIGHTS.items())


def preference_strength(cells: Row) -> list[Row]:
    """Two responses and the strength by which the second is better (HelpSteer2's preferences)."""
    chosen, rejected = by_strength(cells["response_1"], cells["response_2"], cells["preference_strength"])
    return [answered(_with_turns(cells["prompt"]), chosen, rejected, system_of(cells))]


def overall_preference(cells: Row) -> list[Row]:
    """A conversation, two responses and the strength by which the second is better (HelpSteer3)."""
    chosen, rejected = by_strength(cells["response1"], cells["response2"], cells["overall_preference"])
    return [answered(cells["context"], chosen, rejected, system_of(cells))]


def by_strength(first: Any, second: Any, strength: Any) -> tuple[Any, Any]:
    """The better and the worse of two responses; the second is better where the strength is above 0."""
    strength = number(strength)
    if not strength:
        raise UnusablePairError(NO_PREFERENCE)
    return (second, first) if strength > 0 else (first, second)


def _with_turns(prompt: Any) -> Any:
    """A prompt of HelpSteer2: a text, or the turns that it marks."""
    first, *later = prompt.split(_TURN) if isinstance(prompt, str) else (prompt,)
    if not later:
        return prompt
    asked = [{"role": "user", "content": first.strip()}]
    for turn in later:
        role, _, text = turn.partition("\n")
        asked.append({"role": role.strip().lower(), "content": text.strip()})
    return asked


def _list_of_dicts(value: Any, column: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UnusablePairError(f"{column} that is no list of objects")
    return value
