"""Settings of a reward model evaluation: the models and the pairs that they are tested on."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.job_file import Count, Name, NotNegative, NotNegativeCount, Section, TemplateOptions
from psyco_ray.config.privacy import Privacy, ScrubSent
from psyco_ray.config.resources import Scorers
from psyco_ray.config.training import Deadlines, Prompts

Split = Literal["train", "dev", "test", "all"]

REWARDBENCH = "rewardbench"
"""Name of the benchmark's scores beside those of the tests."""


class ModelUnderTest(Section):
    """A model under test: a reward model, or a ranker, which is a generative model that picks the better of two."""

    name: Name
    """Name in tables and directories."""
    model: str | None = None
    """Directory or hub id (owner/name, or owner/name@revision) of a sequence classifier with one label. Either
    model or endpoint is given."""
    logit_token: NotNegativeCount | None = None
    """The model is a language model whose reward is the logit of this token (its id) after the conversation, as in
    NVIDIA's Nemotron reward models; null: a sequence classifier."""
    template_options: TemplateOptions = Field(default_factory=dict)
    """Options of the model's chat template, such as {enable_thinking: false}."""
    endpoint: Endpoint | None = None
    """API of a ranker."""
    group: Literal["ours", "external"] | None = None
    """Group in the table; null: ours where `trained_on` is set."""
    base: str | None = None
    """The language model that it was trained from, for the tables."""
    trained_on: str | None = None
    """The training data, for the tables."""
    tables: tuple[Literal[1, 2, 7], ...] = (1, 2, 7)
    """The paper's tables that show it. Tables 2 and 7 have ours only, table 2 those with `base` and `trained_on`."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError(f"{self.name} needs either model (of a reward model) or endpoint (of a ranker)")
        if self.endpoint is not None and self.group is not None:
            raise ValueError(f"{self.name} is a ranker, which is a group of its own; leave group out")
        if self.endpoint is not None and self.logit_token is not None:
            raise ValueError(f"{self.name} is a ranker, which has no reward; leave logit_token out")
        if self.endpoint is not None and self.template_options:
            raise ValueError(f"{self.name} is behind an API, which renders its prompts; leave template_options out")
        if self.endpoint is not None and self.endpoint.via == "batch":
            raise ValueError(f"{self.name} has via: batch, but rankers need single calls; leave via out")
        return self

    @property
    def table_group(self) -> str:
        """Its group in table 1: ours, external or ranker."""
        if self.endpoint is not None:
            return "ranker"
        return self.group or ("ours" if self.trained_on else "external")


class Test(Section):
    """Preference pairs that the models rank."""

    name: Name
    """Name in tables and directories."""
    pairs: str
    """A file, `sample` (the packaged pairs), desk:DIR, or hub:owner/name/path/to/file (owner/name@revision pins it)."""
    split: Split = "test"
    """Split of the pairs to test on."""
    by_hash: bool = False
    """Split by a hash of the prompt even where the file has a `split` column."""
    dev_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of pairs that the hash puts into dev."""
    limit: Count | None = None
    """Number of pairs, drawn by a hash; null: all."""


class Bench(Section):
    """RewardBench, or a benchmark of the same form."""

    rows: str
    """A pairs file with a column `subset` (or `source`), such as those of RewardBench and RewardBench 2."""
    sections: dict[str, list[str]] | None = None
    """Subsets by section; null: RewardBench's own, or each subset of another benchmark by itself."""
    split: Literal["train", "dev", "all"] = "all"
    """Split by a hash, for a file whose other part was trained on."""
    dev_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of pairs that the hash puts into dev."""
    limit: Count | None = None
    """Number of pairs of each subset, drawn by a hash (RewardBench 2: of rows with all their pairs); null: all."""


class Ranking(Section):
    """How rankers pick the better of two responses."""

    attempts: Count = 3
    """Calls for one answer before it counts as unreadable."""
    max_tokens: Count = 256
    """Tokens of an answer."""


class EvaluateRewardJob(Section):
    """Reward models and rankers side by side (paper tables 1, 2 and 7)."""

    run_dir: str = "runs/evaluate-reward"
    """Directory of scores, answers and the report."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of all random draws."""
    prompts: Prompts = Prompts()
    models: list[ModelUnderTest] = Field(min_length=1)
    """The models under test."""
    tests: list[Test] = Field(default_factory=list)
    """The sets of pairs to test on."""
    rewardbench: Bench | None = None
    """A benchmark with subsets; null: none."""
    calibrate: Test | None = None
    """Pairs for fitting each reward model's temperature; null: none is fitted."""
    scorers: Scorers = Scorers()
    scrub: ScrubSent = ScrubSent()
    privacy: Privacy = Privacy()
    ranking: Ranking = Ranking()
    max_tokens: Count | None = None
    """Tokens of a conversation that a reward model reads; null: its context length."""
    max_cost: NotNegative | None = None
    """US dollars that the rankers' calls of the run directory may cost, over repeated commands; null: no limit."""
    deadlines: Deadlines = Deadlines()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.tests and self.rewardbench is None:
            raise ValueError("there is nothing to evaluate on; name pairs in tests, or rewardbench.rows")
        pairs = [*self.tests, *([self.calibrate] if self.calibrate else [])]
        for what, names in (("models", [m.name for m in self.models]), ("sets of pairs", [p.name for p in pairs])):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two {what} are named {name}; give each its own name")
        if REWARDBENCH in {test.name for test in pairs}:
            raise ValueError(f"the name {REWARDBENCH} is that of the benchmark; give the test another name")
        for key in ("reward_model", "heldout_model"):
            if getattr(self.scorers, key) is not None:
                raise ValueError(f"scorers.{key} belongs to a training job; name the model in models")
        for test in self.tests:
            if self.calibrate is not None and _overlap(test, self.calibrate):
                raise ValueError(
                    f"calibrate has the pairs of the test {test.name}, and a temperature must not be fitted on test "
                    "data; name another split or file"
                )
        rankers = [(m.endpoint.model, m.endpoint.structured) for m in self.models if m.endpoint is not None]
        for ranker in rankers:
            if rankers.count(ranker) > 1:  # the journal identifies a call by its model, whatever server answers
                raise ValueError(
                    f"two rankers have the same model {ranker[0]}, and one would repeat the other's answers; serve it "
                    "under another name (--served-model-name), or evaluate it in another run_dir"
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
