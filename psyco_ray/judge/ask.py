"""Asks until an answer is readable: journal first, then the server, then again with the reason for the rejection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import json_repair

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.files.cells import quoted
from psyco_ray.judge.calls import Answer, Call
from psyco_ray.judge.client import Attempts, Client, RefusedError, UnavailableError
from psyco_ray.judge.journal import Journal
from psyco_ray.judge.outside_texts import as_data
from psyco_ray.judge.rate_limit import BudgetExceededError, Limiter, Tokens, cost_of
from psyco_ray.run import reasoning

_COMPLAINT_TOKENS = 80  # at most, nearly always
_FENCED = re.compile(r"\s*```\w*\s*\n(.*)```\s*", re.DOTALL)  # an answer that is one code block

T = TypeVar("T")


class UnreadableAnswerError(Exception):
    """A model's answer cannot be used. The message is a short reason, which the model is told before it answers again.

    Only a check of an answer raises it, so that a bug in a check is never mistaken for a bad answer.
    """


@dataclass
class AskResult(Generic[T]):
    """The outcome of one question over all its attempts."""

    value: T | None = None
    reason: str | None = None  # why there is no value
    text: str | None = None  # the last answer
    finished: bool = True  # False: cut at max_tokens
    paid: int = 0  # calls sent now
    reused: int = 0  # answers from the journal
    prompt_tokens: int = 0  # of all answers, whenever they were paid for
    completion_tokens: int = 0


class Asker:
    """One caller's access to an endpoint. An error that stops one call stops all that follow.

    Example:
        >>> asker = Asker(endpoint, Journal(root, "writer-0"), limiter=None)
        >>> result = await asker.shard("3f").ask(speech_id, call, parse_json, attempts=3)
        >>> await asker.close()
    """

    def __init__(self, endpoint: Endpoint, journal: Journal, limiter: Limiter | None) -> None:
        """Create the client; nothing is sent yet.

        Args:
            endpoint: the API.
            journal: stores the answers.
            limiter: rate and cost limits; None: no limits.

        Raises:
            InputError: the key is missing.
        """
        self.endpoint = endpoint
        self._client, self._journal, self._limiter = Client(endpoint), journal, limiter
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._stopped_by: Exception | None = None

    def shard(self, part: str) -> ShardAsker:
        """An asker for the speeches of one part, with the part's answers from the journal."""
        return ShardAsker(self, self._journal.load(part))

    def stop(self, error: Exception) -> None:
        """Send no further call; all that wait raise the error."""
        self._stopped_by = self._stopped_by or error
        self._client.stop()

    async def close(self) -> None:
        """Report the last usage and close connections and journal."""
        if self._limiter is not None:
            await self._limiter.close()
        await self._client.close()
        self._journal.close()

    async def fetch(self, speech_id: str, key: str, call: Call) -> Answer:
        """Send a call and store its answer in the journal before it is returned.

        Raises:
            BudgetExceededError, UnavailableError, InputError: no further call will succeed.
        """
        async with self._slots:
            if self._stopped_by is not None:
                raise self._stopped_by.with_traceback(None)
            try:
                answer = await self._limited(speech_id, key, call)
                self._journal.add(speech_id, key, answer, cost_of(answer, self.endpoint))
            except (BudgetExceededError, UnavailableError, InputError) as error:
                self.stop(error)
                raise
            return answer

    async def _limited(self, speech_id: str, key: str, call: Call) -> Answer:
        attempts = _PaidAttempts(self, speech_id, key, call)
        await attempts.again()
        used = Tokens()
        try:
            if self._stopped_by is not None:
                raise self._stopped_by.with_traceback(None)
            answer = await self._answer(call, attempts)
            used += answer
        finally:
            attempts.end(used)
        return answer

    async def _answer(self, call: Call, attempts: Attempts) -> Answer:
        try:
            return await self._client.answer(call, attempts)
        except RefusedError as refused:
            return Answer("", True, refused.prompt_tokens, refused.completion_tokens, refused=str(refused))


class _PaidAttempts:
    """The attempts of a call within the budget. One without an answer counts with the longest possible one."""

    def __init__(self, asker: Asker, speech_id: str, key: str, call: Call) -> None:
        self._limiter, self._journal, self._endpoint = asker._limiter, asker._journal, asker.endpoint
        self._ids, self._estimated = (speech_id, key), call.estimated(asker.endpoint)
        self._admitted = False

    def lost(self) -> None:
        """Count an attempt whose answer did not arrive, in the journal too: the next command must know of it."""
        self._journal.add_lost(*self._ids, cost_of(self._estimated, self._endpoint))
        self.end(self._estimated)

    async def again(self) -> None:
        """Wait until limits and budget allow an attempt."""
        if self._limiter is not None:
            await self._limiter.admit(self._estimated)
            self._admitted = True

    def end(self, used: Tokens) -> None:
        """Count the tokens of the attempt in progress, if there is one."""
        if self._limiter is not None and self._admitted:
            self._limiter.report(used, self._estimated)
        self._admitted = False


class ShardAsker:
    """Asks about the speeches of one part."""

    def __init__(self, asker: Asker, stored: dict[str, Answer]) -> None:
        self._asker, self._stored = asker, stored

    async def ask(self, speech_id: str, call: Call, check: Callable[[str], T], attempts: int) -> AskResult[T]:
        """Ask until an answer passes the check. Each repeated question tells the model what was wrong.

        An answer that was cut before its text began is not asked for again: it would be cut again.

        Args:
            speech_id: the speech that the call is about.
            call: the first question.
            check: turns the text into a value or raises UnreadableAnswerError.
            attempts: number of questions, at most.

        Raises:
            BudgetExceededError, UnavailableError, InputError: no further call will succeed.
        """
        result: AskResult[T] = AskResult()
        for _ in range(attempts):
            answer = await self._look_up(speech_id, call, result)
            if answer.refused is not None:
                result.reason = answer.refused
                return result
            result.text, result.finished = answer.text, answer.finished
            try:
                result.value, result.reason = check(answer.text), None
            except UnreadableAnswerError as error:
                limit = call.answer_tokens(self._asker.endpoint)
                if not (answer.finished or reasoning.split(answer.text)[1].strip()):  # no fault to tell the model of
                    result.reason = (
                        f"{error}: all {limit} tokens were used before it began; raise max_tokens, or for a reasoning "
                        "model its endpoint's reasoning_tokens"
                    )
                    return result
                cut = "" if answer.finished else f", and the answer was cut off after {limit} tokens"
                result.reason = f"{error}{cut}"
                call = _with_complaint(call, answer, result.reason)
            else:
                return result
        return result

    async def _look_up(self, speech_id: str, call: Call, result: AskResult[T]) -> Answer:
        endpoint = self._asker.endpoint
        key = call.key(endpoint)
        answer = self._stored.get(key)
        if answer is None:
            answer = self._stored[key] = await self._asker.fetch(speech_id, key, call)
            result.paid += 1
        else:
            result.reused += 1
        result.prompt_tokens += answer.prompt_tokens
        result.completion_tokens += answer.completion_tokens
        return answer


def parse_json(text: str) -> Any:
    """The JSON in a model's answer: reasoning and other text around it are ignored, small faults are repaired.

    Of an answer with reasoning, only what follows the last closing tag counts, so that no draft is taken for the
    answer. Objects count before arrays. An answer that ends before its JSON does is rejected, not completed.

    Raises:
        UnreadableAnswerError: the answer holds no JSON that can be read and stored, its objects differ, or its
            reasoning does not end.
    """
    fenced = _FENCED.fullmatch(text)
    try:
        value = _strict(fenced[1] if fenced else text)  # first: a string in it may quote a tag
    except (ValueError, RecursionError):  # ValueError: also numbers of more digits than Python converts
        value = _only_value(list(_json_candidates(_answer_part(text))))
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise UnreadableAnswerError("the answer has JSON that no file can hold") from None
    return value


def _answer_part(text: str) -> str:
    """What follows the reasoning of an answer."""
    if reasoning.is_open(text):
        raise UnreadableAnswerError("the reasoning does not end, so that no answer follows it")
    return reasoning.split(text)[1]


def _only_value(candidates: list[str]) -> Any:
    """The value that all parts of an answer hold; which of several different ones is meant cannot be known."""
    if not candidates:
        raise UnreadableAnswerError("the answer holds no JSON")
    values = [value for value in map(_repaired, candidates) if value]
    objects = [value for value in values if isinstance(value, dict)]
    forms = {json.dumps(value, sort_keys=True): value for value in objects or values}
    if not forms:
        raise UnreadableAnswerError("the answer holds no readable JSON")
    if len(forms) > 1:
        raise UnreadableAnswerError("the answer holds several JSON values that differ")
    return next(iter(forms.values()))


def _repaired(candidate: str) -> Any:
    """The object or array of a part of an answer; None: it holds neither."""
    with contextlib.suppress(ValueError, RecursionError):
        return _strict(candidate)
    with contextlib.suppress(ValueError, RecursionError):
        value = json_repair.loads(candidate)
        if isinstance(value, dict if candidate.startswith("{") else list):
            return value
    return None


def _strict(text: str) -> Any:
    return json.loads(text, strict=False, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value and value[key] != item:
            raise UnreadableAnswerError(f"one JSON object has several values of a key, {quoted(key)}")
        value[key] = item
    return value


def _json_candidates(text: str) -> Iterator[str]:
    """The parts of a text from an opening brace or bracket to the matching closing one."""
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
        raise UnreadableAnswerError("the answer ends before its JSON does")


def _with_complaint(call: Call, answer: Answer, reason: str) -> Call:
    complaint = f"This answer cannot be used: {reason}. Please answer again, in full and exactly in the form asked for."
    # without reasoning, as in any conversation; servers may refuse an empty message
    said = {"role": "assistant", "content": as_data(reasoning.split(answer.text)[1]) or "(no answer)"}
    return replace(
        call,
        messages=(*call.messages, said, {"role": "user", "content": complaint}),
        counted=call.prompt_tokens() + answer.completion_tokens + _COMPLAINT_TOKENS,
    )
