"""The turns of simulated clients in a training run, from engines of their own or from an API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import Messages, PromptsFile
from psyco_ray.config.simulate import Client
from psyco_ray.config.training import Job
from psyco_ray.data import fitting
from psyco_ray.data.speeches import shared_tokenizer
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.simulate import clients, replies
from psyco_ray.simulate.clients import Reply
from psyco_ray.simulate.profiles import ProfileLists
from psyco_ray.training import inputs
from psyco_ray.training.dialogue import Dialogue, PromptRows, check_room
from psyco_ray.training.pipeline import Sampling, SamplingPipeline, SamplingStage
from psyco_ray.training.quarantine import Quarantine

_TRIAL = Context.of("I cannot sleep.")


def check(job: Job) -> None:
    """Check what asks simulated clients, before anything is started; nothing without them.

    Raises:
        InputError: prompt or profiles are invalid, the client's chat template refuses the prompt, its API's key is
            missing, or clients' words must not be sent there.
    """
    if job.simulate is None:
        return
    client = job.simulate.client
    prompt = clients.load_client_prompt(job.prompts.file, client.prompt)
    profile = ProfileLists.of(PromptsFile(job.prompts.file)).draw(job.seed, "", _TRIAL)
    if client.endpoint is not None:
        Outgoing(job.scrub, job.privacy).check({"simulate.client": client.endpoint})
        return
    from psyco_ray.models import templates

    messages = clients.client_messages(prompt, profile, _TRIAL, "What keeps you awake?")
    templates.check(_tokenizer(client), messages)


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
        assert job.simulate is not None, "the job has simulated clients"
        self._job, self._ledger, self._telemetry, self._pipeline = job, ledger, telemetry, pipeline
        self._client = job.simulate.client
        self._prompt = clients.load_client_prompt(job.prompts.file, self._client.prompt)
        self._profiles = ProfileLists.of(PromptsFile(job.prompts.file))
        self._outgoing = Outgoing(job.scrub, job.privacy)
        self.described = {
            "client": self._client.name,
            "client_digest": None if self._client.model is None else inputs.digest_of(self._client.model),
        }

    def ask(self, name: str, turn: int, dialogues: Sequence[Dialogue]) -> None:
        """Add the client's turn to each dialogue, or its end; a dialogue whose client fails is given up.

        Args:
            name: of the stage.
            turn: of the policy, which the clients react to.
            dialogues: that the policy has answered.

        Raises:
            BudgetExceededError, UnavailableError, InputError: the client's API stops.
            InputError: most prompts are too long for the client's engines.
        """
        began = time.time()
        by_key = {dialogue.key: dialogue for dialogue in dialogues}
        ask = self._from_engines if self._client.endpoint is None else self._from_api
        found, failed = ask(name, turn, by_key)
        for key, reply in found.items():
            by_key[key].reply(reply)
        for key, reason in failed.items():
            by_key[key].failed = reason
        if self._ledger.record(name) is None:
            left = sum(reply.ended for reply in found.values())
            self._ledger.finish(
                name, began, **self.described, turn=turn, replies=len(found), left=left, quarantined=failed
            )

    def _from_engines(
        self, name: str, turn: int, by_key: dict[str, Dialogue]
    ) -> tuple[dict[str, Reply], dict[str, str]]:
        client = self._client
        sampling = Sampling(0, 1, client.temperature, 1.0, client.max_tokens)
        rows = PromptRows([*by_key.values()], self._prompt_ids)
        work = SamplingStage(name, rows, ("client", turn), sampling, scored_by=(), by_clients=True)
        found = {}
        for group in self._telemetry.track(self._pipeline.groups(work), f"{name}: replies", len(by_key)):
            [response] = group.responses
            found[group.prompt.speech_id] = clients.reply_of(response.text, response.finished)
        check_room(name, [*by_key.values()], "raise simulate.client.rollouts.max_model_len")
        return found, self._ledger.quarantined(name)

    def _from_api(self, name: str, turn: int, by_key: dict[str, Dialogue]) -> tuple[dict[str, Reply], dict[str, str]]:
        client, root = self._client, self._ledger.root
        assert client.endpoint is not None, "the client is behind an API"
        asked = {
            key: replies.for_api(self._messages(dialogue, dialogue.context), client, self._outgoing)
            for key, dialogue in by_key.items()
        }
        task = replies.write_task(client, self._job.seed, turn, asked, [client.endpoint.model], root)
        with self._ledger.mirrored("clients"):
            replies.calls(client, task, root, self._outgoing, name).execute(client.max_cost, self._telemetry)
        found, failed = replies.read(task)
        quarantine = Quarantine(name, len(by_key))
        for key, reason in failed.items():
            quarantine.add(key, reason)
        return found, quarantine.reasons

    def _messages(self, dialogue: Dialogue, context: Context) -> Messages:
        profile = self._profiles.draw(self._job.seed, dialogue.speech_id, dialogue.start)
        return clients.client_messages(self._prompt, profile, context, dialogue.response)

    def _prompt_ids(self, dialogue: Dialogue) -> list[int] | None:
        room = self._client.rollouts.max_model_len - self._client.max_tokens
        return fitting.fitting_ids(
            _tokenizer(self._client), dialogue.context, lambda context: self._messages(dialogue, context), room
        )
