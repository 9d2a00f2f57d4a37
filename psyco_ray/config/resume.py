"""Settings that a resumed run or dataset stage may change: they decide where, how fast and how long, not the results.

Example:
    >>> may_change("rollouts.actors"), may_change("sampling.temperature")
    (True, False)
    >>> without_transport({"judge": {"model": "m", "retries": 2}})
    {'judge': {'model': 'm'}}
"""

from __future__ import annotations

from typing import Any

TRANSPORT_FIELDS = {
    "base_url",
    "key_env",
    "timeout_s",
    "retries",
    "longest_wait_s",
    "concurrency",
    "callers",
    "requests_per_minute",
    "tokens_per_minute",
    "price_in",
    "price_out",
}
"""Fields of an `Endpoint` that decide how it is reached, not what it answers."""

_DATA_FIELDS = {*TRANSPORT_FIELDS, "via", "blocks"}  # of a section of a dataset's job, at any depth

_RUN_KEYS = {
    "run_dir",
    "iterations",
    "privacy",
    "evaluation.max_cost",
    "telemetry",
    "deadlines",
    "sync",
    "data.cpus",
    "checkpoints",
    "rollouts.feed",
    "dpo.checkpoint_every",
    "reward.checkpoint_every",
    "simulate.client.max_cost",
    "simulate.client.rollouts.feed",
    *(
        f"{api}.{field}"
        for api in ("evaluation.judge", "simulate.client.endpoint")
        for field in sorted(TRANSPORT_FIELDS)
    ),
    *(
        f"{role}.{field}"
        for role in ("rollouts", "scorers", "learners", "reward.learners", "simulate.client.rollouts")
        for field in ("actors", "cpus", "gpus", "threads", "autoscale")
    ),
}


def may_change(key: str) -> bool:
    """Whether a resumed training run may have another value of a setting, given as ``section.key``."""
    return any(key == changeable or key.startswith(f"{changeable}.") for changeable in _RUN_KEYS)


def without_transport(settings: Any) -> Any:
    """Settings of a dataset stage without those that may change between its runs; nested dicts and lists included."""
    if isinstance(settings, dict):
        return {key: without_transport(value) for key, value in settings.items() if key not in _DATA_FIELDS}
    return [without_transport(value) for value in settings] if isinstance(settings, list) else settings
