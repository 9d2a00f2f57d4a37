"""Real DeepSpeed ranks over gloo, one Ray actor each, on a tiny model."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from psyco_ray.config.resources import Learners
from psyco_ray.config.training import DpoConfig, Lora, Optimizer
from psyco_ray.learner.batching import batches, learning_rate, plan_step
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import BradleyTerryObjective, DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.run.types import PreferencePair, StepResult

LONG = pytest.mark.long


def examples(count: int, seed: int = 0, reference: bool = True) -> list[PreferencePair]:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 40000) for _ in range(rng.randint(low, high)))

    return [
        PreferencePair(f"pair-{i}", ids(3, 12), ids(3, 20), ids(3, 20), (-30.0 - i, -31.0) if reference else None)
        for i in range(count)
    ]


def group(
    model: Path, objective, *, ranks=1, stage=0, dtype="float32", optimizer=None, state=None, lora=None
) -> LearnerGroup:
    spec = WorkerSpec(
        str(model),
        objective,
        Learners(actors=ranks, cpus=0.5, zero_stage=stage, dtype=dtype, micro_batch_tokens=80, logit_rows=16),
        optimizer or Optimizer(learning_rate=1e-3, batch_size=6, epochs=2, schedule="linear"),
        seed=5,
        start_s=180,
        step_s=120,
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


def logprob(model, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()


@pytest.fixture(scope="module")
def single_process(tiny_model) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same training in plain torch: no Ray, no DeepSpeed, one pair at a time."""
    pairs, optimizer_config = examples(15), Optimizer(learning_rate=1e-3, batch_size=6, epochs=2, schedule="linear")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    objective = DpoObjective(DpoConfig())
    adam = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    planned = batches(pairs, optimizer_config, 1, seed=1)
    for step, batch in enumerate(planned):
        adam.zero_grad()
        total = 0.0
        for pair in batch:
            values = torch.stack([logprob(model, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids)])
            loss, _ = objective(values.view(1, 2), torch.tensor(objective.loss_inputs([pair])), len(pair.chosen_ids))
            (loss.sum() / len(batch)).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for parameters in adam.param_groups:
            parameters["lr"] = learning_rate(optimizer_config, step, len(planned))
        adam.step()
        losses.append(total / len(batch))
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("ranks", "stage"), [pytest.param(1, 0, marks=LONG), pytest.param(2, 0, marks=LONG), (2, 2), (2, 3)]
)
def test_ranks_and_zero_stages_take_the_same_steps_as_one_process(
    local_ray, tiny_model, tmp_path, single_process, ranks, stage
) -> None:
    learner = group(tiny_model, DpoObjective(DpoConfig()), ranks=ranks, stage=stage)
    try:
        losses, state = trained(learner, examples(15), tmp_path)
    finally:
        learner.close()
    assert losses == pytest.approx(single_process[0], rel=1e-4)
    assert losses[0] != pytest.approx(losses[-1], rel=0.05), "nothing was learnt, so equal steps would show nothing"
    for name, value in single_process[1].items():
        # Adam turns tiny gradient differences into steps of the learning rate where a gradient is almost zero
        difference = (state[name] - value).abs()
        assert difference.mean() < 2e-6, name
        assert difference.max() < 2e-3, name


def test_bf16_follows_float32_and_a_loss_that_is_no_number_stops_with_the_pairs_name(
    local_ray, tiny_model, tmp_path, single_process, caplog
) -> None:
    broken = PreferencePair("pair-broken", (5,), (6,), (7,), (float("nan"), 0.0))
    learner = group(tiny_model, DpoObjective(DpoConfig()), stage=2, dtype="bfloat16")
    try:
        losses, _ = trained(learner, examples(15), tmp_path)
        learner.save_model(tmp_path / "model")
        with pytest.raises(ValueError, match=r"loss of pair pair-broken is nan; lower the learning rate"):
            list(steps(learner, [*examples(6), broken], seed=0, fresh=True))
    finally:
        learner.close()
    assert not [record for record in caplog.records if "restarting" in record.getMessage()], "it is not tried again"
    assert losses == pytest.approx(single_process[0], rel=0.05)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert written.dtype == torch.bfloat16


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])  # 1 and 2 are one implementation
def test_a_restored_state_goes_on_bit_by_bit(local_ray, tiny_model, tmp_path, stage) -> None:
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
        found = trained(resumed, examples(12, seed=9), tmp_path)
    finally:
        resumed.close()
    assert found[0] == expected[0]
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value), name


@pytest.mark.parametrize(
    ("stage", "dtype", "before", "resumed_with"),
    [
        pytest.param(0, "float32", 1, (1, 2), marks=LONG),
        pytest.param(2, "bfloat16", 2, (2, 1), marks=LONG),
        (2, "bfloat16", 2, (1,)),
    ],
)
def test_a_state_with_moments_goes_on_in_the_middle(
    local_ray, tiny_model, tmp_path, stage, dtype, before, resumed_with
) -> None:
    """Also with another number of ranks, which adds gradients in another order and so rounds differently."""
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
            found = last(resumed, 3)
        finally:
            resumed.close()
        if ranks == before:
            assert found[0] == expected[0]
            assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())
        else:
            # other passes round otherwise: bfloat16 has eight bits
            assert found[0] == pytest.approx(expected[0], rel={"float32": 1e-4, "bfloat16": 3e-2}[dtype])


@pytest.mark.long
def test_zero_3_goes_on_with_ranks_that_share_no_tensor_evenly(local_ray, tiny_model, tmp_path) -> None:
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
def test_adapters_learn_and_are_merged_when_written(local_ray, tiny_model, tmp_path, stage) -> None:
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
        taken = list(steps(learner, pairs, seed=0))
        values = learner.evaluate_pairs(pairs)
        learner.save_model(tmp_path / "reward")
        learner.save_state(tmp_path / "state", moments=True)
    finally:
        learner.close()
    assert taken[-1].loss < 0.35 < 0.5 < taken[0].loss
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


def test_reward_training_learns_its_pairs_and_saves_a_classifier(local_ray, tiny_model, tmp_path) -> None:
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
        taken = list(steps(learner, pairs, seed=0))
        values = learner.evaluate_pairs(pairs)
        learner.save_model(tmp_path / "reward")
    finally:
        learner.close()
    for found, expected in zip(together[:5], alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-5), "in the order of the pairs however they are packed"
    assert taken[-1].loss < 0.3 < 0.5 < taken[0].loss
    assert taken[-1].metrics["accuracy"] == 1.0
    assert sum(chosen > rejected for chosen, rejected in values) == len(pairs)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32)
    first = pairs[0]
    with torch.no_grad():
        chosen = model(torch.tensor([first.prompt_ids + first.chosen_ids])).logits
    assert chosen.shape == (1, 1)
    assert chosen.item() == pytest.approx(values[0][0], abs=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "reward").pad_token_id == model.config.pad_token_id


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 4), st.integers(50, 1000))
def test_a_batch_is_shared_wholly_evenly_and_within_bounds(lengths: list[int], ranks: int, tokens: int) -> None:
    batch = [PreferencePair(f"{i:02d}", (1,), (1,) * length, (1,)) for i, length in enumerate(lengths)]
    if len(batch) < ranks:
        with pytest.raises(ValueError, match="cannot be shared"):
            plan_step(batch, ranks, tokens)
        return
    shares = plan_step(batch, ranks, tokens)
    assert len({len(share) for share in shares}) == 1
    assert sorted(e.key for share in shares for micro in share for e in micro) == [e.key for e in batch]
    assert all(micro for share in shares for micro in share)
    could_split_further = (len(shares[0]) + 1) * ranks <= len(batch)
    if could_split_further:
        assert all(
            len(micro) * max(e.tokens for e in micro) <= tokens or len(micro) == 1
            for share in shares
            for micro in share
        )
    for micros in zip(*shares, strict=True):
        assert max(map(len, micros)) - min(map(len, micros)) <= 1, "a rank would wait for another"
    longest = [max(e.tokens for share in shares for e in share[i]) for i in range(len(shares[0]))]
    assert longest == sorted(longest, reverse=True), "what is about as long is computed together"


def test_the_optimizer_takes_the_weights_in_parts_of_about_a_size() -> None:
    from psyco_ray.learner.engine import parameter_groups

    parameters = [torch.nn.Parameter(torch.empty(size)) for size in (400, 100, 100, 50, 50, 300)]
    sizes = [[parameter.numel() for parameter in group["params"]] for group in parameter_groups(parameters)]
    assert sizes == [[400], [100, 100], [50, 50, 300]], "at least an eighth each, and no more than that needs"


def test_batches_shuffle_every_epoch_and_leave_nothing_out() -> None:
    pairs = examples(9)
    planned = batches(pairs, Optimizer(batch_size=4, epochs=2), 2, seed=3)
    assert [len(b) for b in planned] == [4, 5, 4, 5], "a rest of one pair joins the batch before"
    for epoch in (planned[:2], planned[2:]):
        assert sorted(e.key for b in epoch for e in b) == sorted(e.key for e in pairs)
    assert [e.key for b in planned[:2] for e in b] != [e.key for b in planned[2:] for e in b]
    assert batches(pairs, Optimizer(batch_size=4, epochs=2), 2, seed=3) == planned


def test_learning_rate_warms_up_and_falls() -> None:
    settings = Optimizer(learning_rate=1.0, warmup_ratio=0.1, schedule="linear", min_lr_ratio=0.0)
    rates = [learning_rate(settings, step, 20) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(1 / 18)
    cosine = settings.model_copy(update={"schedule": "cosine", "min_lr_ratio": 0.1})
    assert learning_rate(cosine, 11, 20) == pytest.approx(0.1 + 0.9 * 0.5)
    constant = settings.model_copy(update={"schedule": "constant"})
    assert {learning_rate(constant, step, 20) for step in range(2, 20)} == {1.0}


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])  # 1 and 2 are one implementation
def test_ranks_that_slept_go_on_as_if_they_had_not(local_ray, tiny_model, tmp_path, stage: int) -> None:
    pairs = examples(12)
    found = {}
    for slept in (False, True):
        learner = group(tiny_model, DpoObjective(DpoConfig()), ranks=2, stage=stage, dtype="bfloat16")
        try:
            values = []
            for part in (pairs[:6], pairs[6:]):
                if slept:
                    learner.sleep()
                    learner.sleep()
                    learner.wake()
                    learner.wake()
                values += [step.loss for step in learner.train([part] * 2, total_steps=4, first_step=len(values))]
                learner.save_state(tmp_path / f"{slept}-{len(values)}", moments=True)
            values += learner.evaluate_pairs(pairs)
            state = load_file(tmp_path / f"{slept}-4" / "state-00000.safetensors")
            found[slept] = values, state
        finally:
            learner.close()
    assert found[True][0] == found[False][0]
    assert found[True][1].keys() == found[False][1].keys()
    for name, tensor in found[True][1].items():
        assert torch.equal(tensor, found[False][1][name]), name
