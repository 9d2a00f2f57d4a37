"""What came of the bouts between policies and their opponent: figures for the tables, cases to read (paper table 3).

A bout is a policy's answers to all speeches under one variant, with every judge's verdicts on them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psyco_ray.config.evaluate_policy import PolicyEvaluationJob, Variant
from psyco_ray.evaluate import agreement, winrates
from psyco_ray.evaluate.verdicts import Verdicts
from psyco_ray.run.directory import versions
from psyco_ray.run.hashing import key_of
from psyco_ray.run.types import Row

CASES = 8
"""Speeches whose responses the report shows side by side."""


@dataclass(frozen=True)
class Matchup:
    """A policy's answers to all speeches under one variant, and what every judge says of them."""

    policy: str
    variant: Variant
    answers: Mapping[str, Row]  # by speech id, not empty; a speech without an answer is missing
    verdicts: Mapping[str, Verdicts]  # by judge

    def outcomes(self, judge: str, met: Sequence[Row]) -> list[winrates.Outcome]:
        """The outcome of every speech; one without an answer is lost without being judged."""
        found = self.verdicts[judge].outcomes()
        return [found[pair_key(self.policy, row)] if row["speech_id"] in self.answers else 0.0 for row in met]


def results(
    job: PolicyEvaluationJob, bouts: Sequence[Matchup], met: Sequence[Row], theirs: Mapping[str, str], silent: int
) -> dict[str, Any]:
    """What ``evaluation.json`` holds.

    Args:
        job: policies, opponent and judges; the first judge's verdicts are those that count.
        bouts: in the order of the job's policies and variants.
        met: the speeches that the opponent answered.
        theirs: its responses, by speech id.
        silent: how many speeches it did not answer; they take no part.

    Returns:
        `policies`, of each the `variants` with what `_figures` gives; by variant `mcnemar` between any two of them;
        `agreement` of the first judge with each of the others; `speeches`, `opponent_silent` and what was asked for.
    """
    main = job.judges[0].name
    by_variant = {variant: [bout for bout in bouts if bout.variant == variant] for variant in job.variants}
    return {
        "name": Path(job.run_dir).name,
        "seed": job.seed,
        "versions": versions(),
        "opponent": job.opponent.name,
        "judges": [judge.name for judge in job.judges],
        "order": job.judging.order,
        "split": job.speeches.split,
        "speeches": len(met),
        "opponent_silent": silent,
        "policies": [
            {
                "name": policy.name,
                "variants": {
                    bout.variant: _figures(job, bout, met, theirs) for bout in bouts if bout.policy == policy.name
                },
            }
            for policy in job.policies
        ],
        "mcnemar": {
            variant: [
                {"a": a.policy, "b": b.policy, **winrates.mcnemar(a.outcomes(main, met), b.outcomes(main, met))}
                for a, b in itertools.combinations(of, 2)
            ]
            for variant, of in by_variant.items()
        },
        "agreement": [
            {"judges": [main, judge.name], "policy": bout.policy, "variant": bout.variant}
            | _agreement(bout, main, judge.name, job.seed)
            for judge in job.judges[1:]
            for bout in bouts
        ],
    }


def _figures(job: PolicyEvaluationJob, bout: Matchup, met: Sequence[Row], theirs: Mapping[str, str]) -> dict[str, Any]:
    """All figures of a policy under one variant.

    Returns:
        By the first judge: `overall` and `topics` as `winrates.by_topic` has them. Of the speeches that were answered:
        `lc` as `winrates.length_controlled` has it, `mean_words`, `opponent_mean_words` and `length_ratio`. Then how
        many are `unanswered` and how many answers `cut` at max_tokens; and `by_judge` the `overall` win rate,
        `first_chosen` (the share of readable verdicts for what was shown first) and `spent`.
    """
    outcomes = bout.outcomes(job.judges[0].name, met)
    topics = winrates.by_topic(outcomes, [row["topic"] for row in met], job.seed)
    overall = topics.pop(winrates.OVERALL)
    answered = [at for at, row in enumerate(met) if row["speech_id"] in bout.answers]
    ours = [words(bout.answers[met[at]["speech_id"]]["response"]) for at in answered]
    others = [words(theirs[met[at]["speech_id"]]) for at in answered]
    differences = [a - b for a, b in zip(ours, others, strict=True)]
    return {
        "overall": overall,
        "lc": winrates.length_controlled([outcomes[at] for at in answered], differences),
        "topics": topics,
        **winrates.length_facts(ours, others),
        "unanswered": len(met) - len(answered),
        "cut": sum(not row["finished"] for row in bout.answers.values()),
        "by_judge": {
            name: {
                "overall": winrates.win_rate(bout.outcomes(name, met), job.seed),
                "first_chosen": _first_chosen(found),
                "spent": found.spent(),
            }
            for name, found in bout.verdicts.items()
        },
    }


def _first_chosen(found: Verdicts) -> float | None:
    rows = [row for of in found.given().values() for row in of]
    return sum(row["ours"] == row["ours_first"] for row in rows) / len(rows) if rows else None


def _agreement(bout: Matchup, main: str, other: str, seed: int) -> dict[str, Any]:
    """How far two judges agree on the speeches that were judged; an unreadable verdict is a missing one."""
    first, second = (bout.verdicts[judge].outcomes() for judge in (main, other))
    ratings = np.array([(first[key], second[key]) for key in first], dtype=float).reshape(-1, 2)
    return {
        "percent": asdict(agreement.percent(ratings, seed)),
        "kappa": asdict(agreement.cohen_kappa(ratings, seed=seed)),
    }


def cases(
    job: PolicyEvaluationJob, bouts: Sequence[Matchup], met: Sequence[Row], theirs: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Speeches drawn by the seed, not picked, with all responses and verdicts (paper tables 4 and 8)."""
    drawn = sorted(met, key=lambda row: key_of(job.seed, "case", row["speech_id"]))[:CASES]
    given = {(bout.policy, bout.variant, judge): of.given() for bout in bouts for judge, of in bout.verdicts.items()}
    return [
        {
            "speech": row["speech"],
            "topic": row["topic"],
            "opponent": {"response": theirs[row["speech_id"]], "words": words(theirs[row["speech_id"]])},
            "answers": [
                {
                    "policy": bout.policy,
                    "variant": bout.variant,
                    "response": answer["response"] if answer else None,
                    "words": words(answer["response"]) if answer else 0,
                    "verdicts": [
                        {"judge": judge, **verdict}
                        for judge in bout.verdicts
                        for verdict in given[bout.policy, bout.variant, judge].get(pair_key(bout.policy, row), ())
                    ],
                }
                for bout in bouts
                for answer in (bout.answers.get(row["speech_id"]),)
            ],
        }
        for row in drawn
    ]


def pair_key(policy: str, row: Row) -> str:
    """The name of a policy's pair on a speech. It decides, with the seed, who is shown first, for all judges alike."""
    return f"{policy}:{row['speech_id']}"


def words(text: str) -> int:
    """How many words a text has, as white space parts them."""
    return len(text.split())
