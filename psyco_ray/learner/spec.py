"""What a learner worker is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from psyco_ray.config.optimizer import Lora, Optimizer
from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Deadlines
from psyco_ray.learner.losses import Objective

OnGpu = Literal["all", "weights", "nothing"]
"""What a colocated worker has on its GPU: everything while it trains, its weights (in the compute dtype) while it sends
them, nothing while engines sample. The rest is in host memory."""


@dataclass(frozen=True)
class WorkerSpec:
    """Everything that all workers of a learner group share; it is the same for every restart.

    Example:
        >>> spec = WorkerSpec(
        ...     model="smollm2-135m",
        ...     objective=BradleyTerryObjective(),
        ...     settings=Learners(actors=2),
        ...     optimizer=Optimizer(batch_size=64),
        ...     seed=0,
        ...     deadlines=Deadlines(),
        ... )
    """

    model: str  # name, hub id or directory of the base model
    objective: Objective  # also decides the head: reward or language model
    settings: Learners  # number of workers, resources of each, dtype, ZeRO stage, sizes
    optimizer: Optimizer  # AdamW and the learning-rate schedule
    seed: int  # of a new reward head, new adapters and dropout
    deadlines: Deadlines  # `start_s` to load the model, `step_s` for any other call and as the timeout of a collective
    lora: Lora | None = None  # train low-rank adapters instead of all weights
    template_options: Mapping[str, Any] = field(default_factory=dict)  # of the chat template that is saved
