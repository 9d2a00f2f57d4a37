"""Settings of a policy evaluation: policies, their opponent and the judges (paper §4.2)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from psyco_ray.config.endpoint import Endpoint, Judging
from psyco_ray.config.job_file import Count, Name, NotNegative, NotNegativeCount, Section, TemplateOptions
from psyco_ray.config.privacy import Privacy, ScrubSent
from psyco_ray.config.reading import Reading
from psyco_ray.config.resources import Rollouts, check_engine
from psyco_ray.config.simulate import Simulation
from psyco_ray.config.training import Deadlines, Prompts

Variant = Literal["free", "matched"]


class PolicyPrompts(Prompts):
    """The texts around a speech, with and without a requested length."""

    matched: str = "respond-matched"
    """Entry that asks for a response of about {words} words."""


class Speeches(Reading):
    """The client speeches to answer: the whole test split, also speeches without a pair (paper §4.2)."""

    file: str = "sample"
    """A file of any kind that `data collect` reads, a directory of Parquet files, or packaged: `sample`,
    `sample-conversations`."""
    speech_column: str | None = None
    """Column of the speeches; null: the first of question, speech, text, else a list of messages."""
    split: Literal["test", "dev", "all"] = "test"
    """By the `split` column; in a file without one dev is drawn by a hash of the text."""
    dev_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of speeches that the hash puts into dev."""
    topics: str | None = None
    """File or directory with speech_id and coarse_topic; null: the speeches' own columns."""
    limit: Count | None = None
    """Number of speeches, drawn by a hash; null: all."""


class Policy(Section):
    """A policy under test."""

    name: Name
    """Name in tables and directories."""
    model: str
    """A directory, a hub id (owner/name, or owner/name@revision), or the directory of a training run, which stands for
    its best checkpoint."""
    iteration: NotNegativeCount | Literal["all"] | None = None
    """Of a training run: 0 is its base model, all makes a policy of every iteration; null: the best checkpoint."""
    template_options: TemplateOptions = Field(default_factory=dict)
    """Options of its chat template, such as {enable_thinking: false}; of a training run, in place of the run's."""


class Opponent(Section):
    """The opponent of all policies (paper: GPT-4o); exactly one of responses, endpoint and model is given."""

    name: Name
    """Name in tables and directories."""
    responses: str | None = None
    """A file with speeches and their `response`."""
    endpoint: Endpoint | None = None
    """An API."""
    model: str | None = None
    """A model, as a policy's; of a training run the best checkpoint."""
    template_options: TemplateOptions = Field(default_factory=dict)
    """As a policy's."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.responses, self.endpoint, self.model)) != 1:
            raise ValueError(f"the opponent {self.name} needs exactly one of responses (a file), endpoint and model")
        if self.template_options and self.model is None:
            raise ValueError(f"the opponent {self.name} is no model; leave template_options out")
        return self


class Judge(Section):
    """A model that picks the better of two responses."""

    name: Name
    """Name in tables and directories."""
    endpoint: Endpoint
    """Its API."""


class Decoding(Section):
    """Decoding of policies and opponent (paper §4.2)."""

    max_tokens: Count = 1024
    """Tokens of a response."""
    temperature: NotNegative = 0.0
    """Sampling temperature; 0: greedy (paper §4.2)."""


class Dialogues(Simulation):
    """Dialogues of the policies and the opponent with the same simulated clients, from the first turn of each speech or
    conversation on. The first judge compares them, in both orders whatever `judging.order` is."""

    consistency: bool = False
    """Ask the first judge of every dialogue whether the model contradicts itself or forgets what the client said."""


class PolicyEvaluationJob(Section):
    """Win rates of policies against one opponent (paper table 3)."""

    run_dir: str = "runs/evaluate-policy"
    """Directory of answers, verdicts and the report."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of all random draws."""
    prompts: PolicyPrompts = PolicyPrompts()
    speeches: Speeches = Speeches()
    policies: list[Policy] = Field(min_length=1)
    """The policies under test."""
    opponent: Opponent
    variants: list[Variant] = Field(default=["free", "matched"], min_length=1)
    """free: answers of any length; matched: about as many words as the opponent's."""
    judges: list[Judge] = Field(min_length=1)
    """The first one decides, the others are compared with it."""
    judging: Judging = Judging()
    simulate: Dialogues | None = None
    """Dialogues with simulated clients; null: none."""
    sampling: Decoding = Decoding()
    rollouts: Rollouts = Rollouts()
    scrub: ScrubSent = ScrubSent()
    privacy: Privacy = Privacy()
    max_cost: NotNegative | None = None
    """US dollars that all calls of the run directory may cost, over repeated commands; null: no limit."""
    deadlines: Deadlines = Deadlines()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named: dict[str, list[str]] = {
            "models": [*(policy.name for policy in self.policies), self.opponent.name],
            "judges": [judge.name for judge in self.judges],
            "variants": [*self.variants],
        }
        for what, names in named.items():
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two {what} are named {name}; give each its own name, and name it once")
        models = [(judge.endpoint.model, judge.endpoint.structured) for judge in self.judges]
        for judge, model in zip(self.judges, models, strict=True):
            if models.count(model) > 1:  # the journal identifies a call by its model, whatever server answers
                raise ValueError(
                    f"the judge {judge.name} has the same model {model[0]} as another judge and would repeat its "
                    "answers; name another model"
                )
        check_engine(self.rollouts, self.sampling.max_tokens)
        if self.simulate is not None:
            self._check_dialogues(self.simulate)
        for name, endpoint in self.endpoints().items():
            if endpoint.via == "batch":
                raise ValueError(f"{name} has via: batch, but evaluations need single calls; leave via out")
            if self.max_cost is not None and None in (endpoint.price_in, endpoint.price_out):
                raise ValueError(
                    f"max_cost needs price_in and price_out of the endpoint of {name}, dollars per million tokens"
                )
        return self

    def _check_dialogues(self, simulate: Dialogues) -> None:
        if self.opponent.responses is not None:
            raise ValueError(
                f"the opponent {self.opponent.name} is a file, which cannot talk with simulated clients; name an "
                "endpoint or a model, or leave simulate out"
            )
        if simulate.client.max_cost is not None:
            raise ValueError("max_cost of the job covers all calls; leave simulate.client.max_cost out")

    def endpoints(self) -> dict[str, Endpoint]:
        """The APIs of opponent, judges and simulated clients, by their roles and names."""
        endpoints = {f"the opponent {self.opponent.name}": self.opponent.endpoint}
        if self.simulate is not None:
            endpoints["the simulated client"] = self.simulate.client.endpoint
        endpoints |= {f"the judge {judge.name}": judge.endpoint for judge in self.judges}
        return {name: endpoint for name, endpoint in endpoints.items() if endpoint is not None}
