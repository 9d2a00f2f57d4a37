"""Policies against one opponent: win rates by topic, with and without its length, as judges see them (paper §4.2).

Answers and verdicts are made once and kept; figures are counted as often as wished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob, Variant
from psyco_ray.config.prompts import PromptsFile
from psyco_ray.data.respond import ResponseTask
from psyco_ray.evaluate import answers
from psyco_ray.evaluate.matchups import Matchup, cases, pair_key, results, words
from psyco_ray.evaluate.speech_sets import load_responses, load_speeches
from psyco_ray.evaluate.verdicts import Verdicts, load_entry
from psyco_ray.judge.client import Client
from psyco_ray.pool import fit
from psyco_ray.run.directory import RunDirectory, write_table
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Row

ANSWERED = pa.schema([(name, pa.string()) for name in ("speech_id", "speech", "topic", "response")])
"""``responses/<policy>/<variant>/responses.parquet`` (the opponent has no variant): all that a model answered."""

JUDGED = pa.schema([("key", pa.string()), ("better", pa.string()), ("outcome", pa.float64())])
"""``judged/<judge>/<policy>/<variant>.parquet``: by speech id ours, theirs, tie or, where unreadable, nothing."""

_BETTER = {1.0: "ours", 0.5: "tie", 0.0: "theirs", None: None}


def evaluate(
    job: PolicyEvaluationJob, directory: RunDirectory, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Answer and judge what was not yet, count, and write ``evaluation.json``.

    Args:
        job: policies, opponent and judges.
        directory: holds answers and verdicts and gets the results.
        progress: shows how far it is.

    Returns:
        What ``evaluation.json`` holds, as `matchups.results` describes it, and the sample cases of a report.

    Raises:
        InputError: a file, a model or the directory does not do; as far as that can be seen, before anything is asked.
        BudgetExceededError: the calls reached `max_cost`; everything paid for is kept.
        UnavailableError: a server failed again and again.
    """
    directory.claim(job)
    speeches = load_speeches(job.speeches, job.seed)
    contest = PolicyEvaluation(job, directory, progress)
    theirs = contest.opponent(speeches)
    met = [row for row in speeches if row["speech_id"] in theirs]
    contest.write_answers(job.opponent.name, met, theirs)
    bouts = [bout for policy in job.policies for bout in contest.bouts(policy.name, met, theirs)]
    for judge in job.judges:
        for bout in bouts:
            contest.judge(judge.name, bout, met)
    found = results(job, bouts, met, theirs, len(speeches) - len(met))
    directory.write_json("evaluation.json", found)
    return found, cases(job, bouts, met, theirs)


class PolicyEvaluation:
    """An evaluation under way, and the dollars that its calls took so far."""

    def __init__(self, job: PolicyEvaluationJob, directory: RunDirectory, progress: Progress) -> None:
        """Check all that can be checked before hours of work."""
        self._job, self._directory, self._progress, self._spent = job, directory, progress, 0.0
        self._prompts = {variant: _prompt(job, variant) for variant in ("free", *job.variants)}
        load_entry(job.prompts.file)
        models = {policy.name: policy.model for policy in job.policies}
        if job.opponent.model is not None:
            models[job.opponent.name] = job.opponent.model
        self._local = {name: answers.checkpoint(model, job.rollouts.max_model_len) for name, model in models.items()}
        for endpoint in job.endpoints().values():
            Client(endpoint)  # which needs its key
        fit.check("evaluation", [fit.Role.of("responder", job.rollouts)], fit.cluster_nodes())

    def opponent(self, speeches: Sequence[Row]) -> dict[str, str]:
        """The opponent's responses by speech id."""
        opponent = self._job.opponent
        if opponent.responses is not None:
            return load_responses(opponent.responses, speeches)
        asked = self._ask(
            opponent.name, "free", {row["speech_id"]: {"{client_speech}": row["speech"]} for row in speeches}
        )
        if opponent.endpoint is not None:
            journal = self._directory.root / "journal"
            self._spent += answers.call(opponent.endpoint, asked, journal, self._left(), self._progress)
        else:
            answers.generate(self._job, opponent.name, self._local[opponent.name], [asked], self._progress)
        return {key: row["response"] for key, row in self._read(opponent.name, asked).items()}

    def bouts(self, policy: str, met: Sequence[Row], theirs: Mapping[str, str]) -> list[Matchup]:
        """A policy's answers, under every variant; its engines load it once for all."""
        places = {
            row["speech_id"]: {"{client_speech}": row["speech"], "{words}": str(words(theirs[row["speech_id"]]))}
            for row in met
        }
        asked = {variant: self._ask(policy, variant, places) for variant in self._job.variants}
        answers.generate(self._job, policy, self._local[policy], list(asked.values()), self._progress)
        found = []
        for variant, questions in asked.items():
            given = self._read(policy, questions)
            self.write_answers(f"{policy}/{variant}", met, {key: row["response"] for key, row in given.items()})
            pairs = [
                {
                    "key": pair_key(policy, row),
                    "speech": row["speech"],
                    "ours": given[row["speech_id"]]["response"],
                    "theirs": theirs[row["speech_id"]],
                }
                for row in met
                if row["speech_id"] in given
            ]
            found.append(Matchup(policy, variant, given, self._verdicts(policy, variant, pairs)))
        return found

    def judge(self, judge: str, bout: Matchup, met: Sequence[Row]) -> None:
        """Ask a judge about a bout, and write down the outcomes."""
        self._spent += bout.verdicts[judge].ask(self._left(), self._progress)
        rows = [
            {"key": row["speech_id"], "better": _BETTER[outcome], "outcome": outcome}
            for row, outcome in zip(met, bout.outcomes(judge, met), strict=True)
        ]
        path = self._directory.path(f"judged/{judge}/{bout.policy}/{bout.variant}.parquet")
        write_table(path, pa.Table.from_pylist(rows, schema=JUDGED))

    def write_answers(self, where: str, met: Sequence[Row], responses: Mapping[str, str]) -> None:
        """Write a model's responses where a reader, or the experts' export, finds them."""
        rows = [{**row, "response": responses[row["speech_id"]]} for row in met if row["speech_id"] in responses]
        path = self._directory.path(f"responses/{where}/responses.parquet")
        write_table(path, pa.Table.from_pylist(rows, schema=ANSWERED))

    def _ask(self, name: str, variant: Variant, places: Mapping[str, Mapping[str, str]]) -> ResponseTask:
        job = self._job
        if name in self._local:
            how = [answers.mark(self._local[name]), job.rollouts.dtype, job.rollouts.max_model_len]
        else:
            assert job.opponent.endpoint is not None, "who is not local has an API"
            how = [job.opponent.endpoint.model]
        return answers.lay_out(job, name, variant, self._prompts[variant], places, how, self._directory.root)

    def _read(self, name: str, asked: ResponseTask) -> dict[str, Row]:
        """A model's answers by speech id.

        Raises:
            InputError: there is not a single one.
        """
        found = answers.read(asked)
        if not found:
            aside = answers.set_aside(asked)
            raise InputError(f"{name} answered none of the {len(aside)} speeches; the first time: {aside[0]['reason']}")
        return found

    def _verdicts(self, policy: str, variant: Variant, pairs: Sequence[Row]) -> dict[str, Verdicts]:
        job = self._job
        return {
            judge.name: Verdicts(
                pairs,
                judge.endpoint,
                self._directory.root,
                job.judging,
                job.prompts.file,
                job.seed,
                f"{judge.name} on {policy}, {variant}",
            )
            for judge in job.judges
        }

    def _left(self) -> float | None:
        return None if self._job.max_cost is None else self._job.max_cost - self._spent


def _prompt(job: PolicyEvaluationJob, variant: Variant) -> dict[str, str]:
    prompts = PromptsFile(job.prompts.file)
    if variant == "matched":
        return prompts.entry(job.prompts.matched, "{client_speech}", "{words}")
    return prompts.entry(job.prompts.respond, "{client_speech}")
