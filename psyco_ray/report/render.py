"""The template environment and small text filters of all reports."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from psyco_ray.config.job_file import flatten


def environment(escape: bool) -> jinja2.Environment:
    """The templates of this directory, with the filters that they share.

    Args:
        escape: whether what is filled in is text for HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "n": lambda count: f"{count:,}",
        "share": lambda part: f"{100 * part:.1f}",
        "figure": lambda value: f"{value:.3f}",
        "place": _place,
        "reasons": lambda left_out: ", ".join(f"{reason}: {count:,}" for reason, count in left_out.items()) or "none",
        "cell": _cell,
    }
    return environment


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str]) -> str:
    """A table as Markdown.

    Args:
        columns: their titles.
        rows: as many texts each.
        words: the columns that hold no figures.
    """
    rules = ["---" if column in words else "---:" for column in columns]
    lines = [[plain(text) for text in columns], rules, *[[plain(text) for text in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """A text that neither ends a cell of a Markdown table nor is taken for HTML."""
    return _cell(text).replace("<", "&lt;")


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _told(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Nested settings by their dotted keys; of a file only the name is told, not where it lay."""
    found = flatten(settings, f"{name}.")
    return {key: _place(value) if isinstance(value, str) else value for key, value in found.items()}


def _place(name: str) -> str:
    """A file or model without the directories of the machine that it lay on; a hub's names stay whole."""
    return Path(name).name if Path(name).is_absolute() else name


MODEL_TITLES = {"reward": "reward model that trains", "heldout": "reward model that only judges"}
