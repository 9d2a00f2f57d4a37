"""Measures of a policy on the held-out speeches (paper §4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Evaluation
from psyco_ray.evaluate import stats, verdicts
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Group
from psyco_ray.training import guards

Record = dict[str, Any]


def measured(groups: Mapping[str, Group], models: Sequence[str], base: Record | None, seed: int) -> Record:
    """Lengths, diversity and rewards of a policy's responses, and its win rate against the base model.

    Args:
        groups: the responses to each speech by its id, scored by `models`.
        models: names of reward models.
        base: the base model's record; None: this is the base model.
        seed: of the bootstrap.

    Returns:
        `speeches`, `mean_tokens`, `tokens` of each response by speech, `distinct_2`, and for each model the mean
        `reward` over speeches with its `ci95`, the `scores` by speech, and `win_rate_vs_base` with `win_rate_ci95`.
    """
    texts = [response.text for key in sorted(groups) for response in groups[key].responses]
    tokens = {key: [len(response.token_ids) for response in groups[key].responses] for key in sorted(groups)}
    lengths = [length for counts in tokens.values() for length in counts]
    facts: Record = {
        "speeches": len(groups),
        "mean_tokens": sum(lengths) / len(lengths),
        "tokens": tokens,
        "distinct_2": guards.distinct(texts),
    }
    for model in models:
        scores = {key: list(groups[key].scores[model]) for key in tokens}
        means = [sum(values) / len(values) for values in scores.values()]
        facts[model] = {
            "reward": sum(means) / len(means),
            "ci95": stats.bootstrap_mean(means, seed),
            "scores": scores,
        }
        if base is not None:
            base_scores = base[model]["scores"]  # without quarantined speeches
            wins = [stats.win_share(ours, base_scores[key]) for key, ours in scores.items() if key in base_scores]
            facts[model] |= _win_rate(wins)
    return facts


def judged(
    settings: Evaluation,
    groups: Mapping[str, Group],
    base: Mapping[str, Sequence[str]],
    speeches: Mapping[str, str],
    ledger: Ledger,
    progress: Progress,
    prompts: str,
    seed: int,
) -> Record:
    """Win rate of a policy's responses against the base model's of the same seed, by the judge.

    Args:
        settings: with the judge.
        groups: the policy's responses to each speech, by its id.
        base: the base model's responses.
        speeches: texts of the speeches, by id.
        ledger: of the run; it keeps the verdicts, so that none is paid for twice.
        progress: receives finished parts and dollars.
        prompts: file with the judge's prompt.
        seed: decides which response is shown first.

    Returns:
        `win_rate_vs_base` with `win_rate_ci95` (a tie is half a win), the `outcomes` by speech, and the number of
        `unreadable` verdicts, which are left out.

    Raises:
        InputError: no verdict is readable, or the server refuses the key or the model.
        UnavailableError: the server failed repeatedly.
    """
    assert settings.judge is not None
    pairs = [
        verdicts.ResponsePair(key=f"{key}:{index}", speech=speeches[key], ours=response.text, theirs=base[key][index])
        for key, group in sorted(groups.items())
        if key in base  # else the base model's response is in quarantine
        for index, response in enumerate(group.responses)
    ]
    setup = verdicts.JudgeSetup(settings.judge, settings.judging, prompts, seed)
    by_pair = verdicts.judge(pairs, setup, ledger.root / "judge", progress, name="held-out answers")
    by_speech: dict[str, list[float]] = {}
    for key, outcome in by_pair.items():
        if outcome is not None:
            by_speech.setdefault(key.rpartition(":")[0], []).append(outcome)
    if not by_speech:
        raise InputError(
            f"evaluation.judge {settings.judge.model} gave no readable verdict on {len(pairs)} pairs of answers; use a "
            "stronger model, or one that keeps to a JSON schema"
        )
    outcomes = {key: sum(values) / len(values) for key, values in by_speech.items()}
    unreadable = sum(outcome is None for outcome in by_pair.values())
    return {**_win_rate(list(outcomes.values())), "outcomes": outcomes, "unreadable": unreadable}


def _win_rate(wins: Sequence[float]) -> Record:
    return {"win_rate_vs_base": sum(wins) / len(wins), "win_rate_ci95": stats.wilson(sum(wins), len(wins))}
