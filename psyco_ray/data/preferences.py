"""Preference pairs of whatever origin, read into one form: the COMPARISONS table."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES, Messages, prompt_messages
from psyco_ray.data.splits import is_dev
from psyco_ray.data.tables import SPLITS, read_table
from psyco_ray.run.schemas import COMPARISONS
from psyco_ray.run.types import Row

HUB = "hub:"
SHAPES: dict[str, tuple[str, ...]] = {
    "released": ("question", "chosen", "rejected"),
    "spoken": ("speech", "chosen", "rejected"),
    "prompted": ("prompt", "chosen", "rejected"),
    "conversations": ("chosen", "rejected"),
    "strength": ("prompt", "response_1", "response_2", "preference_strength"),
}
"""Columns by which a file's kind is told, the first that fits: the released dataset's, the same with the speech under
another name, prompt and two answers (texts or lists of messages), two whole conversations, or two responses and how far
the second is better (HelpSteer2)."""

_BATCH_ROWS = 4096
_TURN = "<extra_id_1>"  # stands before the later turns of a HelpSteer2 prompt, each of which begins with who speaks


@dataclass(frozen=True)
class Comparisons:
    """The usable pairs of a file, and how many rows were left out for which reason."""

    table: pa.Table  # COMPARISONS
    left_out: Mapping[str, int]


def read(name: str, dev_share: float = 0.1, by_hash: bool = False) -> Comparisons:
    """Read preference pairs.

    Args:
        name: a Parquet, JSONL or CSV file, a directory of Parquet files, `sample` (the packaged ones), or a file of a
            hub dataset as ``hub:owner/name/path/to/file``.
        dev_share: share of the pairs held out, by a hash of what was asked, where the file has no `split` column.
        by_hash: split by that hash even where it has one.

    Raises:
        InputError: a wrong file, missing columns, an unknown split, or no usable pair.
    """
    table = read_table(_from_hub(name.removeprefix(HUB)) if name.startswith(HUB) else name, "pairs")
    shape = next((s for s, columns in SHAPES.items() if set(columns) <= set(table.column_names)), None)
    if shape is None:
        wanted = "; or ".join(", ".join(columns) for columns in SHAPES.values())
        raise InputError(f"pairs file {name} has the columns {', '.join(table.column_names)}; wanted are {wanted}")
    kept: list[pa.Table] = []
    left_out: Counter[str] = Counter()
    number = 0
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        rows: list[Row] = []
        for given in batch.to_pylist():
            number += 1
            try:
                row = _READERS[shape](given)
            except _LeftOut as reason:
                left_out[str(reason)] += 1
                continue
            named = next((given[key] for key in ("prefID", "pair_id", "id") if given.get(key) is not None), number)
            topic = given.get("coarse_topic") or given.get("topic")
            subset = given.get("subset") or given.get("source")
            rows.append(
                {
                    **row,
                    "pair_id": str(named),
                    "split": _split(name, number, None if by_hash else given.get("split"), row["asked"], dev_share),
                    "topic": None if topic is None else str(topic),
                    "subset": None if subset is None else str(subset),
                    **_gaps(given),
                }
            )
        kept.append(pa.Table.from_pylist(rows, schema=COMPARISONS))
    found = pa.concat_tables(kept)
    if not found.num_rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise InputError(f"pairs file {name} has no usable pair ({reasons})")
    return Comparisons(found, dict(left_out))


def conversation(form: str, asked: str, prompt: dict[str, str]) -> Messages:
    """The messages that a pair's responses answer.

    Args:
        form: of `asked`, as in COMPARISONS.
        asked: a client speech, a text, or messages as JSON.
        prompt: the respond prompt, which a speech is set into.
    """
    if form == "speech":
        return prompt_messages(prompt, asked)
    return json.loads(asked) if form == "messages" else [{"role": "user", "content": asked}]


class _LeftOut(Exception):
    """A row that cannot be used, and why."""


def _released(row: Row, column: str = "question") -> Row:
    return _checked("speech", row[column], row["chosen"], row["rejected"])


def _prompted(row: Row) -> Row:
    prompt = row["prompt"]
    listed = isinstance(prompt, list)
    asked = json.dumps([_message(one) for one in prompt]) if listed else prompt
    return _checked("messages" if listed else "text", asked, _last(row["chosen"]), _last(row["rejected"]))


def _conversations(row: Row) -> Row:
    sides = [row["chosen"], row["rejected"]]
    if not all(isinstance(side, list) and len(side) > 1 for side in sides):
        raise _LeftOut("no prompt")
    if sides[0][:-1] != sides[1][:-1]:
        raise _LeftOut("two different prompts")
    asked = json.dumps([_message(one) for one in sides[0][:-1]])
    return _checked("messages", asked, _last(sides[0]), _last(sides[1]))


def _strength(row: Row) -> Row:
    strength = _number(row["preference_strength"])
    if not strength:
        raise _LeftOut("no preference")
    better, worse = ("response_2", "response_1") if strength > 0 else ("response_1", "response_2")
    first, *later = (row["prompt"] or "").split(_TURN)
    if not later:
        return _checked("text", first, row[better], row[worse])
    asked = [{"role": "user", "content": first.strip()}]
    for turn in later:
        role, _, text = turn.partition("\n")
        asked.append({"role": role.strip().lower(), "content": text.strip()})
    return _checked("messages", json.dumps(asked), row[better], row[worse])


_READERS: dict[str, Callable[[Row], Row]] = {
    "released": _released,
    "spoken": functools.partial(_released, column="speech"),
    "prompted": _prompted,
    "conversations": _conversations,
    "strength": _strength,
}


def _last(side: Any) -> Any:
    """A response: the text, or the last message's of a list."""
    return _message(side[-1])["content"] if isinstance(side, list) and side else side


def _message(given: Any) -> dict[str, Any]:
    """A message of a list."""
    if not isinstance(given, dict) or not {"role", "content"} <= set(given):
        raise _LeftOut("a message without role and content")
    return given


def _checked(form: str, asked: Any, chosen: Any, rejected: Any) -> Row:
    texts = {"asked": asked, "chosen": chosen, "rejected": rejected}
    for what, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise _LeftOut(f"empty {'prompt' if what == 'asked' else what}")
    if chosen.strip() == rejected.strip():
        raise _LeftOut("chosen and rejected are the same")
    return {"form": form, **texts}


def _number(given: Any) -> float | None:
    """A number, also one that a CSV file holds as a text beside other texts; None where there is none."""
    try:
        found = float(given)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _gaps(row: Row) -> Row:
    """Rating gaps, overall and by principle; empty where the row has not all seven ratings of both sides."""
    gaps: dict[str, float] = {}
    for principle in PRINCIPLES:
        chosen, rejected = (_number(row.get(f"{side}_{principle}_rating")) for side in ("chosen", "rejected"))
        if chosen is None or rejected is None:
            return {}
        gaps[f"{principle}_gap"] = chosen - rejected
    return {"gap": sum(gaps.values()) / len(gaps), **gaps}


def _split(name: str, number: int, given: Any, asked: str, dev_share: float) -> str:
    if given is None:
        return "dev" if is_dev(asked, dev_share) else "train"
    if given not in SPLITS:
        raise InputError(f"pairs file {name}: row {number} is of the split {given!r}; known are {', '.join(SPLITS)}")
    return SPLITS[given]


def _from_hub(path: str) -> str:
    """A file of a hub dataset, downloaded into the hub's cache or found there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    if path.count("/") < 2:
        raise InputError(f"pairs {HUB}{path} is not of the form {HUB}owner/name/path/to/file")
    owner, dataset, file = path.split("/", 2)
    try:
        return str(Path(hf_hub_download(f"{owner}/{dataset}", file, repo_type="dataset")))
    except (LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"{HUB}{path} is not in the hub's cache and the hub cannot be reached: {error}") from None
    except (EntryNotFoundError, HfHubHTTPError) as error:
        raise InputError(f"the hub does not give {path}: {str(error).splitlines()[0]}") from None
