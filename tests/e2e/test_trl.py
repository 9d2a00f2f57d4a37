"""Every step of reward and policy training has the loss of TRL's RewardTrainer and DPOTrainer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from psyco_ray.config.prompts import load_prompt
from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Deadlines, DpoConfig, Optimizer, Prompts
from psyco_ray.data import preferences
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import BradleyTerryObjective, DpoObjective, Objective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models import loading, templates
from psyco_ray.models.encoding import encode
from psyco_ray.run.types import PreferencePair

pytestmark = pytest.mark.long
BATCH, LEARNING_RATE, SEED = 8, 1e-3, 11
EPOCHS = {"reward": 2, "policy": 1}
REWARDS = {  # objective, then TRL's settings
    "plain": (BradleyTerryObjective(), {}),
    "margin and centre": (BradleyTerryObjective(centre=0.05), {"margins": True, "center_rewards_coefficient": 0.05}),
}
POLICIES = {
    "sigmoid": (DpoConfig(beta=0.1), {"loss_type": ["sigmoid"]}),
    # the only form of smoothing in TRL
    "label-smoothed": (
        DpoConfig(beta=0.1, loss="robust", label_smoothing=0.1),
        {"loss_type": ["robust"], "label_smoothing": 0.1},
    ),
    "ipo": (DpoConfig(beta=0.5, loss="ipo"), {"loss_type": ["ipo"], "beta": 0.5}),
    "sft": (DpoConfig(beta=0.1, sft=0.2), {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}),
}


def pairs() -> list[dict[str, Any]]:
    """64 packaged pairs as conversations, with margins of all sizes."""
    prompt = load_prompt(Prompts(respond="respond-small"))
    rows = preferences.read("sample").table.slice(0, 64).to_pylist()
    return [
        {
            "prompt": preferences.conversation(row["form"], row["asked"], prompt),
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
            "margin": 0.25 * (number % 5),
        }
        for number, row in enumerate(rows)
    ]


def shorten(row: dict[str, Any]) -> dict[str, Any]:
    """Keeps a few words of each text, because TRL computes the logits of every token, which is slow on a CPU."""

    def cut(messages: list[dict[str, str]]) -> list[dict[str, str]]:
        words = messages[-1]["content"].split()
        return [{**messages[-1], "content": " ".join(words[: 2 + len(words) % 7])}]

    return {**row, **{name: cut(row[name]) for name in ("prompt", "chosen", "rejected")}}


@ray.remote(num_cpus=1, runtime_env={"env_vars": {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}})
def trl_losses(model: str, rows: list[dict[str, Any]], out: str) -> dict[str, list[float]]:
    """Returns the losses of TRL's steps for each objective; TRL renders and tokenizes the conversations itself."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    from psyco_ray.models import reward_model

    torch.set_num_threads(2)
    common: dict[str, Any] = {
        "output_dir": out,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "sequential",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": None,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(model)
    table = datasets.Dataset.from_list(rows)

    def step_losses(trainer: type, **kwargs: Any) -> list[float]:
        recorded = []

        class Recording(trainer):
            def compute_loss(self, *args, **kwargs):
                loss = super().compute_loss(*args, **kwargs)
                recorded.append((loss[0] if isinstance(loss, tuple) else loss).item())
                return loss

        Recording(processing_class=tokenizer, **kwargs).train()
        return recorded

    losses: dict[str, list[float]] = {}
    for name, (_, settings) in REWARDS.items():
        arguments = dict(settings)
        classifier = reward_model.new_model(Path(model), loading.load_tokenizer(Path(model)), "float32", SEED)
        classifier.set_attn_implementation("eager")  # TRL does not pack
        losses[name] = step_losses(
            RewardTrainer,
            model=classifier,
            train_dataset=table if arguments.pop("margins", False) else table.remove_columns("margin"),
            args=RewardConfig(**common, **arguments, num_train_epochs=EPOCHS["reward"]),
        )
    for name, (_, settings) in POLICIES.items():
        losses[name] = step_losses(
            DPOTrainer,
            model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
            ref_model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
            train_dataset=datasets.Dataset.from_list([shorten(row) for row in rows]).remove_columns("margin"),
            args=DPOConfig(**{"beta": 0.1, **common, **settings}, num_train_epochs=EPOCHS["policy"]),
        )
    return losses


@pytest.fixture(scope="module")
def trl(local_ray, tiny_model, tmp_path_factory) -> dict[str, list[float]]:
    out = tmp_path_factory.mktemp("trl")
    return ray.get(trl_losses.remote(str(tiny_model), pairs(), str(out)), timeout=900)


def examples(tokenizer, rows: list[dict[str, Any]]) -> list[PreferencePair]:
    encoded_pairs = []
    for number, row in enumerate(rows):
        encoded = encode(tokenizer, row["prompt"], [row[side][0]["content"] for side in ("chosen", "rejected")], None)
        encoded_pairs.append(
            PreferencePair(str(number), encoded.prompt_ids, *encoded.response_ids, margin=row["margin"])
        )
    return encoded_pairs


def turns(tokenizer, rows: list[dict[str, Any]]) -> list[PreferencePair]:
    """Splits conversations where the assistant's turn begins; as in TRL, the template's text after it is trained."""
    encoded_pairs = []
    for number, row in enumerate(rows):
        prompt = templates.conversation_ids(tokenizer, row["prompt"])
        whole = [templates.conversation_ids(tokenizer, [*row["prompt"], *row[side]]) for side in ("chosen", "rejected")]
        encoded_pairs.append(PreferencePair(str(number), tuple(prompt), *(tuple(ids[len(prompt) :]) for ids in whole)))
    return encoded_pairs


def learner_losses(model: Path, objective: Objective, examples: list[PreferencePair]) -> list[float]:
    """Returns the losses of the learner's steps; a policy's reference is its base model."""
    spec = WorkerSpec(
        str(model),
        objective,
        Learners(cpus=0.5, dtype="float32", zero_stage=0, micro_batch_tokens=1024),
        Optimizer(
            learning_rate=LEARNING_RATE, batch_size=BATCH, betas=(0.9, 0.999), warmup_ratio=0.0, schedule="constant"
        ),
        seed=SEED,
        deadlines=Deadlines(start_s=180, step_s=120),
    )
    learner = LearnerGroup(spec)
    try:
        if objective.head == "policy":
            values = learner.evaluate_pairs(examples)
            examples = [replace(example, reference=pair) for example, pair in zip(examples, values, strict=True)]
        batches = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)] * EPOCHS[objective.head]
        return [step.loss for step in learner.train(batches, total_steps=len(batches))]
    finally:
        learner.close()


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_step_has_the_loss_of_trl(trl, tiny_model, tokenizer, name: str) -> None:
    objective, settings = REWARDS[name]
    batch = examples(tokenizer, pairs())
    if "margins" not in settings:
        batch = [replace(example, margin=0.0) for example in batch]
    losses = learner_losses(tiny_model, objective, batch)
    assert losses == pytest.approx(trl[name], rel=1e-3)
    first, last = (sum(losses[i : i + 8]) / 8 for i in (0, 8))
    assert last < 0.8 * first, "without learning, equal losses prove little"


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_step_has_the_loss_of_trl(trl, tiny_model, tokenizer, name: str) -> None:
    batch = turns(tokenizer, [shorten(row) for row in pairs()])
    assert len({len(example.chosen_ids) for example in batch}) > 5, "different lengths matter to the losses"
    losses = learner_losses(tiny_model, DpoObjective(POLICIES[name][0]), batch)
    assert losses == pytest.approx(trl[name], rel=1e-3)
    assert max(losses) - min(losses) > 0.05, "without a change of the losses, equal losses prove little"
