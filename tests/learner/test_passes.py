"""The passes of a step: nothing between them reads the device, and what is read at the end is exact."""

import math
import random
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


@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, r"^the loss of pair pair-1 in step 3 is nan; x$"), (-math.inf, "pair pair-1")]
)
def test_a_value_that_is_not_finite_is_named_at_the_end(value: float, message: str) -> None:
    run = computed([[1.0, 0.0], [1.0, 0.0, value, 0.0]])
    with pytest.raises(NonFiniteError, match=message):
        run.read("reward", "in step 3", "x")
