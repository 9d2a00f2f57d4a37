"""Preference losses, as pure functions of a tensor per side; one value per pair, never reduced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Bradley-Terry loss of a reward model (paper §4.1): ``-log sigmoid(r_chosen - r_rejected)``.

    Args:
        chosen: rewards of the chosen responses, shape [pairs].
        rejected: rewards of the rejected ones, shape [pairs].

    Returns:
        Loss per pair in nats, shape [pairs].
    """
    return -logsigmoid(chosen - rejected)


def dpo(chosen: Tensor, rejected: Tensor, chosen_reference: Tensor, rejected_reference: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7).

    Args:
        chosen: log-probabilities of the chosen responses under the policy, in nats, summed over tokens, shape [pairs].
        rejected: the same of the rejected responses.
        chosen_reference: the same as `chosen` under the reference model.
        rejected_reference: the same as `rejected` under the reference model.
        beta: strength of the pull towards the reference.

    Returns:
        Loss per pair in nats, shape [pairs].
    """
    return -logsigmoid(beta * ((chosen - chosen_reference) - (rejected - rejected_reference)))


Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class BradleyTerry:
    """What reward training minimises, given the scores of each pair's two responses."""

    head: ClassVar[str] = "reward"

    def __call__(self, values: Tensor, reference: Tensor | None) -> tuple[Tensor, Metrics]:
        """Loss and metrics per pair.

        Args:
            values: scores, chosen then rejected, shape [pairs, 2].
            reference: not used.
        """
        chosen, rejected = values.unbind(1)
        margin = chosen - rejected
        return bradley_terry(chosen, rejected), {"margin": margin, "accuracy": (margin > 0).float()}


@dataclass(frozen=True)
class Dpo:
    """What policy training minimises, given the log-probabilities of each pair's two responses."""

    beta: float
    head: ClassVar[str] = "policy"

    def __call__(self, values: Tensor, reference: Tensor | None) -> tuple[Tensor, Metrics]:
        """Loss and metrics per pair.

        Args:
            values: log-probabilities under the policy in nats, chosen then rejected, shape [pairs, 2].
            reference: the same under the reference model.
        """
        assert reference is not None, "DPO pairs carry reference log-probabilities"
        chosen, rejected = values.unbind(1)
        margin = self.beta * ((values - reference)[:, 0] - (values - reference)[:, 1])
        metrics = {
            "margin": margin,  # implicit reward, chosen less rejected
            "accuracy": (margin > 0).float(),
            "chosen_shift": (values - reference)[:, 0],  # nats
            "rejected_shift": (values - reference)[:, 1],
        }
        return dpo(chosen, rejected, reference[:, 0], reference[:, 1], self.beta), metrics


Objective = BradleyTerry | Dpo
