"""Replies of simulated clients, turn by turn, on vLLM engines or over an API.

As responses of a pool they are stored in parts, in a directory named by a hash of what decides them, so that an
interrupted run asks only for what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from psyco_ray.config.prompts import Messages
from psyco_ray.config.simulate import Client
from psyco_ray.data.respond import EMPTY, ApiStage, ResponseSampling, ResponseTask
from psyco_ray.judge import outside_texts
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run import shards
from psyco_ray.run.hashing import key_of
from psyco_ray.simulate.clients import Reply, reply_of, reply_seed

_ASKED = pa.schema([("speech_id", pa.string()), ("speech", pa.string())])  # a dialogue's id, and its messages as JSON


@dataclass(frozen=True)
class ReplyTask(ResponseTask):
    """The dialogues of one turn whose clients a model plays."""

    turn: int = 1  # of the policy, which the clients react to

    def messages(self, speech: str) -> Messages:
        """The conversation that asks for the client's turn."""
        messages: Messages = json.loads(speech)
        return messages

    def seed_of(self, speech_id: str) -> int:
        """The seed of a reply."""
        return reply_seed(self.sampling.seed, speech_id, self.turn)


def write_task(
    client: Client, seed: int, turn: int, asked: Mapping[str, Messages], fingerprint: Sequence[Any], root: Path
) -> ReplyTask:
    """Write what the clients of a turn are asked; nothing is answered yet.

    Args:
        client: the model and how it samples.
        seed: of the job.
        turn: of the policy, which the clients react to.
        asked: the messages of each dialogue by its id, see `client_messages` and, for an API, `for_api`.
        fingerprint: what else decides the replies: a hash of the model's files, or the API's model.
        root: the run directory.
    """
    rows = [{"speech_id": key, "speech": json.dumps(messages)} for key, messages in sorted(asked.items())]
    key = key_of(list(fingerprint), client.temperature, client.max_tokens, seed, turn, rows)
    questions = root / "clients" / "asked" / key
    parts = shards.write_by_id(questions, rows, "speech_id", _ASKED)
    sampling = ResponseSampling({}, client.temperature, top_p=1.0, max_tokens=client.max_tokens, seed=seed)
    return ReplyTask(
        client.name, sampling, questions, root / "clients" / "replies" / key, only=tuple(sorted(parts)), turn=turn
    )


def for_api(messages: Messages, client: Client, outgoing: Outgoing) -> Messages:
    """The messages as they are sent to the client's API: scrubbed where the job says so, and without control tokens."""
    endpoint = client.endpoint
    assert endpoint is not None, "the client is behind an API"
    return [
        {**message, "content": outside_texts.as_data(outgoing.text(endpoint, message["content"]))}
        for message in messages
    ]


def calls(client: Client, task: ReplyTask, root: Path, outgoing: Outgoing, name: str) -> CallRun:
    """The calls by which an API replies to what is missing.

    Args:
        client: with an endpoint.
        task: of `write_task`.
        root: the run directory, whose `clients` has the journal of paid answers.
        outgoing: the terms on which texts are sent.
        name: on the progress line and in messages.
    """
    assert client.endpoint is not None, "the client is behind an API"
    stage = ApiStage(client.endpoint, task)
    return CallRun(name, stage, task.parts(), root / "clients" / "journal", outgoing)


def read(task: ReplyTask) -> tuple[dict[str, Reply], dict[str, str]]:
    """The replies of a turn by dialogue, and why others failed. A client who says nothing leaves."""
    replies: dict[str, Reply] = {}
    failed: dict[str, str] = {}
    for part in task.parts():
        for row in shards.read(task.out, part):
            replies[row["speech_id"]] = reply_of(row["response"], row["finished"])
        for row in shards.read(task.out / "set-aside", part):
            if row["reason"].startswith(EMPTY):
                replies[row["speech_id"]] = Reply("", ended=True)
            else:
                failed[row["speech_id"]] = row["reason"]
    return replies, failed
