"""The forward and backward passes of one optimizer step, prepared and read so that a GPU never waits for the host.

Work on a GPU is queued: the host goes on as soon as it has given a pass to it. Reading a value or copying out of
pageable memory waits for everything that is queued. So the next pass is packed once the GPU has one to compute, and
values stay on the device until the step's end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from psyco_ray.config.errors import require_finite
from psyco_ray.learner.batching import MicroBatch
from psyco_ray.models.packing import Packed, ResponseLogprobs, ResponseScores, copied

if TYPE_CHECKING:
    from psyco_ray.learner.losses import Metrics, Objective


Module = ResponseLogprobs | ResponseScores
"""A model over packed responses."""


@dataclass(frozen=True)
class Pass:
    """A micro-batch on the device."""

    pairs: MicroBatch
    packed: Packed
    inputs: Tensor  # what the loss needs besides the model's values, [pairs, ...]
    weights: Tensor  # of the pairs in the loss, [pairs]


def _prepared(
    micro_batches: Sequence[MicroBatch], objective: Objective, device: torch.device, module: Module
) -> Iterator[Pass]:
    """Yield each micro-batch on the device, packed when it is asked for."""
    for pairs in micro_batches:
        inputs = torch.tensor(objective.loss_inputs(pairs), dtype=torch.float32)
        weights = torch.tensor([pair.weight for pair in pairs], dtype=torch.float32)
        yield Pass(pairs, packed(pairs, module, device), copied(inputs, device), copied(weights, device))


def packed(pairs: MicroBatch, module: Module, device: torch.device) -> Packed:
    """Pack pairs, chosen before rejected, as the model computes them, and copy them to the device."""
    trees = [(pair.prompt_ids, [pair.chosen_ids, pair.rejected_ids]) for pair in pairs]
    return module.pack(trees, [count for pair in pairs for count in pair.context], device)


def run(
    micro_batches: Sequence[MicroBatch],
    objective: Objective,
    mean_chosen_tokens: float,
    device: torch.device,
    module: Module,
    forward: Callable[[Packed], Tensor],
    backward: Callable[[Tensor, bool], None],
) -> StepValues:
    """Run the passes of a step; nothing here waits for a GPU.

    A pair's loss is multiplied by its weight, which leaves the bits of a pair of weight 1; metrics are not.

    Args:
        micro_batches: pairs of each pass.
        objective: that is minimised.
        mean_chosen_tokens: mean length of a chosen response over the whole batch, in trained tokens.
        device: of the model.
        module: the model, which packs the pairs.
        forward: computes a value of each response.
        backward: takes the sum of a pass's losses, and whether the pass is the step's last.
    """
    results = StepValues()
    upcoming = _prepared(micro_batches, objective, device, module)
    following = next(upcoming, None)
    while following is not None:
        current = following
        values = forward(current.packed).view(-1, 2)
        following = next(upcoming, None)  # packed while a GPU computes this one
        losses, metrics = objective(values, current.inputs, mean_chosen_tokens)
        losses = current.weights * losses
        results.add(current.pairs, values, losses, metrics)
        backward(losses.sum(), following is None)
    return results


@dataclass
class StepValues:
    """Losses, values and metrics of a step's passes, on the device until `read`.

    Example:
        >>> sums = run(...).read("reward", "in step 3 of smollm2-135m", "lower the learning rate")
    """

    _names: list[str] = field(default_factory=list)
    _passes: list[tuple[MicroBatch, Tensor]] = field(default_factory=list)

    def add(self, pairs: MicroBatch, values: Tensor, losses: Tensor, metrics: Metrics) -> None:
        """Keep the results of a pass.

        Args:
            pairs: of the pass.
            values: of the model, float32, shape [pairs, 2].
            losses: weighted, float32, shape [pairs].
            metrics: by name, not weighted, each float32, shape [pairs].
        """
        self._names = ["loss", *metrics]
        sums = torch.stack([losses.sum(), *(metric.sum() for metric in metrics.values())])
        self._passes.append((pairs, torch.cat((sums, losses, values.flatten())).detach()))

    def read(self, head: str, where: str, way_out: str) -> dict[str, float]:
        """Wait for the passes and return the sums of `loss` and of each metric over all pairs.

        Args:
            head: what the model's values are, for messages.
            where: the step and the model, for messages.
            way_out: what a user can change.

        Raises:
            NonFiniteError: the loss or a value of a pair is not finite.
        """
        flat = iter(torch.cat([results for _, results in self._passes]).tolist())
        totals = dict.fromkeys(self._names, 0.0)
        for pairs, _ in self._passes:
            for name in self._names:
                totals[name] += next(flat)
            losses = [next(flat) for _ in pairs]
            values = [(next(flat), next(flat)) for _ in pairs]
            for pair, loss, both in zip(pairs, losses, values, strict=True):
                require_finite([loss], f"the loss of pair {pair.key} {where}", way_out)
                require_finite(both, f"a {head} value of pair {pair.key} {where}", way_out)
        return totals
