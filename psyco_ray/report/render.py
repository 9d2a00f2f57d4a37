"""Templates, text filters and number formats that all pages and cards share."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from psyco_ray.config.job_file import flatten

DASH = "–"
"""What a cell without a value holds."""

MODEL_TITLES = {"reward": "training reward model", "heldout": "held-out reward model"}
"""Names of the two reward models of a run, by their keys in stage records."""


def render(template: str, values: Mapping[str, Any], **more: Any) -> str:
    """Fill in a template of this directory; values are escaped in ``*.html`` only.

    Args:
        template: file name.
        values: variables of the template; a variable that the template uses and nobody sets raises an error.
        more: further variables.

    Example:
        >>> render("policy_card.md.j2", facts, method_text="iterative DPO", settings=settings)
    """
    return _environment().get_template(template).render(values, **more)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html"], default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "basename": basename,
        "cell": _cell,
        "decimal": decimal,
        "decimal_interval": decimal_interval,
        "percent": percent,
        "percent_interval": percent_interval,
        "reasons": lambda counts: ", ".join(f"{reason}: {count:,}" for reason, count in counts.items()) or "none",
        "thousands": thousands,
    }
    return environment


def thousands(count: float) -> str:
    """A count with separators: 12,345."""
    return f"{count:,}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits, or a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """A share in per cent with one digit, without the sign; a dash for None."""
    return DASH if share is None else f"{100 * share:.1f}"


def decimal_interval(bounds: Sequence[float | None], digits: int = 3) -> str:
    """Both bounds as `decimal` formats them; a dash if one is None."""
    low, high = bounds
    return DASH if low is None or high is None else f"{decimal(low, digits)} to {decimal(high, digits)}"


def percent_interval(bounds: Sequence[float | None]) -> str:
    """Both bounds as `percent` formats them; a dash if one is None."""
    low, high = bounds
    return DASH if low is None or high is None else f"{percent(low)} to {percent(high)}"


def judge_note(training: Mapping[str, Any] | None) -> str:
    """A sentence on the training pairs of the held-out reward model, from `heldout_training` of a run's summary."""
    if training is None:
        return ""
    if training["same"]:
        return "It is the same model as the one that ranks the responses, so it shares all its errors."
    if training["shared"] is None:
        return "It is not known whether it shares training pairs with the reward model that ranks the responses."
    count = f"{thousands(training['shared'])} of its {thousands(training['pairs'])} training pairs"
    if training["shared"]:
        return f"But {count} also trained the reward model that ranks the responses, so it may share its errors."
    return (
        f"None of its {thousands(training['pairs'])} training pairs trained the reward model that ranks the responses."
    )


def plain(text: str) -> str:
    """Text that neither ends a cell of a Markdown table nor starts an HTML tag."""
    return _cell(text).replace("<", "&lt;")


def flat_settings(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Nested settings by dotted keys; of an absolute path only the file name remains."""
    flat = flatten(settings, f"{name}.")
    return {key: basename(value) if isinstance(value, str) else value for key, value in flat.items()}


def basename(name: str) -> str:
    """The name of a file or model without directories of this machine; names on a hub stay whole."""
    return Path(name).name if Path(name).is_absolute() else name


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
