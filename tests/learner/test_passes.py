"""The passes of a step: nothing between them reads the device, and what is read at the end is exact."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from psyco_ray.config.errors import NonFiniteError
from psyco_ray.config.training import DpoConfig
from psyco_ray.learner import passes
from psyco_ray.learner.losses import BradleyTerryObjective, DpoObjective
from psyco_ray.models import loading
from psyco_ray.models.packing import ResponseLogprobs, pack
from psyco_ray.run.types import PreferencePair

META = torch.device("meta")  # a tensor there has no data: reading one fails, as waiting for a GPU would cost time


def pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    rng = random.Random(seed)

    def ids(high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 40000) for _ in range(rng.randint(3, high)))

    return [PreferencePair(f"pair-{i}", ids(30), ids(20), ids(20), (-30.0 - i, -31.0)) for i in range(count)]


def test_the_host_reads_nothing_from_the_device_before_the_end(tiny_model, monkeypatch) -> None:
    """Packing, the model over rows, the loss and the backward pass of two micro-batches, in that order."""
    events: list[str] = []
    policy = ResponseLogprobs(loading.load_causal_lm(tiny_model, "float32").to(META), logit_rows=16)

    packed_by = policy.pack

    def recorded(*args):
        events.append("pack")
        return packed_by(*args)

    monkeypatch.setattr(policy, "pack", recorded)

    def forward(packed) -> torch.Tensor:
        events.append("forward")
        return policy(packed)

    def backward(loss: torch.Tensor, last: bool) -> None:
        events.append("last backward" if last else "backward")
        loss.backward()

    objective = DpoObjective(DpoConfig(sft=0.1))
    micro_batches = [pairs(3), pairs(2, seed=1)]
    run = passes.run(micro_batches, objective, 12.0, META, policy, forward, backward)
    assert events == ["pack", "forward", "pack", "backward", "forward", "last backward"]
    assert all(parameter.grad is not None for parameter in policy.model.parameters())
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        run.read("policy", "", "")


def computed(values: list[list[float]]) -> passes.StepValues:
    """A step whose model has these values."""
    tensors = iter([torch.tensor(one, requires_grad=True) for one in values])
    micro_batches = [pairs(len(one) // 2) for one in values]
    where = torch.device("cpu"), SimpleNamespace(pack=lambda trees, *_: pack(trees))
    objective = BradleyTerryObjective(0.01)
    return passes.run(micro_batches, objective, 1.0, *where, lambda _: next(tensors), lambda loss, _: loss.backward())


def test_sums_are_those_of_each_pass() -> None:
    sums = computed([[1.5, 0.25, -1.0, 2.0], [0.5, -3.0]]).read("reward", "", "")
    objective = BradleyTerryObjective(0.01)
    expected = dict.fromkeys(("loss", "margin", "accuracy", "reward"), 0.0)
    for values in ([[1.5, 0.25], [-1.0, 2.0]], [[0.5, -3.0]]):
        losses, metrics = objective(torch.tensor(values), torch.zeros(len(values)), 1.0)
        for name, metric in {"loss": losses, **metrics}.items():
            expected[name] += metric.sum().item()
    assert sums == expected


def test_pairs_of_one_history_have_the_losses_and_gradients_of_rows_alone(tiny_model) -> None:
    """Four ranked responses to a history of six turns are six pairs; the history is computed once."""
    rng = random.Random(0)
    history = tuple(rng.randrange(3, 40000) for _ in range(300))
    answers = [tuple(rng.randrange(3, 40000) for _ in range(20)) for _ in range(4)]
    sides = [(better, worse) for worse in range(4) for better in range(worse)]
    batch = [
        PreferencePair(f"{a}-{b}", history, answers[a], answers[b], reference=(-200.0 - a, -200.0 - b))
        for a, b in sides
    ]
    objective, policy = (
        DpoObjective(DpoConfig(sft=0.1)),
        ResponseLogprobs(loading.load_causal_lm(tiny_model, "float32")),
    )
    tokens: list[int] = []

    def forward(packed) -> torch.Tensor:
        tokens.append(packed.input_ids.numel())
        return policy(packed)

    def run(micro_batches: list[list[PreferencePair]]) -> tuple[dict[str, float], list[torch.Tensor]]:
        policy.zero_grad()
        device, backward = torch.device("cpu"), lambda loss, _: loss.backward()
        step = passes.run(micro_batches, objective, 20.0, device, policy, forward, backward)
        return step.read("policy", "", ""), [parameter.grad.clone() for parameter in policy.parameters()]

    sums, gradients = run([batch])
    alone, expected = run([[pair] for pair in batch])
    assert tokens == [300 + 4 * 20, *[300 + 2 * 20] * 6]
    assert sums["loss"] == pytest.approx(alone["loss"], abs=1e-5, rel=1e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-4, rtol=1e-3)


VALUES = [[0.3, 1.7], [-1.1, 0.4], [0.9, 0.2]]
WEIGHTED = [replace(pair, weight=weight) for pair, weight in zip(pairs(3), (1.0, 0.25, 0.5), strict=True)]
OBJECTIVES = [BradleyTerryObjective(0.01), DpoObjective(DpoConfig(sft=0.1)), DpoObjective(DpoConfig(loss="hinge"))]


def one_pass(objective, batch: list[PreferencePair]) -> tuple[dict[str, float], torch.Tensor]:
    """The sums of a pass over these values, and their gradient."""
    values = torch.tensor(VALUES, requires_grad=True)
    where = torch.device("cpu"), SimpleNamespace(pack=lambda trees, *_: pack(trees))
    run = passes.run([batch], objective, 12.0, *where, lambda _: values, lambda loss, _: loss.backward())
    assert values.grad is not None
    return run.read("reward", "", ""), values.grad


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pairs_without_weights_have_the_same_bits_as_the_loss_itself(objective) -> None:
    values, batch = torch.tensor(VALUES, requires_grad=True), pairs(3)
    losses, metrics = objective(values, torch.tensor(objective.loss_inputs(batch)), 12.0)
    losses.sum().backward()
    sums, gradient = one_pass(objective, batch)
    assert values.grad is not None
    assert gradient.numpy().tobytes() == values.grad.numpy().tobytes()
    assert sums == {name: metric.sum().item() for name, metric in {"loss": losses, **metrics}.items()}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_weight_scales_the_loss_and_the_gradient_of_its_pair_and_no_metric(objective) -> None:
    plain, gradient = one_pass(objective, pairs(3))
    sums, weighted_gradient = one_pass(objective, WEIGHTED)
    weights = torch.tensor([pair.weight for pair in WEIGHTED])
    losses, _ = objective(torch.tensor(VALUES), torch.tensor(objective.loss_inputs(WEIGHTED)), 12.0)
    assert sums["loss"] == pytest.approx((weights * losses).sum().item())
    assert torch.equal(weighted_gradient, weights[:, None] * gradient)
    assert {**sums, "loss": 0.0} == {**plain, "loss": 0.0}


@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, r"^the loss of pair pair-1 in step 3 is nan; x$"), (-math.inf, "pair pair-1")]
)
def test_a_value_that_is_not_finite_is_named_at_the_end(value: float, message: str) -> None:
    run = computed([[1.0, 0.0], [1.0, 0.0, value, 0.0]])
    with pytest.raises(NonFiniteError, match=message):
        run.read("reward", "in step 3", "x")
