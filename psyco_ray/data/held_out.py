"""The held-out speeches of the file that `data.speeches` names, and what finds near duplicates of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Data
from psyco_ray.data import containment, duplicates, leakage, speech_file
from psyco_ray.data.splits import speech_id
from psyco_ray.run.types import Row

_HELD_OUT = pa.schema(
    [
        ("speech_id", pa.string()),
        ("speech", pa.string()),
        ("split", pa.string()),
        ("signature", pa.binary(4 * duplicates.PERMUTATIONS)),
        ("marks", pa.list_(pa.uint64())),
    ]
)


def read(data: Data) -> leakage.HeldOut:
    """The test and dev speeches of `data.speeches`, of any length, which evaluations answer, by origin.

    Raises:
        InputError: the file or a column is invalid.
    """
    texts: dict[str, list[str]] = {"test": [], "dev": []}
    for table in speech_file.read(data):
        for row in table.to_pylist():
            if row["left_out"] is None:
                text, split = speech_file.speech_and_split(row, data)
                if split in texts:
                    texts[split].append(text)
    return {_origin(split, data): found for split, found in texts.items()}


def signed(batch: pa.Table, data: Data) -> pa.Table:
    """The held-out speeches of any length, with what finds near duplicates of them."""
    rows: list[Row] = []
    for row in batch.to_pylist():
        if row["left_out"] is not None:
            continue
        try:
            text, split = speech_file.speech_and_split(row, data)
        except InputError:  # raised for the training speeches
            continue
        if split != "train":
            marks = containment.marks(Context.of(text).client_words)
            rows.append({"speech_id": speech_id(text), "speech": text, "split": split, "marks": marks})
    signatures = duplicates.signatures([Context.of(row["speech"]).client_words for row in rows])
    for row, signature in zip(rows, signatures, strict=True):
        row["signature"] = signature.tobytes()
    return pa.Table.from_pylist(rows, schema=_HELD_OUT)


def known(tables: Iterable[pa.Table], data: Data) -> leakage.Known:
    """The held-out speeches of tables that `signed` made; one of both splits counts as one of the test split."""
    held_out = pa.concat_tables([_HELD_OUT.empty_table(), *tables])
    held_out = held_out.sort_by([("split", "descending")])
    origin: dict[str, str] = {}
    first: list[int] = []
    for row, (key, split) in enumerate(
        zip(*(held_out[name].to_pylist() for name in ("speech_id", "split")), strict=True)
    ):
        if key not in origin:
            origin[key] = _origin(split, data)
            first.append(row)
    held_out = held_out.take(pa.array(first, pa.int64()))
    texts = held_out["speech"].to_pylist()
    for text, split in zip(texts, held_out["split"].to_pylist(), strict=True):
        if Context.of(text).is_conversation:
            for key in leakage.keys(text, data.min_chars):
                origin.setdefault(key, _origin(split, data))
    long = [len(Context.of(text).client_words) >= data.min_chars for text in texts]
    held_out = held_out.filter(pa.array(long, pa.bool_()))
    signed = held_out["signature"].combine_chunks()
    signatures = np.frombuffer(signed.buffers()[1], np.uint32).reshape(-1, duplicates.PERMUTATIONS)
    marks = [row.values.to_numpy() for row in held_out["marks"]]
    return leakage.Known(origin, held_out["speech"].to_pylist(), signatures[signed.offset :][: len(signed)], marks)


def _origin(split: str, data: Data) -> str:
    return f"the {split} split of speeches file {data.speeches}"
