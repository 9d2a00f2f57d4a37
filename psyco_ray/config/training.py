"""Settings of a training job: one YAML file, checked before anything starts.

Every number of the paper is a default here, with its unit and source; ``jobs/*.yaml`` name only other values.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from psyco_ray.config.endpoint import Endpoint, Judging
from psyco_ray.config.guards import Guards
from psyco_ray.config.job_file import Count, NotNegative, Positive, Section, TemplateOptions
from psyco_ray.config.optimizer import Lora, Optimizer
from psyco_ray.config.privacy import Privacy, ScrubSent
from psyco_ray.config.reading import Reading
from psyco_ray.config.resources import (
    Learners,
    Rollouts,
    Scorers,
    Sync,
    Transport,
    check_engine,
    check_sharing,
    transport_of,
)
from psyco_ray.config.simulate import Simulate

Principle = Literal["empathy", "relevance", "clarity", "safety", "exploration", "autonomy", "staging"]
"""What judges rate responses by, in the released dataset's order (paper §3.2)."""


class Data(Reading):
    """Client speeches and preference pairs (paper §3)."""

    speeches: str = "sample"
    """CSV, JSON, Parquet or Excel file, directory of Parquet files, or packaged synthetic speeches: `sample`, or
    `sample-conversations`."""
    speech_column: str | None = None
    """Column of the speeches; null: the first of question, speech, text, else a list of messages."""
    pairs: str = "sample"
    """Preference pairs, in the released dataset's columns or another format: a file, a directory, `sample`,
    `sample-conversations`, or desk:DIR (what `psyco-ray desk export DIR` wrote)."""
    min_chars: Count = 100
    """Shortest speech, characters (paper §3.1); of a conversation all that the client says."""
    max_chars: Count = 1000
    """Longest speech, characters (paper §3.1); of a conversation each turn of the client."""
    dev_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of speeches held out, by a hash of the text; of a conversation of how it begins."""
    leakage: Literal["refuse", "drop", "allow"] = "refuse"
    """Training pairs and speeches that repeat a dev or test question, exactly or nearly; drop: leave them out."""
    cpus: Annotated[float, Field(ge=1)] = 1.0
    """CPUs reserved for Ray Data, whose tasks take one each."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars {self.min_chars} is above max_chars {self.max_chars}")
        return self


class Prompts(Section):
    """The texts around a client speech."""

    file: str = "default"
    """YAML file with `system` and `user` texts by name; `default`: those of the package."""
    respond: str = "respond"
    """Entry that requests a response (paper appendix A)."""


class Sampling(Section):
    """Sampling of responses from the policy (paper §4.2)."""

    responses: Annotated[int, Field(ge=2)] = 8
    """Responses per speech, n; the best and the worst form the pair."""
    temperature: Positive = 1.0
    """Softmax temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: probability mass of the tokens to sample from."""
    max_tokens: Count = 1024
    """Tokens of a response."""
    unfinished: Literal["exclude", "penalise", "allow"] = "exclude"
    """Responses cut at max_tokens or empty. exclude: never chosen; penalise: below all finished; allow: as others."""


class DpoConfig(Section):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) and its variants."""

    beta: Positive = 0.1
    """Strength of the KL penalty, β."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """sigmoid: DPO; ipo: squared (Azar et al. 2023); hinge (SLiC); robust: unbiased under flipped labels."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of flipped labels; for sigmoid and robust."""
    length_normalised: bool = False
    """Use log-probabilities per token; needs a larger beta, such as 2."""
    length_margin: NotNegative = 0.0
    """Reward that one token of length is worth (R-DPO)."""
    sft: NotNegative = 0.0
    """Weight of the chosen responses' negative log-likelihood per token."""
    reasoning: Literal["answer", "all"] = "answer"
    """What is trained of a thinking model's responses. answer: what a client reads; all: its reasoning too."""
    reference: Literal["base", "previous"] = "base"
    """base: the base model; previous: the policy before the iteration (Pang et al. 2024)."""
    keep_optimizer: bool = False
    """Carry Adam's moments from one iteration to the next."""
    schedule_over: Literal["iteration", "run"] = "iteration"
    """Span of warm-up and schedule. iteration: each one, a training of one epoch whose new moments need a warm-up; run:
    all, as always with pairs_from base or file: set it to compare with these. Paper §4.2 names no schedule."""
    optimizer: Optimizer = Optimizer()
    checkpoint_every: Count | None = None
    """Steps between checkpoints for --resume and lost ranks; null: one after every iteration."""

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> Self:
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(f"dpo.label_smoothing has no effect on dpo.loss {self.loss}; set sigmoid or robust")
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("dpo.loss robust needs dpo.label_smoothing, the assumed share of flipped labels")
        return self


class Part(Section):
    """One file of preference pairs in a mixture (paper §4.1 and appendix C)."""

    pairs: str
    """A file, as in data.pairs."""
    count: Count | None = None
    """Number of pairs drawn from the training split; null: `fraction` of them."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of pairs drawn from the training split."""
    by_hash: bool = False
    """Split by a hash of the prompt even where the file names splits."""
    principle: Principle | None = None
    """Order the responses of a pair by the ratings of this principle, and leave out pairs that it rates alike; null: as
    the file orders them."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.count is not None and self.fraction < 1:
            raise ValueError(f"part {self.pairs} has both a count and a fraction; give one of them")
        return self


class Reward(Section):
    """Bradley-Terry reward training (paper §4.1)."""

    optimizer: Optimizer = Optimizer(learning_rate=9e-6, batch_size=128, epochs=2)
    learners: Learners = Learners()
    mixture: tuple[Part, ...] = ()
    """Files to train on; empty: all of data.pairs."""
    half: Literal["a", "b"] | None = None
    """Train on one half of the pairs, split by speech; null: on all."""
    max_tokens: Count = 4096
    """Tokens of a conversation; a longer one loses the start of its prompt, never its response."""
    margin: NotNegative = 0.0
    """Required lead of the chosen reward per point of difference in the mean ratings, or in those of `principle`."""
    centre: NotNegative = 0.0
    """Weight of the squared sum of both rewards."""
    lora: Lora | None = None
    """Adapters; null: full fine-tuning."""
    dev_pairs: Count = 2000
    """Largest number of held-out pairs."""
    evaluate_every: Count | None = None
    """Steps between evaluations, of which the best checkpoint is kept; null: one after every epoch."""
    checkpoint_every: Count | None = None
    """Steps between checkpoints for --resume; null: one after every evaluation."""


class Evaluation(Section):
    """Held-out speeches, answered by the policy after every iteration."""

    speeches: Count | None = None
    """Largest number of dev speeches; null: all."""
    responses: Count = 1
    """Responses per speech."""
    temperature: NotNegative = 0.0
    """Sampling temperature; 0: greedy (paper §4.2)."""
    judge: Endpoint | None = None
    """API that compares the answers with the base model's and so selects the best checkpoint, unless
    `simulate` ranks by later turns; null: none."""
    judged: Count = 200
    """Largest number of these speeches whose answers the judge compares; each is a paid call per checkpoint."""
    judging: Judging = Judging()
    max_cost: NotNegative | None = None
    """US dollars that the judge's calls of the run may cost; null: no limit."""

    @model_validator(mode="after")
    def _feasible(self) -> Self:
        if self.temperature == 0 and self.responses > 1:
            raise ValueError(f"{self.responses} responses at temperature 0 would be equal; set 1 or raise it")
        if self.max_cost is not None and self.judge is not None and None in (self.judge.price_in, self.judge.price_out):
            raise ValueError("max_cost needs price_in and price_out of the judge, dollars per million tokens")
        if self.judge is not None and self.judge.via == "batch":
            raise ValueError("evaluation.judge has via: batch, but a run waits for single calls; leave via out")
        return self


class Checkpoints(Section):
    """The iterations whose models stay on disk."""

    keep_last: Count | None = None
    """Number of last iterations; null: all."""
    keep_best: bool = True
    """Also keep the best one by the held-out speeches."""


class Deadlines(Section):
    """Seconds after which a remote call counts as hung."""

    start_s: Positive = 900.0
    """Start of an actor, with loading its model."""
    item_s: Positive = 1800.0
    """One work item of a rollout or scorer."""
    step_s: Positive = 1800.0
    """One optimizer step."""


class TelemetryConfig(Section):
    """Destinations of metrics in addition to ``metrics.jsonl`` and Ray's own metrics."""

    wandb_project: str | None = None
    """Weights & Biases project; null: none. WANDB_MODE=offline works."""
    tensorboard: bool | str = False
    """TensorBoard files: true: in run_dir/tensorboard; or a directory of this run alone."""


class Job(Section):
    """One training run, from base model to report."""

    run_dir: str = "runs/psyco"
    """Directory of everything that the run writes: a path or a URI."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of all random draws."""
    model: str = "smollm2-135m"
    """The base policy: a packaged name, a directory or a hub id: owner/name, or owner/name@revision with a commit, tag
    or branch of it."""
    template_options: TemplateOptions = Field(default_factory=dict)
    """Options of its chat template, such as {enable_thinking: false}; checkpoints keep them."""
    iterations: Count = 16
    """Iterations, each with a checkpoint that is evaluated (paper §4.2)."""
    speeches_per_iteration: Count = 6400
    """Speeches of an iteration, or pairs of a file with pairs_from: file (paper §4.2)."""
    pairs_from: Literal["policy", "base", "file"] = "policy"
    """Source of pairs: policy (DPO-Iter), base (one round of online DPO) or file (offline DPO)."""
    data: Data = Data()
    mixture: tuple[Part, ...] = ()
    """Files of offline pairs for the policy; empty: all of data.pairs."""
    prompts: Prompts = Prompts()
    sampling: Sampling = Sampling()
    simulate: Simulate | None = None
    """Dialogues with simulated clients; null: the policy answers each speech once."""
    dpo: DpoConfig = DpoConfig()
    reward: Reward = Reward()
    rollouts: Rollouts = Rollouts()
    scorers: Scorers = Scorers()
    learners: Learners = Learners()
    colocated: bool = False
    """Put each rollout on the GPU of a learner rank; one sleeps while the other works."""
    sync: Sync = Sync()
    evaluation: Evaluation = Evaluation()
    scrub: ScrubSent = ScrubSent()
    privacy: Privacy = Privacy()
    guards: Guards = Guards()
    checkpoints: Checkpoints = Checkpoints()
    deadlines: Deadlines = Deadlines()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def applied_dpo(self) -> DpoConfig:
        """`dpo` as it applies: with pairs from base model or file all iterations are one training."""
        one_training = {"keep_optimizer": True, "schedule_over": "run"}
        return self.dpo if self.pairs_from == "policy" else self.dpo.model_copy(update=one_training)

    @property
    def transport(self) -> Transport:
        """The transport of weights from learner to rollouts."""
        return transport_of(self.colocated, self.sync)

    @model_serializer(mode="wrap")
    def _without_clients(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `simulate` where there are no clients, so that a job of single turns has the same bytes as before."""
        settings = serialise(self)
        if settings.get("simulate", self) is None:
            del settings["simulate"]
        return settings

    @model_validator(mode="after")
    def _consistent(self) -> Self:
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
                    f"{name}.zero_stage 0 keeps no float32 weights to continue from in bfloat16; set 1, 2 or 3"
                )
        if 0 < self.reward.learners.gpus < 1:
            raise ValueError(f"reward.learners.gpus is {self.reward.learners.gpus}; a rank needs whole GPUs")
        if self.pairs_from == "base" and self.dpo.reference == "previous":
            raise ValueError(
                "with pairs_from base all pairs are sampled before the first step, by and against the base model; "
                "set dpo.reference base, or pairs_from policy"
            )
        if self.pairs_from == "file" and self.simulate is not None:
            for key in ("branch_turn", "rank", "reduce"):
                if key in self.simulate.model_fields_set:
                    raise ValueError(
                        f"simulate.{key} is of responses that the policy samples for its pairs, and with pairs_from "
                        "file it has no effect; leave it out, or set pairs_from policy"
                    )
        check_sharing(self.colocated, self.rollouts, self.learners, self.sync)
        check_engine(self.rollouts, self.sampling.max_tokens)
        return self
