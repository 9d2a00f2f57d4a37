"""Dialogues of policies and their opponent with the same simulated clients, turn by turn.

All models answer a turn before any client replies to it. What is answered is stored as the answers to speeches are, so
that an interrupted command goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from psyco_ray.config.contexts import LABELS, Context
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.prompts import Messages, PromptsFile
from psyco_ray.evaluate import answers, checkpoints
from psyco_ray.judge import outside_texts
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.models import loading, templates
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Row
from psyco_ray.simulate import replies
from psyco_ray.simulate.clients import Reply, client_messages, load_client_prompt
from psyco_ray.simulate.profiles import ProfileLists
from psyco_ray.simulate.replies import ReplyTask

LEAVES, NO_RESPONSE = "[The client leaves.]", "[No response.]"
"""How a transcript says that a dialogue ended early."""

DIALOGUES = pa.schema(
    [
        *((name, pa.string()) for name in ("dialogue", "model", "client", "client_state")),
        ("turn", pa.int64()),
        ("speech", pa.string()),  # the context of the response
        ("response", pa.string()),  # null: the model gave none
        ("finished", pa.bool_()),
        ("reply", pa.string()),  # the client's; null: none was asked for, or the client's model gave none
        ("left", pa.bool_()),  # the client left with the reply
    ]
)
"""``dialogues/<model>.parquet``: all dialogues of a policy or of the opponent, a row for each turn."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exchange:
    """A model's response, and the client's reply to it."""

    response: str | None  # None: the model gave none, and the dialogue ends
    finished: bool | None = None
    reply: Reply | None = None
    unreplied: bool = False  # the client's model gave no reply, for example because the dialogue is too long for it


@dataclass(frozen=True)
class Dialogue:
    """A dialogue as far as it has come.

    Example:
        >>> dialogue = Dialogue("I cannot sleep.").answered("Since when?").replied(Reply("May.", ended=False))
        >>> dialogue.going, dialogue.context.turn
        (True, 2)
    """

    opening: str
    exchanges: tuple[Exchange, ...] = ()

    @property
    def going(self) -> bool:
        """Whether the model has the next turn."""
        last = self.exchanges[-1] if self.exchanges else None
        return last is None or (last.reply is not None and not last.reply.ended)

    @property
    def waiting(self) -> bool:
        """Whether the client has the next turn."""
        last = self.exchanges[-1] if self.exchanges else None
        return last is not None and last.response is not None and last.reply is None and not last.unreplied

    @property
    def responses(self) -> list[str]:
        """The model's turns."""
        return [exchange.response for exchange in self.exchanges if exchange.response is not None]

    @property
    def context(self) -> Context:
        """The dialogue up to the client's last words: while it goes on, the context of the next response."""
        turns = [self.opening]
        for exchange in self.exchanges:
            if exchange.response is not None and exchange.reply is not None and exchange.reply.text:
                turns += [exchange.response, exchange.reply.text]
        return Context(tuple(turns))

    @property
    def left_at(self) -> int | None:
        """The turn after which the client left; None: the client did not."""
        last = self.exchanges[-1] if self.exchanges else None
        return len(self.exchanges) if last is not None and last.reply is not None and last.reply.ended else None

    def answered(self, response: str | None, finished: bool | None = None) -> Dialogue:
        """The dialogue after the model's turn."""
        assert self.going, "the model has the turn"
        return replace(self, exchanges=(*self.exchanges, Exchange(response, finished)))

    def replied(self, reply: Reply | None) -> Dialogue:
        """The dialogue after the client's turn; None: the client's model gave none."""
        assert self.waiting, "the client has the turn"
        last = replace(self.exchanges[-1], reply=reply, unreplied=reply is None)
        return replace(self, exchanges=(*self.exchanges[:-1], last))

    def transcript(self, until: int | None = None, change: Callable[[str], str] = str) -> str:
        """The turns behind the opening, as a judge reads them; no turn can pass for another one.

        Args:
            until: the last response to show; None: the whole dialogue, with how it ended.
            change: what every turn goes through.
        """
        client, therapist = LABELS
        lines = []
        for turn, exchange in enumerate(self.exchanges[:until], start=1):
            response = NO_RESPONSE if exchange.response is None else change(exchange.response)
            lines.append(f"{therapist} {outside_texts.as_data(response, LABELS)}")
            if exchange.reply is not None and turn != until:
                said = outside_texts.as_data(change(exchange.reply.text), LABELS) if exchange.reply.text else ""
                lines.append(" ".join(filter(None, (client, said, LEAVES if exchange.reply.ended else ""))))
        return "\n\n".join(lines)


class Clients:
    """The simulated clients of an evaluation.

    Example:
        >>> clients = Clients(job, directory.root, outgoing, Progress())
        >>> dialogues = clients.replied(1, {"dpo": dialogues})
    """

    def __init__(self, job: PolicyEvaluationJob, root: Path, outgoing: Outgoing, progress: Progress) -> None:
        """Check the prompt and the model before hours of work.

        Raises:
            InputError: the prompts file lacks an entry, the model does not exist, or it refuses the prompt.
        """
        assert job.simulate is not None, "the job has simulated clients"
        self._job, self._root, self._outgoing, self._progress = job, root, outgoing, progress
        self._settings = job.simulate.client
        self._prompt = load_client_prompt(job.prompts.file, self._settings.prompt)
        self._lists = ProfileLists.of(PromptsFile(job.prompts.file))
        self._model: checkpoints.Checkpoint | None = None
        if self._settings.model is not None:
            found = checkpoints.find(self._settings.model)
            self._model = found.with_options(self._settings.template_options)
            checkpoints.check_context(self._model, self._settings.rollouts.max_model_len)
            path, options = loading.resolve(self._model.path), self._model.template_options
            trial = self._messages("trial", Dialogue("I cannot sleep.").answered("Since when?"))
            templates.check(loading.load_tokenizer(path, template_options=options), trial)

    @property
    def state(self) -> str:
        """What decides the replies beside the questions: a hash of the model's files, or the API's model."""
        if self._model is not None:
            return answers.fingerprint(self._model)
        return self._settings.name

    def replied(self, turn: int, dialogues: Mapping[str, Mapping[str, Dialogue]]) -> dict[str, dict[str, Dialogue]]:
        """The dialogues of all models after the clients' replies to this turn.

        Args:
            turn: of the models, from 1.
            dialogues: by model and id.

        Raises:
            BudgetExceededError, UnavailableError, InputError: as all calls.
        """
        tasks = {name: self._task(turn, of) for name, of in dialogues.items()}
        self._ask(turn, [*tasks.values()])
        after = {}
        for name, of in dialogues.items():
            said, failed = replies.read(tasks[name])
            for reason in list(failed.values())[:1]:
                _log.warning(
                    f"{name}: {len(failed)} dialogues end without a client's reply; the first reason: {reason}"
                )
            after[name] = {key: d.replied(said.get(key)) if d.waiting else d for key, d in of.items()}
        return after

    def _messages(self, key: str, dialogue: Dialogue) -> Messages:
        """What asks for a client's next turn, as it is sent."""
        profile = self._lists.draw(self._job.seed, key, Context.of(dialogue.opening))
        response = dialogue.exchanges[-1].response
        assert response is not None, "the client has the turn"
        messages = client_messages(self._prompt, profile, dialogue.context, response)
        return messages if self._model is not None else replies.for_api(messages, self._settings, self._outgoing)

    def _task(self, turn: int, dialogues: Mapping[str, Dialogue]) -> ReplyTask:
        """What the waiting clients are asked. Of all models the same client has the same seed."""
        asked = {key: self._messages(key, dialogue) for key, dialogue in dialogues.items() if dialogue.waiting}
        settings = self._settings
        engine = [] if self._model is None else [settings.rollouts.dtype, settings.rollouts.max_model_len]
        return replies.write_task(settings, self._job.seed, turn, asked, [self.state, *engine], self._root)

    def _ask(self, turn: int, tasks: Sequence[ReplyTask]) -> None:
        """Let the client's model reply: on engines that load it once, or over its API, to one model at a time."""
        job, what = self._job, f"clients, turn {turn}"
        distinct = {task.out: task for task in tasks}  # two models may have said the same
        if self._model is not None:
            answers.generate(job, what, self._model, [*distinct.values()], self._progress, self._settings.rollouts)
            return
        assert self._settings.endpoint is not None, "a client without a model has an API"
        for task in distinct.values():  # in the journal of all calls, which max_cost is about
            calls = answers.calls(self._settings.endpoint, task, self._root / "journal", self._outgoing, what)
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
    dialogues = {name: {key: Dialogue(opening) for key, opening in openings.items()} for name in names}
    for turn in range(1, turns + 1):
        for name, of in dialogues.items():
            contexts = {key: dialogue.context.text for key, dialogue in of.items() if dialogue.going}
            responses = respond(name, contexts) if contexts else {}
            for key in contexts:
                row = responses.get(key, {"response": None, "finished": None})
                of[key] = of[key].answered(row["response"], row["finished"])
        if turn < turns:
            dialogues = clients.replied(turn, dialogues)
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
        context = Context.of(dialogue.opening)
        for turn, exchange in enumerate(dialogue.exchanges, start=1):
            said = exchange.reply
            rows.append(
                {
                    "dialogue": key,
                    "model": name,
                    "client": client,
                    "client_state": state,
                    "turn": turn,
                    "speech": context.text,
                    "response": exchange.response,
                    "finished": exchange.finished,
                    "reply": None if said is None else said.text,
                    "left": said is not None and said.ended,
                }
            )
            if exchange.response is not None and said is not None and not said.ended:
                context = context.answered(exchange.response, said.text)
    return pa.Table.from_pylist(rows, schema=DIALOGUES)
