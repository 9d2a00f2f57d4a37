"""Evaluation of a policy on the held-out speeches during a training run (paper §4.3)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.data import trained_pairs
from psyco_ray.evaluate import stats, verdicts
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.rollout.scorer import REFERENCE
from psyco_ray.run import storage
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Group
from psyco_ray.simulate.dialogue import Dialogue
from psyco_ray.training import conversation_guards, guards
from psyco_ray.training.run_state import RunState
from psyco_ray.training.turn_measures import conversations, measure_ranked, measure_turns

_log = logging.getLogger(__name__)

Record = dict[str, Any]


class HeldoutEvaluation:
    """Measures a policy's responses to the held-out speeches, has a judge compare them, and checks the guards.

    The base model (iteration 0) is only measured; later policies are compared with it.

    Example:
        >>> heldout = HeldoutEvaluation(job, ledger, run_state, progress)
        >>> measures = heldout.measure(1, groups, speeches)
        >>> ledger.finish(stage(1, "evaluate"), began, **measures, **heldout.check_guards(1, measures))
    """

    def __init__(self, job: Job, ledger: Ledger, run_state: RunState, progress: Progress) -> None:
        self._job, self._ledger, self._run_state, self._progress = job, ledger, run_state, progress

    def measure(
        self,
        iteration: int,
        groups: Mapping[str, Group],
        speeches: Mapping[str, str],
        dialogues: Sequence[Dialogue] | None = None,
    ) -> Record:
        """Lengths, variety and rewards of an iteration's responses, see `measure`, and of dialogues by turn.

        `turns` is of `measure_turns`; `ranked` of `measure_ranked`, where more than the first turn ranks responses.

        If a context is a conversation, also `conversation`, over all turns of dialogues, see
        `conversation_guards.measure`, and `conversations`, the conversation of each speech id.

        Args:
            iteration: 0 is the base model.
            groups: its scored responses by speech id.
            speeches: texts of the contexts by speech id.
            dialogues: that go on from these responses; None: the job has no simulated clients.

        Raises:
            InputError: more than half of the base model's responses are unfinished, so those to train on will be too.
        """
        base = self._run_state.evaluation(0)
        assert (base is None) == (iteration == 0), "the base model is evaluated first"
        contexts = {key: Context.of(speeches[key]) for key in sorted(groups)}
        conversation = conversations(contexts)
        measures = measure(groups, base, conversation, self._job.seed)
        if any(context.is_conversation for context in contexts.values()):
            measures["conversations"] = conversation
        answered = [(context, response.text) for key, context in contexts.items() for response in groups[key].responses]
        if dialogues is not None:
            answered = [(context, answer.text) for told in dialogues for context, answer, _ in told.exchanges()]
        if any(context.is_conversation for context, _ in answered):
            measures["conversation"] = conversation_guards.measure(answered)
        if base is None:
            answers = "the base model's answers to the held-out speeches"
            guards.require_finished(measures["finished_share"], answers, self._job.sampling)
        if dialogues is not None:
            assert self._job.simulate is not None, "the job has simulated clients"
            seed = self._job.seed
            measures["turns"] = measure_turns(dialogues, None if base is None else base["turns"], seed)
            before = None if base is None else base.get("ranked")
            if (ranked := measure_ranked(dialogues, before, self._job.simulate, seed)) is not None:
                measures["ranked"] = ranked
        return measures

    def judge(self, groups: Mapping[str, Group], speeches: Mapping[str, str]) -> Record:
        """How often the judge prefers a policy's response to the base model's response with the same seed.

        It compares the responses to `evaluation.judged` speeches, the same ones in every iteration.

        Args:
            groups: the policy's responses by speech id.
            speeches: texts by speech id.

        Returns:
            `win_rate_vs_base` and `win_rate_ci95` (a tie is half a win; the contexts of a conversation count as
            dependent), the `outcomes` by speech and the number of `unreadable` verdicts, which are ignored.

        Raises:
            InputError: no verdict was readable, or the server rejects the key or the model.
            UnavailableError: the server failed repeatedly.
        """
        endpoint = self._job.evaluation.judge
        assert endpoint is not None, "the job has a judge"
        base = self._ledger.responses(stage(0, "dev"))
        judged = set(sorted(base)[: self._job.evaluation.judged])  # a quarantined speech has no base response
        pairs = [
            verdicts.ResponsePair(
                key=f"{key}:{index}", speech=speeches[key], ours=response.text, theirs=base[key][index]
            )
            for key, group in sorted(groups.items())
            if key in judged
            for index, response in enumerate(group.responses)
        ]
        job = self._job
        setup = verdicts.JudgeSetup(
            endpoint, job.evaluation.judging, Outgoing(job.scrub, job.privacy), job.prompts.file, job.seed
        )
        # verdicts stay in the run directory, so none is paid for twice
        with self._ledger.mirrored("judge"):
            by_pair = verdicts.judge(
                pairs, setup, self._ledger.root / "judge", self._progress, job.evaluation.max_cost, "held-out answers"
            )
        readable: dict[str, list[float]] = {}
        for key, outcome in by_pair.items():
            if outcome is not None:
                readable.setdefault(key.rpartition(":")[0], []).append(outcome)
        if not readable:
            raise InputError(
                f"evaluation.judge {endpoint.model} gave no readable verdict on {len(pairs)} pairs of responses; "
                "use a stronger model, or one that follows a JSON schema"
            )
        outcomes = {key: sum(values) / len(values) for key, values in readable.items()}
        unreadable = sum(outcome is None for outcome in by_pair.values())
        conversation = conversations({key: Context.of(speeches[key]) for key in outcomes})
        return {**_win_rate(outcomes, conversation), "outcomes": outcomes, "unreadable": unreadable}

    def check_guards(self, iteration: int, measures: Record) -> Record:
        """Monitors, alarms and the iteration to continue from; empty for the base model."""
        if not iteration:
            return {}
        checked = self._run_state.check_guards(iteration, measures)
        for alarm in checked["alarms"]:
            _log.warning(f"iteration {iteration}: ALARM, {alarm}")
        return checked


def compare_training_pairs(job: Job) -> Record | None:
    """Whether the held-out reward model was trained on pairs that also trained the one that ranks the responses.

    Returns:
        `same`: the two are one model; `pairs`: training pairs of the held-out model; `shared`: the number of them that
        also trained the other, None if a model does not say (see `trained_pairs`). None without two such models.

    Raises:
        InputError: a model's record of its pairs is damaged.
    """
    reward, heldout = job.scorers.reward_model, job.scorers.heldout_model
    if reward is None or heldout is None or job.pairs_from == "file":
        return None
    ranking, judging = trained_pairs.read(reward), trained_pairs.read(heldout)
    shared = None if ranking is None or judging is None else len(ranking.digests & judging.digests)
    same, pairs = storage.absolute(reward) == storage.absolute(heldout), judging and len(judging.digests)
    if same:
        _log.warning("scorers.heldout_model is scorers.reward_model, so it shares all its errors; name another model")
    elif shared:
        _log.warning(
            f"scorers.heldout_model {heldout} was trained on {pairs} pairs, {shared} of which also trained "
            f"scorers.reward_model {reward}, and may share its errors; train the two on halves (reward.half a and b)"
        )
    return {"same": same, "pairs": pairs, "shared": shared}


def measure(groups: Mapping[str, Group], base: Record | None, conversation: Mapping[str, str], seed: int) -> Record:
    """Lengths, variety and rewards of responses, and how often a reward model scores them above the base model's.

    Args:
        groups: scored responses by speech id.
        base: the base model's measures; None for the base model itself.
        conversation: of each speech id; intervals take its contexts as dependent.
        seed: of the bootstrap.

    Returns:
        `speeches`, `mean_tokens`, `tokens` of each response by speech, `finished_share`, `distinct_1`, `distinct_2`,
        for each reward model the mean `reward` over speeches with its `ci95`, the `scores` by speech, and
        `win_rate_vs_base` with `win_rate_ci95`; and with a reference `kl`: the mean over speeches of the responses'
        log-probability under the policy less that under the reference, in nats per response. Responses that were
        sampled at temperature 1 estimate the KL divergence without bias; at a lower temperature they are likelier ones,
        and the figure is the mean log-ratio on these.
    """
    responses = {key: groups[key].responses for key in sorted(groups)}
    tokens = {key: [response.tokens for response in group] for key, group in responses.items()}
    lengths = [length for group in tokens.values() for length in group]
    measures: Record = {"speeches": len(groups), "mean_tokens": sum(lengths) / len(lengths), "tokens": tokens}
    flat = [response for group in responses.values() for response in group]
    measures["finished_share"] = sum(response.finished for response in flat) / len(flat)
    for n in (1, 2):
        measures[f"distinct_{n}"] = guards.distinct([response.text for response in flat], n)
    models = list(next(iter(groups.values())).scores)
    if REFERENCE in models:
        models.remove(REFERENCE)
        measures["kl"] = _log_ratio(groups)
    for model in models:
        scores = {key: list(groups[key].scores[model]) for key in responses}
        means = [sum(values) / len(values) for values in scores.values()]
        measures[model] = {
            "reward": sum(means) / len(means),
            "ci95": stats.clustered_mean(means, [conversation[key] for key in scores], seed),
            "scores": scores,
        }
        if base is not None:
            base_scores = base[model]["scores"]  # lacks quarantined speeches
            wins = {
                key: stats.win_share(values, base_scores[key]) for key, values in scores.items() if key in base_scores
            }
            measures[model] |= _win_rate(wins, conversation)
    return measures


def _log_ratio(groups: Mapping[str, Group]) -> float:
    """Mean log-probability of responses under the policy that sampled them less that under the reference, in nats."""
    means = []
    for key in sorted(groups):
        ratios = []
        for response, reference in zip(groups[key].responses, groups[key].scores[REFERENCE], strict=True):
            assert response.logprob is not None, "held-out responses have log-probabilities"
            ratios.append(response.logprob - reference)
        means.append(sum(ratios) / len(ratios))
    return sum(means) / len(means)


def _win_rate(wins: Mapping[str, float], conversation: Mapping[str, str]) -> Record:
    interval = stats.clustered_wilson([*wins.values()], [conversation[key] for key in wins])
    return {"win_rate_vs_base": sum(wins.values()) / len(wins), "win_rate_ci95": interval}
