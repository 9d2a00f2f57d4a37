"""Asking until an answer can be used: the journal first, then the server, and again if what it says is bad."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import json_repair

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.judge.client import Answer, Call, Client, RefusedError, UnavailableError
from psyco_ray.judge.journal import Journal
from psyco_ray.judge.rate_limit import BudgetExceededError, Limiter

T = TypeVar("T")


@dataclass
class AskResult(Generic[T]):
    """What asking came to."""

    value: T | None = None
    reason: str | None = None  # why there is no value
    text: str | None = None  # the last answer
    finished: bool = True  # false where that was cut at max_tokens
    paid: int = 0  # calls sent now
    reused: int = 0  # answers out of the journal
    prompt_tokens: int = 0  # of all answers, whenever they were paid for
    completion_tokens: int = 0


class Asker:
    """One caller's access to an endpoint. What ends the work for one call ends it for all that follow."""

    def __init__(self, endpoint: Endpoint, journal: Journal, limiter: Limiter | None) -> None:
        """Make ready.

        Raises:
            InputError: the key is missing.
        """
        self.endpoint = endpoint
        self._client, self._journal, self._limiter = Client(endpoint), journal, limiter
        self._room = asyncio.Semaphore(endpoint.concurrency)
        self._ended: Exception | None = None

    def desk(self, part: str) -> ShardAsker:
        """A place to ask about the speeches of a part of the dataset; it holds what the journal has of them."""
        return ShardAsker(self, self._journal.load(part))

    async def close(self) -> None:
        """Report the last usage and close connections and journal."""
        if self._limiter is not None:
            await self._limiter.close()
        await self._client.close()
        self._journal.close()

    async def fetch(self, speech_id: str, key: str, call: Call) -> Answer:
        """An answer of the server, written down before anything else happens with it.

        Raises:
            BudgetExceededError, UnavailableError, ValueError: no call will be answered now.
        """
        async with self._room:
            if self._ended is not None:
                raise self._ended.with_traceback(None)
            try:
                answer = await self._limited(call)
                self._journal.add(speech_id, key, answer)
            except (BudgetExceededError, UnavailableError, ValueError) as error:
                self._ended = error
                raise
            return answer

    async def _limited(self, call: Call) -> Answer:
        if self._limiter is None:
            return await self._answer(call)
        await self._limiter.admit(call.tokens())
        used = (0, 0)
        try:
            answer = await self._answer(call)
            used = (answer.prompt_tokens, answer.completion_tokens)
        finally:
            self._limiter.report(*used)
        return answer

    async def _answer(self, call: Call) -> Answer:
        try:
            return await self._client.answer(call)
        except RefusedError as refused:
            return Answer("", True, refused.prompt_tokens, refused.completion_tokens, refused=str(refused))


class ShardAsker:
    """Asks about the speeches of one part."""

    def __init__(self, asker: Asker, known: dict[str, Answer]) -> None:
        self._asker, self._known = asker, known

    async def ask(self, speech_id: str, call: Call, check: Callable[[str], T], attempts: int) -> AskResult[T]:
        """Ask until an answer passes the check, telling the model each time what was wrong.

        Args:
            speech_id: the speech that the call is about.
            call: the first question.
            check: makes a value of the text, or raises ValueError with a short reason.
            attempts: how often to ask at most.

        Raises:
            BudgetExceededError, UnavailableError, ValueError: no call will be answered now.
        """
        asked: AskResult[T] = AskResult()
        for _ in range(attempts):
            answer = await self._look_up(speech_id, call, asked)
            if answer.refused is not None:
                asked.reason = answer.refused
                return asked
            asked.text, asked.finished = answer.text, answer.finished
            try:
                asked.value, asked.reason = check(answer.text), None
            except ValueError as error:
                cut = "" if answer.finished else f", and the answer was cut off after {call.max_tokens} tokens"
                asked.reason = f"{error}{cut}"
                call = _again(call, answer.text, asked.reason)
            else:
                return asked
        return asked

    async def _look_up(self, speech_id: str, call: Call, asked: AskResult[T]) -> Answer:
        endpoint = self._asker.endpoint
        key = call.key(endpoint.model, endpoint.structured)
        answer = self._known.get(key)
        if answer is None:
            answer = self._known[key] = await self._asker.fetch(speech_id, key, call)
            asked.paid += 1
        else:
            asked.reused += 1
        asked.prompt_tokens += answer.prompt_tokens
        asked.completion_tokens += answer.completion_tokens
        return answer


def parse_json(text: str) -> Any:
    """The JSON in a model's answer, whatever stands around it, with small faults mended.

    Nothing is made up: an answer that ends before its JSON does is refused, not completed.

    Raises:
        InputError: saying what is wrong.
    """
    if text.lstrip().startswith("<think>"):
        text = text.partition("</think>")[2]
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        value = _mended(max(_pieces(text), key=len, default=""))
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise InputError("the answer has JSON that no file can hold") from None
    return value


def _mended(piece: str) -> Any:
    if not piece:
        raise InputError("the answer holds no JSON")
    try:
        return json.loads(piece, strict=False)
    except json.JSONDecodeError:
        value = json_repair.loads(piece)
    except RecursionError:
        value = None
    if not isinstance(value, dict | list):
        raise InputError("the answer holds no readable JSON")
    return value


def _pieces(text: str) -> Iterator[str]:
    """The parts of a text from an opening brace or bracket to the one that closes it."""
    depth = start = 0
    quoted = escaped = False
    for place, character in enumerate(text):
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character in "{[":
            start = place if depth == 0 else start
            depth += 1
        elif depth and character == '"':
            quoted = True
        elif depth and character in "}]":
            depth -= 1
            if depth == 0:
                yield text[start : place + 1]
    if depth:
        raise InputError("the answer ends before its JSON does")


def _again(call: Call, text: str, reason: str) -> Call:
    complaint = f"This answer cannot be used: {reason}. Please answer again, in full and exactly in the form asked for."
    said = {"role": "assistant", "content": text or "(no answer)"}  # servers may refuse an empty turn
    return replace(call, messages=(*call.messages, said, {"role": "user", "content": complaint}))
