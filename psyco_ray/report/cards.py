"""The cards that travel with trained models, and what cards, pages and Markdown tables share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from psyco_ray.config.job_file import flat

METHODS = {
    "dpo-iter": "iterative DPO on pairs of its own responses (paper §4.2)",
    "online": "one round of DPO on pairs of the base model's own responses (paper §4.3)",
    "dpo": "DPO on the preference pairs as they are (paper §4.2)",
}
"""What a card says of a training method, by the name that its facts give."""


def reward_card(facts: Mapping[str, Any]) -> str:
    """The model card of a reward model: Markdown with YAML front matter.

    Args:
        facts: `name`, `base`, `seed`, `steps`, `best_step`, `mixture` (of each file its `pairs`, `train`, `dev` and
            `left_out` by reason), `optimizer`, `learners`, `margin` (reward that chosen should be ahead by, for each
            point of the rating gap), `centre` (weight of the squared sum of both rewards), `lora` (or None),
            `max_tokens` of a conversation, `truncated` (pairs cut to it), perhaps `too_long` (pairs left out, as a
            response alone is longer), `dev` (`metrics.measure` on the dev pairs, or None) and `versions`.
    """
    return environment(escape=False).get_template("reward_card.md.j2").render(facts)


def policy_card(facts: Mapping[str, Any]) -> str:
    """The model card of a policy's checkpoint: Markdown with YAML front matter.

    Args:
        facts: `name`, `base`, `method` (of METHODS), `seed`, `iterations`, optimizer `steps`, `best` (the `iteration`
            that this checkpoint is of, `by` what it was chosen and that `value`), the settings `dpo`, `sampling` and
            `data`, `reward_model` and `heldout_model` (or None), `heldout` (as in ``summary.json``, or None),
            `length_ratio` (tokens of its responses by the base model's), `guards` (settings, or None) and `versions`.
    """
    assert facts["method"] in METHODS, facts["method"]
    settings = {name: _told(facts[name] or {}, name) for name in ("data", "sampling", "dpo", "guards")}
    template = environment(escape=False).get_template("policy_card.md.j2")
    return template.render(facts, how=METHODS[facts["method"]], settings=settings)


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
    found = flat(settings, f"{name}.")
    return {key: _place(value) if isinstance(value, str) else value for key, value in found.items()}


def _place(name: str) -> str:
    """A file or model without the directories of the machine that it lay on; a hub's names stay whole."""
    return Path(name).name if Path(name).is_absolute() else name
