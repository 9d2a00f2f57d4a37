"""Arrow schemas of all tables, and the conversion of groups to rows and back."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.run.types import Group, PromptBatch, Response

_IDS = pa.list_(pa.int32())

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
    ]
)
"""Preference pairs of any source in one form."""

_FLAG = pa.struct(
    [
        ("kind", pa.string()),
        ("start", pa.int32()),  # offsets of characters; null: of the whole text
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


def group_rows(group: Group) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a group in the SAMPLES and the SCORES table."""
    samples = [
        {
            "speech_id": group.prompt.speech_id,
            "index": index,
            "response": response.text,
            "reasoning": response.reasoning,
            "reasoning_tokens": response.reasoning_tokens,
            "token_ids": list(response.token_ids),
            "finished": response.finished,
            "logprob": response.logprob,
            "seed": group.prompt.seed,
            "policy_version": group.version,
        }
        for index, response in enumerate(group.responses)
    ]
    scores = [
        {"speech_id": group.prompt.speech_id, "index": index, "model": model, "score": score}
        for model, values in group.scores.items()
        for index, score in enumerate(values)
    ]
    return samples, scores


def groups_from_rows(item: PromptBatch, samples: list[dict[str, Any]], scores: list[dict[str, Any]]) -> list[Group]:
    """The groups of an item from its rows of the SAMPLES and the SCORES table."""
    responses: dict[str, list[Response]] = {}
    versions: dict[str, int] = {}
    for row in samples:
        response = Response(
            row["response"],
            tuple(row["token_ids"]),
            row["finished"],
            row["logprob"],
            row["reasoning"],
            row["reasoning_tokens"],
        )
        responses.setdefault(row["speech_id"], []).append(response)
        versions[row["speech_id"]] = row["policy_version"]
    values: dict[str, dict[str, list[float]]] = {}
    for row in scores:
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
