"""An OpenAI-compatible API: address, limits, prices, and how a judge is asked."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from psyco_ray.config.job_file import Count, NotNegative, NotNegativeCount, Positive, Section
from psyco_ray.config.keys import holds_key

Order = Literal["seeded", "strict"]


class Endpoint(Section):
    """An OpenAI-compatible API. Its key is read from the environment and never stored."""

    model: str
    """Name of the model as the API knows it."""
    base_url: str = "https://api.openai.com/v1"
    """Address of the API."""
    key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key, in capitals, such as OPENAI_API_KEY; null: no key is needed."""
    structured: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How strictly the server enforces JSON answers."""
    reasoning_tokens: NotNegativeCount = 0
    """Tokens of an answer for hidden reasoning, beyond the `max_tokens` of the text; they cost as the text does."""
    timeout_s: Positive = 120.0
    """Seconds that one call may take."""
    retries: NotNegativeCount = 8
    """Retries of a call that failed on the server's side, with growing pauses."""
    longest_wait_s: Positive = 900.0
    """Seconds that rate limits may keep all calls waiting, or that the server may ask to wait; beyond these the command
    stops with exit code 75, and the same command continues."""
    concurrency: Count = 64
    """Calls in flight, of each caller and stage."""
    callers: Count = 1
    """Actors that make calls."""
    requests_per_minute: Count | None = None
    """Limit over all callers and all stages that call this model; null: none."""
    tokens_per_minute: Count | None = None
    """Limit over all callers and all stages that call this model, prompt and completion tokens; null: none."""
    price_in: NotNegative | None = None
    """US dollars per million prompt tokens."""
    price_out: NotNegative | None = None
    """US dollars per million completion tokens."""
    via: Literal["calls", "batch"] = "calls"
    """calls: one request at a time; batch: the provider's batch API, cheaper and slower."""

    @field_validator("key_env")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        if value is not None and (holds_key(value) or not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value)):
            # without the value: a pasted key is the usual mistake
            raise ValueError(
                "is no name of an environment variable; set the key in one, and name that here, such as OPENAI_API_KEY"
            )
        return value


class Judging(Section):
    """How a judge compares two responses."""

    order: Order = "seeded"
    """seeded: one order, drawn by the seed; strict: both orders, and a tie where they disagree."""
    attempts: Count = 3
    """Calls for one verdict before it counts as unreadable."""
    max_tokens: Count = 512
    """Tokens of an answer."""
    rationale_chars: Count | None = None
    """Limit of the rationale in the JSON schema, for small judges; not every API supports it; null: none."""
