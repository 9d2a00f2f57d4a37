"""A cost model: the time of an iteration, from a device's measured rates.

Sampling and scoring overlap; training follows; then weights are saved and sent, and the held-out speeches are answered.
A profile is measured with one model and scaled to another by parameter count: sampling is bound by the bandwidth of the
memory that holds the weights, scoring and training by floating-point operations, and both grow with the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from psyco_ray.cli.plan import lengths
from psyco_ray.cli.plan.devices import Profile
from psyco_ray.config.training import Job
from psyco_ray.models.shape import ModelShape, shape_of
from psyco_ray.run import hub

DEV_SPEECHES = 2319
"""Held-out speeches of a job that answers all: a tenth of the paper's 23,192 train speeches."""
_HOST_BYTES_PER_S = 2.0e10  # between a GPU and pinned host memory, over PCIe


@dataclass(frozen=True)
class GpuSplit:
    """Actors of each role."""

    rollouts: int
    scorers: int
    learners: int
    gpus_per_rollout: int = 1
    zero_stage: int = 2
    colocated: bool = False  # a rollout and a learner rank on each GPU, in turn

    @property
    def gpus(self) -> int:
        """All GPUs, where scorers share none."""
        return self.rollouts * self.gpus_per_rollout + self.scorers + (0 if self.colocated else self.learners)


@dataclass(frozen=True)
class Forecast:
    """Seconds of an iteration by stage, and the idle share of each role's actors."""

    stages: dict[str, float]
    idle: dict[str, float]

    @property
    def seconds(self) -> float:
        """Seconds of the whole iteration."""
        return sum(self.stages.values())


def split_of(job: Job) -> GpuSplit:
    """The actors that a job's settings name."""
    return GpuSplit(
        job.rollouts.actors,
        job.scorers.actors,
        job.learners.actors,
        max(1, math.ceil(job.rollouts.gpus)),
        job.learners.zero_stage,
        job.colocated,
    )


@dataclass(frozen=True)
class Sampling:
    """Seconds of sampling: of all engines together, and of the slowest one."""

    total: float
    slowest: float


@dataclass(frozen=True)
class Turns:
    """Seconds of turns of dialogues, and in them of all engines and scorers together and of each client's engine."""

    seconds: float = 0.0
    sampled: float = 0.0
    scored: float = 0.0
    replied: float = 0.0

    def __add__(self, other: Turns) -> Turns:
        return Turns(
            self.seconds + other.seconds,
            self.sampled + other.sampled,
            self.scored + other.scored,
            self.replied + other.replied,
        )


@dataclass(frozen=True)
class Scenario:
    """A job on a device, and the seconds of work of each role in one iteration.

    Attributes:
        job: its settings.
        shape: of the policy; reward models count as equally large.
        profile: of the device.
        split: the actors.
        response_tokens: mean tokens of a response.
        cores: cores that all actors share on a CPU; None: each actor has a GPU.
        said: tokens of the turns that a dialogue with a simulated client has before the one that is answered.

    Example:
        >>> shape, profile = shape_of("llama-3.1-8b"), profile_of("h100")
        >>> forecast(Scenario(Job(), shape, profile, GpuSplit(4, 1, 3), 256)).seconds
    """

    job: Job
    shape: ModelShape
    profile: Profile
    split: GpuSplit
    response_tokens: float
    cores: int | None = None
    said: float = 0.0

    @property
    def fed(self) -> bool:
        """Whether engines get new speeches as slots free up: a plan for GPUs has their default, unless the job says."""
        rollouts = self.job.rollouts
        default = self.profile.kind == "gpu" and "feed" not in rollouts.model_fields_set
        return default or rollouts.feed == "continuous"

    @property
    def scale(self) -> float:
        """Factor from the measured model to this one."""
        return self.shape.parameters / self.profile.parameters

    @property
    def prompt_tokens(self) -> float:
        """Tokens of a prompt, with the conversation so far."""
        return lengths.prompt_tokens(self.job.prompts, self.job.data) + self.said

    @property
    def pair_tokens(self) -> float:
        """Tokens of all pairs; a prompt is read once for both of its responses."""
        return self.job.speeches_per_iteration * (self.prompt_tokens + 2 * self.response_tokens)

    @property
    def reference(self) -> float:
        """Seconds of all reference log-probabilities on one scorer."""
        return self.pair_tokens * self.profile.reference_token_s * self.scale

    @property
    def training(self) -> float:
        """Seconds of all steps; each lasts as long as the rank with the most pairs."""
        optimizer, profile = self.job.dpo.optimizer, self.profile
        ranks = min(self.split.learners, self.cores or self.split.learners)
        recompute = 4 / 3 if self.job.learners.gradient_checkpointing else 1.0  # the forward pass runs twice
        largest = math.ceil(optimizer.batch_size / ranks) / optimizer.batch_size
        passes = self.pair_tokens * largest * recompute * profile.train_token_s
        steps = math.ceil(self.job.speeches_per_iteration / optimizer.batch_size) * profile.optimizer_step_s
        reference = self.reference / ranks if self.job.dpo.reference == "previous" else 0.0
        return optimizer.epochs * (passes + steps) * self.scale + reference

    def sampling(self, speeches: int, responses: int) -> Sampling:
        """Seconds of the engines; each takes one work item after the other, or with `feed: continuous` all it gets."""
        if self.fed:
            engines = min(self.split.rollouts, speeches)
            slowest = self._item(math.ceil(speeches / engines), responses)
            return Sampling(engines * slowest, slowest)
        size = min(self.job.rollouts.speeches_per_item, speeches)
        items = math.ceil(speeches / size)
        total = (items - 1) * self._item(size, responses) + self._item(speeches - (items - 1) * size, responses)
        return Sampling(total, math.ceil(items / self.split.rollouts) * self._item(size, responses))

    def _item(self, prompts: int, responses: int) -> float:
        profile, sequences, mean = self.profile, prompts * responses, self.response_tokens
        # all end with the longest response, taken as twice the mean
        longest = min(self.job.sampling.max_tokens, 2 * mean)
        if self.fed:
            steps = (sequences / min(sequences, self.job.rollouts.max_num_seqs) - 1) * mean + longest
        else:
            steps = longest * math.ceil(sequences / self.job.rollouts.max_num_seqs)
        read = prompts * self.prompt_tokens * profile.prompt_token_s
        sampled = sequences * self.response_tokens * profile.decode_token_s
        return (read + steps * profile.decode_step_s + sampled) * self.scale / self.split.gpus_per_rollout

    @property
    def hand_over(self) -> float:
        """Seconds in which each GPU of a colocated job goes from engine to rank and back.

        The rank's states move from the host and to it; the engine's weights are dropped and come with the next sync.
        """
        states = 16 * self.shape.parameters / self.split.learners
        return 2 * states / _HOST_BYTES_PER_S if self.split.colocated else 0.0

    def scoring(self, speeches: int, responses: int, models: int) -> float:
        """Seconds of one scorer that scores all responses with `models` reward models."""
        tokens = speeches * models * (self.prompt_tokens + responses * self.response_tokens)
        return tokens * self.profile.score_token_s * self.scale

    def overlapped(self, sampling: Sampling, scoring: float) -> float:
        """Seconds of simultaneous sampling and scoring, each by all of its actors."""
        shared = (sampling.total + scoring) / self.cores if self.cores else 0.0
        return max(sampling.slowest, scoring / self.split.scorers, shared)

    @property
    def client(self) -> Scenario | None:
        """The engines that play clients, as a scenario; None: there are none."""
        if self.job.simulate is None or (shape := client_shape(self.job)) is None:
            return None
        client = self.job.simulate.client
        sampling = self.job.sampling.model_copy(update={"max_tokens": client.max_tokens})
        job = self.job.model_copy(update={"rollouts": client.rollouts, "sampling": sampling})
        split = GpuSplit(client.rollouts.actors, 1, 1, max(1, math.ceil(client.rollouts.gpus)))
        tokens = lengths.reply_tokens(self.job.simulate)
        return replace(self, job=job, shape=shape, split=split, response_tokens=tokens)

    def after(self, exchanges: int) -> Scenario:
        """The same work later in a dialogue: a prompt grows with each response and reply of the client."""
        if self.job.simulate is None or not exchanges:
            return self
        return replace(self, said=exchanges * (self.response_tokens + lengths.reply_tokens(self.job.simulate)))

    def turns(self, dialogues: int, which: range, models: int) -> Turns:
        """Further turns (1, 2, ...) of dialogues: a client's reply and a response that `models` score."""
        seconds = sampled = scored = replied = 0.0
        for exchanges in which:
            now = self.after(exchanges)
            if now.client:
                replies = now.client.sampling(dialogues, 1)
                seconds += now.client.overlapped(replies, 0.0)
                replied += replies.total / now.client.split.rollouts
            sampling, scoring = now.sampling(dialogues, 1), now.scoring(dialogues, 1, models)
            seconds += now.overlapped(sampling, scoring)
            sampled, scored = sampled + sampling.total, scored + scoring
        return Turns(seconds, sampled, scored, replied)


def forecast(scenario: Scenario) -> Forecast:
    """The time of an iteration."""
    job, profile, split = scenario.job, scenario.profile, scenario.split
    branch = scenario.after(job.simulate.branch_turn - 1) if job.simulate else scenario
    drawn = job.speeches_per_iteration, job.sampling.responses
    held_out = job.evaluation.speeches or DEV_SPEECHES, job.evaluation.responses
    sampled, scored = Sampling(0.0, 0.0), 0.0
    if job.pairs_from != "file":
        sampled = branch.sampling(*drawn)
        scored = branch.scoring(*drawn, models=2 if job.scorers.safety_model else 1)
    if job.dpo.reference == "base":
        scored += branch.reference
    in_samples, in_evaluation = _in_dialogues(scenario, drawn, held_out)
    answered, judged = scenario.sampling(*held_out), scenario.scoring(*held_out, models=len(reward_models(job)))
    moments = 8 if job.applied_dpo.keep_optimizer else 0  # bytes per parameter
    save = (2 + 4 + moments) * scenario.shape.parameters / profile.save_bytes_per_s
    # a policy is saved beside the sampling that follows, unless they have the same GPUs or cores
    waited = save if split.colocated or scenario.cores else max(0.0, save - scenario.overlapped(answered, judged))
    stages = {
        "sample and score": branch.overlapped(sampled, scored) + in_samples.seconds,
        "train": branch.training,
        "save": waited,
        "sync": 2 * scenario.shape.parameters / profile.sync_bytes_per_s + scenario.hand_over,
        "evaluate": scenario.overlapped(answered, judged) + in_evaluation.seconds,
    }
    total = sum(stages.values())
    turns = in_samples + in_evaluation
    busy = {
        "rollouts": (sampled.total + answered.total + turns.sampled) / split.rollouts,
        "scorers": (scored + judged + turns.scored) / split.scorers,
        "learners": stages["train"] + save,
    }
    if scenario.client:
        busy["clients"] = turns.replied
    return Forecast(stages, {role: max(0.0, 1 - seconds / total) for role, seconds in busy.items()})


def _in_dialogues(scenario: Scenario, drawn: tuple[int, int], held_out: tuple[int, int]) -> tuple[Turns, Turns]:
    """All turns but one of the dialogues in sampling and in evaluation."""
    job, simulate = scenario.job, scenario.job.simulate
    if simulate is None:
        return Turns(), Turns()
    speeches, responses = drawn
    branch, last = simulate.branch_turn, simulate.turns
    sampled = scenario.turns(speeches, range(1, branch), 0)
    if simulate.rank == "dialogue":
        sampled += scenario.turns(speeches * responses, range(branch, last), 1)
    evaluated = scenario.turns(math.prod(held_out), range(1, last), len(reward_models(job)))
    return Turns() if job.pairs_from == "file" else sampled, evaluated


def client_shape(job: Job) -> ModelShape | None:
    """The shape of the model that plays clients on engines of its own; None: there is none.

    Raises:
        InputError: its size is not known.
    """
    if job.simulate is None or (model := job.simulate.client.model) is None:
        return None
    return shape_of(str(hub.on_this_machine(model) or model))


def reward_models(job: Job) -> list[str]:
    """The reward models of the scorers; where a job names none, the two that `demo` trains."""
    named = [job.scorers.reward_model, job.scorers.heldout_model, job.scorers.safety_model]
    return [name for name in named if name is not None] or ["a", "b"]


def sensitivity(scenario: Scenario) -> tuple[str, float]:
    """The assumption whose increase by a quarter changes the iteration most, and the relative change."""
    job, tokens = scenario.job, scenario.response_tokens

    def slower(*rates: str) -> Scenario:
        profile = scenario.profile
        changes = {rate: 1.25 * getattr(profile, rate) for rate in rates}
        return replace(scenario, profile=profile.model_copy(update=changes))

    room = {"max_tokens": math.ceil(1.25 * job.sampling.max_tokens)}
    longer = job.model_copy(update={"sampling": job.sampling.model_copy(update=room)})
    changed = {
        f"tokens of a response ({tokens:.0f})": replace(scenario, job=longer, response_tokens=1.25 * tokens),
        "seconds of sampling a token": slower("prompt_token_s", "decode_step_s", "decode_token_s"),
        "seconds of scoring a token": slower("score_token_s", "reference_token_s"),
        "seconds of training on a token": slower("train_token_s", "optimizer_step_s"),
    }
    now = forecast(scenario).seconds
    changes = {assumption: forecast(other).seconds / now - 1 for assumption, other in changed.items()}
    largest = max(changes, key=lambda assumption: changes[assumption])
    return largest, changes[largest]
