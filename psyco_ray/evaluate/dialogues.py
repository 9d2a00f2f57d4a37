"""Dialogues of policies and their opponent with the same simulated clients, turn by turn.

All models answer a turn before any client replies to it. What is answered is stored as the answers to speeches are, so
that an interrupted command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from psyco_ray.config.contexts import Context
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.evaluate import answers, checkpoints
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.models import loading
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Row
from psyco_ray.simulate import replies
from psyco_ray.simulate.clients import ATTEMPTS, Questions
from psyco_ray.simulate.dialogue import Answer, Dialogue
from psyco_ray.simulate.replies import ReplyTask

DIALOGUES = pa.schema(
    [
        *((name, pa.string()) for name in ("dialogue", "model", "client", "client_state")),
        ("turn", pa.int64()),
        ("speech", pa.string()),  # the context of the response
        ("response", pa.string()),  # null: the model gave none
        ("finished", pa.bool_()),
        ("reply", pa.string()),  # the client's; null: none was asked for, or the client's model gave none
        ("left", pa.bool_()),  # the client left with the reply
        ("failed", pa.string()),  # why the client's model gave no usable reply; null: it did, or was not asked
    ]
)
"""``dialogues/<model>.parquet``: all dialogues of a policy or of the opponent, a row for each turn."""


class Clients:
    """The simulated clients of an evaluation.

    Example:
        >>> clients = Clients(job, directory.root, outgoing, Progress())
        >>> clients.reply(1, {"dpo": dialogues})
    """

    def __init__(self, job: PolicyEvaluationJob, root: Path, outgoing: Outgoing, progress: Progress) -> None:
        """Check the prompt and the model before hours of work.

        Raises:
            InputError: the prompts file lacks an entry, the model does not exist, or it refuses the prompt.
        """
        assert job.simulate is not None, "the job has simulated clients"
        self._job, self._root, self._progress = job, root, progress
        self._settings = job.simulate.client
        self._questions = Questions.of(self._settings, job.prompts.file, job.seed, outgoing)
        self._model: checkpoints.Checkpoint | None = None
        if self._settings.model is not None:
            found = checkpoints.find(self._settings.model)
            self._model = found.with_options(self._settings.template_options)
            checkpoints.check_context(self._model, self._settings.rollouts.max_model_len)
            path, options = loading.resolve(self._model.path), self._model.template_options
            self._questions.check(loading.load_tokenizer(path, template_options=options))

    @property
    def state(self) -> str:
        """What decides the replies beside the questions: a hash of the model's files, or the API's model."""
        if self._model is not None:
            return answers.fingerprint(self._model)
        return self._settings.name

    def reply(self, turn: int, dialogues: Mapping[str, Mapping[str, Dialogue]]) -> None:
        """Add the clients' replies to this turn to the dialogues of all models; those without a usable one fail.

        Args:
            turn: of the models, from 1.
            dialogues: by model and id.

        Raises:
            BudgetExceededError, UnavailableError, InputError: as all calls.
            InputError: most dialogues of a model fail.
        """
        waiting = {name: {key: d for key, d in of.items() if d.waits_for_client} for name, of in dialogues.items()}
        failed: dict[str, dict[str, str]] = {name: {} for name in waiting}
        asked = waiting
        for attempt in range(1, 1 + (1 if self._model is None else ATTEMPTS)):  # an API's calls repeat themselves
            tasks = {name: self._task(turn, of, attempt) for name, of in asked.items()}
            self._ask(turn, [*tasks.values()])
            for name, task in tasks.items():
                said, unsaid = replies.read(task)
                for key, reply in said.items():
                    asked[name][key].replies.append(reply)
                failed[name] = {key: why for key, why in failed[name].items() if key not in said} | unsaid
            again = {name: [key for key, why in of.items() if why == replies.UNUSABLE] for name, of in failed.items()}
            asked = {name: {key: waiting[name][key] for key in keys} for name, keys in again.items() if keys}
            if not asked:
                break
        for name, reasons in failed.items():
            for key, reason in reasons.items():
                waiting[name][key].failed = reason
            replies.check(f"{name}, turn {turn}", len(waiting[name]), reasons)

    def _task(self, turn: int, dialogues: Mapping[str, Dialogue], attempt: int = 1) -> ReplyTask:
        """What the waiting clients are asked. Of all models the same client has the same seed."""
        asked = {key: self._questions.messages(dialogue, dialogue.context) for key, dialogue in dialogues.items()}
        rollouts = self._settings.rollouts
        engine = [] if self._model is None else [rollouts.dtype, rollouts.max_model_len]
        return replies.write_task(self._questions, turn, asked, [self.state, *engine], self._root, attempt)

    def _ask(self, turn: int, tasks: Sequence[ReplyTask]) -> None:
        """Let the client's model reply: on engines that load it once, or over its API, to one model at a time."""
        job, what = self._job, f"clients, turn {turn}"
        distinct = {task.out: task for task in tasks}  # two models may have said the same
        if self._model is not None:
            answers.generate(job, what, self._model, [*distinct.values()], self._progress, self._settings.rollouts)
            return
        for task in distinct.values():  # in the journal of all calls, which max_cost is about
            calls = replies.calls(self._questions, task, self._root / "journal", f"{what} answers")
            calls.execute(job.max_cost, self._progress)


Respond = Callable[[str, Mapping[str, str]], Mapping[str, Row]]
"""Responses of a model, by its name, to contexts by id; contexts without a response are missing."""


def converse(
    names: Sequence[str], openings: Mapping[str, str], turns: int, respond: Respond, clients: Clients
) -> dict[str, dict[str, Dialogue]]:
    """Let models talk with simulated clients.

    Args:
        names: of the policies and of the opponent.
        openings: the clients' first turns, by id.
        turns: responses of a model in a dialogue.
        respond: asks a model.
        clients: who reply.

    Returns:
        The dialogues by model and id.
    """
    dialogues = {name: {key: Dialogue(key, Context.of(opening)) for key, opening in openings.items()} for name in names}
    for turn in range(1, turns + 1):
        for name, of in dialogues.items():
            contexts = {key: dialogue.context.text for key, dialogue in of.items() if dialogue.waits_for_policy}
            responses = respond(name, contexts) if contexts else {}
            for key in contexts:
                row = responses.get(key, {"response": "", "finished": False})
                of[key].answers.append(Answer(row["response"], finished=row["finished"]))
        if turn < turns:
            clients.reply(turn, dialogues)
    return dialogues


def table(name: str, dialogues: Mapping[str, Dialogue], client: str, state: str) -> pa.Table:
    """The dialogues of a model as rows of DIALOGUES.

    Args:
        name: of the model.
        dialogues: by id.
        client: the client's model.
        state: of the client's model, see `Clients.state`.
    """
    rows = []
    for key, dialogue in sorted(dialogues.items()):
        for turn, (context, answer, reply) in enumerate(dialogue.exchanges(), start=1):
            spoken, last = bool(answer.text.strip()), turn == len(dialogue.answers)
            rows.append(
                {
                    "dialogue": key,
                    "model": name,
                    "client": client,
                    "client_state": state,
                    "turn": turn,
                    "speech": context.text,
                    "response": answer.text if spoken else None,
                    "finished": answer.finished if spoken else None,
                    "reply": None if reply is None else reply.text,
                    "left": reply is not None and reply.ended,
                    "failed": dialogue.failed if last else None,
                }
            )
    return pa.Table.from_pylist(rows, schema=DIALOGUES)
