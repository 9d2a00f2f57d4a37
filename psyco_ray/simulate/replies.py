"""Replies of simulated clients, turn by turn, on vLLM engines or over an API.

As responses of a pool they are stored in parts, in a directory named by a hash of what decides them, so that an
interrupted run asks only for what is missing.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import Messages
from psyco_ray.data.respond import EMPTY, ApiStage, ResponseSampling, ResponseTask
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.callers import Question
from psyco_ray.run import shards
from psyco_ray.run.hashing import key_of
from psyco_ray.simulate.clients import ATTEMPTS, Questions, reply_of, reply_seed
from psyco_ray.simulate.dialogue import Reply

UNUSABLE = "the client's model says nothing as the client"
"""Why an answer is no client's turn: it is empty, or has only the therapist's words."""

_MOST_FAILED = 0.5  # of the dialogues that wait for a turn

_log = logging.getLogger(__name__)

_ASKED = pa.schema([("speech_id", pa.string()), ("speech", pa.string())])  # a dialogue's id, and its messages as JSON


@dataclass(frozen=True)
class ReplyTask(ResponseTask):
    """The dialogues of one turn whose clients a model plays."""

    turn: int = 1  # of the policy, which the clients react to
    attempt: int = 1

    def messages(self, speech: str) -> Messages:
        """The conversation that asks for the client's turn."""
        messages: Messages = json.loads(speech)
        return messages

    def seed_of(self, speech_id: str) -> int:
        """The seed of a reply."""
        return reply_seed(self.sampling.seed, speech_id, self.turn, self.attempt)


def write_task(
    questions: Questions,
    turn: int,
    asked: Mapping[str, Messages],
    fingerprint: Sequence[Any],
    root: Path,
    attempt: int = 1,
) -> ReplyTask:
    """Write what the clients of a turn are asked; nothing is answered yet.

    Args:
        questions: of the job.
        turn: of the policy, which the clients react to.
        asked: the messages of each dialogue by its id.
        fingerprint: what else decides the replies: a hash of the model's files, or the API's model.
        root: the run directory.
        attempt: of the engines; an API's calls repeat themselves.
    """
    client, seed = questions.client, questions.seed
    rows = [{"speech_id": key, "speech": json.dumps(messages)} for key, messages in sorted(asked.items())]
    again = [] if attempt == 1 else [attempt]
    key = key_of(list(fingerprint), client.temperature, client.max_tokens, seed, turn, rows, *again)
    speeches = root / "clients" / "asked" / key
    parts = shards.write_by_id(speeches, rows, "speech_id", _ASKED)
    return ReplyTask(
        client.name,
        ResponseSampling({}, client.temperature, top_p=1.0, max_tokens=client.max_tokens, seed=seed),
        speeches,
        root / "clients" / "replies" / key,
        only=tuple(sorted(parts)),
        turn=turn,
        attempt=attempt,
    )


class ReplyStage(ApiStage):
    """The calls of a turn. An answer without a word of the client is asked for again."""

    attempts = ATTEMPTS

    def check(self, question: Question, text: str) -> str:
        """The client's answer."""
        answer = super().check(question, text)
        if reply_of(answer) is None:
            raise UnreadableAnswerError(UNUSABLE)
        return answer


def calls(questions: Questions, task: ReplyTask, journal: Path, name: str) -> CallRun:
    """The calls by which an API replies to what is missing.

    Args:
        questions: of the job, whose client has an endpoint.
        task: of `write_task`.
        journal: directory of paid answers.
        name: on the progress line and in messages.
    """
    endpoint = questions.client.endpoint
    assert endpoint is not None, "the client is behind an API"
    return CallRun(name, ReplyStage(endpoint, task), task.parts(), journal, questions.outgoing)


def read(task: ReplyTask) -> tuple[dict[str, Reply], dict[str, str]]:
    """The replies of a turn by dialogue, and why others have none; UNUSABLE where the model may be asked again."""
    replies: dict[str, Reply] = {}
    failed: dict[str, str] = {}
    for part in task.parts():
        for row in shards.read(task.out, part):
            if (reply := reply_of(row["response"], row["finished"])) is None:
                failed[row["speech_id"]] = UNUSABLE
            else:
                replies[row["speech_id"]] = reply
        for row in shards.read(task.out / "set-aside", part):
            failed[row["speech_id"]] = UNUSABLE if row["reason"] == EMPTY else row["reason"]
    return replies, failed


def check(name: str, asked: int, failed: Mapping[str, str]) -> None:
    """Say how many dialogues fail because the client's model gave no reply that can be used.

    Args:
        name: of the stage.
        asked: number of dialogues that waited for the client.
        failed: why some of them have no reply.

    Raises:
        InputError: more than half of them, so that what is left says little.
    """
    if not failed:
        return
    [(reason, _)] = Counter(failed.values()).most_common(1)
    sentence = (
        f"{name}: {len(failed)} of {asked} dialogues fail for want of a client's reply, most of them because {reason}"
    )
    if len(failed) > _MOST_FAILED * asked:
        way_out = (
            "; name another simulate.client.model or simulate.client.prompt" if reason.startswith(UNUSABLE) else ""
        )
        raise InputError(f"{sentence}{way_out}")
    _log.warning(sentence)
