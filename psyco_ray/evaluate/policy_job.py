"""What an evaluation of policies is: the models, their opponent, the judges, one YAML file (paper §4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from psyco_ray.config import Count, Deadlines, Endpoint, Judging, NotNegative, Prompts, Rollouts
from psyco_ray.evaluate.job import Name
from psyco_ray.jobfile import Section

Variant = Literal["free", "matched"]
Row = dict[str, Any]

_SPEECH_COLUMNS = ("question", "speech", "text")
_RESPONSE_COLUMN = "response"


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


def load_speeches(wanted: Speeches, seed: int) -> list[Row]:
    """The speeches to be answered, ordered by id: `speech_id`, `speech` and `topic` (the coarse one, or None).

    Raises:
        ValueError: a file or its columns do not do, or no speech is of the wanted split.
    """
    from psyco_ray.data import topics
    from psyco_ray.data.speeches import read_table, speech_id, split_of
    from psyco_ray.ledger import key_of

    table = read_table(wanted.file, "speeches")
    column = _column(table.column_names, _SPEECH_COLUMNS, f"speeches file {wanted.file}")
    kept = [name for name in (column, "split", "topic", "coarse_topic") if name in table.column_names]
    coarse = topics.coarse_of()
    found: dict[str, Row] = {}
    splits: dict[str, int] = {}
    for number, row in enumerate(table.select(kept).to_pylist(), start=1):
        text = _text(row[column], f"{wanted.file}: row {number} has an empty {column}")
        try:
            split = split_of(row, text, wanted.dev_share)
        except ValueError as error:
            raise ValueError(f"speeches file {wanted.file}: row {number}: {error}") from None
        key = speech_id(text)
        if key in found:
            continue
        splits[split] = splits.get(split, 0) + 1
        if wanted.split in ("all", split):
            fine, topic = (str(row.get(name) or "") for name in ("topic", "coarse_topic"))
            found[key] = {"speech_id": key, "speech": text, "topic": topic or coarse.get(fine, fine) or None}
    if not found:
        known = ", ".join(f"{split}: {count}" for split, count in sorted(splits.items()))
        raise ValueError(
            f"speeches file {wanted.file} has no speech of the split {wanted.split} (it has {known}); choose another "
            "speeches.split"
        )
    if wanted.topics is not None:
        named = _topics(wanted.topics)
        found = {key: {**row, "topic": named.get(key)} for key, row in found.items()}
    drawn = sorted(found, key=lambda key: key_of(seed, "draw", key))[: wanted.limit]
    return [found[key] for key in sorted(drawn)]


def load_responses(file: str, speeches: Sequence[Row]) -> dict[str, str]:
    """The opponent's responses out of a file, by speech id.

    Raises:
        ValueError: the file or its columns do not do, a speech has no response, or two different ones.
    """
    from psyco_ray.data.speeches import fold, read_table, speech_id

    table = read_table(file, "responses")
    where = f"responses file {file}"
    column = _column(table.column_names, _SPEECH_COLUMNS, where)
    _column(table.column_names, (_RESPONSE_COLUMN,), where)
    found: dict[str, str] = {}
    for number, row in enumerate(table.select([column, _RESPONSE_COLUMN]).to_pylist(), start=1):
        key = speech_id(_text(row[column], f"{where}: row {number} has an empty {column}"))
        text = _text(row[_RESPONSE_COLUMN], f"{where}: row {number} has an empty {_RESPONSE_COLUMN}")
        if fold(found.setdefault(key, text)) != fold(text):
            raise ValueError(
                f"{where}: row {number} answers a speech that an earlier row answers otherwise; keep one of the two"
            )
    missing = [row["speech_id"] for row in speeches if row["speech_id"] not in found]
    if missing:
        raise ValueError(
            f"{where} has no response to {len(missing)} of the {len(speeches)} speeches, the first of them by its id "
            f"{missing[0]}; add them, or name an endpoint or a model that answers"
        )
    return {row["speech_id"]: found[row["speech_id"]] for row in speeches}


def _topics(where: str) -> Mapping[str, str | None]:
    """Coarse topics by speech id, out of a file or the parts of a directory."""
    from psyco_ray.data import parts
    from psyco_ray.data.speeches import read_table

    directory = Path(where)
    if directory.is_dir():  # which holds other files too, where a data job wrote it
        rows = [row for part in parts.names(directory) for row in parts.read(directory, part)]
    else:
        rows = read_table(where, "topics").to_pylist()
    columns = list(rows[0]) if rows else []
    for name in ("speech_id", "coarse_topic"):
        _column(columns, (name,), f"topics file {where}")
    return {row["speech_id"]: row["coarse_topic"] for row in rows}


def _column(columns: list[str], wanted: tuple[str, ...], where: str) -> str:
    for name in wanted:
        if name in columns:
            return name
    raise ValueError(f"{where} has no column {' or '.join(wanted)}; it has {', '.join(columns) or 'none'}")


def _text(given: Any, otherwise: str) -> str:
    if given is None or not str(given).strip():
        raise ValueError(f"{otherwise}; fill it in or remove the row")
    return str(given).strip()
