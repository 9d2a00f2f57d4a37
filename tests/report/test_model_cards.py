"""Model cards of policies and reward models."""

import re

import yaml

from psyco_ray.config.resources import Learners
from psyco_ray.config.training import DpoConfig, Reward, Sampling
from psyco_ray.evaluate import metrics
from psyco_ray.report import model_cards

POLICY_FACTS = {
    "name": "demo-3b",
    "base": "/secret/models/Llama: 3B",
    "method": "dpo-iter",
    "seed": 7,
    "iterations": 16,
    "steps": 1600,
    "best": {
        "iteration": 12,
        "steps": 1200,
        "by": "mean held-out reward",
        "value": 1.25,
        "alarms": ["answers are long"],
    },
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
    "judged": None,
    "heldout_training": {"same": False, "pairs": 15_400, "shared": 0},
    "length_ratio": 1.3,
    "finished_share": {"base": 0.99, "policy": 0.875},
    "distinct_ratio": 0.93,
    "kl": 12.345,
    "temperature": 0.0,
    "guards": {"min_margin": 0.2, "stop": {"patience": 3}},
    "versions": {"psyco_ray": "0.1.0", "torch": "2.13.0"},
}

NO_LEAKS = {"rule": "refuse", "exact": 0, "near": 0, "of": {}}

REWARD_FACTS = {
    "name": "demo-3b",
    "base": "/secret/models/Llama: 3B",
    "seed": 7,
    "steps": 1200,
    "best_step": 900,
    "mixture": [
        {
            "pairs": "/secret/place/psy.parquet",
            "train": 10_000,
            "dev": 900,
            "left_out": {"no preference": 12},
            "leaks": NO_LEAKS,
        },
        {
            "pairs": "hub:nvidia/HelpSteer2/preference.jsonl",
            "train": 5_000,
            "dev": 400,
            "left_out": {},
            "leaks": NO_LEAKS,
        },
    ],
    "half": None,
    "optimizer": Reward().optimizer.model_dump(),
    "learners": Learners().model_dump(),
    "margin": 0.5,
    "centre": 0.01,
    "lora": {"rank": 16, "alpha": 32.0},
    "max_tokens": 2048,
    "truncated": 17,
    "dev": metrics.measure([2.0, 1.0, 0.0, 3.0], [1.0, 0.0, 1.0, 3.0]),
    "versions": POLICY_FACTS["versions"],
}


def front_and_body(card: str) -> tuple[dict, str]:
    _, front, body = re.split(r"^---\n", card, maxsplit=2, flags=re.M)
    return yaml.safe_load(front), body


def rectangular_tables(card: str) -> list[str]:
    """The Markdown tables of a card, whose lines have equally many cells."""
    tables = re.findall(r"(?:^\|.*\n)+", card, re.M)
    for table in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    return tables


def test_policy_card_states_training_and_limits() -> None:
    front, body = front_and_body(model_cards.policy_card(POLICY_FACTS))
    assert front["base_model"] == "Llama: 3B"
    assert (front["license"], front["language"], front["pipeline_tag"]) == ("other", ["en"], "text-generation")
    for statement in (
        "iterative DPO",
        "| optimizer steps | 1,600 |",
        "| this checkpoint | iteration 12, after 1,200 steps, chosen by mean held-out reward: 1.250 |",
        "| training reward model | rm-3b |",
        "| held-out reward model | hub/rm-8b |",
        "| dpo.beta | 0.1 |",
        "| dpo.optimizer.learning_rate | 5e-07 |",
        "| sampling.responses | 8 |",
        "| data.speeches | speeches.parquet |",
        "| guards.stop.patience | 3 |",
        "On 1,200 held-out speeches",
        "None of its 15,400 training pairs trained the reward model that ranks the responses.",
        "| this policy | 1.250 | 1.100 to 1.400 |",
        "scores above the base model's for 87.0 % of the speeches (95 % interval 85.0 to 88.9 %)",
        "1.30 times the tokens",
        "87.5 % of them are finished (base model: 99.0 %)",
        "distinct word pairs is 0.93 times the base model's",
        "exceeds that under the base model by 12.3 nats a response. They were sampled at temperature 0.0;",
        "**Alarms of this checkpoint:** answers are long.",
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
        assert statement in body, statement
    assert "secret" not in body


def test_policy_card_without_judge_and_guards() -> None:
    bare = POLICY_FACTS | {
        "method": "dpo",
        "reward_model": None,
        "heldout_model": None,
        "heldout": None,
        "heldout_training": None,
        "guards": None,
        "kl": None,
        "best": POLICY_FACTS["best"] | {"alarms": []},
    }
    _, body = front_and_body(model_cards.policy_card(bare))
    assert "| guards | none acts (the paper's recipe); alarms are reported |" in body
    assert "No monitor of reward hacking raised an alarm for this checkpoint." in body
    assert "nats" not in body
    assert "| training reward model | none: the pairs are those of the data |" in body
    assert "| held-out reward model | none |" in body
    assert "No held-out reward model scored this policy" in body
    assert "scores above the base" not in body
    for facts in (POLICY_FACTS, bare):
        rectangular_tables(model_cards.policy_card(facts))


def test_reward_card_states_training_and_limits() -> None:
    front, body = front_and_body(model_cards.reward_card(REWARD_FACTS))
    assert front["base_model"] == "Llama: 3B"
    assert front["license"] == "other"
    assert front["language"] == ["en"]
    for statement in (
        "| psy.parquet | 10,000 | 900 | no preference: 12 |",
        "| hub:nvidia/HelpSteer2/preference.jsonl | 5,000 | 400 | none |",
        "| all | 15,000 | 1,300 | |",
        "at most 2,048 tokens together; 17 pairs were truncated to that.\n",
        "| steps | 1,200; this checkpoint is step 900 |",
        "| optimizer.learning_rate | 9e-06 |",
        "| learners.zero_stage | 2 |",
        "| lora.rank | 16 |",
        "| 50.0 % | 15.0 to 85.0 % | 1 | 0.656 |",
        "psyco_ray 0.1.0, torch 2.13.0",
        "Not for direct use with clients",
        "no clinical judgement",
        "assistive",
        "Single-turn",
        "English",
        "non-commercial",
    ):
        assert statement in body, statement
    assert "secret" not in body


def test_cards_say_what_the_reward_models_were_trained_on() -> None:
    for training, sentence in (
        ({"same": False, "pairs": 15_400, "shared": 7_000}, "But 7,000 of its 15,400 training pairs also trained"),
        ({"same": False, "pairs": None, "shared": None}, "It is not known whether it shares training pairs"),
        ({"same": True, "pairs": 9, "shared": 9}, "It is the same model as the one that ranks the responses"),
    ):
        assert sentence in model_cards.policy_card(POLICY_FACTS | {"heldout_training": training})
    card = model_cards.reward_card(REWARD_FACTS | {"half": "b"})
    assert "Only half b of the pairs was trained on" in card
    assert "were trained on all of its 34,329 train" in card


def test_reward_card_without_lora_and_dev_pairs() -> None:
    _, body = front_and_body(model_cards.reward_card(REWARD_FACTS | {"lora": None, "dev": None}))
    assert "| lora | none: all weights were trained |" in body
    assert "There were no dev pairs" in body
    left_out = " ".join(model_cards.reward_card(REWARD_FACTS | {"too_long": 3}).split())
    assert "3 more were left out because a response alone is longer" in left_out
    assert "AUC" not in body


def test_reward_card_says_that_held_out_questions_were_trained_on() -> None:
    clean, repeating = REWARD_FACTS["mixture"]
    sentence = "3 available training pairs ask what a held-out pair or speech asks too"
    for rule, told in (("allow", True), ("drop", False)):
        leaks = {"rule": rule, "exact": 1, "near": 2, "of": {"the test split": 3}}
        card = model_cards.reward_card(REWARD_FACTS | {"mixture": [clean, repeating | {"leaks": leaks}]})
        assert (sentence in card) is told
        assert rectangular_tables(card)


def test_reward_card_tables_are_rectangular() -> None:
    for facts in (REWARD_FACTS, REWARD_FACTS | {"lora": None, "dev": None}):
        assert len(rectangular_tables(model_cards.reward_card(facts))) == (3 if facts["dev"] else 2)


def test_a_policy_card_names_the_step_of_its_checkpoint_and_what_the_judge_says() -> None:
    judged = {"model": "gpt-4o", "speeches": 498, "win_rate_vs_base": 0.625, "win_rate_ci95": (0.582, 0.666)}
    card = model_cards.policy_card(POLICY_FACTS | {"judged": judged, "heldout": None})
    assert "| this checkpoint | iteration 12, after 1,200 steps, chosen by mean held-out reward: 1.250 |" in card
    assert "The judge gpt-4o prefers its response to the base model's for 62.5 % of 498 held-out speeches" in card
    assert "nothing is known" not in card
    assert "nothing is known" in model_cards.policy_card(POLICY_FACTS | {"heldout": None})
