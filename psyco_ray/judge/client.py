"""Single calls to an OpenAI-compatible API, with retries.

The retries of `openai` and `tenacity` count a 429 as a failure and pause one call; here it pauses all and costs none,
until no call was answered for `longest_wait_s`: such a limit does not pass by waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import EndpointError, InputError
from psyco_ray.judge import tokens
from psyco_ray.judge.pauses import Pauses, pause_s, retry_after
from psyco_ray.judge.rate_limit import Tokens

if TYPE_CHECKING:
    import openai  # takes seconds: imported only where calls are sent

KEY_VERSION = 1
"""Incremented when calls of the same content are sent to the server in another way."""

MAX_MESSAGE_CHARS = 300  # of a server's message, in our own messages

_REASONING = ("o1", "o3", "o4", "gpt-5")  # these take max_completion_tokens and no sampling parameters
REFUSED = {400, 413, 422}  # status codes that refuse one call permanently
_TOO_LARGE = re.compile(r"request (is )?too large", re.IGNORECASE)  # in a 429 that one call gets however long it waits
_NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_TRANSIENT_STATUS = {408, 409, 425}
_SHARED_PARAMETERS = {"response_format", "model", "temperature", "top_p", "seed"}  # equal in every call

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A question to a model, and how its answer is sampled."""

    messages: Sequence[Mapping[str, str]]  # of role and content
    schema: dict[str, Any] | None  # JSON schema of the answer; None: plain text
    max_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int | None = None
    counted: int | None = None  # prompt tokens, where they are counted already; no part of the question

    def key(self, endpoint: Endpoint) -> str:
        """Journal key of this call, independent of where the endpoint's model is served: 64 hex digits."""
        model, structured = endpoint.model, endpoint.structured
        messages = [dict(message) for message in self.messages]
        sampling = [self.max_tokens, self.temperature, self.top_p, self.seed]
        if endpoint.reasoning_tokens:
            sampling.append(endpoint.reasoning_tokens)
        parts = [KEY_VERSION, model, structured, messages, sampling, self.schema]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def prompt_tokens(self) -> int:
        """Tokens of the question with its schema, as counted here; the API may count a few more or less."""
        if self.counted is not None:
            return self.counted
        schema = tokens.count(json.dumps(self.schema)) if self.schema is not None else 0
        return schema + sum(tokens.PER_MESSAGE + tokens.count(message["content"]) for message in self.messages)

    def answer_tokens(self, endpoint: Endpoint) -> int:
        """Upper bound of the tokens of an answer: of its text, and of the reasoning before it."""
        return self.max_tokens + endpoint.reasoning_tokens

    def estimated(self, endpoint: Endpoint) -> Tokens:
        """Tokens of the question and of the longest possible answer."""
        return Tokens(self.prompt_tokens(), self.answer_tokens(endpoint))

    def typical(self, endpoint: Endpoint) -> Tokens:
        """Tokens of the question and of a typical answer, with all reasoning that the endpoint allows."""
        answer = min(self.max_tokens, tokens.typical_answer(self.schema))
        return Tokens(self.prompt_tokens(), answer + endpoint.reasoning_tokens)


@dataclass(frozen=True)
class Answer:
    """The answer to a call."""

    text: str
    finished: bool  # False: cut at max_tokens
    prompt_tokens: int
    completion_tokens: int
    refused: str | None = None  # why the server refuses this call permanently


class RefusedError(Exception):
    """The server refuses this call permanently; other calls may succeed."""

    def __init__(self, reason: str, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        super().__init__(reason)
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens


class UnavailableError(Exception):
    """The server failed repeatedly, or accepts no calls for a long time."""


class InvalidResponseError(Exception):
    """The server's response is not a chat completion."""


@dataclass(frozen=True)
class _Transient:
    """A failure that may pass."""

    reason: str
    wait_s: float | None = None  # as the server asks
    rate_limited: bool = False  # the server works, but accepts fewer calls


class Client:
    """A client of one endpoint that retries failures which may pass.

    Example:
        >>> client = Client(Endpoint(model="gpt-4o"))
        >>> answer = await client.answer(Call(({"role": "user", "content": "Hi"},), None, 16, temperature=0.0))
        >>> await client.close()
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Create the client; nothing is sent yet.

        Raises:
            InputError: the environment variable with the key is missing or holds no key.
        """
        import openai

        self._endpoint = endpoint
        self._key = key_for(endpoint)
        self._pauses = Pauses(endpoint)
        self.api = openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=endpoint.base_url, timeout=endpoint.timeout_s, max_retries=0
        )

    async def answer(self, call: Call) -> Answer:
        """Send a call and return its answer, with retries.

        Raises:
            RefusedError: the server refuses this call permanently.
            UnavailableError: the endpoint failed more than `retries` times in a row, or no call was answered for
                `longest_wait_s` because of rate limits.
            InputError: no call can succeed: wrong key, model or URL, unsupported parameter, no quota.
        """
        body = self.body(call)

        async def once() -> Answer:
            async with asyncio.timeout(self._endpoint.timeout_s):
                return answer_of(await self.api.post("/chat/completions", body=body, cast_to=object))

        answer = await self.retried(once)
        if not answer.prompt_tokens:  # not every server counts
            answer = replace(answer, prompt_tokens=call.prompt_tokens(), completion_tokens=tokens.count(answer.text))
        if answer.refused is not None:
            raise RefusedError(answer.refused, answer.prompt_tokens, answer.completion_tokens)
        return answer

    async def retried(self, request: Callable[[], Awaitable[T]]) -> T:
        """The result of a request, which is repeated while its failures may pass.

        A 429 pauses all requests of this client and does not count as a failure.

        Raises:
            RefusedError, UnavailableError, InputError: as `answer` does.
        """
        import openai

        failures = rate_limits = 0
        limited_at: float | None = None
        while True:
            await self._pauses.over()
            problem: Exception | _Transient
            try:
                result = await request()
                self._pauses.answered()
                return result
            except openai.APIStatusError as error:
                problem = self._problem(error)
            except (openai.APITimeoutError, TimeoutError):
                problem = _Transient(f"no answer within {self._endpoint.timeout_s:g} s")
            except openai.APIConnectionError as error:
                problem = _Transient(f"connection failed: {self.clean(str(error.__cause__ or error))}")
            except (InvalidResponseError, json.JSONDecodeError, UnicodeDecodeError) as error:
                problem = _Transient(f"unreadable answer: {self.clean(str(error))}")
            if isinstance(problem, Exception):  # raised outside of except: its context would hold the key
                raise problem
            if self._pauses.stopped:
                raise UnavailableError(f"{self._endpoint.base_url} failed while another call had stopped all of them")
            if problem.rate_limited:
                rate_limits += 1
                limited_at = limited_at or time.monotonic()
            pause = pause_s(rate_limits) if problem.wait_s is None and problem.rate_limited else problem.wait_s or 0.0
            if (overdue := self._pauses.overdue(limited_at, pause, problem.reason)) is not None:
                raise UnavailableError(overdue)
            if problem.rate_limited:
                self._pauses.add(pause)
                continue
            failures += 1
            if failures > self._endpoint.retries:
                raise UnavailableError(
                    f"{self._endpoint.base_url} failed {failures} times in a row for {self._endpoint.model}, at last: "
                    f"{problem.reason}; start again once it works"
                )
            await asyncio.sleep(max(pause, pause_s(failures)))

    def body(self, call: Call) -> dict[str, Any]:
        """The request's JSON. Reasoning models (o1, o3, o4, gpt-5) get `max_completion_tokens` and no sampling."""
        endpoint = self._endpoint
        body: dict[str, Any] = {"model": endpoint.model, "messages": [dict(message) for message in call.messages]}
        if endpoint.model.rsplit("/", 1)[-1].startswith(_REASONING):
            body["max_completion_tokens"] = call.answer_tokens(endpoint)
        else:
            body |= {"max_tokens": call.answer_tokens(endpoint), "temperature": call.temperature}
            if call.top_p < 1:
                body["top_p"] = call.top_p
        if call.seed is not None:
            body["seed"] = call.seed
        if call.schema is not None and endpoint.structured == "json_schema":
            schema = {"name": "answer", "schema": call.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif call.schema is not None and endpoint.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def clean(self, text: str) -> str:
        """A server's message in one line, without the key."""
        text = text.replace(self._key, "[key]") if self._key else text
        return " ".join(text.split())[:MAX_MESSAGE_CHARS]

    def stop(self) -> None:
        """Retry no call from now on: their answers have no use."""
        self._pauses.stop()

    async def close(self) -> None:
        """Close the connections."""
        await self.api.close()

    def _problem(self, error: openai.APIStatusError) -> Exception | _Transient:
        """The meaning of an HTTP error: transient, for this call (RefusedError), or for all calls (InputError)."""
        endpoint, status = self._endpoint, error.status_code
        message = self.clean(error.message)
        key = endpoint.key_env or "an API key (key_env names its environment variable)"
        if status == 402 or {error.code, error.type} & _NO_QUOTA:
            return InputError(
                f"the account behind {key} has no quota left at {endpoint.base_url}; top it up and start again"
            )
        if status == 401:
            return InputError(f"{endpoint.base_url} does not accept the key; put a valid one into {key}")
        if status == 403:
            return EndpointError(
                f"{endpoint.base_url} does not let this key use {endpoint.model}; choose another model or put another "
                f"key into {key}"
            )
        if status == 404:
            return EndpointError(
                f"{endpoint.base_url} knows no model {endpoint.model}, or is not the API's base_url, which often ends "
                "in /v1; correct model or base_url"
            )
        if status == 400 and error.param in _SHARED_PARAMETERS:
            return EndpointError(
                f"{endpoint.base_url} rejects the {error.param} of the calls to {endpoint.model}: {message}; "
                f"{'set structured to json_object or text' if error.param == 'response_format' else 'change it'}"
            )
        if status in REFUSED or (status == 429 and _TOO_LARGE.search(message)):
            return RefusedError(f"refused by the server ({status}): {message}")
        if status == 429 or status in _TRANSIENT_STATUS or status >= 500:
            wait_s = retry_after(error.response.headers)
            return _Transient(f"HTTP {status}: {message}", wait_s, rate_limited=status == 429)
        return EndpointError(f"{endpoint.base_url} answers with HTTP {status}: {message}; correct base_url or model")


def answer_of(body: Any) -> Answer:
    """The answer in the JSON of a chat completion. Tokens that the server did not count are 0.

    Raises:
        InvalidResponseError: the JSON is not a chat completion.
    """
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        message, reason = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content") or "", message.get("refusal")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise InvalidResponseError(f"no chat completion: {body}") from None
    if not isinstance(text, str):
        raise InvalidResponseError(f"the content is no text: {text}")
    refused = "stopped by the content filter" if reason == "content_filter" else None
    return Answer(
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),  # no file holds lone surrogates
        reason != "length",
        usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0,
        f"the model refuses: {refusal}" if refusal else refused,
    )


def key_for(endpoint: Endpoint) -> str | None:
    """The API key from the environment variable that the endpoint names.

    Raises:
        InputError: the variable is not set, or its value cannot be a key.
    """
    if endpoint.key_env is None:
        return None
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise InputError(
            f"the environment variable {endpoint.key_env} with the key for {endpoint.base_url} is not set; set it, or "
            "set key_env to null if the server needs no key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(f"the environment variable {endpoint.key_env} holds characters that no key has; set it again")
    return key
