"""Templates, text filters and number formats that all pages and cards share."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from psyco_ray.config.job_file import flatten

DASH = "–"
"""What a cell without a value holds."""

MODEL_TITLES = {"reward": "training reward model", "heldout": "held-out reward model"}
"""Names of the two reward models of a run, by their keys in stage records."""


def render(template: str, values: Mapping[str, Any], **more: Any) -> str:
    """Fill in a template of this directory; values are escaped as HTML, or as Markdown in ``*.md.j2``.

    Args:
        template: file name.
        values: variables of the template; a variable that the template uses and nobody sets raises an error.
        more: further variables.

    Example:
        >>> render("policy_card.md.j2", facts, method_text="iterative DPO", settings=settings)
    """
    return _environment(template.endswith(".md.j2")).get_template(template).render(values, **more)


@functools.cache
def _environment(is_markdown: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=not is_markdown,
        finalize=_escaped if is_markdown else None,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "basename": basename,
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


# `_` within a word and `&` before a blank mean nothing in Markdown
_MARKDOWN = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def plain(text: Any) -> str:
    """Text that Markdown shows as it is, in a paragraph or a cell of a table: no tag, link, emphasis or code.

    Example:
        >>> plain("a | b\\n[c](d)")
        'a \\\\| b \\\\[c\\\\](d)'
    """
    escaped = _MARKDOWN.sub(r"\\\g<0>", " ".join(str(text).split()))
    return _ENTITY.sub("&amp;", escaped).replace("<", "&lt;")


def _escaped(value: Any) -> Any:
    """A value of a Markdown template: texts are plain, unless a filter marks them as safe."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    start, end = (" " if edge.isspace() else "" for edge in (value[:1], value[-1:]))  # sentences of a template
    return f"{start}{plain(value)}{end}" if value.strip() else start


def flat_settings(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Nested settings by dotted keys; of an absolute path only the file name remains."""
    flat = flatten(settings, f"{name}.")
    return {key: basename(value) if isinstance(value, str) else value for key, value in flat.items()}


def basename(name: str) -> str:
    """The name of a file or model without directories of this machine; names on a hub stay whole."""
    return Path(name).name if Path(name).is_absolute() else name
