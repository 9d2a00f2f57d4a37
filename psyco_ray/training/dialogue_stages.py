"""The stages of an iteration's dialogues with simulated clients.

::

    turn 1 ─▶ client 1 ─▶ ... ─▶ samples at turn t, n each ─▶ client t ─▶ turn t + 1 ─▶ ... ─▶ turn k
    └── one response each ──┘    └── rank: turn ─────────┘
                                 └── rank: dialogue, scored turn by turn ───────────────────────────┘

A stage has all dialogues of a turn; within it items stream, and each is stored by its inputs, so that a resumed run
takes what is there and asks for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.training import Job
from psyco_ray.data import fitting
from psyco_ray.data.speeches import shared_tokenizer
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.schemas import CONTEXTS
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.types import Group, Row, Rows
from psyco_ray.simulate.dialogue import Answer, Dialogue
from psyco_ray.training.client_turns import ClientTurns
from psyco_ray.training.dialogue import PromptRows, branches, check_room, mean_rewards, table_of, values_of
from psyco_ray.training.pipeline import Sampling, SamplingPipeline, SamplingStage

_LONGER = "raise rollouts.max_model_len, or lower sampling.max_tokens"


@dataclass(frozen=True)
class _Course:
    """How dialogues of one purpose go on."""

    prefix: str  # of the stages' names
    iteration: int
    purpose: str  # with the turn and `seed_iteration` it decides the seeds of responses
    seed_iteration: int
    sampling: Sampling
    scored_by: tuple[str, ...]

    def name(self, part: str) -> str:
        """A stage's name in the ledger."""
        return stage(self.iteration, f"{self.prefix}{part}")


class Dialogues:
    """Dialogues of the policy with simulated clients.

    Example:
        >>> dialogues = Dialogues(job, ledger, telemetry, pipeline, ("reward",))
        >>> rows, groups = dialogues.samples(1, rows, version=0)
        >>> facts = pair_stage.make_sampled(1, rows, groups) | dialogues.facts()
    """

    def __init__(
        self,
        job: Job,
        ledger: Ledger,
        telemetry: Telemetry,
        pipeline: SamplingPipeline,
        reward_models: tuple[str, ...],
    ) -> None:
        """Read prompts and profiles.

        Args:
            job: with `simulate`.
            ledger: of the run.
            telemetry: of the run.
            pipeline: samples and scores.
            reward_models: that score held-out responses.

        Raises:
            InputError: the client's prompt or the lists of profiles are invalid.
        """
        assert job.simulate is not None, "the job has simulated clients"
        self._job, self._settings, self._ledger, self._telemetry = job, job.simulate, ledger, telemetry
        self._pipeline, self._reward_models = pipeline, reward_models
        self._clients = ClientTurns(job, ledger, telemetry, pipeline)
        self._prompt = load_prompt(job.prompts)
        self._before: list[Dialogue] = []  # of the last iteration, up to the branch
        self._unasked: list[Dialogue] = []  # those without room for the prompt there
        self._after: list[Dialogue] = []  # and from there on, with scores

    def samples(self, iteration: int, rows: Rows, version: int) -> tuple[Rows, Iterator[Group]]:
        """Groups of responses at the branch turn, to train on.

        Args:
            iteration: of the run.
            rows: of the SPEECHES table.
            version: of the policy that samples.

        Returns:
            The contexts at the branch turn as rows of the SPEECHES table, and the groups, whose `reward` ranks the
            responses: their own reward, or with `rank: dialogue` that of their dialogues.
        """
        sampling = self._job.sampling
        one = Sampling(version, 1, sampling.temperature, sampling.top_p, sampling.max_tokens)
        course = _Course("", iteration, "", iteration, one, scored_by=())
        self._before, self._unasked, self._after = _begun(rows), [], []
        for turn in range(1, self._settings.branch_turn):
            self._answer(course, turn, self._before)
            self._clients.ask(course.name(f"client-{turn}"), turn, _waiting(self._before))
        if self._settings.branch_turn == 1:
            branch, at = rows, self._before
        else:
            at = [_before_branch(dialogue) for dialogue in self._before if dialogue.failed is None]
            branch = list(PromptRows(at, self._prompt_ids))
            self._unasked = [dialogue for dialogue in at if dialogue.failed is not None]
            check_room(course.name("samples"), at, _LONGER)
            self._ledger.write_table(course.name("contexts.parquet"), pa.Table.from_pylist(branch, schema=CONTEXTS))
        groups = self._pipeline.samples(iteration, branch, version)
        return branch, self._ranked(replace(course, scored_by=("reward",)), at, groups)

    def facts(self) -> Row:
        """Figures of the last iteration's dialogues by turn, for the record of its pairs.

        Returns:
            `dialogues`: the client with its digest, and for each turn the number of dialogues, how many clients left
            after it, how many dialogues `failed` there, mean reward (None where no response was scored), mean tokens
            and finished share; and why dialogues were `given_up`.
        """
        answered: dict[int, list[tuple[Dialogue, Answer]]] = {}
        for dialogue in self._before:
            for turn, answer in enumerate(dialogue.answers, start=1):
                answered.setdefault(turn, []).append((dialogue, answer))
        for dialogue in sorted(self._after, key=lambda dialogue: dialogue.key):
            for turn, answer in enumerate(dialogue.answers, start=1):
                if answer.scores:
                    answered.setdefault(turn, []).append((dialogue, answer))
        turns = [_turn_facts(turn, said) for turn, said in sorted(answered.items())]
        given_up = {d.key: d.failed for d in [*self._before, *self._unasked, *self._after] if d.failed is not None}
        return {"dialogues": {**self._clients.described, "turns": turns, "given_up": given_up}}

    def heldout(self, iteration: int, rows: Rows, groups: Mapping[str, Group], version: int) -> list[Dialogue]:
        """Dialogues that go on from the responses to held-out speeches, to the last turn.

        All reward models score each response in its context. Seeds are the same in every iteration.

        Args:
            iteration: of the run.
            rows: of the SPEECHES table.
            groups: the scored responses to them, by speech.
            version: of the policy that samples.
        """
        evaluation = self._job.evaluation
        sampling = Sampling(version, 1, evaluation.temperature, 1.0, self._job.sampling.max_tokens)
        course = _Course("dev-", iteration, "dev-", 0, sampling, self._reward_models)
        dialogues = [
            branch
            for dialogue in _begun(rows)
            if dialogue.speech_id in groups
            for branch in branches(dialogue, groups[dialogue.speech_id])
        ]
        self._go_on(course, dialogues, first=1)
        self._write(course, dialogues)
        return dialogues

    def _ranked(self, course: _Course, at: Sequence[Dialogue], groups: Iterable[Group]) -> Iterator[Group]:
        """The groups with what ranks their responses; their dialogues go to `self._after`."""
        by_speech = {dialogue.speech_id: dialogue for dialogue in at}
        if self._settings.rank == "turn":
            for group in groups:
                self._after += branches(by_speech[group.prompt.speech_id], group)
                yield group
            return
        name = f"iteration {course.iteration}: responses at turn {self._settings.branch_turn}"
        sampled = {group.prompt.speech_id: group for group in self._telemetry.track(groups, name, len(by_speech))}
        of_speech = {key: branches(by_speech[key], sampled[key]) for key in by_speech if key in sampled}
        self._after = [dialogue for dialogues in of_speech.values() for dialogue in dialogues]
        self._go_on(course, self._after, first=self._settings.branch_turn)
        self._write(course, self._after)
        means = mean_rewards(self._after)
        for key, dialogues in of_speech.items():
            if all(dialogue.failed is None for dialogue in dialogues):  # else they are not compared on equal terms
                rewards = values_of(dialogues, self._settings.reduce, means)
                yield replace(sampled[key], scores={**sampled[key].scores, "reward": rewards})

    def _go_on(self, course: _Course, dialogues: Sequence[Dialogue], first: int) -> None:
        """Continue dialogues from the response of turn `first` to that of the last turn."""
        for turn in range(first, self._settings.turns):
            self._clients.ask(course.name(f"client-{turn}"), turn, _waiting(dialogues))
            self._answer(course, turn + 1, dialogues)

    def _answer(self, course: _Course, turn: int, dialogues: Sequence[Dialogue]) -> None:
        """Add the policy's response of a turn to the dialogues that wait for it."""
        waiting = {dialogue.key: dialogue for dialogue in dialogues if dialogue.waits_for_policy}
        work = SamplingStage(
            course.name(f"turn-{turn}"),
            PromptRows([*waiting.values()], self._prompt_ids),
            (f"{course.purpose}turn-{turn}", course.seed_iteration),
            course.sampling,
            course.scored_by,
        )
        what = f"iteration {course.iteration}: {course.prefix}turn {turn}"
        for group in self._telemetry.track(self._pipeline.groups(work), what, len(waiting)):
            waiting[group.prompt.speech_id].answers.append(Answer.of(group, 0))
        for key, reason in self._ledger.quarantined(work.name).items():
            if key in waiting:
                waiting[key].failed = reason
        check_room(work.name, [*waiting.values()], _LONGER)

    def _prompt_ids(self, dialogue: Dialogue) -> list[int] | None:
        job = self._job
        return fitting.fitting_ids(
            shared_tokenizer(job.model, (*job.template_options.items(),)),
            dialogue.context,
            lambda context: prompt_messages(self._prompt, context.text),
            fitting.room(job),
        )

    def _write(self, course: _Course, dialogues: Sequence[Dialogue]) -> None:
        table = table_of(dialogues, course.sampling.version, self._clients.described)
        self._ledger.write_table(course.name("dialogues.parquet"), table)


def _begun(rows: Rows) -> list[Dialogue]:
    """A dialogue for each context."""
    return [Dialogue(row["speech_id"], Context.of(row["speech"])) for row in rows]


def _waiting(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    return [dialogue for dialogue in dialogues if dialogue.waits_for_client]


def _before_branch(dialogue: Dialogue) -> Dialogue:
    """A dialogue at its last context, without the response to it if the client has left after that."""
    answers = len(dialogue.answers)
    if not dialogue.waits_for_policy:
        answers -= 1
    return replace(dialogue, answers=dialogue.answers[:answers], replies=dialogue.replies[:answers])


def _turn_facts(turn: int, said: Sequence[tuple[Dialogue, Answer]]) -> dict[str, Any]:
    rewards = [answer.scores["reward"] for _, answer in said if answer.scores]
    return {
        "turn": turn,
        "dialogues": len(said),
        "left": sum(dialogue.left and len(dialogue.answers) == turn for dialogue, _ in said),
        "failed": sum(dialogue.failed is not None and len(dialogue.answers) == turn for dialogue, _ in said),
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "mean_tokens": sum(answer.tokens for _, answer in said) / len(said),
        "finished_share": sum(answer.finished for _, answer in said) / len(said),
    }
