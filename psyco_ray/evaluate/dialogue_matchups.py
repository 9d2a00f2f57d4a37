"""Win rates of dialogues with simulated clients, and what else they show: endings, lengths, consistency, crises."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psyco_ray.config.contexts import LABELS
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.evaluate import consistency, stats, winrates
from psyco_ray.evaluate.consistency import Consistency
from psyco_ray.evaluate.matchups import CASES, words
from psyco_ray.evaluate.verdicts import DIALOGUES, ENTRY, JudgeSetup, ResponsePair, Verdicts
from psyco_ray.judge import outside_texts
from psyco_ray.judge.call_run import execute_together
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Row
from psyco_ray.screening import crisis
from psyco_ray.simulate.dialogue import Dialogue

Dialogues = Mapping[str, Dialogue]
"""Dialogues of a model, by id."""


def openings(answered: Sequence[Row]) -> dict[str, Row]:
    """What clients begin with, by the id of their conversation: `opening` and `topic`.

    Contexts of one conversation have one opening. Where a limit has left it out of some, the earliest turn is taken.
    """
    found: dict[str, Row] = {}
    for row in sorted(answered, key=lambda row: row["turn"]):
        found.setdefault(row["conversation"], {"opening": row["opening"], "topic": row["topic"]})
    return dict(sorted(found.items()))


class DialogueMatchup:
    """A policy's dialogues and the opponent's, and the judge's verdicts on them.

    Example:
        >>> matchup = DialogueMatchup("dpo", ours, theirs, setup, root)
        >>> matchup.judge(max_cost=None, progress=Progress())
        >>> matchup.outcomes(None)
        {'3f2a': 1.0}
    """

    def __init__(self, policy: str, ours: Dialogues, theirs: Dialogues, setup: JudgeSetup, root: Path) -> None:
        """Write what is compared; nothing is asked yet.

        Args:
            policy: its name.
            ours: its dialogues.
            theirs: the opponent's, with the same openings.
            setup: the judge, in strict order.
            root: directory of the verdicts and of the journal.
        """
        self.policy, self.ours, self.theirs = policy, ours, theirs
        self._setup = setup
        turns = max(len(dialogue.answers) for dialogue in (*ours.values(), *theirs.values()))
        places: list[int | None] = [*range(1, turns + 1), None]
        self._met = {turn: self._both(turn) for turn in places}
        self._verdicts = {
            turn: Verdicts(self._pairs(turn), setup, root, self._name(turn), ENTRY if turn == 1 else DIALOGUES)
            for turn in places
        }

    def judge(self, max_cost: float | None, progress: Progress) -> None:
        """Ask the judge: about all turns at the same time, then about whole dialogues.

        A dialogue that ends with the last turn is the same question in both, which is paid for once.
        """
        turns = [of.calls for turn, of in self._verdicts.items() if turn is not None]
        execute_together(turns, max_cost, progress)
        self._verdicts[None].calls.execute(max_cost, progress)

    def turns(self) -> list[int]:
        """The turns at which dialogues meet."""
        return [turn for turn, keys in self._met.items() if turn is not None and keys]

    def outcomes(self, turn: int | None) -> dict[str, winrates.Outcome]:
        """The outcomes by id, at a turn or (None) over whole dialogues; a missing response of ours is a loss."""
        judged = self._verdicts[turn].outcomes()
        return {key: judged.get(key, 0.0) for key in self._met[turn]}

    def verdicts(self) -> dict[str, list[Row]]:
        """The readable verdicts on whole dialogues, as rows of VERDICTS."""
        return self._verdicts[None].readable()

    def spent(self) -> dict[str, Any]:
        """Calls and cost of all verdicts."""
        usage = [verdicts.usage() for verdicts in self._verdicts.values()]
        dollars = [each["dollars"] for each in usage]
        return {
            "calls": sum(each["paid"] + each["reused"] for each in usage),
            "dollars": None if None in dollars else sum(dollars),
        }

    def _name(self, turn: int | None) -> str:
        return f"judge on the dialogues of {self.policy}, " + (f"turn {turn}" if turn else "whole")

    def _both(self, turn: int | None) -> list[str]:
        """The dialogues in which both reach a turn that the opponent answers; of whole ones those that did not fail."""
        place = turn or 1
        return [
            key
            for key in sorted(self.ours)
            if len(self.theirs[key].responses) >= place and len(self.ours[key].answers) >= place
            if turn is not None or not (self.ours[key].failed or self.theirs[key].failed)
        ]

    def _pairs(self, turn: int | None) -> list[ResponsePair]:
        endpoint, outgoing = self._setup.endpoint, self._setup.outgoing

        def side(dialogue: Dialogue) -> str:
            if turn == 1:
                return dialogue.responses[0]
            return dialogue.transcript(turn, lambda text: outgoing.text(endpoint, text))

        return [
            ResponsePair(
                key=key, speech=self.ours[key].start.text, ours=side(self.ours[key]), theirs=side(self.theirs[key])
            )
            for key in self._met[turn]
            if len(self.ours[key].responses) >= (turn or 1)
        ]


@dataclass(frozen=True)
class Side:
    """All dialogues of a model, with the judge's answers about their consistency."""

    name: str
    dialogues: Dialogues
    checked: Consistency | None  # None: the judge is not asked

    def facts(self, turns: int, seed: int) -> dict[str, Any]:
        """Endings, lengths and consistency.

        Returns:
            `dropped`: by turn the share of dialogues that the client has left by then, of those that have not failed by
            then, with `wilson95`. `unanswered` dialogues end for want of a response, `unreplied` ones fail for want of
            the client's reply. `mean_words` of a response by turn; `repetition` and `consistency` of the module of that
            name, or None.
        """
        of = list(self.dialogues.values())
        dropped = {}
        for turn in range(1, turns):
            count = sum(dialogue.left and len(dialogue.answers) <= turn for dialogue in of)
            failed = sum(dialogue.failed is not None and len(dialogue.answers) <= turn for dialogue in of)
            others = max(1, len(of) - failed)
            dropped[str(turn)] = {"share": count / others, "wilson95": list(stats.wilson(count, others))}
        lengths: dict[str, list[int]] = {}
        for dialogue in of:
            for turn, response in enumerate(dialogue.responses, start=1):
                lengths.setdefault(str(turn), []).append(words(response))
        return {
            "name": self.name,
            "dropped": dropped,
            "unanswered": sum(len(dialogue.responses) < len(dialogue.answers) for dialogue in of),
            "unreplied": sum(dialogue.failed is not None for dialogue in of),
            "mean_words": {turn: sum(counts) / len(counts) for turn, counts in lengths.items()},
            "repetition": consistency.repetition([dialogue.responses for dialogue in of], seed),
            "consistency": None if self.checked is None else self.checked.shares(),
        }


def transcripts(dialogues: Dialogues, setup: JudgeSetup) -> dict[str, str]:
    """Whole dialogues with their openings, for the judge of consistency; those with two responses or more."""

    def change(text: str) -> str:
        return setup.outgoing.text(setup.endpoint, text)

    def opening(dialogue: Dialogue) -> str:
        return f"{LABELS[0]} {outside_texts.as_data(change(dialogue.start.text), LABELS)}"

    return {
        key: f"{opening(dialogue)}\n\n{dialogue.transcript(change=change)}"
        for key, dialogue in dialogues.items()
        if len(dialogue.responses) > 1
    }


def signs(dialogue: Dialogue) -> bool | None:
    """Whether a client's turns show signs of a crisis, simulated turns included; None: they could not be screened."""
    found = crisis.signs(dialogue.whole.text)
    return None if found is None else bool(found)


def results(
    job: PolicyEvaluationJob, matchups: Sequence[DialogueMatchup], sides: Mapping[str, Side], client_state: str
) -> dict[str, Any]:
    """What ``evaluation.json`` holds as `dialogues`.

    Args:
        job: the opponent, the clients and the judge.
        matchups: of the policies.
        sides: of the policies and the opponent, by name.
        client_state: see `Clients.state`.

    Returns:
        `client`, `client_state`, `turns`, `openings` and the `judge`. For each of `policies` the win rates `at_turn`
        (dialogues in which both reach it) and over the `whole` dialogue, `crisis` (whole dialogues of which one shows
        signs; None without any), what the verdicts `spent`, and the facts of its side; `opponent`: those of its side.
        `crisis_dialogues`: openings with such a dialogue; `not_screened`: with one that could not be screened.
    """
    assert job.simulate is not None, "the job has simulated clients"
    turns, seed = job.simulate.turns, job.seed
    screened = {name: {key: signs(d) for key, d in side.dialogues.items()} for name, side in sides.items()}
    theirs = screened[job.opponent.name]
    policies = []
    for matchup in matchups:
        whole, ours = matchup.outcomes(None), screened[matchup.policy]
        marked = [outcome for key, outcome in whole.items() if ours[key] or theirs[key]]
        policies.append(
            {
                **sides[matchup.policy].facts(turns, seed),
                "at_turn": {
                    str(turn): winrates.win_rate([*matchup.outcomes(turn).values()], seed) for turn in matchup.turns()
                },
                "whole": winrates.win_rate([*whole.values()], seed),
                "crisis": winrates.win_rate(marked, seed) if marked else None,
                "spent": matchup.spent(),
            }
        )
    return {
        "client": job.simulate.client.name,
        "client_state": client_state,
        "turns": turns,
        "openings": len(theirs),
        "judge": job.judges[0].name,
        "crisis_dialogues": sum(any(of[key] for of in screened.values()) for key in theirs),
        "not_screened": sum(
            not any(of[key] for of in screened.values()) and any(of[key] is None for of in screened.values())
            for key in theirs
        ),
        "policies": policies,
        "opponent": sides[job.opponent.name].facts(turns, seed),
    }


def cases(
    job: PolicyEvaluationJob, matchups: Sequence[DialogueMatchup], began: Mapping[str, Row]
) -> list[dict[str, Any]]:
    """Dialogues sampled by the seed, the policies' beside the opponent's, with the verdicts on the whole.

    Args:
        job: its seed and judge.
        matchups: of the policies.
        began: of `openings`.
    """
    verdicts = [matchup.verdicts() for matchup in matchups]
    return [
        {
            **began[key],
            "met": [
                {
                    "policy": matchup.policy,
                    "turns": _side_by_side(matchup.ours[key], matchup.theirs[key]),
                    "same": matchup.ours[key] == matchup.theirs[key],
                    "verdicts": [{"judge": job.judges[0].name, **row} for row in of.get(key, ())],
                }
                for matchup, of in zip(matchups, verdicts, strict=True)
            ],
        }
        for key in sorted(began, key=lambda key: key_of(job.seed, "case", key))[:CASES]
    ]


def _side_by_side(ours: Dialogue, theirs: Dialogue) -> list[dict[str, dict[str, Any]]]:
    sides = itertools.zip_longest(_shown(ours), _shown(theirs), fillvalue={"over": True})
    return [{"ours": mine, "theirs": other} for mine, other in sides]


def _shown(dialogue: Dialogue) -> Iterator[dict[str, Any]]:
    """The turns of a dialogue, as the report prints them."""
    for turn, (_, answer, reply) in enumerate(dialogue.exchanges(), start=1):
        yield {
            "over": False,
            "response": answer.text,
            "words": words(answer.text),
            "reply": "" if reply is None else reply.text,
            "ended": reply is not None and reply.ended,
            "failed": dialogue.failed is not None and turn == len(dialogue.answers),
        }
