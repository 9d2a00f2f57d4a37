"""Model cards of trained policies."""

import re

import yaml

from psyco_ray.config.training import DpoConfig, Sampling
from psyco_ray.report import model_cards

FACTS = {
    "name": "demo-3b",
    "base": "/secret/models/Llama: 3B",
    "method": "dpo-iter",
    "seed": 7,
    "iterations": 16,
    "steps": 1600,
    "best": {"iteration": 12, "by": "mean held-out reward", "value": 1.25},
    "dpo": DpoConfig().model_dump(),
    "sampling": Sampling().model_dump(),
    "reward_model": "/secret/place/rm-3b",
    "heldout_model": "hub/rm-8b",
    "data": {"speeches": "/secret/place/speeches.parquet", "dev_share": 0.1},
    "heldout": {
        "speeches": 1200,
        "reward_before": 0.1,
        "reward_before_ci95": (0.0, 0.2),
        "reward_after": 1.25,
        "reward_after_ci95": (1.1, 1.4),
        "win_rate_vs_base": 0.87,
        "ci95": (0.85, 0.889),
    },
    "length_ratio": 1.3,
    "guards": {"min_margin": 0.2, "stop": {"patience": 3}},
    "versions": {"psyco_ray": "0.1.0", "torch": "2.13.0"},
}


def front_and_body(card: str) -> tuple[dict, str]:
    _, front, body = re.split(r"^---\n", card, maxsplit=2, flags=re.M)
    return yaml.safe_load(front), body


def test_policy_card_says_what_it_is_and_what_not() -> None:
    front, body = front_and_body(model_cards.policy_card(FACTS))
    assert front["base_model"] == "Llama: 3B"
    assert (front["license"], front["language"], front["pipeline_tag"]) == ("other", ["en"], "text-generation")
    for said in (
        "iterative DPO",
        "| optimizer steps | 1,600 |",
        "| this checkpoint | iteration 12, chosen by mean held-out reward: 1.250 |",
        "| training reward model | rm-3b |",
        "| held-out reward model | hub/rm-8b |",
        "| dpo.beta | 0.1 |",
        "| dpo.optimizer.learning_rate | 5e-07 |",
        "| sampling.responses | 8 |",
        "| data.speeches | speeches.parquet |",
        "| guards.stop.patience | 3 |",
        "On 1,200 held-out speeches",
        "| this policy | 1.250 | 1.100 to 1.400 |",
        "scores above the base model's for 87.0 % of the speeches (95 % interval 85.0 to 88.9 %)",
        "1.30 times the tokens",
        "psyco_ray 0.1.0, torch 2.13.0",
        "Assistive drafts for a professional",
        "Not for direct use with clients",
        "Not for a crisis",
        "Single-turn",
        "English",
        "non-commercial",
        "rater of the data",
        "opponent and judge",
    ):
        assert said in body, said
    assert "secret" not in body


def test_policy_card_without_judge_and_guards() -> None:
    bare = FACTS | {"method": "dpo", "reward_model": None, "heldout_model": None, "heldout": None, "guards": None}
    _, body = front_and_body(model_cards.policy_card(bare))
    assert "| guards | none: the paper's recipe |" in body
    assert "| training reward model | none: the pairs are those of the data |" in body
    assert "| held-out reward model | none |" in body
    assert "No held-out reward model scored this policy" in body
    assert "scores above the base" not in body
    for facts in (FACTS, bare):
        for block in re.findall(r"(?:^\|.*\n)+", model_cards.policy_card(facts), re.M):
            assert len({len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
