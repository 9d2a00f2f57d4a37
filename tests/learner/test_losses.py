"""Losses and objectives against hand-computed values."""

import math

import pytest
import torch

from psyco_ray.config.training import DpoConfig
from psyco_ray.learner.losses import BradleyTerryObjective, DpoObjective, bradley_terry


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_bradley_terry_equals_hand_computed_values() -> None:
    loss = bradley_terry(torch.tensor([2.0, 0.5, -1.0]), torch.tensor([1.0, 0.5, 2.0]), torch.zeros(3))
    assert loss.tolist() == pytest.approx([-math.log(sigmoid(1.0)), math.log(2), -math.log(sigmoid(-3.0))])


def test_margin_and_centring_add_to_the_loss() -> None:
    values = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    loss, metrics = BradleyTerryObjective(centre=0.01)(values, torch.tensor([0.0, 0.6]), 1.0)
    assert loss.tolist() == pytest.approx([-math.log(sigmoid(1.0)) + 0.09, -math.log(sigmoid(0.4)) + 0.09])
    assert metrics["margin"].tolist() == [1.0, 1.0]
    assert metrics["reward"].tolist() == [1.5, 1.5]


def objective(**settings) -> DpoObjective:
    return DpoObjective(DpoConfig(**settings))


def inputs(reference: list[float], tokens: list[float]) -> torch.Tensor:
    return torch.tensor([[*reference, *tokens]])


# log-ratios: chosen -10 - (-12) = 2, rejected -9 - (-8) = -1; 4 and 2 tokens
VALUES, INPUTS = torch.tensor([[-10.0, -9.0]]), inputs([-12.0, -8.0], [4.0, 2.0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, -math.log(sigmoid(0.3))),
        ({"label_smoothing": 0.1}, -0.9 * math.log(sigmoid(0.3)) - 0.1 * math.log(sigmoid(-0.3))),
        (
            {"loss": "robust", "label_smoothing": 0.1},
            (-0.9 * math.log(sigmoid(0.3)) + 0.1 * math.log(sigmoid(-0.3))) / 0.8,
        ),
        ({"loss": "hinge"}, 0.7),
        ({"loss": "ipo"}, (2 / 4 + 1 / 2 - 5) ** 2),
        ({"length_normalised": True, "beta": 2.0}, -math.log(sigmoid(2.0))),
        ({"length_margin": 0.05}, -math.log(sigmoid(0.3 + 0.05 * 2))),
        ({"sft": 0.5}, -math.log(sigmoid(0.3)) + 0.5 * 10 / 4),
    ],
    ids=str,
)
def test_each_loss_equals_its_hand_computed_value(settings, expected) -> None:
    loss, metrics = objective(**settings)(VALUES, INPUTS, mean_chosen_tokens=4.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert (metrics["chosen_shift"].item(), metrics["rejected_shift"].item()) == (2.0, -1.0)
    assert metrics["accuracy"].item() == 1.0


def test_invalid_combinations_of_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing has no effect on dpo\.loss ipo"):
        DpoConfig(loss="ipo", label_smoothing=0.1)
    with pytest.raises(ValueError, match="robust needs"):
        DpoConfig(loss="robust")


def test_dpo_of_an_untrained_policy_is_log_two() -> None:
    values = torch.tensor([[-5.0, -7.0], [-1.0, -100.0]])
    loss, metrics = objective(beta=0.3)(values, torch.cat([values, torch.ones(2, 2)], dim=1), 1.0)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    assert metrics["margin"].tolist() == [0.0, 0.0]


def test_the_dpo_gradient_is_beta_times_the_probability_of_the_wrong_order() -> None:
    values = VALUES.clone().requires_grad_()
    loss, metrics = objective()(values, INPUTS, 4.0)
    loss.sum().backward()
    wrong_order = sigmoid(-0.3)
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([-0.1 * wrong_order, 0.1 * wrong_order])
    assert metrics["margin"].item() == pytest.approx(0.3)


def test_extreme_margins_stay_finite() -> None:
    loss, _ = BradleyTerryObjective()(torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.zeros(2), 1.0)
    assert loss.tolist() == pytest.approx([0.0, 2e4])
