"""The cards that travel with trained models, and what cards, pages and Markdown tables share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psyco_ray.report.render import _told, environment

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
