"""An OpenAI-compatible API: address, limits, prices, and how a judge is asked."""

from __future__ import annotations

from typing import Literal

from psyco_ray.config.job_file import Count, NotNegative, NotNegativeCount, Positive, Section

Order = Literal["seeded", "strict"]


class Endpoint(Section):
    """An OpenAI-compatible API and how it may be used. Its key is read from the environment, never stored."""

    model: str
    base_url: str = "https://api.openai.com/v1"
    key_env: str | None = "OPENAI_API_KEY"  # the environment variable that holds the key; None: no key is needed
    structured: Literal["json_schema", "json_object", "text"] = "json_schema"  # how far the server enforces JSON
    timeout_s: Positive = 120.0  # of one call
    retries: NotNegativeCount = 8  # of a call that the server failed, with growing pauses
    concurrency: Count = 64  # calls in flight, of each caller
    callers: Count = 1  # actors that call
    requests_per_minute: Count | None = None  # over all callers
    tokens_per_minute: Count | None = None
    price_in: NotNegative | None = None  # US dollars per million prompt tokens
    price_out: NotNegative | None = None
    via: Literal["calls", "batch"] = "calls"  # batch: the provider's batch API, cheaper and slower


class Judging(Section):
    """How a judge of two responses is asked."""

    order: Order = "seeded"  # strict: both orders, and a tie where they disagree
    attempts: Count = 3  # questions before an answer counts as unreadable
    max_tokens: Count = 512  # of an answer
    rationale_chars: Count | None = None  # limit in the JSON schema, for small judges that ramble; not all APIs know it
