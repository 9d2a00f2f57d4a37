"""Statistics and sample cases of the matchups between policies and their opponent (paper table 3).

A matchup is a policy's responses to all contexts under one variant, with every judge's verdicts on them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psyco_ray.config.contexts import Context
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob, Variant
from psyco_ray.evaluate import agreement, winrates
from psyco_ray.evaluate.checkpoints import Candidate
from psyco_ray.evaluate.verdicts import ResponsePair, Verdicts
from psyco_ray.run.directory import versions
from psyco_ray.run.hashing import key_of
from psyco_ray.run.types import Row

CASES = 8
"""Speeches whose responses the report shows side by side."""


@dataclass(frozen=True)
class Matchup:
    """A policy's responses to all speeches under one variant, with every judge's verdicts.

    Example:
        >>> matchup = Matchup("dpo", "free", responses, {"gpt-4o": Verdicts(pairs, setup, root)})
        >>> matchup.outcomes("gpt-4o", answered)
        [1.0, 0.5, None]
    """

    policy: str
    variant: Variant
    responses: Mapping[str, Row]  # `response` and `finished` by speech id, not empty; a speech without one is missing
    verdicts: Mapping[str, Verdicts]  # by judge

    def outcomes(self, judge: str, answered: Sequence[Row]) -> list[winrates.Outcome]:
        """The outcome of every speech; one without a response is lost without a verdict."""
        by_speech = self.verdicts[judge].outcomes()
        return [by_speech[row["speech_id"]] if row["speech_id"] in self.responses else 0.0 for row in answered]


def pairs(
    responses: Mapping[str, Row], answered: Sequence[Row], opponent_responses: Mapping[str, Row]
) -> list[ResponsePair]:
    """What a judge compares: a policy's responses, each with the opponent's.

    The key of a pair is its speech. With the seed it decides which response comes first, so on one speech all policies
    meet the opponent in the same order, and tests of two policies are free of the judge's preference for a position.
    """
    return [
        ResponsePair(
            key=row["speech_id"],
            speech=row["speech"],
            ours=responses[row["speech_id"]]["response"],
            theirs=opponent_responses[row["speech_id"]]["response"],
        )
        for row in answered
        if row["speech_id"] in responses
    ]


def results(
    job: PolicyEvaluationJob,
    policies: Sequence[Candidate],
    matchups: Sequence[Matchup],
    answered: Sequence[Row],
    opponent_responses: Mapping[str, Row],
    silent: int,
) -> dict[str, Any]:
    """The contents of ``evaluation.json``.

    Args:
        job: opponent and judges; the first judge's verdicts count.
        policies: the policies under test.
        matchups: in the order of the policies and variants.
        answered: the speeches that the opponent answered.
        opponent_responses: its responses, by speech id.
        silent: number of speeches it did not answer; they are left out.

    Returns:
        `policies`, each with the `run`, the `iteration` and the optimizer `steps` of its checkpoint (null for a model
        of no run), the `series` of checkpoints that it belongs to, and its `variants` with their `_statistics`. By
        variant `mcnemar` of two policies (`_tested`). `agreement` of the first judge with the others. `speeches`,
        `crisis_speeches`, `not_screened`, `opponent_silent`, `opponent_finished_share` (null for a file), the settings.
        If a context is a conversation, also the number of `conversations` that all are from.
    """
    main, clusters = job.judges[0].name, conversations(answered)
    return {
        "name": Path(job.run_dir).name,
        "seed": job.seed,
        "versions": versions(),
        "opponent": job.opponent.name,
        "judges": [judge.name for judge in job.judges],
        "order": job.judging.order,
        "split": job.speeches.split,
        "speeches": len(answered),
        **({} if clusters is None else {"conversations": len({*clusters})}),
        "crisis_speeches": sum(bool(row["crisis"]) for row in answered),
        "not_screened": sum(row["crisis"] is None for row in answered),
        "opponent_silent": silent,
        "opponent_finished_share": _finished_share([opponent_responses[row["speech_id"]] for row in answered]),
        "policies": [
            _checkpoint(policy)
            | {
                "variants": {
                    matchup.variant: _statistics(job, matchup, answered, opponent_responses)
                    for matchup in matchups
                    if matchup.policy == policy.name
                }
            }
            for policy in policies
        ],
        "mcnemar": {
            variant: _mcnemar(policies, [m for m in matchups if m.variant == variant], main, answered)
            for variant in job.variants
        },
        "agreement": [_agreement(job, of, judge.name, answered) for judge in job.judges[1:] for of in matchups],
    }


def conversations(answered: Sequence[Row]) -> list[str] | None:
    """The conversation of each context; None if all contexts are single speeches."""
    if not any(Context.of(row["speech"]).is_conversation for row in answered):
        return None
    return [row["conversation"] for row in answered]


def _mcnemar(
    policies: Sequence[Candidate], matchups: Sequence[Matchup], judge: str, answered: Sequence[Row]
) -> list[dict[str, Any]]:
    clusters = conversations(answered)
    return [
        {"a": a.policy, "b": b.policy}
        | winrates.mcnemar(a.outcomes(judge, answered), b.outcomes(judge, answered), clusters)
        for a, b in _tested(policies, matchups)
    ]


def _checkpoint(policy: Candidate) -> dict[str, Any]:
    checkpoint = policy.checkpoint
    return {
        "name": policy.name,
        "model": checkpoint.path if checkpoint.run is None else None,
        "run": checkpoint.run,
        "iteration": checkpoint.iteration,
        "steps": checkpoint.steps,
        "series": policy.series,
    }


def _tested(policies: Sequence[Candidate], matchups: Sequence[Matchup]) -> list[tuple[Matchup, Matchup]]:
    """The matchups that are tested against each other: any two, but of checkpoints of runs those of one iteration."""
    iterations = {policy.name: policy.checkpoint.iteration for policy in policies if policy.series is not None}
    return [
        (a, b)
        for a, b in itertools.combinations(matchups, 2)
        if not {a.policy, b.policy} <= iterations.keys() or iterations[a.policy] == iterations[b.policy]
    ]


def _statistics(
    job: PolicyEvaluationJob, matchup: Matchup, answered: Sequence[Row], opponent_responses: Mapping[str, Row]
) -> dict[str, Any]:
    """Statistics of a policy under one variant.

    Returns:
        By the first judge: `overall` and `topics` from `winrates.by_topic`, and `crisis`, the win rate on speeches with
        signs of a crisis (None without any). Over the speeches with a response: `lc` from `winrates.length_controlled`,
        `mean_words`, `opponent_mean_words` and `length_ratio`. The numbers of speeches `unanswered` and of responses
        `cut` at max_tokens, and the `finished_share` of the speeches that are neither. `by_judge`: the `overall` win
        rate, `first_chosen` (share of readable verdicts for the response shown first) and the usage `spent`.
        If a context is a conversation, `turns`: win rate and lengths by the turn of the response (`_by_turn`).
    """
    outcomes, clusters = matchup.outcomes(job.judges[0].name, answered), conversations(answered)
    topics = winrates.by_topic(outcomes, [row["topic"] for row in answered], job.seed, clusters)
    overall = topics.pop(winrates.OVERALL)
    signs = [bool(row["crisis"]) for row in answered]
    cut = sum(not row["finished"] for row in matchup.responses.values())
    compared = [row["speech_id"] for row in answered if row["speech_id"] in matchup.responses]
    assert compared, "a policy that has answered nothing is refused before"
    lengths = _lengths(matchup, outcomes, answered, opponent_responses)
    return {
        "overall": overall,
        "lc": lengths.pop("lc"),
        "topics": topics,
        "crisis": _subset(outcomes, clusters, signs, job.seed) if any(signs) else None,
        **lengths,
        "unanswered": len(answered) - len(compared),
        "cut": cut,
        "finished_share": (len(compared) - cut) / len(answered),
        **({} if clusters is None else {"turns": _by_turn(job.seed, matchup, outcomes, answered, opponent_responses)}),
        "by_judge": {
            name: {
                "overall": winrates.win_rate(matchup.outcomes(name, answered), job.seed, clusters),
                "first_chosen": _first_chosen(verdicts),
                "spent": verdicts.usage(),
            }
            for name, verdicts in matchup.verdicts.items()
        },
    }


def _subset(
    outcomes: Sequence[winrates.Outcome], clusters: Sequence[str] | None, kept: Sequence[bool], seed: int
) -> winrates.WinRate:
    """The win rate on some of the contexts."""
    of = None if clusters is None else winrates.selected(clusters, kept)
    return winrates.win_rate(winrates.selected(outcomes, kept), seed, of)


def _lengths(
    matchup: Matchup,
    outcomes: Sequence[winrates.Outcome],
    answered: Sequence[Row],
    opponent_responses: Mapping[str, Row],
) -> dict[str, Any]:
    """`lc` and `winrates.length_facts` over the contexts with a response; empty without any."""
    kept = [row["speech_id"] in matchup.responses for row in answered]
    keys = [row["speech_id"] for row in winrates.selected(answered, kept)]
    if not keys:
        return {}
    clusters = conversations(answered)
    ours, theirs = (
        [words(responses[key]["response"]) for key in keys] for responses in (matchup.responses, opponent_responses)
    )
    controlled = winrates.length_controlled(
        winrates.selected(outcomes, kept),
        [a - b for a, b in zip(ours, theirs, strict=True)],
        None if clusters is None else winrates.selected(clusters, kept),
    )
    return {"lc": controlled, **winrates.length_facts(ours, theirs)}


def _by_turn(
    seed: int,
    matchup: Matchup,
    outcomes: Sequence[winrates.Outcome],
    answered: Sequence[Row],
    opponent_responses: Mapping[str, Row],
) -> dict[str, dict[str, Any]]:
    """`overall`, `lc` and lengths of the responses that are a therapist's first, second, ... turn.

    A turn without any response of the policy has no lengths.
    """
    titles = [winrates.turn_title(row["turn"]) for row in answered]
    clusters = conversations(answered)
    measures = {}
    for title in sorted({*titles}):
        kept = [of == title for of in titles]
        measures[title] = {"overall": _subset(outcomes, clusters, kept, seed)} | _lengths(
            matchup, winrates.selected(outcomes, kept), winrates.selected(answered, kept), opponent_responses
        )
    return measures


def _finished_share(responses: Sequence[Row]) -> float | None:
    """Share of responses that were not cut; None if a file does not tell."""
    finished = [row["finished"] for row in responses]
    return None if None in finished else sum(finished) / len(finished)


def _first_chosen(verdicts: Verdicts) -> float | None:
    rows = [row for pair_rows in verdicts.readable().values() for row in pair_rows]
    return sum(row["ours"] == row["ours_first"] for row in rows) / len(rows) if rows else None


def _agreement(job: PolicyEvaluationJob, matchup: Matchup, other: str, answered: Sequence[Row]) -> dict[str, Any]:
    """Agreement of the first judge with another on the judged speeches; an unreadable verdict is a missing rating."""
    main, seed = job.judges[0].name, job.seed
    first, second = (matchup.verdicts[judge].outcomes() for judge in (main, other))
    ratings = np.array([(first[key], second[key]) for key in first], dtype=float).reshape(-1, 2)
    of = dict(zip([row["speech_id"] for row in answered], conversations(answered) or (), strict=False))
    clusters = [of[key] for key in first] if of else None
    return {
        "judges": [main, other],
        "policy": matchup.policy,
        "variant": matchup.variant,
        "percent": asdict(agreement.percent(ratings, seed, clusters=clusters)),
        "kappa": asdict(agreement.cohen_kappa(ratings, seed=seed, clusters=clusters)),
    }


def cases(
    job: PolicyEvaluationJob,
    matchups: Sequence[Matchup],
    answered: Sequence[Row],
    opponent_responses: Mapping[str, Row],
) -> list[dict[str, Any]]:
    """Speeches sampled by the seed, with all responses and verdicts (paper tables 4 and 8)."""
    sample = sorted(answered, key=lambda row: key_of(job.seed, "case", row["speech_id"]))[:CASES]
    readable = {(m.policy, m.variant, judge): v.readable() for m in matchups for judge, v in m.verdicts.items()}
    return [
        {
            "speech": Context.of(row["speech"]).transcript,
            "turn": row["turn"],
            "topic": row["topic"],
            "opponent": {
                "response": opponent_responses[row["speech_id"]]["response"],
                "words": words(opponent_responses[row["speech_id"]]["response"]),
            },
            "answers": [
                {
                    "policy": matchup.policy,
                    "variant": matchup.variant,
                    "response": response["response"] if response else None,
                    "words": words(response["response"]) if response else 0,
                    "cut": response is not None and not response["finished"],
                    "verdicts": [
                        {"judge": judge, **verdict}
                        for judge in matchup.verdicts
                        for verdict in readable[matchup.policy, matchup.variant, judge].get(row["speech_id"], ())
                    ],
                }
                for matchup in matchups
                for response in (matchup.responses.get(row["speech_id"]),)
            ],
        }
        for row in sample
    ]


def words(text: str) -> int:
    """Number of words in a text, separated by whitespace."""
    return len(text.split())
