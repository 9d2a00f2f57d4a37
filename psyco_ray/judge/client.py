"""One call after another to an OpenAI-compatible API: what is sent, what comes back, and what is tried again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError

if TYPE_CHECKING:
    import openai  # takes seconds: only who calls imports it

KEY_VERSION = 1
"""Counted up when a call of the same content would be put to the server in another way."""

FIRST_PAUSE_S = 1.0
"""Before a failed call is sent again; doubled with every further failure."""

LONGEST_PAUSE_S = 60.0
CHARACTERS_PER_TOKEN = 3  # fewer than English has, so that estimates are rather too high
LONG_TEXT = 300  # characters of a server's message that are worth repeating

_REASONING = ("o1", "o3", "o4", "gpt-5")  # models that take max_completion_tokens and sample as they like
REFUSED = {400, 413, 422}  # status codes that refuse a call for good
_TRANSIENT = {408, 409, 425}
_FORM = {"response_format", "model", "temperature", "top_p", "seed"}  # parameters that are the same in every call

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A question to a model, and how the answer is to be drawn."""

    messages: Sequence[Mapping[str, str]]  # of role and content
    schema: dict[str, Any] | None  # JSON schema of the answer; None: plain text
    max_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int | None = None

    def key(self, model: str, structured: str) -> str:
        """The name of this call to a model, wherever that is served: 64 hex digits."""
        asked = [dict(message) for message in self.messages]
        drawn = [self.max_tokens, self.temperature, self.top_p, self.seed]
        parts = [KEY_VERSION, model, structured, asked, drawn, self.schema]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def prompt_tokens(self) -> int:
        """About how many tokens the question has."""
        return sum(len(message["content"]) for message in self.messages) // CHARACTERS_PER_TOKEN + 1

    def tokens(self) -> int:
        """About how many tokens the call may take, question and answer."""
        return self.prompt_tokens() + self.max_tokens


@dataclass(frozen=True)
class Answer:
    """What a call gave."""

    text: str
    finished: bool  # false where it was cut at max_tokens
    prompt_tokens: int
    completion_tokens: int
    refused: str | None = None  # why the server will never answer this call


class RefusedError(Exception):
    """The server refuses this very call for good; others may do."""

    def __init__(self, reason: str, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        super().__init__(reason)
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens


class UnavailableError(Exception):
    """The server failed again and again."""


class InvalidResponseError(Exception):
    """What the server sent is no chat completion."""


@dataclass(frozen=True)
class _Again:
    """A failure that may pass."""

    what: str
    wait_s: float | None = None  # as the server asked
    limited: bool = False  # the server works, but wants fewer calls


class Client:
    """An endpoint, with the patience that it takes."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Make ready; nothing is sent yet.

        Raises:
            InputError: the environment variable with the key is missing or holds no key.
        """
        import openai

        self._endpoint = endpoint
        self._key = key_for(endpoint)
        self._open_at = 0.0  # no call before this time of the event loop
        self.api = openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=endpoint.base_url, timeout=endpoint.timeout_s, max_retries=0
        )

    async def answer(self, call: Call) -> Answer:
        """Ask, again if need be.

        Raises:
            Refused: this very call will never be answered.
            UnavailableError: the endpoint failed more than `retries` times in a row.
            InputError: no call can be answered: a wrong key, model or URL, a feature that the server lacks, no quota.
        """
        body = self.body(call)

        async def once() -> Answer:
            async with asyncio.timeout(self._endpoint.timeout_s):
                return answer_of(await self.api.post("/chat/completions", body=body, cast_to=object))

        found = await self.retried(once)
        if not found.prompt_tokens:  # not every server counts
            written = len(found.text) // CHARACTERS_PER_TOKEN + 1
            found = replace(found, prompt_tokens=call.prompt_tokens(), completion_tokens=written)
        if found.refused is not None:
            raise RefusedError(found.refused, found.prompt_tokens, found.completion_tokens)
        return found

    async def retried(self, request: Callable[[], Awaitable[T]]) -> T:
        """The result of a request, which is sent again while its failure may pass.

        A 429 makes all requests of this client wait, and is no failure.

        Raises:
            RefusedError, UnavailableError, ValueError: as `answer` does.
        """
        import openai

        failures = limited = 0
        while True:
            await self._opened()
            problem: Exception | _Again
            try:
                return await request()
            except openai.APIStatusError as error:
                problem = self._problem(error)
            except (openai.APITimeoutError, TimeoutError):
                problem = _Again(f"no answer within {self._endpoint.timeout_s:g} s")
            except openai.APIConnectionError as error:
                problem = _Again(f"connection failed: {self.clean(str(error.__cause__ or error))}")
            except (InvalidResponseError, json.JSONDecodeError, UnicodeDecodeError) as error:
                problem = _Again(f"unreadable answer: {self.clean(str(error))}")
            if isinstance(problem, Exception):  # out here, so that it does not carry the request with the key
                raise problem
            if problem.limited:
                limited += 1
                self._close_for(_pause(limited) if problem.wait_s is None else problem.wait_s)
                continue
            failures += 1
            if failures > self._endpoint.retries:
                raise UnavailableError(
                    f"{self._endpoint.base_url} failed {failures} times in a row for {self._endpoint.model}, at last: "
                    f"{problem.what}; start again once it works"
                )
            await asyncio.sleep(max(problem.wait_s or 0.0, _pause(failures)))

    def body(self, call: Call) -> dict[str, Any]:
        """The request's JSON. Reasoning models (o1, o3, o4, gpt-5) get `max_completion_tokens` and no sampling."""
        endpoint = self._endpoint
        found: dict[str, Any] = {"model": endpoint.model, "messages": [dict(message) for message in call.messages]}
        if endpoint.model.rsplit("/", 1)[-1].startswith(_REASONING):
            found["max_completion_tokens"] = call.max_tokens
        else:
            found |= {"max_tokens": call.max_tokens, "temperature": call.temperature}
            if call.top_p < 1:
                found["top_p"] = call.top_p
        if call.seed is not None:
            found["seed"] = call.seed
        if call.schema is not None and endpoint.structured == "json_schema":
            wanted = {"name": "answer", "schema": call.schema, "strict": True}
            found["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif call.schema is not None and endpoint.structured == "json_object":
            found["response_format"] = {"type": "json_object"}
        return found

    def clean(self, text: str) -> str:
        """A message in one line, without the key, should the server repeat it."""
        shown = text.replace(self._key, "[key]") if self._key else text
        return " ".join(shown.split())[:LONG_TEXT]

    async def close(self) -> None:
        """Close the connections."""
        await self.api.close()

    async def _opened(self) -> None:
        while (left := self._open_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left + random.uniform(0, min(1.0, left / 10)))  # not all in the same moment

    def _close_for(self, seconds: float) -> None:
        open_at = asyncio.get_running_loop().time() + max(seconds, 0.05)
        if open_at > self._open_at + 1 and seconds > LONGEST_PAUSE_S:
            _log.warning("%s asks for a pause of %.0f s", self._endpoint.base_url, seconds)
        self._open_at = max(self._open_at, open_at)

    def _problem(self, error: openai.APIStatusError) -> Exception | _Again:
        """What an HTTP error means for the call and for the run."""
        endpoint, status = self._endpoint, error.status_code
        said = self.clean(error.message)
        key = endpoint.key_env or "an API key (key_env names its environment variable)"
        if status == 402 or "insufficient_quota" in (error.code, error.type):
            return InputError(
                f"the account behind {key} has no quota left at {endpoint.base_url}; top it up and start again"
            )
        if status == 401:
            return InputError(f"{endpoint.base_url} does not accept the key; put a valid one into {key}")
        if status == 403:
            return InputError(
                f"{endpoint.base_url} does not let this key use {endpoint.model}; choose another model or put another "
                f"key into {key}"
            )
        if status == 404:
            return InputError(
                f"{endpoint.base_url} knows no model {endpoint.model}, or is not the API's base_url, which often ends "
                "in /v1; correct model or base_url"
            )
        if status == 400 and error.param in _FORM:
            return InputError(
                f"{endpoint.base_url} does not take the {error.param} that {endpoint.model} was asked with: {said}; "
                f"{'set structured to json_object or text' if error.param == 'response_format' else 'change it'}"
            )
        if status in REFUSED:
            return RefusedError(f"refused by the server ({status}): {said}")
        if status == 429 or status in _TRANSIENT or status >= 500:
            return _Again(f"HTTP {status}: {said}", retry_after(error.response.headers), limited=status == 429)
        return InputError(f"{endpoint.base_url} answers with HTTP {status}: {said}; correct base_url or model")


def answer_of(body: Any) -> Answer:
    """The answer in a chat completion's JSON; tokens that were not counted are 0.

    Raises:
        Unreadable: it is none.
    """
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        message, ended = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content") or "", message.get("refusal")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise InvalidResponseError(f"no chat completion: {body}") from None
    if not isinstance(text, str):
        raise InvalidResponseError(f"the content is no text: {text}")
    refused = "stopped by the content filter" if ended == "content_filter" else None
    return Answer(
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),  # halves of characters fit into no file
        ended != "length",
        usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0,
        f"the model refuses: {refusal}" if refusal else refused,
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait: retry-after-ms, else Retry-After as seconds or date; None: it does not."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if re.fullmatch(r"\d{1,9}(\.\d*)?", given := headers.get(name, "").strip()):
            return float(given) * unit
    try:
        until = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _pause(failures: int) -> float:
    longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (min(failures, 32) - 1))
    return longest * random.uniform(0.5, 1.0)


def key_for(endpoint: Endpoint) -> str | None:
    """The API key out of the environment variable that the endpoint names.

    Raises:
        InputError: it is not set, or cannot be a key.
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
        raise InputError(f"the environment variable {endpoint.key_env} holds characters that no key has; set it anew")
    return key
