"""What a learner saves has everything that its base's files have, whatever ZeRO and adapters make of the model."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import families, family_checks

from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Deadlines, DpoConfig, Lora, Optimizer
from psyco_ray.learner.batching import batches
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import BradleyTerryObjective, DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.run.types import PreferencePair

BIASES = {"glm4-moe": "model.layers.1.mlp.gate.e_score_correction_bias", "gemma4": "model.layers.0.layer_scalar"}


def pairs() -> list[PreferencePair]:
    draw = random.Random(0)
    ids = [[tuple(draw.choices(range(5, 260), k=9)) for _ in range(3)] for _ in range(4)]
    return [PreferencePair(f"pair-{i}", *three, (-60.0, -61.0)) for i, three in enumerate(ids)]


def learner_of(base: Path, objective, stage: int, lora: Lora | None) -> LearnerGroup:
    learner = LearnerGroup(
        WorkerSpec(
            str(base),
            objective,
            Learners(actors=2, cpus=0.5, zero_stage=stage, dtype="float32", micro_batch_tokens=80),
            Optimizer(learning_rate=1e-2, batch_size=4, epochs=2, schedule="constant"),
            seed=5,
            deadlines=Deadlines(start_s=180, step_s=120),
            lora=lora,
        )
    )
    learner.wait_ready()
    return learner


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage", "lora"),
    [
        ("glm4-moe", 3, Lora(rank=2, alpha=4)),
        pytest.param("glm4-moe", 2, None, marks=pytest.mark.long),
        pytest.param("gemma4", 3, None, marks=pytest.mark.long),
        pytest.param("gemma4", 1, Lora(rank=2, alpha=4), marks=pytest.mark.long),
        pytest.param("qwen3-moe", 3, None, marks=pytest.mark.long),
        pytest.param("qwen3.5-images", 2, None, marks=pytest.mark.long),
        pytest.param("gemma3-images", 2, Lora(rank=2, alpha=4), marks=pytest.mark.long),
    ],
)
def test_a_trained_policy_is_saved_whole(local_ray, tmp_path: Path, name: str, stage: int, lora: Lora | None) -> None:
    base, target = family_checks.write_base(name, tmp_path / "base"), tmp_path / "saved"
    learner = learner_of(base, DpoObjective(DpoConfig()), stage, lora)
    try:
        planned = batches(pairs(), learner.spec.optimizer, 2, seed=1)
        list(learner.train(planned, len(planned)))
        values = learner.evaluate_pairs(pairs())
        learner.save_model(target)
    finally:
        learner.close()
    assert family_checks.file_shapes(target) == family_checks.file_shapes(base)
    written, before = load_file(target / "model.safetensors"), load_file(base / "model.safetensors")
    assert any(not torch.equal(written[key], before[key]) for key in before)
    if name in BIASES:
        assert torch.equal(written[BIASES[name]], before[BIASES[name]])
        assert before[BIASES[name]].abs().min() > 0
    for key in before:
        if "vision" in key or "visual" in key or "projector" in key:
            assert torch.equal(written[key], before[key]), key
    model, first = families.load(target, families.FAMILIES[name].kind), pairs()[0]
    expected = [
        families.logprob(model, list(first.prompt_ids), list(ids)) for ids in (first.chosen_ids, first.rejected_ids)
    ]
    assert values[0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.long
def test_a_trained_reward_model_has_the_routing_bias_of_its_base(local_ray, tmp_path: Path) -> None:
    base, target = family_checks.write_base("deepseek-v3", tmp_path / "base"), tmp_path / "saved"
    learner = learner_of(base, BradleyTerryObjective(), 3, None)
    try:
        values = learner.evaluate_pairs(pairs())
        learner.save_model(target)
    finally:
        learner.close()
    shapes = family_checks.file_shapes(base)
    del shapes["lm_head.weight"]
    assert family_checks.file_shapes(target) == shapes | {"score.weight": [1, 64]}
    model, first = families.load(target, "encoder"), pairs()[0]
    with torch.no_grad():
        scores = [
            model(torch.tensor([first.prompt_ids + ids])).logits.item()
            for ids in (first.chosen_ids, first.rejected_ids)
        ]
    assert values[0] == pytest.approx(scores, abs=1e-3)
