"""What a job is: one YAML file, checked before anything starts.

Every number of the paper is a default here, with its unit and source; ``jobs/*.yaml`` name only what differs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from psyco_ray.config.endpoint import Endpoint, Judging
from psyco_ray.config.job_file import Count, NotNegative, Positive, Section, Share
from psyco_ray.config.resources import Learners, Rollouts, Scorers, Sync, Transport, check_sharing, transport_of


class Data(Section):
    """Client speeches and preference pairs (paper §3)."""

    speeches: str = "sample"  # Parquet, JSONL or CSV file, or `sample` (the packaged synthetic ones)
    speech_column: str | None = None  # default: the first of question, speech, text
    pairs: str = "sample"  # preference pairs in the released dataset's columns
    min_chars: Count = 100  # characters (paper §3.1)
    max_chars: Count = 1000
    dev_share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of speeches held out, by a hash of the text
    cpus: Annotated[float, Field(ge=1)] = 1.0  # CPUs left to Ray Data, whose own tasks take one each

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars {self.min_chars} is above max_chars {self.max_chars}")
        return self


class Prompts(Section):
    """The texts around a client speech; a file of one's own replaces them all."""

    file: str = "default"  # YAML with `system` and `user` texts by name
    respond: str = "respond"  # the entry that asks for a response (paper appendix A)


class Sampling(Section):
    """How responses are drawn from the policy (paper §4.2)."""

    responses: Annotated[int, Field(ge=2)] = 8  # n per speech; best and worst form the pair
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Count = 1024


class Optimizer(Section):
    """AdamW and its schedule. The defaults are those of the policy (paper §4.2)."""

    learning_rate: Positive = 5e-7
    batch_size: Count = 64  # pairs a step, over all ranks
    epochs: Count = 1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    warmup_ratio: Share = 0.03
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1  # where linear and cosine end, of learning_rate


class DpoConfig(Section):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) and its variants."""

    beta: Positive = 0.1
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # share of labels thought wrong; sigmoid and robust
    length_normalised: bool = False  # log-probabilities per token; wants a larger beta, such as 2
    length_margin: NotNegative = 0.0  # reward that a token of length is worth (R-DPO)
    sft: NotNegative = 0.0  # weight of the chosen responses' negative log-likelihood a token
    reference: Literal["base", "previous"] = "base"  # previous: the policy before the iteration (Pang et al. 2024)
    keep_optimizer: bool = False  # Adam's moments and the schedule go on from one iteration to the next
    optimizer: Optimizer = Optimizer()
    checkpoint_every: Count | None = None  # steps, for --resume and lost ranks; None: after every iteration

    @model_validator(mode="after")
    def _smoothing_has_a_use(self) -> Self:
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(f"dpo.label_smoothing has no meaning for dpo.loss {self.loss}; take sigmoid or robust")
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("dpo.loss robust needs dpo.label_smoothing, the share of labels thought wrong")
        return self


class Part(Section):
    """One file of preference pairs in a mixture (paper §4.1 and appendix C)."""

    pairs: str  # as data.pairs
    count: Count | None = None  # so many pairs are drawn of those to train on; None: `fraction` of them
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    by_hash: bool = False  # split by a hash of what was asked even where the file names splits

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.count is not None and self.fraction < 1:
            raise ValueError(f"part {self.pairs} has both a count and a fraction; give one of them")
        return self


class Lora(Section):
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021); they are merged when weights are written."""

    rank: Count = 16
    alpha: Count = 32  # the adapters' product counts alpha / rank


class Reward(Section):
    """Bradley-Terry reward training (paper §4.1)."""

    optimizer: Optimizer = Optimizer(learning_rate=9e-6, batch_size=128, epochs=2)
    learners: Learners = Learners()
    mixture: tuple[Part, ...] = ()  # files to train on; none: data.pairs, whole
    half: Literal["a", "b"] | None = None  # train on one half of the pairs, by speech; None: on all
    max_tokens: Count = 4096  # of a conversation; a longer one loses the left of its prompt, never of its response
    margin: NotNegative = 0.0  # reward that chosen should be ahead by, for each point of the mean ratings' gap
    centre: NotNegative = 0.0  # weight of the squared sum of both rewards
    lora: Lora | None = None
    dev_pairs: Count = 2000  # at most so many held-out pairs
    evaluate_every: Count | None = None  # steps; None: after every epoch. The best checkpoint is kept
    checkpoint_every: Count | None = None  # steps, for --resume; None: after every evaluation


class Evaluation(Section):
    """Held-out speeches, answered by the policy after every iteration."""

    speeches: Count = 200  # at most so many of the dev speeches
    responses: Count = 1  # per speech
    temperature: NotNegative = 0.0  # paper §4.2
    judge: Endpoint | None = None  # compares the answers with the base model's; its win rate chooses the checkpoint
    judging: Judging = Judging()

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.temperature == 0 and self.responses > 1:
            raise ValueError(f"{self.responses} responses at temperature 0 would be equal; ask for 1 or raise it")
        if self.judge is not None and self.judge.via == "batch":
            raise ValueError("evaluation.judge is asked call by call while a run waits for it; leave via: batch out")
        return self


class Guards(Section):
    """Against a policy that games its reward model. The bounds are watched always and acted on with `roll_back`."""

    preset: Literal["paper", "robust"] = "paper"  # robust: length_debias, min_margin 0.1 and roll_back unless given
    length_debias: bool = False  # rank responses by the reward less what length explains of it
    min_margin: NotNegative = 0.0  # that best and worst differ by, in standard deviations of the rewards
    roll_back: bool = False  # on an alarm go on from the best checkpoint
    patience: Count = 2  # roll-backs after which the run ends
    max_length_ratio: Positive = 1.5  # of held-out answers, against the base model's
    min_distinct_ratio: Share = 0.6  # of different word pairs in them, against the base model's
    max_length_share: Share = 0.7  # R² of reward and length
    max_fall: Positive = 3.0  # standard errors of the held-out reward below its best
    max_reward_gap: Positive = 2.0  # deviations that the training reward may rise more than the held-out one
    max_kl: Positive = 100.0  # nats a response from the reference

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        robust = {"length_debias": True, "min_margin": 0.1, "roll_back": True}
        return {**robust, **given} if isinstance(given, dict) and given.get("preset") == "robust" else given


class Checkpoints(Section):
    """Which iterations' models stay on disk."""

    keep_last: Count | None = None  # so many of the last; None: all
    keep_best: bool = True  # and the best one by the held-out speeches


class Deadlines(Section):
    """Seconds after which a remote call counts as hung."""

    start_s: Positive = 900.0  # an actor loads its model
    item_s: Positive = 1800.0  # one work item of a rollout or scorer
    step_s: Positive = 1800.0  # one optimizer step


class TelemetryConfig(Section):
    """Where metrics go beside ``metrics.jsonl`` and Ray's own metrics."""

    wandb_project: str | None = None  # Weights & Biases; WANDB_MODE=offline works


class Job(Section):
    """One run of psyco_ray, from base model to report."""

    run_dir: str = "runs/psyco"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: str = "smollm2-135m"  # the base policy: a packaged name, a directory or a hub id
    iterations: Count = 16  # paper §4.2; each ends with a checkpoint that is evaluated
    speeches_per_iteration: Count = 6400  # or pairs, where they come from a file
    pairs_from: Literal["policy", "base", "file"] = "policy"  # whose responses: DPO-Iter, one round, offline DPO
    data: Data = Data()
    mixture: tuple[Part, ...] = ()  # offline pairs for the policy; none: data.pairs, whole
    prompts: Prompts = Prompts()
    sampling: Sampling = Sampling()
    dpo: DpoConfig = DpoConfig()
    reward: Reward = Reward()
    rollouts: Rollouts = Rollouts()
    scorers: Scorers = Scorers()
    learners: Learners = Learners()
    colocated: bool = False  # each rollout shares the GPU of a learner rank: one sleeps while the other works
    sync: Sync = Sync()
    evaluation: Evaluation = Evaluation()
    guards: Guards = Guards()
    checkpoints: Checkpoints = Checkpoints()
    deadlines: Deadlines = Deadlines()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def keeps_optimizer(self) -> bool:
        """Whether all iterations are one training: as asked for, and where all pairs come from one policy or file."""
        return self.dpo.keep_optimizer or self.pairs_from != "policy"

    @property
    def transport(self) -> Transport:
        """How weights get from the learner to the rollouts."""
        return transport_of(self.colocated, self.sync)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, learners, optimizer in (
            ("learners", self.learners, self.dpo.optimizer),
            ("reward.learners", self.reward.learners, self.reward.optimizer),
        ):
            if optimizer.batch_size < learners.actors:
                raise ValueError(
                    f"a batch of {optimizer.batch_size} pairs cannot be shared by {learners.actors} ranks; "
                    f"lower {name}.actors or raise the batch size"
                )
            if learners.zero_stage == 0 and learners.dtype == "bfloat16":
                raise ValueError(
                    f"{name}.zero_stage 0 keeps no float32 weights to continue from in bfloat16; take 1, 2 or 3"
                )
        if 0 < self.reward.learners.gpus < 1:
            raise ValueError(f"reward.learners.gpus is {self.reward.learners.gpus}; a rank needs whole GPUs")
        if self.pairs_from == "base" and self.dpo.reference == "previous":
            raise ValueError(
                "with pairs_from base all pairs are made before the first step, by and against the base model; "
                "take dpo.reference base, or pairs_from policy"
            )
        check_sharing(self.colocated, self.rollouts, self.learners, self.sync)
        if self.rollouts.tensor_parallel > max(1, self.rollouts.gpus):
            raise ValueError(
                f"rollouts.tensor_parallel {self.rollouts.tensor_parallel} needs as many rollouts.gpus, "
                f"not {self.rollouts.gpus:g}"
            )
        if self.sampling.max_tokens >= self.rollouts.max_model_len:
            raise ValueError(
                f"sampling.max_tokens {self.sampling.max_tokens} leaves no room for a prompt in "
                f"rollouts.max_model_len {self.rollouts.max_model_len}"
            )
        return self
