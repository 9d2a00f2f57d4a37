"""Arrow schemas of all tables, and the conversion of groups to rows and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.run.token_ids import TokenIds
from psyco_ray.run.types import Group, PromptBatch, Response, Row

_IDS = pa.list_(pa.int32())
_PART_ROWS = 4096  # of a column at a time: its token ids and its texts have offsets of 32 bits

SPEECHES = pa.schema(
    [
        ("speech_id", pa.string()),  # hash of the folded text
        ("speech", pa.string()),
        ("split", pa.string()),  # train or dev
        ("topic", pa.string()),
        ("prompt_ids", _IDS),
    ]
)

SAMPLES = pa.schema(
    [
        ("speech_id", pa.string()),
        ("index", pa.int32()),  # 0 .. responses - 1
        ("response", pa.string()),  # the answer
        ("reasoning", pa.string()),  # of a thinking model, before the answer
        ("reasoning_tokens", pa.int32()),  # the first ones of token_ids
        ("token_ids", _IDS),
        ("finished", pa.bool_()),  # false where it was cut at the token limit or has no answer
        ("logprob", pa.float64()),  # under the policy at temperature 1, nats; null: not requested
        ("seed", pa.int64()),
        ("policy_version", pa.int32()),
    ]
)

SCORES = pa.schema(
    [
        ("speech_id", pa.string()),
        ("index", pa.int32()),
        (
            "model",
            pa.string(),
        ),  # reward, heldout or safety; or reference: the log-probability under the base model, nats
        ("score", pa.float32()),
    ]
)

CONTEXTS = pa.schema([("speech_id", pa.string()), ("speech", pa.string())])
"""What the pairs of an iteration answer, where its dialogues branch behind their first turn, by the opening's id."""

DIALOGUES = pa.schema(
    [
        ("speech_id", pa.string()),
        ("index", pa.int32()),  # of the response at the branch
        ("speech", pa.string()),  # the context where it begins
        ("responses", pa.list_(pa.string())),  # of the policy, turn by turn
        ("finished", pa.list_(pa.bool_())),  # by response
        ("replies", pa.list_(pa.string())),  # of the simulated client
        ("reward", pa.list_(pa.float32())),  # by response; null: not scored
        ("heldout", pa.list_(pa.float32())),
        ("left", pa.bool_()),  # whether the client ended it
        ("failed", pa.string()),  # why it was given up; null: it was not
        ("policy_version", pa.int32()),
        ("client", pa.string()),  # the model that plays the client
        ("client_digest", pa.string()),  # of its files; null: behind an API
    ]
)
"""Dialogues with simulated clients."""

PAIRS = pa.schema(
    [
        ("speech_id", pa.string()),
        ("prompt_ids", _IDS),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_score", pa.float32()),
        ("rejected_score", pa.float32()),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("chosen_context", pa.int32()),  # the first ones of chosen_ids, which are not trained; null: none
        ("rejected_context", pa.int32()),
        ("chosen_reference", pa.float64()),  # log-probability of the others in nats
        ("rejected_reference", pa.float64()),
        ("chosen_finished", pa.bool_()),  # false where the response was cut; null: unknown, treated as finished
        ("rejected_finished", pa.bool_()),
        ("policy_version", pa.int32()),
    ]
)

PAIRS_OF_FILES = {
    "weight": pa.float32(),  # of the pair in the loss; without the column all have 1
    "conversation": pa.bool_(),  # whether the pair's context is one; without the column none is
}
"""Columns that follow those of PAIRS where a pair of a file needs them."""

_SIDES = [f"{side}_{principle}_rating" for side in ("chosen", "rejected") for principle in PRINCIPLES]

PREFERENCES = pa.schema(
    [
        ("ID", pa.string()),
        ("prefID", pa.string()),
        ("question", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_model", pa.string()),
        ("rejected_model", pa.string()),
        *[(name, pa.int64()) for name in _SIDES],
    ]
)
"""The released preference dataset's columns; built datasets add `topic`, `coarse_topic` and `split`."""

COMPARISONS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("form", pa.string()),  # of `asked`: speech (to be set into the respond prompt), text, or messages (as JSON)
        ("asked", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_finished", pa.bool_()),  # false where the response was cut; null: unknown, treated as finished
        ("rejected_finished", pa.bool_()),
        ("split", pa.string()),  # train, dev or test
        ("topic", pa.string()),  # the coarse one
        ("subset", pa.string()),  # of a benchmark, or the pair's source
        ("item", pa.string()),  # the row of several chosen and rejected responses that the pair is of; null: its own
        ("gap", pa.float32()),  # of the mean ratings, chosen less rejected; null: not rated
        *[(f"{principle}_gap", pa.float32()) for principle in PRINCIPLES],
        ("weight", pa.float32()),  # of the pair in the loss, above 0 and at most 1; null: 1
        ("dialogue", pa.string()),  # hash of the dialogue that the asked context is a part of; null: not known
    ]
)
"""Preference pairs of any source in one form."""

_FLAG = pa.struct(
    [
        ("kind", pa.string()),
        ("start", pa.int32()),  # offsets in characters of the transcript; null: all of it
        ("end", pa.int32()),
        ("by", pa.string()),  # lexicon, classifier or judge
    ]
)

COLLECTED = pa.schema(
    [
        ("speech_id", pa.string()),  # hash of the folded text
        ("speech", pa.string()),
        ("split", pa.string()),  # train, dev or test
        ("source", pa.string()),
        ("source_row", pa.int64()),  # row of the file, from 1
        ("source_topic", pa.string()),  # the source's own label
        ("crisis", pa.list_(pa.string())),  # signs that were seen, such as self-harm; null: not screened
        ("language", pa.string()),  # its ISO 639-1 code, und: unknown; null: the lexicons are off
        ("crisis_flags", pa.list_(_FLAG)),  # what was seen where, and by whom; null: not screened
        ("screened_by", pa.list_(pa.string())),  # lexicon, classifier, judge; empty: not screened
    ]
)

COLLECTED_DIALOGUES = pa.schema(
    [
        *COLLECTED,
        ("dialogue", pa.string()),  # hash of the whole dialogue that a context is a part of; of a speech its own id
        ("turn", pa.int32()),  # number of the client's last turn in the dialogue, from 1
    ]
)
"""COLLECTED with conversations."""

DROPPED = pa.schema(
    [
        ("source", pa.string()),
        ("source_row", pa.int64()),
        ("reason", pa.string()),  # bad row, outside where, too short, near duplicate, ...
        ("detail", pa.string()),
    ]
)

CRISIS_SIGNS = pa.schema(
    [
        ("speech_id", pa.string()),
        ("flags", pa.list_(_FLAG)),
        ("scores", pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))),  # highest ones; null: none
        ("model", pa.string()),
    ]
)
"""What a model that reads speeches after `collect` says of those that it has read."""

TOPICS = pa.schema([("speech_id", pa.string()), ("topic", pa.string()), ("coarse_topic", pa.string())])

RESPONSES = pa.schema(
    [
        ("speech_id", pa.string()),
        ("model", pa.string()),  # name of the pool member
        ("response", pa.string()),
        ("finished", pa.bool_()),  # false where it was cut at the token limit
    ]
)

RATINGS = pa.schema(
    [
        ("speech_id", pa.string()),
        ("model", pa.string()),  # whose response is rated
        ("principle", pa.string()),
        ("rating", pa.int8()),  # 1 .. 5
        ("rationale", pa.string()),
        ("judge", pa.string()),
    ]
)

SET_ASIDE = pa.schema(
    [
        ("speech_id", pa.string()),
        ("what", pa.string()),  # the call: a principle, a pool member, or topic
        ("reason", pa.string()),
        ("answer", pa.string()),  # the last one, if there was any
    ]
)
"""Calls without a usable answer after all attempts."""


def group_tables(groups: Sequence[Group]) -> dict[str, pa.Table]:
    """The rows of groups in the SAMPLES and the SCORES table, by `samples` and `scores`."""
    sampled = [(group, index, response) for group in groups for index, response in enumerate(group.responses)]
    samples = {
        "speech_id": [group.prompt.speech_id for group, _, _ in sampled],
        "index": [index for _, index, _ in sampled],
        "response": [response.text for _, _, response in sampled],
        "reasoning": [response.reasoning for _, _, response in sampled],
        "reasoning_tokens": [response.reasoning_tokens for _, _, response in sampled],
        "token_ids": id_lists([response.token_ids for _, _, response in sampled]),
        "finished": [response.finished for _, _, response in sampled],
        "logprob": [response.logprob for _, _, response in sampled],
        "seed": [group.prompt.seed for group, _, _ in sampled],
        "policy_version": [group.version for group, _, _ in sampled],
    }
    scored = [
        (group.prompt.speech_id, index, model, score)
        for group in groups
        for model, values in group.scores.items()
        for index, score in enumerate(values)
    ]
    scores = {name: [row[place] for row in scored] for place, name in enumerate(SCORES.names)}
    return {
        "samples": pa.Table.from_pydict(samples, schema=SAMPLES),
        "scores": pa.Table.from_pydict(scores, schema=SCORES),
    }


def groups_from_tables(item: PromptBatch, samples: pa.Table, scores: pa.Table) -> list[Group]:
    """The groups of an item from its SAMPLES and its SCORES table."""
    responses: dict[str, list[Response]] = {}
    versions: dict[str, int] = {}
    for row in rows_of(samples):
        response = Response(
            row["response"],
            row["token_ids"],
            row["finished"],
            row["logprob"],
            row["reasoning"],
            row["reasoning_tokens"],
        )
        responses.setdefault(row["speech_id"], []).append(response)
        versions[row["speech_id"]] = row["policy_version"]
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows_of(scores):
        values.setdefault(row["speech_id"], {}).setdefault(row["model"], []).append(row["score"])
    return [
        Group(
            prompt,
            tuple(responses[prompt.speech_id]),
            versions[prompt.speech_id],
            {model: tuple(scores_of_model) for model, scores_of_model in values.get(prompt.speech_id, {}).items()},
        )
        for prompt in item.prompts
        if prompt.speech_id in responses  # absent speeches are in quarantine
    ]


def id_lists(lists: Sequence[Sequence[int]]) -> pa.ListArray:
    """A column of token ids, without a Python number for each that `TokenIds` has."""
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    values = np.frombuffer(b"".join(TokenIds(ids).tobytes() for ids in lists), np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=_IDS)


def table_of(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table, without a Python number for each token id; an absent value is null, absent token ids no."""
    parts = (rows[start : start + _PART_ROWS] for start in range(0, len(rows), _PART_ROWS))
    columns = ({field.name: _column(part, field) for field in schema} for part in parts)
    tables = [pa.Table.from_pydict(of_part, schema=schema) for of_part in columns]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _column(rows: Sequence[Row], field: pa.Field) -> Any:
    if field.type == _IDS:
        return id_lists([row[field.name] for row in rows])
    return [row.get(field.name) for row in rows]


def rows_of(table: pa.Table) -> list[Row]:
    """The rows of a table, with lists of int32 as `TokenIds`."""
    lists = [
        field.name
        for field in table.schema
        if pa.types.is_list(field.type) and pa.types.is_int32(field.type.value_type)
    ]
    rows: list[Row] = table.drop_columns(lists).to_pylist()
    for name in lists:
        found = (ids for chunk in table[name].chunks for ids in _ids_of(chunk))
        for row, ids in zip(rows, found, strict=True):
            row[name] = ids
    return rows


def _ids_of(column: pa.ListArray) -> Iterator[TokenIds]:
    assert not column.null_count, "every row has token ids"
    values, ends = column.values.to_numpy(), column.offsets.to_numpy().tolist()
    return (TokenIds(values[start:end]) for start, end in itertools.pairwise(ends))
