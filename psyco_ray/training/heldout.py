"""What a training run writes down of a policy's answers to the held-out speeches (paper §4.3)."""

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
    """Lengths, variety and rewards of a policy's answers, and how often a reward model puts them above the base's.

    Args:
        groups: the answers to each speech by its id, scored by `models`.
        models: names of reward models.
        base: what was measured of the base model; None: this is the base model.
        seed: of the bootstrap.

    Returns:
        `speeches`, `mean_tokens`, `tokens` of each answer by speech, `distinct_2`, and for each model the mean `reward`
        over speeches with its `ci95`, the `scores` by speech, and `win_rate_vs_base` with `win_rate_ci95`.
    """
    answers = {key: groups[key].responses for key in sorted(groups)}
    tokens = {key: [len(response.token_ids) for response in given] for key, given in answers.items()}
    lengths = [length for of in tokens.values() for length in of]
    facts: Record = {"speeches": len(groups), "mean_tokens": sum(lengths) / len(lengths), "tokens": tokens}
    facts["distinct_2"] = guards.distinct([response.text for given in answers.values() for response in given])
    for model in models:
        scores = {key: list(groups[key].scores[model]) for key in answers}
        means = [sum(values) / len(values) for values in scores.values()]
        facts[model] = {
            "reward": sum(means) / len(means),
            "ci95": stats.bootstrap_mean(means, seed),
            "scores": scores,
        }
        if base is not None:
            theirs = base[model]["scores"]  # without those in quarantine
            wins = [stats.win_share(ours, theirs[key]) for key, ours in scores.items() if key in theirs]
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
    """How often the judge prefers a policy's answers to the base model's, each to the one of the same seed.

    Args:
        settings: with the judge.
        groups: the policy's answers to each speech, by its id.
        base: the base model's.
        speeches: texts of the speeches, by id.
        ledger: of the run; verdicts are kept there, so that none is paid for twice.
        progress: shows how far it is.
        prompts: file with the judge's prompt.
        seed: decides which answer is shown first.

    Returns:
        `win_rate_vs_base` with `win_rate_ci95` (a tie is half a win), the `outcomes` by speech, and how many verdicts
        were `unreadable`; those count nowhere.

    Raises:
        InputError: no verdict could be read, or the server refuses the key or the model.
        UnavailableError: the server failed again and again.
    """
    assert settings.judge is not None, "somebody judges"
    pairs = [
        {"key": f"{key}:{index}", "speech": speeches[key], "ours": response.text, "theirs": base[key][index]}
        for key, group in sorted(groups.items())
        if key in base  # else the base model's answer is in quarantine
        for index, response in enumerate(group.responses)
    ]
    found = verdicts.judge(
        pairs, settings.judge, ledger.root / "judge", settings.judging, progress, prompts, seed, what="held-out answers"
    )
    readable: dict[str, list[float]] = {}
    for key, outcome in found.items():
        if outcome is not None:
            readable.setdefault(key.rpartition(":")[0], []).append(outcome)
    if not readable:
        raise InputError(
            f"evaluation.judge {settings.judge.model} gave no verdict that could be read on {len(pairs)} pairs of "
            "answers; ask a stronger model, or one that keeps to a JSON schema"
        )
    outcomes = {key: sum(of) / len(of) for key, of in readable.items()}
    unreadable = sum(outcome is None for outcome in found.values())
    return {**_win_rate(list(outcomes.values())), "outcomes": outcomes, "unreadable": unreadable}


def _win_rate(wins: Sequence[float]) -> Record:
    return {"win_rate_vs_base": sum(wins) / len(wins), "win_rate_ci95": stats.wilson(sum(wins), len(wins))}
