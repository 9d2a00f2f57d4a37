"""Preference pairs from several file formats, converted to the COMPARISONS table."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES, Messages, prompt_messages
from psyco_ray.data import conversations
from psyco_ray.data.conversations import UnusablePairError
from psyco_ray.data.splits import is_dev
from psyco_ray.data.tables import SPLITS, read_table
from psyco_ray.run import hub, reasoning
from psyco_ray.run.schemas import COMPARISONS
from psyco_ray.run.types import Row

HUB = "hub:"
SHAPES: dict[str, tuple[str, ...]] = {
    "released": ("question", "chosen", "rejected"),
    "spoken": ("speech", "chosen", "rejected"),
    "prompted": ("prompt", "chosen", "rejected"),
    "messages": ("messages", "chosen", "rejected"),
    "shared": ("conversations", "chosen", "rejected"),
    "conversations": ("chosen", "rejected"),
    "strength": ("prompt", "response_1", "response_2", "preference_strength"),
    "rated": ("prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"),
}
"""Formats and their columns; the first whose columns a file has applies: the released dataset, the same with `speech`,
a prompt and two responses (texts or messages), the same with ShareGPT's names, two whole conversations, two responses
with the strength by which the second is better (HelpSteer2's preferences), one rated response a row (HelpSteer2's
ratings)."""

_SYSTEM = ("system", "system_prompt", "system_message")  # columns with the system message of a row
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"))
_UNREAD = ("history", "context", "input", "instruction", "tools", "functions", "image", "images", "audio", "video")
"""Columns that change what a response answers and that no format reads."""

_REWARD_WEIGHTS = {"helpfulness": 65, "correctness": 80, "coherence": 45, "complexity": 55, "verbosity": -40}
"""A response's reward from its ratings, in hundredths: the weights of HelpSteer2's 70B model (Wang et al. 2024)."""

_BATCH_ROWS = 4096
_FINISHED = ("chosen_finished", "rejected_finished")  # optional columns
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_TURN = "<extra_id_1>"  # begins each later turn of a HelpSteer2 prompt; the role follows

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparisons:
    """The usable pairs of a file, and the number of unusable rows by reason."""

    table: pa.Table  # COMPARISONS
    left_out: Mapping[str, int]


def read(name: str, dev_share: float = 0.1, by_hash: bool = False) -> Comparisons:
    """Read preference pairs.

    Args:
        name: a Parquet, JSONL or CSV file, a directory of Parquet files, `sample` (the packaged ones), or a file of a
            hub dataset as ``hub:owner/name/path/to/file``, or ``hub:owner/name@revision/path/to/file``.
        dev_share: share of the pairs held out by a hash of the prompt, if the file has no `split` column.
        by_hash: split by that hash even if it has one.

    Raises:
        InputError: the file is invalid, lacks columns, has a column that changes the question and is not read, names an
            unknown split, says neither true nor false whether a response is finished, or has no usable pair.
    """
    table = read_table(_from_hub(name.removeprefix(HUB)) if name.startswith(HUB) else name, "pairs")
    shape = next((s for s, columns in SHAPES.items() if set(columns) <= set(table.column_names)), None)
    if shape is None:
        formats = "; or ".join(", ".join(columns) for columns in SHAPES.values())
        raise InputError(f"pairs file {name} has the columns {', '.join(table.column_names)}; accepted are {formats}")
    if shape == "rated":
        table, shape = _strengths_of_ratings(name, table), "strength"
    kept: list[pa.Table] = []
    left_out: Counter[str] = Counter()
    number = 0
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        rows: list[Row] = []
        for raw in batch.to_pylist():
            number += 1
            _refuse_unread(name, number, shape, raw)
            try:
                _check_scores(raw)
                row = _READERS[shape](raw)
            except UnusablePairError as reason:
                left_out[str(reason)] += 1
                continue
            pair_id = next((raw[key] for key in ("prefID", "pair_id", "id") if raw.get(key) is not None), number)
            topic = raw.get("coarse_topic") or raw.get("topic")
            subset = raw.get("subset") or raw.get("source")
            rows.append(
                {
                    **row,
                    "pair_id": str(pair_id),
                    "split": _split(name, number, None if by_hash else raw.get("split"), _question(row), dev_share),
                    "topic": None if topic is None else str(topic),
                    "subset": None if subset is None else str(subset),
                    **{column: _finished(name, number, column, raw.get(column)) for column in _FINISHED},
                    **_gaps(raw),
                }
            )
        kept.append(pa.Table.from_pylist(rows, schema=COMPARISONS))
    usable = pa.concat_tables(kept)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
    if reasons:
        _log.warning(f"pairs file {name}: {left_out.total()} of {number} rows are left out ({reasons})")
    if not usable.num_rows:
        raise InputError(f"pairs file {name} has no usable pair ({reasons})")
    return Comparisons(usable, dict(left_out))


def conversation(form: str, asked: str, prompt: dict[str, str]) -> Messages:
    """The conversation that a pair's responses continue.

    Args:
        form: of `asked`, as in COMPARISONS.
        asked: a client speech, a text, or messages as JSON.
        prompt: the respond prompt, which a speech is inserted into.
    """
    if form == "speech":
        return prompt_messages(prompt, asked)
    return json.loads(asked) if form == "messages" else [{"role": "user", "content": asked}]


def _refuse_unread(name: str, number: int, shape: str, row: Row) -> None:
    """Refuse a column that changes what the responses answer and is not read.

    Raises:
        InputError: the row has a value in such a column.
    """
    columns = [*_UNREAD, *(_SYSTEM if shape == "spoken" else ())]
    if column := next((column for column in columns if row.get(column) not in (None, "", [], {})), None):
        raise InputError(
            f"pairs file {name}: row {number} has a {column}, which changes what its responses answer and is not read; "
            "put it into prompt as a list of messages, or drop the column"
        )


def _check_scores(row: Row) -> None:
    """Refuse a pair whose own scores do not prefer the chosen response."""
    for better, worse in _SCORES:
        chosen, rejected = _number(row.get(better)), _number(row.get(worse))
        if chosen is not None and rejected is not None and chosen <= rejected:
            relation = "equals" if chosen == rejected else "is below"
            raise UnusablePairError(f"{better} {relation} {worse}")


def _answered(row: Row, column: str, form: str = "text") -> Row:
    """A pair of responses to the question in a column: a text in the given form, or a conversation."""
    text = conversations.read(row[column])
    asked = [{"role": "user", "content": text}] if isinstance(text, str) else text
    if isinstance(text, list) and asked[-1]["role"] == "assistant":
        asked = []  # the chosen conversation, as some files have it beside the pair
    elif not asked[-1]["content"].strip():
        raise UnusablePairError("empty prompt")
    return _of_sides(row, asked, text if isinstance(text, str) else None, form)


def _of_sides(row: Row, asked: Messages, text: str | None = None, form: str = "text") -> Row:
    """A pair of the conversations that a row's two sides are; in `form` where they ask the text alone."""
    sides = [conversations.continued(asked, row[side]) for side in ("chosen", "rejected")]
    prompt = sides[0][:-1]
    if prompt != sides[1][:-1]:
        raise UnusablePairError("two different prompts")
    if not prompt:
        raise UnusablePairError("no prompt")
    if prompt[-1]["role"] != "user":
        raise UnusablePairError("a prompt that does not end with the user's message")
    chosen, rejected = (side[-1]["content"] for side in sides)
    system = next((row[column] for column in _SYSTEM if row.get(column)), None)
    prompt = conversations.with_system(system, prompt)
    if text is not None and prompt == [{"role": "user", "content": text}]:
        return _checked(form, text, chosen, rejected)
    return _checked("messages", json.dumps(prompt), chosen, rejected)


def _strength(row: Row) -> Row:
    strength = _number(row["preference_strength"])
    if not strength:
        raise UnusablePairError("no preference")
    better, worse = ("response_2", "response_1") if strength > 0 else ("response_1", "response_2")
    first, *later = (row["prompt"] or "").split(_TURN)
    if not later:
        return _answered({**row, "chosen": row[better], "rejected": row[worse]}, "prompt")
    asked = [{"role": "user", "content": first.strip()}]
    for turn in later:
        role, _, text = turn.partition("\n")
        asked.append({"role": role.strip().lower(), "content": text.strip()})
    return _of_sides({**row, "chosen": row[better], "rejected": row[worse]}, asked)


def _strengths_of_ratings(name: str, table: pa.Table) -> pa.Table:
    """Ratings in the format of preferences: every two consecutive rows rate two responses to one prompt.

    The response with the higher helpfulness is better, as in HelpSteer2's own preference pairs. HelpSteer2 discards
    equal ones, 29 % of its prompts; here the reward of all five ratings decides them, so that only pairs with equal
    rewards have no preference.

    Raises:
        InputError: two such rows have different prompts, or the last row is alone.
    """
    rows = table.to_pylist()
    pairs = []
    for start in range(0, len(rows), 2):
        first, second = rows[start], rows[start + 1] if start + 1 < len(rows) else {}
        if first["prompt"] != second.get("prompt"):
            raise InputError(
                f"pairs file {name}: row {start + 1} and the one after it have different prompts; ratings are read as "
                "pairs of consecutive rows with the same prompt"
            )
        responses = {"response_1": first["response"], "response_2": second["response"]}
        pairs.append({**first, **responses, "preference_strength": _strength_of_ratings(first, second)})
    return pa.Table.from_pylist(pairs)


def _strength_of_ratings(first: Row, second: Row) -> float | None:
    """Positive where the second response is better; None if a rating is missing."""
    gaps: dict[str, float] = {}
    for attribute in _REWARD_WEIGHTS:
        before, after = _number(first[attribute]), _number(second[attribute])
        if before is None or after is None:
            return None
        gaps[attribute] = after - before
    return gaps["helpfulness"] or sum(weight * gaps[attribute] for attribute, weight in _REWARD_WEIGHTS.items())


_READERS: dict[str, Callable[[Row], Row]] = {
    "released": functools.partial(_answered, column="question", form="speech"),
    "spoken": functools.partial(_answered, column="speech", form="speech"),
    "prompted": functools.partial(_answered, column="prompt"),
    "messages": functools.partial(_answered, column="messages"),
    "shared": functools.partial(_answered, column="conversations"),
    "conversations": functools.partial(_of_sides, asked=[]),
    "strength": _strength,
}


def _checked(form: str, asked: Any, chosen: Any, rejected: Any) -> Row:
    texts = {"asked": asked, "chosen": chosen, "rejected": rejected}
    for field, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise UnusablePairError(f"empty {'prompt' if field == 'asked' else field}")
        if field != "asked" and not reasoning.split(text)[1].strip():
            raise UnusablePairError(f"{field} has reasoning without an answer")
    if reasoning.split(chosen)[1].strip() == reasoning.split(rejected)[1].strip():
        raise UnusablePairError("chosen and rejected are the same")
    return {"form": form, **texts}


def _number(value: Any) -> float | None:
    """A finite number, also from a text cell; None without one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _gaps(row: Row) -> Row:
    """Rating gaps, overall and by principle; empty unless both sides have all seven ratings."""
    gaps: dict[str, float] = {}
    for principle in PRINCIPLES:
        chosen, rejected = (_number(row.get(f"{side}_{principle}_rating")) for side in ("chosen", "rejected"))
        if chosen is None or rejected is None:
            return {}
        gaps[f"{principle}_gap"] = chosen - rejected
    return {"gap": sum(gaps.values()) / len(gaps), **gaps}


def _finished(name: str, number: int, column: str, value: Any) -> bool | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool | int | str) and (truth := _TRUTH.get(str(value).strip().lower())) is not None:
        return truth
    raise InputError(f"pairs file {name}: row {number}: {column} is neither true, false nor empty; correct it")


def _question(row: Row) -> str:
    """What a pair asks, without a system message: the same question under two of them is in one split."""
    if row["form"] != "messages":
        return str(row["asked"])
    first, *later = json.loads(row["asked"])
    return json.dumps(later) if first["role"] == "system" and later else str(row["asked"])


def _split(name: str, number: int, split: Any, asked: str, dev_share: float) -> str:
    if split is None:
        return "dev" if is_dev(asked, dev_share) else "train"
    if split not in SPLITS:
        raise InputError(f"pairs file {name}: row {number} has the split {split!r}; known are {', '.join(SPLITS)}")
    return SPLITS[split]


def _from_hub(path: str) -> str:
    """Local path of a file of a hub dataset; downloaded unless cached."""
    if path.count("/") < 2:
        raise InputError(f"pairs {HUB}{path} is not of the form {HUB}owner/name/path/to/file")
    owner, dataset, file = path.split("/", 2)
    name, revision = hub.split_revision(dataset)
    return str(hub.dataset_file(f"{owner}/{name}", file, revision))
