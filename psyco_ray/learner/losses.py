"""Preference losses per pair, never reduced, and the objectives that a learner minimises.

The driver constructs objectives without importing torch, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from psyco_ray.config.training import DpoConfig
from psyco_ray.run.types import PreferencePair

if TYPE_CHECKING:
    from torch import Tensor

    Metrics = dict[str, Tensor]


def bradley_terry(chosen: Tensor, rejected: Tensor, margins: Tensor, centre: float = 0.0) -> Tensor:
    """Bradley-Terry loss of a reward model (paper §4.1): ``-log sigmoid(r_chosen - r_rejected - margin)``.

    Args:
        chosen: rewards of the chosen responses, shape [pairs].
        rejected: rewards of the rejected responses, shape [pairs].
        margins: reward by which chosen should lead (Touvron et al. 2023, eq. 2), shape [pairs]; zeros for the paper's
            loss.
        centre: weight of ``(r_chosen + r_rejected)²``, which keeps rewards around zero (Eisenstein et al. 2023).

    Returns:
        Loss per pair in nats, shape [pairs].
    """
    from torch.nn.functional import logsigmoid

    loss = -logsigmoid(chosen - rejected - margins)
    return loss + centre * (chosen + rejected) ** 2 if centre else loss


def dpo(logits: Tensor, kind: str, beta: float, smoothing: float = 0.0) -> Tensor:
    """Preference losses of a policy.

    Args:
        logits: log-ratio (policy to reference) of chosen minus that of rejected in nats, shape [pairs]; for `ipo` in
            nats a token.
        kind: `sigmoid` (Rafailov et al. 2023, eq. 7), `hinge` (Zhao et al. 2023), `ipo` (Azar et al. 2023, eq. 17) or
            `robust` (Chowdhury et al. 2024, eq. 12).
        beta: strength of the pull towards the reference.
        smoothing: assumed share of wrong labels; with `sigmoid` this is conservative DPO (Mitchell 2023).

    Returns:
        Loss per pair in nats, shape [pairs].
    """
    from torch.nn.functional import logsigmoid

    margin = beta * logits
    if kind == "ipo":
        return (logits - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return (1 - margin).relu()
    right, wrong = -(1 - smoothing) * logsigmoid(margin), -smoothing * logsigmoid(-margin)
    return (right - wrong) / (1 - 2 * smoothing) if kind == "robust" else right + wrong


@dataclass(frozen=True)
class BradleyTerryObjective:
    """The loss of reward training over the rewards of each pair's two responses.

    Example:
        >>> objective = BradleyTerryObjective(centre=0.01)
        >>> losses, metrics = objective(rewards, margins, 0.0)  # rewards: [pairs, 2]
    """

    centre: float = 0.0
    head: ClassVar[str] = "reward"

    def loss_inputs(self, examples: Sequence[PreferencePair]) -> list[float]:
        """Return each pair's margin, which the loss needs besides the rewards."""
        return [example.margin for example in examples]

    def __call__(self, values: Tensor, margins: Tensor, mean_chosen_tokens: float) -> tuple[Tensor, Metrics]:
        """Compute loss and metrics per pair.

        Args:
            values: rewards, chosen then rejected, shape [pairs, 2].
            margins: reward by which chosen should lead, shape [pairs].
            mean_chosen_tokens: not used.
        """
        chosen, rejected = values.unbind(1)
        lead = chosen - rejected
        metrics = {"margin": lead, "accuracy": (lead > 0).float(), "reward": (chosen + rejected) / 2}
        return bradley_terry(chosen, rejected, margins, self.centre), metrics


@dataclass(frozen=True)
class DpoObjective:
    """The loss of policy training over the log-probabilities of each pair's two responses.

    Example:
        >>> objective = DpoObjective(DpoConfig(beta=0.1))
        >>> losses, metrics = objective(logprobs, references_and_lengths, 120.0)  # [pairs, 2] and [pairs, 4]
    """

    settings: DpoConfig
    head: ClassVar[str] = "policy"

    def loss_inputs(self, examples: Sequence[PreferencePair]) -> list[tuple[float, float, float, float]]:
        """Return each pair's reference log-probabilities and lengths in trained tokens (chosen, rejected)."""
        inputs = []
        for example in examples:
            assert example.reference is not None, "DPO pairs carry reference log-probabilities"
            chosen, rejected = example.trained_tokens
            inputs.append((*example.reference, float(chosen), float(rejected)))
        return inputs

    def __call__(self, values: Tensor, inputs: Tensor, mean_chosen_tokens: float) -> tuple[Tensor, Metrics]:
        """Compute loss and metrics per pair.

        Args:
            values: log-probabilities under the policy in nats, chosen then rejected, shape [pairs, 2].
            inputs: the same under the reference model, then lengths of both in trained tokens, shape [pairs, 4].
            mean_chosen_tokens: mean length of a chosen response over the batch, in trained tokens.
        """
        settings = self.settings
        reference, tokens = inputs[:, :2], inputs[:, 2:]
        shift = values - reference
        logratios = shift / tokens if settings.length_normalised or settings.loss == "ipo" else shift
        logits = logratios[:, 0] - logratios[:, 1]
        # the part of a preference that length alone explains gives no gradient (Park et al. 2024, eq. 9)
        length_logits = settings.length_margin / settings.beta * (tokens[:, 0] - tokens[:, 1])
        loss = dpo(logits + length_logits, settings.loss, settings.beta, settings.label_smoothing)
        if settings.sft:
            loss = loss - settings.sft * values[:, 0] / mean_chosen_tokens
        metrics = {
            "margin": settings.beta * logits.detach(),  # implicit reward, chosen minus rejected
            "accuracy": (logits > 0).float(),
            "chosen_shift": shift[:, 0].detach(),  # nats
            "rejected_shift": shift[:, 1].detach(),
        }
        return loss, metrics


Objective = BradleyTerryObjective | DpoObjective
