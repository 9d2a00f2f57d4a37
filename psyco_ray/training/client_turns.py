"""The turns of simulated clients in a training run, from engines of their own or from an API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from psyco_ray.config.simulate import Client
from psyco_ray.config.training import Job
from psyco_ray.data import fitting
from psyco_ray.data.speeches import shared_tokenizer
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.simulate import clients, replies
from psyco_ray.simulate.clients import ATTEMPTS, Questions
from psyco_ray.simulate.dialogue import Dialogue, Reply
from psyco_ray.training import inputs
from psyco_ray.training.dialogue import PromptRows, check_room
from psyco_ray.training.pipeline import Sampling, SamplingPipeline, SamplingStage


def check(job: Job) -> None:
    """Check what asks simulated clients, before anything is started; nothing without them.

    Raises:
        InputError: prompt or profiles are invalid, the client's chat template refuses the prompt, its API's key is
            missing, or clients' words must not be sent there.
    """
    if job.simulate is None:
        return
    client, questions = job.simulate.client, _questions(job)
    if client.endpoint is not None:
        questions.outgoing.check({"simulate.client": client.endpoint})
    else:
        questions.check(_tokenizer(client))


def _questions(job: Job) -> Questions:
    assert job.simulate is not None, "the job has simulated clients"
    return Questions.of(job.simulate.client, job.prompts.file, job.seed, Outgoing(job.scrub, job.privacy))


def _tokenizer(client: Client) -> Any:
    assert client.model is not None, "the client is on engines"
    return shared_tokenizer(client.model, (*client.template_options.items(),))


class ClientTurns:
    """Asks for the clients' turns.

    Example:
        >>> turns = ClientTurns(job, ledger, telemetry, pipeline)
        >>> turns.ask("iteration-001/client-1", 1, dialogues)
    """

    def __init__(self, job: Job, ledger: Ledger, telemetry: Telemetry, pipeline: SamplingPipeline) -> None:
        """Read prompt and profiles, which `check` has found right."""
        self._questions = _questions(job)
        self._ledger, self._telemetry, self._pipeline = ledger, telemetry, pipeline
        self._client = self._questions.client
        self.described = {
            "client": self._client.name,
            "client_digest": None if self._client.model is None else inputs.digest_of(self._client.model),
        }

    def ask(self, name: str, turn: int, dialogues: Sequence[Dialogue]) -> None:
        """Add the client's turn to each dialogue, or its end; a dialogue without a usable reply fails.

        Args:
            name: of the stage.
            turn: of the policy, which the clients react to.
            dialogues: that the policy has answered.

        Raises:
            BudgetExceededError, UnavailableError, InputError: the client's API stops.
            InputError: most prompts are too long for the client's engines, or most dialogues fail.
        """
        began = time.time()
        by_key = {dialogue.key: dialogue for dialogue in dialogues}
        ask = self._from_engines if self._client.endpoint is None else self._from_api
        found, failed = ask(name, turn, by_key)
        for key, reply in found.items():
            by_key[key].replies.append(reply)
        for key, reason in failed.items():
            by_key[key].failed = reason
        replies.check(name, len(by_key), failed)
        record = self._ledger.record(name)
        if record is None or any(record[key] != value for key, value in self.described.items()):
            left = sum(reply.ended for reply in found.values())
            self._ledger.finish(name, began, **self.described, turn=turn, replies=len(found), left=left, failed=failed)

    def _from_engines(
        self, name: str, turn: int, by_key: dict[str, Dialogue]
    ) -> tuple[dict[str, Reply], dict[str, str]]:
        """The replies, and why there are none after ATTEMPTS; each attempt has seeds and a stage of its own."""
        client = self._client
        sampling = Sampling(0, 1, client.temperature, 1.0, client.max_tokens)
        found: dict[str, Reply] = {}
        failed: dict[str, str] = {}
        asked = by_key
        for attempt in range(1, ATTEMPTS + 1):
            part = name if attempt == 1 else f"{name}-attempt-{attempt}"
            rows = PromptRows([*asked.values()], self._prompt_ids)
            seed = (clients.purpose_of(attempt), turn)
            work = SamplingStage(part, rows, seed, sampling, scored_by=(), client=self.described["client_digest"] or "")
            unusable = {}
            for group in self._telemetry.track(self._pipeline.groups(work), f"{part}: replies", len(asked)):
                [response] = group.responses
                key = group.prompt.speech_id
                if (reply := clients.reply_of(response.text, response.finished)) is None:
                    unusable[key] = asked[key]
                else:
                    found[key] = reply
            check_room(part, [*asked.values()], "raise simulate.client.rollouts.max_model_len")
            silent = asked.keys() - found.keys() - unusable.keys()
            failed |= {key: why for key, why in self._ledger.quarantined(part).items() if key in silent}
            if not (asked := unusable):
                break
        return found, {**failed, **dict.fromkeys(asked, replies.UNUSABLE)}

    def _from_api(self, name: str, turn: int, by_key: dict[str, Dialogue]) -> tuple[dict[str, Reply], dict[str, str]]:
        client, root = self._client, self._ledger.root
        assert client.endpoint is not None, "the client is behind an API"
        asked = {key: self._questions.messages(dialogue, dialogue.context) for key, dialogue in by_key.items()}
        task = replies.write_task(self._questions, turn, asked, [client.endpoint.model], root)
        with self._ledger.mirrored("clients"):
            run = replies.calls(self._questions, task, root / "clients" / "journal", name)
            run.execute(client.max_cost, self._telemetry)
        return replies.read(task)

    def _prompt_ids(self, dialogue: Dialogue) -> list[int] | None:
        room = self._client.rollouts.max_model_len - self._client.max_tokens
        return fitting.fitting_ids(
            _tokenizer(self._client),
            dialogue.context,
            lambda context: self._questions.messages(dialogue, context),
            room,
        )
