"""Preference losses, as pure functions of a tensor per side; one value per pair, never reduced.

A driver names a loss and needs no torch for it, which takes seconds to import.
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
        rejected: rewards of the rejected ones, shape [pairs].
        margins: by how much chosen should be ahead (Touvron et al. 2023, eq. 2); zeros for the paper's loss.
        centre: weight of ``(r_chosen + r_rejected)²``, which keeps rewards around zero (Eisenstein et al. 2023).

    Returns:
        Loss per pair in nats, shape [pairs].
    """
    from torch.nn.functional import logsigmoid

    loss = -logsigmoid(chosen - rejected - margins)
    return loss + centre * (chosen + rejected) ** 2 if centre else loss


def dpo(ahead: Tensor, kind: str, beta: float, smoothing: float = 0.0) -> Tensor:
    """Preference losses of a policy.

    Args:
        ahead: by how much the policy prefers chosen over rejected more than the reference does, in nats, shape [pairs];
            for `ipo` in nats a token.
        kind: `sigmoid` (Rafailov et al. 2023, eq. 7), `hinge` (Zhao et al. 2023), `ipo` (Azar et al. 2023, eq. 17) or
            `robust` (Chowdhury et al. 2024, eq. 12).
        beta: strength of the pull towards the reference.
        smoothing: share of the labels that are thought to be wrong; with `sigmoid` conservative DPO (Mitchell 2023).

    Returns:
        Loss per pair in nats, shape [pairs].
    """
    from torch.nn.functional import logsigmoid

    margin = beta * ahead
    if kind == "ipo":
        return (ahead - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return (1 - margin).relu()
    right, wrong = -(1 - smoothing) * logsigmoid(margin), -smoothing * logsigmoid(-margin)
    return (right - wrong) / (1 - 2 * smoothing) if kind == "robust" else right + wrong


@dataclass(frozen=True)
class BradleyTerryObjective:
    """What reward training minimises, given the scores of each pair's two responses."""

    centre: float = 0.0
    head: ClassVar[str] = "reward"

    def given(self, examples: Sequence[PreferencePair]) -> list[float]:
        """What the loss needs beside the scores: each pair's margin."""
        return [example.margin for example in examples]

    def __call__(self, values: Tensor, margins: Tensor, chosen_tokens: float) -> tuple[Tensor, Metrics]:
        """Loss and metrics per pair.

        Args:
            values: scores, chosen then rejected, shape [pairs, 2].
            margins: by how much chosen should be ahead, shape [pairs].
            chosen_tokens: not used.
        """
        chosen, rejected = values.unbind(1)
        ahead = chosen - rejected
        metrics = {"margin": ahead, "accuracy": (ahead > 0).float(), "reward": (chosen + rejected) / 2}
        return bradley_terry(chosen, rejected, margins, self.centre), metrics


@dataclass(frozen=True)
class DpoObjective:
    """What policy training minimises, given the log-probabilities of each pair's two responses."""

    settings: DpoConfig
    head: ClassVar[str] = "policy"

    def given(self, examples: Sequence[PreferencePair]) -> list[tuple[float, float, float, float]]:
        """What the loss needs beside: log-probabilities under the reference, then tokens, of both responses."""
        found = []
        for one in examples:
            assert one.reference is not None, "DPO pairs carry reference log-probabilities"
            found.append((*one.reference, float(len(one.chosen_ids)), float(len(one.rejected_ids))))
        return found

    def __call__(self, values: Tensor, given: Tensor, chosen_tokens: float) -> tuple[Tensor, Metrics]:
        """Loss and metrics per pair.

        Args:
            values: log-probabilities under the policy in nats, chosen then rejected, shape [pairs, 2].
            given: the same under the reference model, then tokens of both responses, shape [pairs, 4].
            chosen_tokens: of a chosen response, the mean over the batch.
        """
        how = self.settings
        reference, tokens = given[:, :2], given[:, 2:]
        shift = values - reference
        counted = shift / tokens if how.length_normalised or how.loss == "ipo" else shift
        ahead = counted[:, 0] - counted[:, 1]
        # what length alone explains of a preference is not learnt again (Park et al. 2024, eq. 9)
        known = how.length_margin / how.beta * (tokens[:, 0] - tokens[:, 1])
        loss = dpo(ahead + known, how.loss, how.beta, how.label_smoothing)
        if how.sft:
            loss = loss - how.sft * values[:, 0] / chosen_tokens
        metrics = {
            "margin": how.beta * ahead.detach(),  # implicit reward, chosen less rejected
            "accuracy": (ahead > 0).float(),
            "chosen_shift": shift[:, 0].detach(),  # nats
            "rejected_shift": shift[:, 1].detach(),
        }
        return loss, metrics


Objective = BradleyTerryObjective | DpoObjective
