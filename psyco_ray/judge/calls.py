"""Questions to a model behind an API, and its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge import tokens
from psyco_ray.judge.rate_limit import Tokens

KEY_VERSION = 1
"""Incremented when calls of the same content are sent to the server in another way."""


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

    def texts(self) -> list[str]:
        """The contents of the messages."""
        return [message["content"] for message in self.messages]

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


class InvalidResponseError(Exception):
    """The server's response is not a chat completion."""


def answer_of(body: Any) -> Answer:
    """The answer in the JSON of a chat completion. Tokens that the server did not count are 0.

    Raises:
        InvalidResponseError: the JSON is not a chat completion.
    """
    try:
        choice, usage = body["choices"][0], body.get("usage")
        message, reason = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content") or "", message.get("refusal")
    except (AttributeError, IndexError, KeyError, TypeError):
        # without the body, which may hold a client's words
        what = (
            f"an object with {', '.join(sorted(map(str, body))[:9])}" if isinstance(body, dict) else type(body).__name__
        )
        raise InvalidResponseError(f"no chat completion, but {what}") from None
    if not isinstance(text, str):
        raise InvalidResponseError(f"the content is a {type(text).__name__}, no text")
    refused = "stopped by the content filter" if reason == "content_filter" else None
    return Answer(
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),  # no file holds lone surrogates
        reason != "length",
        _counted(usage, "prompt_tokens"),
        _counted(usage, "completion_tokens"),
        "the model refuses to answer" if refusal else refused,  # its own words answer the client
    )


def _counted(usage: Any, field: str) -> int:
    """Tokens that the server counted; 0 where it gives no sensible number: a paid answer is not lost for that."""
    value = usage.get(field) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
