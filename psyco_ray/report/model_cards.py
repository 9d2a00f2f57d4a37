"""Model cards of reward models and policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psyco_ray.report.render import flat_settings, judge_note, render

METHODS = {
    "dpo-iter": "iterative DPO on pairs of its own responses (paper §4.2)",
    "online": "one round of DPO on pairs of the base model's own responses (paper §4.3)",
    "dpo": "DPO on the preference pairs of the data (paper §4.2)",
}
"""Training methods in words, by the `method` of a card's facts."""


def reward_card(facts: Mapping[str, Any]) -> str:
    """The model card of a reward model: Markdown with YAML front matter.

    Args:
        facts: `name`, `base`, `seed`, `steps`, `best_step`, `mixture` (of each file its `pairs`, `train`, `dev`,
            `left_out` by reason and `leaks`), `half` of the pairs (or None), `optimizer`, `learners`, `margin` (reward
            margin per point of the rating gap), `centre` (weight of the squared sum of both rewards), `lora` (or None),
            `max_tokens` of a conversation, `truncated` (pairs cut to it), optionally `too_long` (pairs left out because
            a response alone is longer), `dev` (`metrics.measure` on the dev pairs, or None) and `versions`.
    """
    return render("reward_card.md.j2", facts)


def policy_card(facts: Mapping[str, Any]) -> str:
    """The model card of a policy's checkpoint: Markdown with YAML front matter.

    Args:
        facts: `name`, `base`, `method` (a key of METHODS), `seed`, `iterations`, optimizer `steps`, `best` (the
            `iteration` of this checkpoint, its `steps`, `by` which measure it was chosen, its `value` and `alarms`),
            the settings `dpo`, `sampling` and `data`, `reward_model` and `heldout_model` (or None), of this checkpoint
            `judged`, `heldout` and `heldout_training` (as in ``summary.json``, or None), `length_ratio` (tokens of its
            responses relative to the base model's), `finished_share` (of `base` and `policy`), `distinct_ratio` (word
            pairs), `kl` (nats per response, or None), the `temperature` of the held-out responses, `guards` (settings,
            or None if none acts) and `versions`.
    """
    assert facts["method"] in METHODS, facts["method"]
    settings = {name: flat_settings(facts[name] or {}, name) for name in ("data", "sampling", "dpo", "guards")}
    note = judge_note(facts["heldout_training"])
    return render("policy_card.md.j2", facts, method_text=METHODS[facts["method"]], settings=settings, judge_note=note)
