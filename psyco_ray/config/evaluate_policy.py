"""What an evaluation of policies is: the models, their opponent, the judges, one YAML file (paper §4.2)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from psyco_ray.config.endpoint import Endpoint, Judging
from psyco_ray.config.evaluate_reward import Name
from psyco_ray.config.job_file import Count, NotNegative, Section
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Deadlines, Prompts

Variant = Literal["free", "matched"]


class PolicyPrompts(Prompts):
    """The texts around a speech, with and without a wished length."""

    matched: str = "respond-matched"  # the entry that asks for about {words} words


class Speeches(Section):
    """Which client speeches are answered: all of the test split, not only those with a pair (paper §4.2)."""

    file: str = "sample"  # Parquet, JSONL or CSV file, a directory of Parquet files, or `sample`
    split: Literal["test", "dev", "all"] = "test"  # by the `split` column, else dev by a hash of the text
    dev_share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share that the hash holds out
    topics: str | None = None  # file or directory with speech_id and coarse_topic; None: of the speeches' own columns
    limit: Count | None = None  # so many speeches, drawn by a hash


class Policy(Section):
    """A model under test."""

    name: Name
    model: str  # a directory, a hub id, or a run directory of ours, whose summary names the checkpoint


class Opponent(Section):
    """Whom the policies are compared with (paper: GPT-4o)."""

    name: Name
    responses: str | None = None  # a file with speeches and their `response`
    endpoint: Endpoint | None = None  # or an API
    model: str | None = None  # or a model, as a policy's

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(given is not None for given in (self.responses, self.endpoint, self.model)) != 1:
            raise ValueError(f"the opponent {self.name} needs exactly one of responses (a file), endpoint and model")
        return self


class Judge(Section):
    """A model that says which of two responses is the better one."""

    name: Name
    endpoint: Endpoint


class Decoding(Section):
    """How policies and opponent answer (paper §4.2)."""

    max_tokens: Count = 1024
    temperature: NotNegative = 0.0


class PolicyEvaluationJob(Section):
    """Win rates of policies against one opponent (paper table 3)."""

    run_dir: str = "runs/evaluate-policy"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    prompts: PolicyPrompts = PolicyPrompts()
    speeches: Speeches = Speeches()
    policies: list[Policy] = Field(min_length=1)
    opponent: Opponent
    variants: list[Variant] = Field(default=["free", "matched"], min_length=1)  # matched: as long as the opponent's
    judges: list[Judge] = Field(min_length=1)  # the first decides, the others are compared with it
    judging: Judging = Judging()
    sampling: Decoding = Decoding()
    rollouts: Rollouts = Rollouts()
    max_cost: NotNegative | None = None  # US dollars that the calls of a command may cost
    deadlines: Deadlines = Deadlines()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        named: dict[str, list[str]] = {
            "models": [*(policy.name for policy in self.policies), self.opponent.name],
            "judges": [judge.name for judge in self.judges],
            "variants": [*self.variants],
        }
        for what, names in named.items():
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two {what} are named {name}; give each its own name, and name it once")
        asked = [(judge.endpoint.model, judge.endpoint.structured) for judge in self.judges]
        for judge, how in zip(self.judges, asked, strict=True):
            if asked.count(how) > 1:  # the journal knows a call by its model, wherever that is served
                raise ValueError(
                    f"the judge {judge.name} has the same model {how[0]} as another judge, and would repeat its "
                    "answers; name another model"
                )
        if self.sampling.max_tokens >= self.rollouts.max_model_len:
            raise ValueError(
                f"sampling.max_tokens {self.sampling.max_tokens} leaves no room for a prompt in "
                f"rollouts.max_model_len {self.rollouts.max_model_len}"
            )
        if self.rollouts.tensor_parallel > max(1, self.rollouts.gpus):
            raise ValueError(
                f"rollouts.tensor_parallel {self.rollouts.tensor_parallel} needs as many rollouts.gpus, "
                f"not {self.rollouts.gpus:g}"
            )
        for name, endpoint in self.endpoints().items():
            if endpoint.via == "batch":
                raise ValueError(f"{name} has via: batch, but models are asked call by call here; leave via out")
            if self.max_cost is not None and None in (endpoint.price_in, endpoint.price_out):
                raise ValueError(
                    f"max_cost needs price_in and price_out of the endpoint of {name}, dollars per million tokens"
                )
        return self

    def endpoints(self) -> dict[str, Endpoint]:
        """The APIs that are called, by who stands behind them."""
        asked = {f"the opponent {self.opponent.name}": self.opponent.endpoint}
        asked |= {f"the judge {judge.name}": judge.endpoint for judge in self.judges}
        return {name: endpoint for name, endpoint in asked.items() if endpoint is not None}
