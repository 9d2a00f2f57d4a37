"""What an evaluation of reward models is: the models, the pairs they are tested on, one YAML file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.job_file import Count, NotNegative, Section
from psyco_ray.config.resources import Scorers
from psyco_ray.config.training import Deadlines, Prompts

if TYPE_CHECKING:
    pass

Split = Literal["train", "dev", "test", "all"]

REWARDBENCH = "rewardbench"
"""Under this name its scores are kept, beside those of the tests."""


def _file_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w .+-]*", name):
        raise ValueError(f"the name {name!r} cannot be a directory's; use letters, digits, spaces, '.', '+', '-', '_'")
    return name


Name = Annotated[str, AfterValidator(_file_name)]


class ModelUnderTest(Section):
    """A model under test: a reward model, or a generative model that picks the better of two."""

    name: Name
    model: str | None = None  # directory or hub id of a sequence classifier with one label
    endpoint: Endpoint | None = None  # or the API of a generative model
    group: Literal["ours", "external"] | None = None  # of the table; None: ours where `trained_on` is set
    base: str | None = None  # the language model that it was trained from, for the tables
    trained_on: str | None = None  # the training data, for the tables

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError(f"{self.name} needs either model (of a reward model) or endpoint (of a ranker)")
        if self.endpoint is not None and self.group is not None:
            raise ValueError(f"{self.name} is a ranker, which is a group of its own; leave group out")
        if self.endpoint is not None and self.endpoint.via == "batch":
            raise ValueError(f"{self.name} has via: batch, but rankers are asked call by call; leave via out")
        return self

    @property
    def table_group(self) -> str:
        """The group of table 1 that it stands in: ours, external or ranker."""
        if self.endpoint is not None:
            return "ranker"
        return self.group or ("ours" if self.trained_on else "external")


class Test(Section):
    """Preference pairs that the models shall put in order."""

    name: Name
    pairs: str  # a file, `sample`, or hub:owner/name/path/to/file
    split: Split = "test"
    by_hash: bool = False  # split by a hash even where the file has a `split` column
    dev_share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share that the hash holds out
    limit: Count | None = None  # so many pairs, drawn by a hash


class Bench(Section):
    """RewardBench, or a benchmark made like it."""

    rows: str  # a pairs file with a column `subset` (or `source`)
    sections: dict[str, list[str]] | None = None  # subsets by section; None: RewardBench's own
    split: Literal["train", "dev", "all"] = "all"  # by a hash, for a file whose other part was trained on
    dev_share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share that the hash holds out
    limit: Count | None = None  # so many pairs of each subset, drawn by a hash


class Ranking(Section):
    """How generative models are asked which response is the better one."""

    attempts: Count = 3  # questions before an answer counts as unreadable
    max_tokens: Count = 256  # of an answer


class EvaluateRewardJob(Section):
    """Reward models and rankers side by side (paper tables 1, 2 and 7)."""

    run_dir: str = "runs/evaluate-reward"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    prompts: Prompts = Prompts()
    models: list[ModelUnderTest] = Field(min_length=1)
    tests: list[Test] = Field(default_factory=list)
    rewardbench: Bench | None = None
    calibrate: Test | None = None  # pairs on which each reward model's temperature is fitted
    scorers: Scorers = Scorers()
    ranking: Ranking = Ranking()
    max_tokens: Count | None = None  # of a conversation that a reward model reads; None: its own context
    max_cost: NotNegative | None = None  # US dollars that the rankers' calls may cost
    deadlines: Deadlines = Deadlines()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.tests and self.rewardbench is None:
            raise ValueError("there is nothing to evaluate on; name pairs in tests, or rewardbench.rows")
        pairs = [*self.tests, *([self.calibrate] if self.calibrate else [])]
        for what, names in (("models", [m.name for m in self.models]), ("sets of pairs", [p.name for p in pairs])):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two {what} are named {name}; give each its own name")
        if REWARDBENCH in {test.name for test in pairs}:
            raise ValueError(f"the name {REWARDBENCH} is taken by the benchmark; name the test otherwise")
        for key in ("reward_model", "heldout_model"):
            if getattr(self.scorers, key) is not None:
                raise ValueError(f"scorers.{key} belongs to a training job; name the model in models")
        for test in self.tests:
            if self.calibrate is not None and _overlap(test, self.calibrate):
                raise ValueError(
                    f"calibrate has the pairs of the test {test.name}, and a temperature must not be fitted on what it "
                    "is judged by; take another split or file"
                )
        asked = [(m.endpoint.model, m.endpoint.structured) for m in self.models if m.endpoint is not None]
        for how in asked:
            if asked.count(how) > 1:  # the journal knows a call by its model, wherever that is served
                raise ValueError(
                    f"two rankers ask the same model {how[0]}, and one would repeat the other's answers; name what "
                    "serves it otherwise (--served-model-name), or evaluate it in another run_dir"
                )
        for model in self.models:
            unpriced = model.endpoint is not None and None in (model.endpoint.price_in, model.endpoint.price_out)
            if self.max_cost is not None and unpriced:
                raise ValueError(
                    f"max_cost needs price_in and price_out of the endpoint of {model.name}, dollars per million tokens"
                )
        return self


def _overlap(one: Test, other: Test) -> bool:
    return one.pairs == other.pairs and (one.split == other.split or "all" in (one.split, other.split))
