"""Training by real DeepSpeed workers over gloo, one Ray actor each, on a tiny model."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from psyco_ray.config.errors import NonFiniteError
from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Deadlines, DpoConfig, Lora, Optimizer
from psyco_ray.learner.batching import batches, learning_rate
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import BradleyTerryObjective, DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.run.types import PreferencePair, StepResult

LONG = pytest.mark.long
OPTIMIZER = Optimizer(learning_rate=1e-3, batch_size=6, epochs=2, schedule="linear")


def examples(count: int, seed: int = 0, reference: bool = True) -> list[PreferencePair]:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 40000) for _ in range(rng.randint(low, high)))

    return [
        PreferencePair(
            f"pair-{i}",
            ids(3, 12),
            ids(3, 20),
            ids(3, 20),
            (-30.0 - i, -31.0) if reference else None,
            context=(i % 3, 0),
        )
        for i in range(count)
    ]


def group(
    model: Path, objective, *, ranks=1, stage=0, dtype="float32", optimizer=OPTIMIZER, state=None, lora=None
) -> LearnerGroup:
    spec = WorkerSpec(
        str(model),
        objective,
        Learners(actors=ranks, cpus=0.5, zero_stage=stage, dtype=dtype, micro_batch_tokens=80, logit_rows=16),
        optimizer,
        seed=5,
        deadlines=Deadlines(start_s=180, step_s=120),
        lora=lora,
    )
    learner = LearnerGroup(spec, state=state)
    learner.wait_ready()
    return learner


def trained(
    learner: LearnerGroup, pairs: list[PreferencePair], path: Path, fresh: bool = False
) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = [step.loss for step in steps(learner, pairs, seed=1, fresh=fresh)]
    learner.save_state(path / "state")
    return losses, load_file(path / "state" / "state-00000.safetensors")


def steps(learner: LearnerGroup, pairs: list[PreferencePair], seed: int, fresh: bool = False) -> Iterator[StepResult]:
    planned = batches(pairs, learner.spec.optimizer, len(learner.workers), seed)
    return learner.train(planned, len(planned), reset_optimizer=fresh)


def spoil_gradient(worker) -> None:
    worker._model.model.norm.weight.register_hook(lambda gradient: gradient * torch.nan)


def spoil_weight(worker) -> None:
    worker._model.model.norm.weight.data[0] = torch.nan


def on_worker(learner: LearnerGroup, action) -> list:
    return ray.get([worker.__ray_call__.remote(action) for worker in learner.workers], timeout=60)


def logprob(model, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()


def logprobs(model, pair: PreferencePair) -> list[torch.Tensor]:
    sides = zip((pair.chosen_ids, pair.rejected_ids), pair.context, strict=True)
    return [logprob(model, pair.prompt_ids + ids[:k], ids[k:]) for ids, k in sides]


@pytest.fixture(scope="module")
def single_process(tiny_model) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same training in plain torch, without Ray and DeepSpeed, one pair at a time."""
    pairs = examples(15)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    objective = DpoObjective(DpoConfig())
    adam = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    planned = batches(pairs, OPTIMIZER, 1, seed=1)
    for step, batch in enumerate(planned):
        adam.zero_grad()
        total = 0.0
        for pair in batch:
            values = torch.stack(logprobs(model, pair))
            loss, _ = objective(values.view(1, 2), torch.tensor(objective.loss_inputs([pair])), len(pair.chosen_ids))
            (loss.sum() / len(batch)).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for parameters in adam.param_groups:
            parameters["lr"] = learning_rate(OPTIMIZER, step, len(planned))
        adam.step()
        losses.append(total / len(batch))
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("ranks", "stage"), [pytest.param(1, 0, marks=LONG), pytest.param(2, 0, marks=LONG), (2, 2), (2, 3)]
)
def test_every_zero_stage_takes_the_same_steps_as_one_process(
    local_ray, tiny_model, tmp_path, single_process, ranks, stage
) -> None:
    learner = group(tiny_model, DpoObjective(DpoConfig()), ranks=ranks, stage=stage)
    try:
        losses, state = trained(learner, examples(15), tmp_path)
    finally:
        learner.close()
    assert losses == pytest.approx(single_process[0], rel=1e-4)
    assert losses[0] != pytest.approx(losses[-1], rel=0.05), "without learning, equal losses prove nothing"
    for name, value in single_process[1].items():
        # for a gradient near zero Adam turns a rounding difference into a step of the learning rate
        difference = (state[name] - value).abs()
        assert difference.mean() < 2e-6, name
        assert difference.max() < 2e-3, name


def test_a_model_that_cannot_be_packed_starts_at_its_reference(local_ray, tiny_model, tmp_path, caplog) -> None:
    """Linear attention would carry its state from the chosen response into the rejected one; ZeRO-3 ranks agree."""
    config = AutoConfig.for_model(
        "qwen3_5_text",
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        attention_dropout=0.3,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    pairs = examples(6)
    learner = group(tmp_path, DpoObjective(DpoConfig()), ranks=2, stage=3)
    try:
        values = learner.evaluate_pairs(pairs)
        first = next(steps(learner, [replace(p, reference=v) for p, v in zip(pairs, values, strict=True)], seed=0))
    finally:
        learner.close()
    with torch.no_grad():
        expected = [value.item() for pair in pairs for value in logprobs(model, pair)]
    assert [value for both in values for value in both] == pytest.approx(expected, abs=1e-3)
    assert abs(first.metrics["margin"]) < 1e-5
    assert abs(first.metrics["chosen_shift"]) < 1e-4
    told = [record.getMessage() for record in caplog.records if "without sharing prompts" in record.getMessage()]
    assert len(told) == 1
    assert "it has layers with a running state (linear_attention)" in told[0]


def test_bf16_follows_float32_and_values_that_are_not_finite_end_the_step(
    local_ray, tiny_model, tmp_path, single_process, caplog
) -> None:
    broken = PreferencePair("pair-broken", (5,), (6,), (7,), (float("nan"), 0.0))
    learner = group(tiny_model, DpoObjective(DpoConfig()), stage=2, dtype="bfloat16")
    try:
        losses, _ = trained(learner, examples(15), tmp_path)
        learner.save_model(tmp_path / "model")
        with pytest.raises(NonFiniteError, match=r"loss of pair pair-broken in step \d of .*tiny is nan; lower the"):
            list(steps(learner, [*examples(6), broken], seed=0, fresh=True))

        weights = learner.export(0, 64).digest
        on_worker(learner, spoil_gradient)
        with pytest.raises(NonFiniteError, match=r"the gradient of step 1 of .*tiny is (nan|inf); lower the"):
            list(steps(learner, examples(6), seed=0))
        assert learner.export(0, 64).digest == weights, "the step changed no weight"

        on_worker(learner, spoil_weight)
        with pytest.raises(NonFiniteError, match="a policy value of pair pair-0 is nan"):
            learner.evaluate_pairs(examples(2))
        with pytest.raises(NonFiniteError, match=r"the sum of weight model\.norm\.weight of .*tiny is nan"):
            learner.save_model(tmp_path / "spoilt")
        assert not (tmp_path / "spoilt").exists()
        with pytest.raises(NonFiniteError, match="the sum of weight"):
            learner.export(0, 64)
    finally:
        learner.close()
    assert not [record for record in caplog.records if "restarting" in record.getMessage()], (
        "an invalid loss is no reason to restart"
    )
    assert losses == pytest.approx(single_process[0], rel=0.05)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert written.dtype == torch.bfloat16


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])  # stages 1 and 2 share an implementation
def test_a_restored_state_continues_bitwise(local_ray, tiny_model, tmp_path, stage) -> None:
    settings = {"stage": stage, "dtype": "bfloat16"}
    whole = group(tiny_model, DpoObjective(DpoConfig()), **settings)
    try:
        trained(whole, examples(12), tmp_path)
        kept = (tmp_path / "state").rename(tmp_path / "kept")
        expected = trained(whole, examples(12, seed=9), tmp_path, fresh=True)
    finally:
        whole.close()
    resumed = group(tiny_model, DpoObjective(DpoConfig()), state=str(kept), **settings)
    try:
        actual = trained(resumed, examples(12, seed=9), tmp_path)
    finally:
        resumed.close()
    assert actual[0] == expected[0]
    for name, value in expected[1].items():
        assert torch.equal(actual[1][name], value), name


@pytest.mark.parametrize(
    ("stage", "dtype", "before", "resumed_with"),
    [
        pytest.param(0, "float32", 1, (1, 2), marks=LONG),
        pytest.param(2, "bfloat16", 2, (2, 1), marks=LONG),
        (2, "bfloat16", 2, (1,)),
    ],
)
def test_a_state_with_moments_continues_a_training(
    local_ray, tiny_model, tmp_path, stage, dtype, before, resumed_with
) -> None:
    """Another number of ranks adds gradients in another order, and rounds differently."""
    pairs, settings = examples(12, reference=False), {"stage": stage, "dtype": dtype}
    planned = batches(pairs, Optimizer(batch_size=6, epochs=3), 1, seed=4)

    def last(learner: LearnerGroup, first: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        losses = [step.loss for step in learner.train(planned[first:], len(planned), first)]
        learner.save_state(tmp_path / "end", moments=True)
        return losses, load_file(tmp_path / "end" / "state-00000.safetensors")

    whole = group(tiny_model, BradleyTerryObjective(), ranks=before, **settings)
    try:
        first = [step.loss for step in whole.train(planned[:3], len(planned))]
        whole.save_state(tmp_path / "middle", moments=True)
        expected = last(whole, 3)
    finally:
        whole.close()
    assert first[0] != expected[0][-1]
    assert expected[1]["step"].item() == len(planned)
    for ranks in resumed_with:
        resumed = group(tiny_model, BradleyTerryObjective(), ranks=ranks, state=str(tmp_path / "middle"), **settings)
        try:
            actual = last(resumed, 3)
        finally:
            resumed.close()
        if ranks == before:
            assert actual[0] == expected[0]
            assert all(torch.equal(actual[1][name], value) for name, value in expected[1].items())
        else:
            # other micro-batches round differently: bfloat16 has eight bits
            assert actual[0] == pytest.approx(expected[0], rel={"float32": 1e-4, "bfloat16": 3e-2}[dtype])


@pytest.mark.long
def test_zero_3_continues_with_unevenly_partitioned_tensors(local_ray, tiny_model, tmp_path) -> None:
    pairs = examples(12, reference=False)
    planned = batches(pairs, Optimizer(batch_size=6, epochs=2), 3, seed=4)
    losses, middle = [], None
    for first in (0, 2):
        learner = group(tiny_model, BradleyTerryObjective(), ranks=3, stage=3, state=middle)
        try:
            for step in learner.train(planned[first:], len(planned), first):
                losses.append(step.loss)
                if step.step == 1 and middle is None:
                    middle = str(tmp_path / "middle")
                    learner.save_state(tmp_path / "middle", moments=True)
        finally:
            learner.close()
    assert losses[2:4] == losses[4:6]


@pytest.mark.parametrize("stage", [pytest.param(1, marks=LONG), 3])
def test_adapters_learn_and_are_merged_on_export(local_ray, tiny_model, tmp_path, stage) -> None:
    from transformers import AutoModelForSequenceClassification

    pairs = examples(24, reference=False)
    learner = group(
        tiny_model,
        BradleyTerryObjective(),
        ranks=2,
        stage=stage,
        optimizer=Optimizer(learning_rate=2e-2, batch_size=8, epochs=6, schedule="constant"),
        lora=Lora(rank=4, alpha=8),
    )
    try:
        results = list(steps(learner, pairs, seed=0))
        values = learner.evaluate_pairs(pairs)
        learner.save_model(tmp_path / "reward")
        learner.save_state(tmp_path / "state", moments=True)
    finally:
        learner.close()
    assert results[-1].loss < 0.35 < 0.5 < results[0].loss
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    moved = model.model.layers[0].self_attn.q_proj.weight - base.model.layers[0].self_attn.q_proj.weight
    assert torch.linalg.matrix_rank(moved, tol=1e-4) <= 4
    assert moved.abs().max() > 0
    assert torch.equal(model.model.embed_tokens.weight, base.model.embed_tokens.weight)
    with torch.no_grad():
        scores = [model(torch.tensor([pairs[0].prompt_ids + ids])).logits.item() for ids in (pairs[0].chosen_ids,)]
    assert scores[0] == pytest.approx(values[0][0], abs=1e-4)
    stored = load_file(tmp_path / "state" / "state-00000.safetensors")
    assert all("lora_" in name or name.startswith(("score", "step")) for name in stored)


def test_reward_training_fits_its_pairs_and_saves_a_classifier(local_ray, tiny_model, tmp_path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pairs = examples(24, reference=False)
    learner = group(
        tiny_model,
        BradleyTerryObjective(),
        ranks=2,
        stage=2,
        optimizer=Optimizer(learning_rate=3e-3, batch_size=8, epochs=6, schedule="constant"),
    )
    try:
        together = learner.evaluate_pairs(pairs[:23])
        alone = [learner.evaluate_pairs([pair])[0] for pair in pairs[:5]]
        results = list(steps(learner, pairs, seed=0))
        values = learner.evaluate_pairs(pairs)
        learner.save_model(tmp_path / "reward")
    finally:
        learner.close()
    for in_group, by_itself in zip(together[:5], alone, strict=True):
        assert in_group == pytest.approx(by_itself, abs=1e-5), (
            "values keep the order of the pairs and do not depend on packing"
        )
    assert results[-1].loss < 0.3 < 0.5 < results[0].loss
    assert results[-1].metrics["accuracy"] == 1.0
    assert sum(chosen > rejected for chosen, rejected in values) == len(pairs)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32)
    first = pairs[0]
    with torch.no_grad():
        chosen = model(torch.tensor([first.prompt_ids + first.chosen_ids])).logits
    assert chosen.shape == (1, 1)
    assert chosen.item() == pytest.approx(values[0][0], abs=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "reward").pad_token_id == model.config.pad_token_id


def test_parameter_groups_have_similar_sizes() -> None:
    from psyco_ray.learner.engine import parameter_groups

    parameters = [torch.nn.Parameter(torch.empty(size)) for size in (400, 100, 100, 50, 50, 300)]
    sizes = [[parameter.numel() for parameter in group["params"]] for group in parameter_groups(parameters)]
    assert sizes == [[400], [100, 100], [50, 50, 300]], "a group is closed when it reaches an eighth of the parameters"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])  # stages 1 and 2 share an implementation
def test_a_training_goes_on_bit_by_bit_after_its_states_left_the_gpu(local_ray, tiny_model, tmp_path, stage) -> None:
    """First all but the weights leave, which can still be sent; then the weights."""
    pairs, states, outcome = examples(12), {"optim_states", "hp_params"}, {}
    learner = group(tiny_model, DpoObjective(DpoConfig()), ranks=2, stage=stage, dtype="bfloat16")
    try:
        list(learner.train([pairs[:6]] * 2, total_steps=4))
        learner.save_state(tmp_path / "start", moments=True)
        for kept in ((), ("weights", "weights", "nothing", "all", "all"), ("nothing", "all")):
            learner.load_state(tmp_path / "start")
            weights = learner.export(1, 64).digest
            for index, what in enumerate(kept):
                learner.keep_on_gpu(what)
                left = on_worker(
                    learner, lambda worker: {str(s.value) for s in worker._engine.optimizer.offloaded_states}
                )
                expected = {"all": set(), "weights": {"lp_grads"}, "nothing": {"lp_grads", "lp_params"}}[what]
                if expected and stage == 2:  # for ZeRO-3 these are moved without DeepSpeed
                    expected |= states
                assert [found - {"contiguous_grad_buffer"} for found in left] == [expected] * 2, (what, index)
                if what == "weights":
                    assert learner.export(1, 64).digest == weights
            losses = [step.loss for step in learner.train([pairs[6:]] * 2, total_steps=4, first_step=2)]
            learner.save_state(tmp_path / f"end-{kept}", moments=True)
            outcome[kept] = losses, load_file(tmp_path / f"end-{kept}" / "state-00000.safetensors")
    finally:
        learner.close()
    expected_losses, expected_state = outcome.pop(())
    assert expected_losses[0] != expected_losses[1]
    for losses, state in outcome.values():
        assert losses == expected_losses
        assert state.keys() == expected_state.keys()
        assert all(torch.equal(tensor, expected_state[name]) for name, tensor in state.items())
