"""Policies against one opponent: win rates by topic, with and without its length, as judges see them (paper §4.2).

With `simulate` the policies and the opponent also talk with simulated clients, and whole dialogues are compared.

Responses and verdicts are made once and stored; statistics are recomputed on every run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob, Variant
from psyco_ray.config.prompts import SPEECH, PromptsFile
from psyco_ray.data.respond import ResponseTask
from psyco_ray.evaluate import answers, checkpoints, consistency, dialogue_matchups, dialogues, matchups
from psyco_ray.evaluate.consistency import Consistency
from psyco_ray.evaluate.dialogue_matchups import DialogueMatchup, Side
from psyco_ray.evaluate.matchups import Matchup
from psyco_ray.evaluate.speech_sets import load_responses, load_speeches
from psyco_ray.evaluate.stats import MIN_FINISHED_SHARE
from psyco_ray.evaluate.verdicts import DIALOGUES, JudgeSetup, ResponsePair, Verdicts, load_judge_prompt
from psyco_ray.judge.call_run import execute_together
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.pool import fit
from psyco_ray.run.directory import RunDirectory, write_table
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Row

ANSWERED = pa.schema(
    [
        *((name, pa.string()) for name in ("speech_id", "speech", "topic", "response")),
        ("finished", pa.bool_()),  # false where it was cut at the token limit; null: not known
    ]
)
"""``responses/<policy>/<variant>/responses.parquet`` (the opponent has no variant): all responses of a model.

Where a context is a conversation there is one more column, `dialogue`: the id of each one's conversation.
"""

JUDGED = pa.schema([("key", pa.string()), ("better", pa.string()), ("outcome", pa.float64())])
"""``judged/<judge>/<policy>/<variant>.parquet``: by speech id ours, theirs, tie or, where unreadable, nothing."""

_log = logging.getLogger(__name__)

_BETTER = {1.0: "ours", 0.5: "tie", 0.0: "theirs", None: None}


def evaluate(
    job: PolicyEvaluationJob, directory: RunDirectory, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Make missing responses and verdicts, compute the statistics, and write ``evaluation.json``.

    Args:
        job: policies, opponent and judges.
        directory: holds responses and verdicts and receives the results.
        progress: receives finished work.

    Returns:
        The contents of ``evaluation.json``, see `matchups.results` and `dialogue_matchups.results`, and the sample
        cases of a report: speeches, and dialogues.

    Raises:
        InputError: a file, a model or the directory is invalid; reported before the first question where possible.
        BudgetExceededError: the calls reached `max_cost`; everything paid for is kept.
        UnavailableError: a server failed repeatedly.
    """
    directory.claim(job)
    speeches = load_speeches(job.speeches, job.seed)
    conversations = any(Context.of(row["speech"]).is_conversation for row in speeches)
    evaluation = PolicyEvaluation(job, directory, progress, conversations)
    opponent_responses = evaluation.opponent_responses(speeches)
    answered = [row for row in speeches if row["speech_id"] in opponent_responses]
    evaluation.write_responses(job.opponent.name, answered, opponent_responses)
    policies = evaluation.policies
    met = [m for policy in policies for m in evaluation.matchups(policy.name, answered, opponent_responses)]
    for matchup in met:  # one after the other: two policies may have given the same answer, which is judged once
        evaluation.judge(matchup, answered)
    facts = matchups.results(job, policies, met, answered, opponent_responses, len(speeches) - len(answered))
    _warn_of_unfinished(job, facts)
    conversed: list[dict[str, Any]] = []
    if job.simulate is not None:
        facts["dialogues"], conversed = evaluation.converse(answered)
    directory.write_json("evaluation.json", facts)
    return facts, matchups.cases(job, met, answered, opponent_responses), conversed


def answered_table(answered: Sequence[Row], responses: Mapping[str, Row]) -> pa.Table:
    """A model's responses as rows of ANSWERED.

    Args:
        answered: the contexts of the evaluation.
        responses: by speech id.
    """
    rows = [
        {**row, "dialogue": row["conversation"], **responses[row["speech_id"]]}
        for row in answered
        if row["speech_id"] in responses
    ]
    is_single = matchups.conversations(answered) is None
    return pa.Table.from_pylist(rows, ANSWERED if is_single else ANSWERED.append(pa.field("dialogue", pa.string())))


def _warn_of_unfinished(job: PolicyEvaluationJob, facts: Mapping[str, Any]) -> None:
    shares = {job.opponent.name: facts["opponent_finished_share"]}
    for policy in facts["policies"]:
        shares |= {f"{policy['name']}, {key}": values["finished_share"] for key, values in policy["variants"].items()}
    for name, share in shares.items():
        if share is not None and share < MIN_FINISHED_SHARE:
            _log.warning(
                f"{name}: only {share:.0%} of the answers are finished; the others were cut at sampling.max_tokens "
                f"{job.sampling.max_tokens} or are missing"
            )


class PolicyEvaluation:
    """The steps of an evaluation, and the cost of its calls so far.

    Example:
        >>> evaluation = PolicyEvaluation(job, directory, Progress(), conversations=False)
        >>> responses = evaluation.opponent_responses(speeches)
        >>> matchups = evaluation.matchups("dpo", speeches, responses)
    """

    def __init__(
        self, job: PolicyEvaluationJob, directory: RunDirectory, progress: Progress, conversations: bool
    ) -> None:
        """Check prompts, models, keys and resources before hours of work."""
        self._job, self._directory, self._progress = job, directory, progress
        self._prompts = {variant: _prompt(job, variant) for variant in ("free", *job.variants)}
        load_judge_prompt(job.prompts.file, conversations)
        self.policies = checkpoints.candidates(job.policies)
        local = {policy.name: policy.checkpoint for policy in self.policies}
        if job.opponent.model is not None:
            if job.opponent.name in local:
                raise InputError(f"a policy and the opponent are named {job.opponent.name}; give each its own name")
            opponent = checkpoints.find(job.opponent.model)
            local[job.opponent.name] = opponent.with_options(job.opponent.template_options)
        for checkpoint in local.values():
            checkpoints.check_context(checkpoint, job.rollouts.max_model_len)
            for prompt in self._prompts.values():
                checkpoints.check_prompt(checkpoint, prompt)
        self._local = local
        first: dict[str, str] = {}  # runs of one base model share its answers
        self._answered_as = {p.name: first.setdefault(answers.fingerprint(p.checkpoint), p.name) for p in self.policies}
        self._outgoing = Outgoing(job.scrub, job.privacy)
        self._outgoing.check(job.endpoints())
        fit.check("evaluation", [fit.Role.from_config("responder", job.rollouts)], fit.cluster_nodes())
        self._clients: dialogues.Clients | None = None
        if job.simulate is not None:
            load_judge_prompt(job.prompts.file, entry=DIALOGUES)
            if job.simulate.consistency:
                consistency.load_prompt(job.prompts.file)
            self._clients = dialogues.Clients(job, directory.root, self._outgoing, progress)
            role = fit.Role.from_config("client", job.simulate.client.rollouts)
            if job.simulate.client.model is not None:
                fit.check("simulated clients", [role], fit.cluster_nodes())

    def opponent_responses(self, speeches: Sequence[Row]) -> dict[str, Row]:
        """The opponent's `response` by speech id, and whether it is `finished` (None in a file)."""
        opponent = self._job.opponent
        if opponent.responses is not None:
            texts = load_responses(opponent.responses, speeches)
            return {key: {"response": text, "finished": None} for key, text in texts.items()}
        contexts = {row["speech_id"]: row["speech"] for row in speeches}
        return self._read(opponent.name, self._answer(opponent.name, contexts))

    def matchups(self, policy: str, answered: Sequence[Row], opponent_responses: Mapping[str, Row]) -> list[Matchup]:
        """A policy's matchups under every variant; engines load the policy once for all of them."""
        values = {
            row["speech_id"]: {
                SPEECH: row["speech"],
                "{words}": str(matchups.words(opponent_responses[row["speech_id"]]["response"])),
            }
            for row in answered
        }
        tasks = {variant: self._task(policy, variant, values) for variant in self._job.variants}
        answers.generate(self._job, policy, self._local[policy], list(tasks.values()), self._progress)
        met = []
        for variant, task in tasks.items():
            responses = self._read(policy, task)
            self.write_responses(f"{policy}/{variant}", answered, responses)
            pairs = matchups.pairs(responses, answered, opponent_responses)
            met.append(Matchup(policy, variant, responses, self._verdicts(policy, variant, pairs)))
        return met

    def judge(self, matchup: Matchup, answered: Sequence[Row]) -> None:
        """Ask all judges about a matchup, at the same time, and write the outcomes."""
        execute_together([of.calls for of in matchup.verdicts.values()], self._job.max_cost, self._progress)
        for judge in matchup.verdicts:
            rows = [
                {"key": row["speech_id"], "better": _BETTER[outcome], "outcome": outcome}
                for row, outcome in zip(answered, matchup.outcomes(judge, answered), strict=True)
            ]
            path = self._directory.path(f"judged/{judge}/{matchup.policy}/{matchup.variant}.parquet")
            write_table(path, pa.Table.from_pylist(rows, schema=JUDGED))

    def converse(self, answered: Sequence[Row]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Let all models talk with the simulated clients, and have the first judge compare the dialogues.

        Returns:
            `dialogue_matchups.results` and `dialogue_matchups.cases`.
        """
        job, root, clients = self._job, self._directory.root, self._clients
        assert job.simulate is not None, "the job has simulated clients"
        assert clients is not None, "they were loaded"
        began = dialogue_matchups.openings(answered)
        names = [*(policy.name for policy in self.policies), job.opponent.name]
        told = dialogues.converse(
            names,
            {key: row["opening"] for key, row in began.items()},
            job.simulate.turns,
            lambda name, contexts: answers.read(self._answer(name, contexts)),
            clients,
        )
        for name, of in told.items():
            rows = dialogues.table(name, of, job.simulate.client.name, clients.state)
            write_table(self._directory.path(f"dialogues/{name}.parquet"), rows)
        strict = job.judging.model_copy(update={"order": "strict"})
        setup = JudgeSetup(job.judges[0].endpoint, strict, self._outgoing, job.prompts.file, job.seed)
        sides = {}
        for name, of in told.items():
            checked = None
            if job.simulate.consistency:
                texts = dialogue_matchups.transcripts(of, setup)
                checked = Consistency(texts, setup, root, f"consistency of {name}")
                checked.calls.execute(job.max_cost, self._progress)
            sides[name] = Side(name, of, checked)
        met = [
            DialogueMatchup(policy.name, told[policy.name], told[job.opponent.name], setup, root)
            for policy in self.policies
        ]
        for matchup in met:
            matchup.judge(job.max_cost, self._progress)
        facts = dialogue_matchups.results(job, met, sides, clients.state)
        return facts, dialogue_matchups.cases(job, met, began)

    def write_responses(self, place: str, answered: Sequence[Row], responses: Mapping[str, Row]) -> None:
        """Write a model's responses to ``responses/<place>``, where `experts.export` reads them too."""
        path = self._directory.path(f"responses/{place}/responses.parquet")
        write_table(path, answered_table(answered, responses))

    def _answer(self, name: str, contexts: Mapping[str, str]) -> ResponseTask:
        """Let a policy or the opponent answer contexts freely, by id; the opponent is no file."""
        if name in self._local:
            task = self._task(name, "free", {key: {SPEECH: text} for key, text in contexts.items()})
            answers.generate(self._job, name, self._local[name], [task], self._progress)
            return task
        endpoint = self._job.opponent.endpoint
        assert endpoint is not None, "a model that is not local has an API"
        sent = {key: {SPEECH: self._outgoing.text(endpoint, text)} for key, text in contexts.items()}
        task = self._task(name, "free", sent)
        calls = answers.calls(endpoint, task, self._directory.root / "journal", self._outgoing)
        calls.execute(self._job.max_cost, self._progress)
        return task

    def _task(self, name: str, variant: Variant, values: Mapping[str, Mapping[str, str]]) -> ResponseTask:
        job = self._job
        if name in self._local:
            fingerprint = [answers.fingerprint(self._local[name]), job.rollouts.dtype, job.rollouts.max_model_len]
        else:
            assert job.opponent.endpoint is not None, "a model that is not local has an API"
            fingerprint = [job.opponent.endpoint.model]
        name = self._answered_as.get(name, name)
        return answers.write_task(job, name, variant, self._prompts[variant], values, fingerprint, self._directory.root)

    def _read(self, name: str, task: ResponseTask) -> dict[str, Row]:
        """A model's responses by speech id.

        Raises:
            InputError: the model has no response at all.
        """
        responses = answers.read(task)
        if not responses:
            unanswered = answers.set_aside(task)
            raise InputError(
                f"{name} answered none of the {len(unanswered)} speeches; the first reason: {unanswered[0]['reason']}"
            )
        return responses

    def _verdicts(self, policy: str, variant: Variant, pairs: Sequence[ResponsePair]) -> dict[str, Verdicts]:
        job = self._job
        return {
            judge.name: Verdicts(
                pairs,
                JudgeSetup(judge.endpoint, job.judging, self._outgoing, job.prompts.file, job.seed),
                self._directory.root,
                f"{judge.name} on {policy}, {variant}",
            )
            for judge in job.judges
        }


def _prompt(job: PolicyEvaluationJob, variant: Variant) -> dict[str, str]:
    prompts = PromptsFile(job.prompts.file)
    if variant == "matched":
        return prompts.entry(job.prompts.matched, "{client_speech}", "{words}")
    return prompts.entry(job.prompts.respond, "{client_speech}")
