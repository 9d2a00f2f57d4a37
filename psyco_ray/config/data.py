"""What a data job is: from raw client speeches to rated pairs, one YAML file, checked before anything starts."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.job_file import Count, NotNegative, Positive, Section, Share
from psyco_ray.config.resources import Rollouts


class Source(Section):
    """One raw source; `adapter` names an entry of ``sources.yaml`` that says how its rows are read."""

    name: str
    path: str | None = None  # a file or a glob of files: .csv, .json, .jsonl, .parquet
    hub: str | None = None  # or a dataset id on the hub
    adapter: str = "generic"
    text: str | None = None  # the column with the client's words, if not the adapter's
    topic: str | None = None  # the column with the source's own topic
    licence: str | None = None  # for the dataset card

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"source {self.name} needs either path or hub")
        return self


class Collect(Section):
    """Cleaning, duplicates and the split (paper §3.1, §3.3)."""

    min_chars: Count = 100  # characters
    max_chars: Count = 1000
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = 0.6  # Jaccard similarity of character 5-grams; 1: exact only
    test_share: Share = 0.1243  # of all speeches: 3,291 of 26,483
    dev_share: Share = 0.1  # of the others
    blocks: Count | None = None  # Ray Data blocks that the rows are cleaned in; None: Ray Data decides


class Scrub(Section):
    """Personal data out of the texts, before anything leaves for an API."""

    enabled: bool = False
    presidio: bool = False  # also names of persons and places, with the `presidio` extra


class Crisis(Section):
    """Speeches with signs of self-harm or violence are flagged; triage, never diagnosis."""

    enabled: bool = True


class Topics(Section):
    """Fine and coarse topics by a model with a closed set of labels (paper table 5)."""

    endpoint: Endpoint | None = None  # None: the source's own labels where they are in the set, else none
    attempts: Count = 3  # questions to the model before a speech is set aside
    max_tokens: Count = 64


class Respond(Section):
    """Answers by models drawn from a pool (paper §3.3, table 6)."""

    pool: str = "default"  # YAML file with the pool's members; `default`: the paper's twenty
    per_speech: Annotated[int, Field(ge=2)] = 4  # members drawn for each speech
    temperature: Positive = 1.0  # of members that name none
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Count = 1024
    prompt: str = "respond"  # entry of the prompts file
    rollouts: Rollouts = Rollouts()  # engines of the open models
    trust_remote_code: bool = False  # of pool members that are marked so


class Rate(Section):
    """Ratings of 1 to 5 by a judge, one principle a call (paper §3.3, appendix A)."""

    endpoint: Endpoint = Endpoint(model="gpt-4o")
    attempts: Count = 3  # questions to the judge before a call's rating is set aside
    max_tokens: Count = 1024
    rationale_chars: Count | None = None  # limit in the JSON schema, for small judges that ramble; not all APIs know it


class Pairs(Section):
    """Preference pairs out of the ratings (paper §3.3)."""

    min_gap: Positive = 1.0  # of the mean ratings; with equal weights compared as integer sums
    weights: dict[str, NotNegative] = Field(default_factory=dict)  # of principles that shall count other than 1


class DataJob(Section):
    """One dataset, from raw files to report and card."""

    run_dir: str = "runs/data"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    sources: list[Source] = Field(min_length=1)
    collect: Collect = Collect()
    scrub: Scrub = Scrub()
    crisis: Crisis = Crisis()
    topics: Topics = Topics()
    respond: Respond = Respond()
    rate: Rate = Rate()
    pair: Pairs = Pairs()
    prompts: str = "default"  # YAML with the prompts and principles
    journal: str | None = None  # directory of paid calls, perhaps shared by runs; None: `journal` in run_dir
    max_cost: NotNegative | None = None  # US dollars that the calls of a command may cost
    language: str = "en"  # of the speeches, for the dataset card

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named {name}; give each its own name")
        if self.collect.min_chars > self.collect.max_chars:
            raise ValueError(f"collect.min_chars {self.collect.min_chars} is above max_chars {self.collect.max_chars}")
        return self
