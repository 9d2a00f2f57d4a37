"""Settings of a data job: from raw client speeches to rated preference pairs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.job_file import Count, Name, NotNegative, Positive, Section, Share
from psyco_ray.config.privacy import Privacy
from psyco_ray.config.reading import Reading
from psyco_ray.config.resources import Actors, Rollouts, by_device

CrisisKind = Literal["self-harm", "violence", "abuse", "eating disorder"]
"""The kinds of signs of a crisis."""


class Source(Reading):
    """One raw source of speeches."""

    name: Name
    """Name of the source, unique in the job."""
    path: str | None = None
    """A file, a directory of Parquet files, or a glob of files; a # names a sheet or list. Either path or hub."""
    hub: str | None = None
    """Dataset on the Hugging Face hub: owner/name, or owner/name@revision."""
    adapter: str = "generic"
    """Entry of sources.yaml that says how rows are read."""
    text: str | None = None
    """Column with the client's words; null: the adapter's."""
    topic: str | None = None
    """Column with the source's own topic."""
    licence: str | None = None
    """Licence, for the dataset card."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"source {self.name} needs either path or hub")
        return self


class Collect(Section):
    """Cleaning, deduplication and the split (paper §3.1, §3.3)."""

    min_chars: Count = 100
    """Shortest speech, characters (paper §3.1); of a conversation all that the client says."""
    max_chars: Count = 1000
    """Longest speech, characters (paper §3.1); of a conversation each turn of the client."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Jaccard similarity of character 5-grams from which speeches are duplicates; 1: equal speeches only. Below 1,
    speeches that hold 80 % of another one's 5-grams are duplicates too. Conversations are compared whole."""
    test_share: Share = 0.1243
    """Share of all speeches in the test split: 3,291 of 26,483."""
    dev_share: Share = 0.1
    """Share of the other speeches in the dev split."""
    blocks: Count | None = None
    """Ray Data blocks that rows are cleaned in; null: Ray Data decides."""


class Scrub(Section):
    """Removal of personal data from the texts, before any of them is sent to an API."""

    enabled: bool = False
    """Replace contacts, addresses, identity numbers, dates of birth and the names people give as their own."""
    presidio: bool = False
    """Also replace names of persons and places; needs the `presidio` extra."""


class CrisisClassifier(Actors):
    """A sequence-classification model of transformers that reads the speeches on this cluster, and its resources."""

    role: ClassVar[str | None] = "scorer"
    model: str
    """A directory, its URI, or a hub id (owner/name); with weights as safetensors and a fast tokenizer."""
    revision: str | None = None
    """Commit of a hub id, which needs one."""
    labels: dict[str, CrisisKind] = Field(min_length=1)
    """The model's labels that are signs of a crisis, and the kind of each; its other labels flag nothing."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability of a label from which a speech is flagged. The probabilities of a multi-label model are its sigmoids,
    those of a single-label model its softmax over all labels."""
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"
    """Compute dtype."""
    row_tokens: Count = Field(default_factory=by_device(2048, 16384))
    """Tokens of one forward pass. Default: 2048, on GPUs 16384."""
    allow_code: bool = False
    """Download and run code from the model's repository, at the commit that `revision` names."""


class Crisis(Section):
    """Flags on speeches with signs of self-harm, violence, abuse or eating disorders; triage, never diagnosis."""

    enabled: bool = True
    """Flag speeches by the lexicons of nine languages."""
    classifier: CrisisClassifier | None = None
    """A local model that looks for signs after `collect`; its flags add to those of the lexicons; null: none."""
    judge: Endpoint | None = None
    """A model that is asked for signs after `collect`; its flags add to those of the lexicons; null: none."""
    asked: Literal["all", "unflagged"] = "all"
    """Speeches that the judge reads. unflagged: only those that the lexicons do not flag or cannot read."""
    attempts: Count = 3
    """Calls for one speech before it is set aside."""
    max_tokens: Count = 128
    """Tokens of an answer."""


class Topics(Section):
    """Fine and coarse topics, labelled by a model with a closed set of labels (paper table 5)."""

    endpoint: Endpoint | None = None
    """The model; null: the source's own labels where they are in the set, else none."""
    attempts: Count = 3
    """Calls for one label before the speech is set aside."""
    max_tokens: Count = 64
    """Tokens of an answer."""


class Respond(Section):
    """Responses by models drawn from a pool (paper §3.3, table 6)."""

    pool: str = "default"
    """YAML file with the pool's models; `default`: the paper's twenty."""
    per_speech: Annotated[int, Field(ge=2)] = 4
    """Models drawn for each speech (paper §3.3)."""
    temperature: Positive = 1.0
    """Sampling temperature of models that name none."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: probability mass of the tokens to sample from."""
    max_tokens: Count = 1024
    """Tokens of a response."""
    prompt: str = "respond"
    """Entry of the prompts file."""
    rollouts: Rollouts = Rollouts()
    """Engines of the open models."""
    allow_code: bool = False
    """Download and run code from the repositories of models that need it, each at the revision that the pool names."""


class Rate(Section):
    """Ratings from 1 to 5 by a judge, one principle per call (paper §3.3, appendix A)."""

    endpoint: Endpoint = Endpoint(model="gpt-4o")
    """The judge."""
    attempts: Count = 3
    """Calls for one rating before it is set aside."""
    max_tokens: Count = 1024
    """Tokens of an answer."""
    rationale_chars: Count | None = None
    """Limit of the rationale in the JSON schema, for small judges; not every API supports it; null: none."""


class Pairs(Section):
    """Preference pairs from the ratings (paper §3.3)."""

    min_gap: Positive = 1.0
    """Smallest difference of the mean ratings in a pair; with equal weights compared as integer sums."""
    unfinished: Literal["exclude", "penalise", "allow"] = "exclude"
    """Responses cut at respond.max_tokens. exclude: never chosen; penalise: below all finished; allow: as others."""
    weights: dict[str, NotNegative] = Field(default_factory=dict)
    """Weights of principles other than 1, by name."""


class DataJob(Section):
    """One dataset, from raw files to report and card."""

    run_dir: str = "runs/data"
    """Directory of the dataset."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of all random draws."""
    sources: list[Source] = Field(min_length=1)
    """The raw sources."""
    collect: Collect = Collect()
    scrub: Scrub = Scrub()
    privacy: Privacy = Privacy()
    crisis: Crisis = Crisis()
    topics: Topics = Topics()
    respond: Respond = Respond()
    rate: Rate = Rate()
    pair: Pairs = Pairs()
    prompts: str = "default"
    """YAML file with prompts and principles; `default`: those of the package."""
    journal: str | None = None
    """Directory of paid calls, which several runs may share; null: `journal` in run_dir."""
    max_cost: NotNegative | None = None
    """US dollars that all calls of the run directory may cost, over repeated commands; null: no limit."""
    language: str = "en"
    """Language of the speeches, for the dataset card."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named {name}; give each its own name")
        if self.collect.min_chars > self.collect.max_chars:
            raise ValueError(f"collect.min_chars {self.collect.min_chars} is above max_chars {self.collect.max_chars}")
        return self
