"""Single calls to an OpenAI-compatible API, with retries.

The retries of `openai` and `tenacity` count a 429 as a failure and pause one call; here it pauses all and costs none,
until no call was answered for `longest_wait_s`: such a limit does not pass by waiting.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import EndpointError, InputError
from psyco_ray.config.privacy import leaves
from psyco_ray.judge import tokens
from psyco_ray.judge.calls import Answer, Call, InvalidResponseError, answer_of
from psyco_ray.judge.echoes import masked
from psyco_ray.judge.pauses import Pauses, pause_s, retry_after

if TYPE_CHECKING:
    import openai  # takes seconds: imported only where calls are sent

MAX_MESSAGE_CHARS = 300  # of a server's message, in our own messages

_REASONING = ("o1", "o3", "o4", "gpt-5")  # these take max_completion_tokens and no sampling parameters
REFUSED = {400, 413, 422}  # status codes that refuse one call permanently
_TOO_LARGE = re.compile(r"request (is )?too large", re.IGNORECASE)  # in a 429 that one call gets however long it waits
_NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_TRANSIENT_STATUS = {408, 409, 425}
_SHARED_PARAMETERS = {"response_format", "model", "temperature", "top_p", "seed"}  # equal in every call

T = TypeVar("T")


class RefusedError(Exception):
    """The server refuses this call permanently; other calls may succeed."""

    def __init__(self, reason: str, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        super().__init__(reason)
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens


class UnavailableError(Exception):
    """The server failed repeatedly, or accepts no calls for a long time."""


@dataclass(frozen=True)
class _Transient:
    """A failure that may pass."""

    reason: str
    wait_s: float | None = None  # as the server asks
    rate_limited: bool = False  # the server works, but accepts fewer calls
    lost: bool = False  # the call was sent: it may be billed


class Attempts(Protocol):
    """Counts the attempts of a call that give no answer and may be billed."""

    def lost(self) -> None:
        """Such an attempt ended."""

    async def again(self) -> None:
        """Wait until the next attempt may be sent."""


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

        self.endpoint = endpoint
        self._key = key_for(endpoint)
        self._pauses = Pauses(endpoint)
        self.api = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=endpoint.base_url,
            timeout=endpoint.timeout_s,
            max_retries=0,
            # a redirect would send clients' words to an address that nobody has named
            # nor would a proxy of the environment keep them on this machine
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=leaves(endpoint.base_url)),
        )

    async def answer(self, call: Call, attempts: Attempts | None = None) -> Answer:
        """Send a call and return its answer, with retries.

        Args:
            call: the question.
            attempts: is told of attempts that the server may bill and that gave no answer; None: nobody is.

        Raises:
            RefusedError: the server refuses this call permanently.
            UnavailableError: the endpoint failed more than `retries` times in a row, or no call was answered for
                `longest_wait_s` because of rate limits.
            InputError: no call can succeed: wrong key, model or URL, unsupported parameter, no quota.
        """
        body = self.body(call)

        async def once() -> Answer:
            async with asyncio.timeout(self.endpoint.timeout_s):
                return answer_of(await self.api.post("/chat/completions", body=body, cast_to=object))

        answer = await self.retried(once, call.texts(), attempts)
        if not answer.prompt_tokens:  # not every server counts
            answer = replace(answer, prompt_tokens=call.prompt_tokens(), completion_tokens=tokens.count(answer.text))
        if answer.refused is not None:
            raise RefusedError(self.clean(answer.refused, call.texts()), answer.prompt_tokens, answer.completion_tokens)
        return answer

    async def retried(
        self, request: Callable[[], Awaitable[T]], sent: Iterable[str] = (), attempts: Attempts | None = None
    ) -> T:
        """The result of a request, which is repeated while its failures may pass.

        A 429 pauses all requests of this client and does not count as a failure.

        Args:
            request: sends it.
            sent: the texts in it, clients' words among them, which no message may repeat; read for each message.
            attempts: as in `answer`.

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
                problem = self._problem(error, sent)
            except (openai.APITimeoutError, TimeoutError) as error:
                problem = _Transient(f"no answer within {self.endpoint.timeout_s:g} s", lost=_was_sent(error))
            except openai.APIConnectionError as error:
                reason = self.clean(str(error.__cause__ or error), sent)
                problem = _Transient(f"connection failed: {reason}", lost=_was_sent(error))
            except (InvalidResponseError, json.JSONDecodeError, UnicodeDecodeError) as error:
                problem = _Transient(f"unreadable answer: {self.clean(str(error), sent)}", lost=True)
            if isinstance(problem, Exception):  # raised outside of except: its context would hold the key
                raise problem
            if problem.lost and attempts is not None:
                attempts.lost()
            if self._pauses.stopped:
                raise UnavailableError(f"{self.endpoint.base_url} failed while another call had stopped all of them")
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
            if failures > self.endpoint.retries:
                raise UnavailableError(
                    f"{self.endpoint.base_url} failed {failures} times in a row for {self.endpoint.model}, at last: "
                    f"{problem.reason}; start again once it works"
                )
            await asyncio.sleep(max(pause, pause_s(failures)))
            if problem.lost and attempts is not None:
                await attempts.again()

    def body(self, call: Call) -> dict[str, Any]:
        """The request's JSON. Reasoning models (o1, o3, o4, gpt-5) get `max_completion_tokens` and no sampling."""
        endpoint = self.endpoint
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

    def clean(self, text: str, sent: Iterable[str] = ()) -> str:
        """A server's message in one line, without the key and without what it repeats of the texts sent."""
        text = text.replace(self._key, "[key]") if self._key else text
        return masked(" ".join(text.split())[: 10 * MAX_MESSAGE_CHARS], sent)[:MAX_MESSAGE_CHARS]

    def stop(self) -> None:
        """Retry no call from now on: their answers have no use."""
        self._pauses.stop()

    async def close(self) -> None:
        """Close the connections."""
        await self.api.close()

    def _problem(self, error: openai.APIStatusError, sent: Iterable[str]) -> Exception | _Transient:
        """The meaning of an HTTP error: transient, for this call (RefusedError), or for all calls (InputError)."""
        endpoint, status = self.endpoint, error.status_code
        message = self.clean(error.message, sent)
        # a server may send JSON of any type in them
        code, kind, param = (value if isinstance(value, str) else "" for value in (error.code, error.type, error.param))
        key = endpoint.key_env or "an API key (key_env names its environment variable)"
        if status == 402 or {code, kind} & _NO_QUOTA:
            return InputError(
                f"the account behind {key} has no quota left at {endpoint.base_url}; top it up and start again"
            )
        if 300 <= status < 400:
            place = urlsplit(error.response.headers.get("location", "")).netloc or "another address"
            return EndpointError(
                f"{endpoint.base_url} redirects its calls to {place}, which is not followed; set base_url to the "
                "address that answers"
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
        if status == 400 and param in _SHARED_PARAMETERS:
            return EndpointError(
                f"{endpoint.base_url} rejects the {param} of the calls to {endpoint.model}: {message}; "
                f"{'set structured to json_object or text' if param == 'response_format' else 'change it'}"
            )
        if status in REFUSED or (status == 429 and _TOO_LARGE.search(message)):
            return RefusedError(f"refused by the server ({status}): {message}")
        if status == 429 or status in _TRANSIENT_STATUS or status >= 500:
            wait_s = retry_after(error.response.headers)
            return _Transient(f"HTTP {status}: {message}", wait_s, rate_limited=status == 429)
        return EndpointError(f"{endpoint.base_url} answers with HTTP {status}: {message}; correct base_url or model")


def _was_sent(error: BaseException) -> bool:
    """Whether a call that failed may have reached the server."""
    import httpx

    return not isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


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
