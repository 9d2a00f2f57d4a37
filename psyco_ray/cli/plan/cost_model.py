"""How long an iteration takes and how GPUs are best shared out, by arithmetic on a device's measured rates.

Sampling and scoring overlap, training follows, then weights are written and sent and the held-out speeches are
answered. A profile is measured with one model and carried over to another by parameter count: sampling waits for the
memory that holds the weights, scoring and training for their floating-point operations, and both grow with them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.job_file import NotNegative, Positive, Section
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.training import Job, Prompts

RESPONSE_TOKENS = 256
"""Of a response, unless `sampling.max_tokens` ends it before or a run has told: some 190 words."""
SPEECH_CHARS, CHARS_PER_TOKEN, TEMPLATE_TOKENS = 300, 4.0, 10  # of a speech, of English, of a chat template
_USABLE = 0.9  # share of a GPU's memory that may be planned with
_PROFILES = files("psyco_ray") / "cli" / "plan" / "profiles"


class Profile(Section):
    """What one device does in how many seconds, measured with a model of `parameters`."""

    device: str  # in words
    kind: Literal["cpu", "gpu"]
    estimated: bool  # calculated, not measured
    memory_gb: Positive | None = None  # of one GPU, 10^9 bytes
    model: str
    parameters: Annotated[int, Field(ge=1)]
    start_s: Positive  # until an engine has loaded
    prompt_token_s: NotNegative  # of a prompt, in an engine
    decode_step_s: Positive  # in which every sequence of an engine gets a token, however many they are
    decode_token_s: NotNegative  # that each of them adds
    score_token_s: Positive  # read by a reward model
    reference_token_s: Positive  # read by the reference model
    train_token_s: Positive  # forward and backward, on one rank
    optimizer_step_s: NotNegative  # and the exchange of gradients
    save_bytes_per_s: Positive  # of a checkpoint, written to disk
    sync_bytes_per_s: Positive  # of weights, from the learner into the engines


@dataclass(frozen=True)
class ModelShape:
    """What a model's memory and arithmetic go by."""

    name: str
    parameters: int
    layers: int
    hidden: int
    vocabulary: int


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3.1-8b", 8_030_261_248, 32, 4096, 128_256),
        ModelShape("llama-3.2-3b", 3_212_749_824, 28, 3072, 128_256),
        ModelShape("smollm2-135m", 134_515_008, 30, 576, 49_152),
    )
}


@dataclass(frozen=True)
class GpuSplit:
    """How many actors there are of each role."""

    rollouts: int
    scorers: int
    learners: int
    gpus_per_rollout: int = 1
    zero_stage: int = 2

    @property
    def gpus(self) -> int:
        """What they take where each has GPUs of its own."""
        return self.rollouts * self.gpus_per_rollout + self.scorers + self.learners


@dataclass(frozen=True)
class Forecast:
    """Seconds of an iteration, stage by stage, and the share of it in which actors of a role have nothing to do."""

    stages: dict[str, float]
    idle: dict[str, float]

    @property
    def seconds(self) -> float:
        """Of the whole iteration."""
        return sum(self.stages.values())


def profile_of(device: str) -> Profile:
    """The packaged profile of that name, or the one in a file that ``benchmarks/device_profile.py`` wrote.

    Raises:
        InputError: there is none, or it is no profile.
    """
    packaged = Path(str(_PROFILES / f"{device}.yaml"))
    path = packaged if packaged.is_file() else Path(device)
    if not path.is_file():
        known = ", ".join(sorted(Path(entry.name).stem for entry in _PROFILES.iterdir()))
        raise InputError(
            f"there is no profile of device {device!r}; known are {known}, and "
            f"benchmarks/device_profile.py measures another: name the file that it writes"
        )
    return job_file.load_as(Profile, path)


def shape_of(model: str) -> ModelShape:
    """The shape of a model by its name, or by the ``config.json`` of its directory.

    Raises:
        InputError: it is neither.
    """
    name = model.rsplit("/", 1)[-1].lower().removeprefix("meta-").removesuffix("-instruct")
    if name in SHAPES:
        return SHAPES[name]
    if not (Path(model) / "config.json").is_file():
        raise InputError(
            f"the size of model {model!r} is not known; give one of {', '.join(SHAPES)} or a directory with config.json"
        )
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    text = config.get_text_config()
    return ModelShape(model, parameters, text.num_hidden_layers, text.hidden_size, text.vocab_size)


def roles_of(job: Job) -> GpuSplit:
    """The actors that a job's settings name."""
    return GpuSplit(
        job.rollouts.actors,
        job.scorers.actors,
        job.learners.actors,
        max(1, math.ceil(job.rollouts.gpus)),
        job.learners.zero_stage,
    )


def forecast(
    job: Job, shape: ModelShape, profile: Profile, roles: GpuSplit, response_tokens: float, cores: int | None = None
) -> Forecast:
    """How long an iteration takes.

    Args:
        job: its settings.
        shape: of the policy; reward models count as equally large.
        profile: of the device.
        roles: the actors.
        response_tokens: of a response, on average.
        cores: on a CPU, what all actors share; None: each has a GPU.
    """
    work = _Work(job, shape, profile, roles, response_tokens, cores)
    none = _Sampling(0.0, 0.0)
    drawn = job.speeches_per_iteration, job.sampling.responses
    held_out = job.evaluation.speeches, job.evaluation.responses
    sampled, scored = none, 0.0
    if job.pairs_from != "file":
        sampled, scored = work.sampling(*drawn), work.scoring(*drawn, models=2 if job.scorers.safety_model else 1)
    if job.dpo.reference == "base":
        scored += work.reference
    answered, judged = work.sampling(*held_out), work.scoring(*held_out, models=len(rewards_of(job)))
    moments = 8 if job.keeps_optimizer else 0  # bytes a parameter
    stages = {
        "sample and score": work.together(sampled, scored),
        "train": work.training,
        "save": (2 + 4 + moments) * shape.parameters / profile.save_bytes_per_s,
        "sync": 2 * shape.parameters / profile.sync_bytes_per_s,
        "evaluate": work.together(answered, judged),
    }
    total = sum(stages.values())
    busy = {
        "rollouts": (sampled.all + answered.all) / roles.rollouts,
        "scorers": (scored + judged) / roles.scorers,
        "learners": stages["train"] + stages["save"],
    }
    return Forecast(stages, {role: max(0.0, 1 - seconds / total) for role, seconds in busy.items()})


@dataclass(frozen=True)
class _Sampling:
    """Seconds that engines work."""

    all: float  # together
    slowest: float


@dataclass(frozen=True)
class _Work:
    """What the roles have to do in an iteration, in seconds."""

    job: Job
    shape: ModelShape
    profile: Profile
    roles: GpuSplit
    response_tokens: float
    cores: int | None

    @property
    def scale(self) -> float:
        """From the model that was measured to this one."""
        return self.shape.parameters / self.profile.parameters

    @property
    def pair_tokens(self) -> float:
        """Of all pairs; a prompt is read once for both of its responses."""
        return self.job.speeches_per_iteration * (prompt_tokens(self.job.prompts) + 2 * self.response_tokens)

    @property
    def reference(self) -> float:
        """Of one scorer that does all reference log-probabilities."""
        return self.pair_tokens * self.profile.reference_token_s * self.scale

    @property
    def training(self) -> float:
        """Of all steps; each lasts as long as the rank with the most pairs."""
        how, profile = self.job.dpo.optimizer, self.profile
        ranks = min(self.roles.learners, self.cores or self.roles.learners)
        again = 4 / 3 if self.job.learners.gradient_checkpointing else 1.0  # the forward pass is taken twice
        largest = math.ceil(how.batch_size / ranks) / how.batch_size
        passes = self.pair_tokens * largest * again * profile.train_token_s
        steps = math.ceil(self.job.speeches_per_iteration / how.batch_size) * profile.optimizer_step_s
        reference = self.reference / ranks if self.job.dpo.reference == "previous" else 0.0
        return how.epochs * (passes + steps) * self.scale + reference

    def sampling(self, count: int, responses: int) -> _Sampling:
        """Of the engines, for so many speeches; each takes its items one by one."""
        size = min(self.job.rollouts.speeches_per_item, count)
        items = math.ceil(count / size)
        all_items = (items - 1) * self._item(size, responses) + self._item(count - (items - 1) * size, responses)
        return _Sampling(all_items, math.ceil(items / self.roles.rollouts) * self._item(size, responses))

    def _item(self, prompts: int, responses: int) -> float:
        profile, sequences = self.profile, prompts * responses
        # it ends with its longest response, taken as twice the mean
        longest = min(self.job.sampling.max_tokens, 2 * self.response_tokens)
        steps = longest * math.ceil(sequences / self.job.rollouts.max_num_seqs) * profile.decode_step_s
        read = prompts * prompt_tokens(self.job.prompts) * profile.prompt_token_s
        sampled = sequences * self.response_tokens * profile.decode_token_s
        return (read + steps + sampled) * self.scale / self.roles.gpus_per_rollout

    def scoring(self, count: int, responses: int, models: int) -> float:
        """Of one scorer that scores the responses to so many speeches with so many reward models."""
        tokens = count * models * (prompt_tokens(self.job.prompts) + responses * self.response_tokens)
        return tokens * self.profile.score_token_s * self.scale

    def together(self, sampling: _Sampling, scoring: float) -> float:
        """Of sampling and scoring at the same time, each by all of its actors."""
        shared = (sampling.all + scoring) / self.cores if self.cores else 0.0
        return max(sampling.slowest, scoring / self.roles.scorers, shared)


@functools.cache
def prompt_tokens(prompts: Prompts) -> float:
    """Tokens of a rendered prompt: a speech of `SPEECH_CHARS` in the named texts.

    Raises:
        InputError: the texts are not there.
    """
    texts = prompt_messages(load_prompt(prompts), "x" * SPEECH_CHARS)
    return sum(len(text["content"]) for text in texts) / CHARS_PER_TOKEN + TEMPLATE_TOKENS


def rewards_of(job: Job) -> list[str]:
    """The reward models that the scorers hold; where a job names none, the two that `demo` trains."""
    named = [job.scorers.reward_model, job.scorers.heldout_model, job.scorers.safety_model]
    return [name for name in named if name is not None] or ["a", "b"]


def learner_bytes(job: Job, shape: ModelShape, ranks: int, zero_stage: int) -> float:
    """Memory of one rank: weights and gradients in bfloat16, float32 weights and both moments, activations, logits."""
    shared = {0: (16, 0), 1: (4, 12), 2: (2, 14), 3: (0, 16)}[zero_stage]  # bytes a parameter: whole, over all ranks
    settings = job.learners
    # with checkpointing only each layer's input is kept; else about 34 bytes a hidden unit (Korthikanti et al. 2022)
    activations = (
        settings.micro_batch_tokens * shape.layers * shape.hidden * (2 if settings.gradient_checkpointing else 34)
    )
    logits = settings.logit_rows * shape.vocabulary * 4 * 2
    return shape.parameters * (shared[0] + shared[1] / ranks) + activations + logits


def allocate(job: Job, shape: ModelShape, profile: Profile, gpus: int, response_tokens: float) -> GpuSplit:
    """The split of so many GPUs, all of them, with which an iteration is shortest and every role fits its memory.

    The job's ZeRO stage is kept if the learner fits with it on any number of ranks, else the next that does is taken.

    Raises:
        InputError: the GPUs do not hold the roles, or the profile is of no GPU.
    """
    if profile.kind != "gpu" or profile.memory_gb is None:
        raise InputError(f"the profile of {profile.device} is of no GPU; name another with --device")
    room = profile.memory_gb * 1e9 * _USABLE
    engine = 2 * shape.parameters + job.rollouts.kv_cache_gb * 2**30
    each = max(1, math.ceil(job.rollouts.gpus), 2 ** math.ceil(math.log2(engine / room)))
    models = len(rewards_of(job)) + (job.dpo.reference == "base")
    scorer = 2 * shape.parameters * models
    if scorer > room:
        raise InputError(
            f"a scorer needs {scorer / 1e9:.0f} GB for {models} models of the size of {shape.name}, a GPU of "
            f"{profile.device} gives {room / 1e9:.0f}; take dpo.reference=previous or smaller reward models"
        )
    most = min(gpus - each - 1, job.dpo.optimizer.batch_size)
    for stage in range(job.learners.zero_stage, 4):
        fitting = [ranks for ranks in range(1, most + 1) if learner_bytes(job, shape, ranks, stage) <= room]
        splits = list(_splits(gpus, each, fitting, stage))
        if splits:
            return min(splits, key=lambda roles: forecast(job, shape, profile, roles, response_tokens).seconds)
    least = f"{learner_bytes(job, shape, max(most, 1), 3) / 1e9:.0f} GB on each of {max(most, 1)} ranks"
    raise InputError(
        f"{gpus} GPUs do not hold {shape.name}: beside one engine (GPUs: {each}) and one scorer the learner needs "
        f"{least}, a GPU of {profile.device} gives {room / 1e9:.0f}; give more GPUs, or set "
        "learners.gradient_checkpointing=true or a smaller learners.micro_batch_tokens"
    )


def _splits(gpus: int, each: int, fitting: list[int], stage: int) -> Iterator[GpuSplit]:
    """All ways to share GPUs out that leave none over."""
    for learners in fitting:
        for scorers in range(1, gpus - learners - each + 1):
            rollouts, over = divmod(gpus - learners - scorers, each)
            if not over:
                yield GpuSplit(rollouts, scorers, learners, each, stage)


def sensitivity(
    job: Job, shape: ModelShape, profile: Profile, roles: GpuSplit, response_tokens: float, cores: int | None = None
) -> tuple[str, float]:
    """The assumption that a quarter more of changes the iteration most, and by which share."""

    def slower(*rates: str) -> Profile:
        return profile.model_copy(update={rate: 1.25 * getattr(profile, rate) for rate in rates})

    now = forecast(job, shape, profile, roles, response_tokens, cores).seconds
    room = {"max_tokens": math.ceil(1.25 * job.sampling.max_tokens)}
    longer = job.model_copy(update={"sampling": job.sampling.model_copy(update=room)})
    sampling = slower("prompt_token_s", "decode_step_s", "decode_token_s")
    scoring, training = slower("score_token_s", "reference_token_s"), slower("train_token_s", "optimizer_step_s")
    changed = {
        f"tokens of a response ({response_tokens:.0f})": (longer, profile, 1.25 * response_tokens),
        "seconds of sampling a token": (job, sampling, response_tokens),
        "seconds of scoring a token": (job, scoring, response_tokens),
        "seconds of training on a token": (job, training, response_tokens),
    }
    found = {
        what: forecast(other, shape, rates, roles, tokens, cores).seconds / now - 1
        for what, (other, rates, tokens) in changed.items()
    }
    most = max(found, key=lambda what: found[what])
    return most, found[most]
