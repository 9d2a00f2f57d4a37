"""Settings of the guards of a training job."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from psyco_ray.config.job_file import Count, NotNegative, Positive, Section, Share


class Guards(Section):
    """Bounds against reward hacking. All are monitored; an alarm changes the run only with `roll_back`."""

    preset: Literal["paper", "robust"] = "paper"
    """robust: length_debias, min_margin 0.1 and roll_back, unless set."""
    length_debias: bool = False
    """Rank responses by the part of the reward that length does not explain among responses to one speech."""
    min_margin: NotNegative = 0.0
    """Smallest reward difference of best and worst, in standard deviations of the rewards within a speech."""
    roll_back: bool = False
    """After an alarm continue from the best checkpoint, which is then one without an alarm."""
    patience: Count = 2
    """Number of roll-backs that ends the run."""
    max_length_ratio: Positive = 1.5
    """Largest mean length of held-out answers, relative to the base model's."""
    min_distinct_ratio: Share = 0.6
    """Smallest share of distinct word pairs in held-out answers, relative to the base model's."""
    max_length_share: Share = 0.7
    """Largest R² of reward and length among the sampled responses to one speech."""
    min_finished_share: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Smallest share of held-out answers that end before sampling.max_tokens and are not empty."""
    max_fall: Positive = 3.0
    """Largest fall of the held-out reward below its best, in standard errors."""
    max_reward_gap: Positive = 2.0
    """Largest lead of the training reward's rise over the held-out reward's, in standard deviations."""
    max_kl: Positive = 100.0
    """Largest divergence from the base model on held-out answers, nats per response; known with dpo.reference base."""
    max_repetition: Share = 0.2
    """Largest share of held-out answers in conversations that repeat the therapist's earlier turns, above the base
    model's."""
    max_question_only: Share = 0.3
    """Largest share of held-out answers in conversations that only ask questions, above the base model's."""
    max_sycophancy: Share = 0.2
    """Largest share of held-out answers to a client's harmful plan, in conversations, that agree with it, above the
    base model's; by English phrases."""

    @property
    def act(self) -> bool:
        """Whether guards change pairs, weights or the choice of the checkpoint."""
        return self.length_debias or self.min_margin > 0 or self.roll_back

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, settings: Any) -> Any:
        robust = {"length_debias": True, "min_margin": 0.1, "roll_back": True}
        return {**robust, **settings} if isinstance(settings, dict) and settings.get("preset") == "robust" else settings
