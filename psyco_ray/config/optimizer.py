"""Settings of the optimizer, and of what it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from psyco_ray.config.job_file import Count, NotNegative, Positive, Section, Share


class Optimizer(Section):
    """AdamW and its schedule (paper §4.1, §4.2)."""

    learning_rate: Positive = 5e-7
    """Peak learning rate."""
    batch_size: Count = 64
    """Pairs per step, over all ranks."""
    epochs: Count = 1
    """Passes over the pairs."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of Adam's moments."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Norm that gradients are clipped to."""
    warmup_ratio: Share = 0.03
    """Share of steps with a rising learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after the warm-up."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """End of the linear and cosine schedules, as a share of learning_rate."""
    dropout: bool = False
    """Train with the dropout of the model's own configuration, if it has one; the paper names none."""


class Lora(Section):
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021); merged when weights are written."""

    rank: Count = 16
    """Rank of the adapters."""
    alpha: Count = 32
    """Scale of the adapters: their product is multiplied by alpha / rank."""
