"""The preference pairs that reward models are tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_reward import Bench, EvaluateRewardJob, Test
from psyco_ray.data import preferences
from psyco_ray.evaluate import rewardbench
from psyco_ray.run.changes import Changes
from psyco_ray.run.hashing import key_of


@dataclass(frozen=True)
class TestPairs:
    """The pairs of a test, of the benchmark, or for calibration."""

    table: pa.Table  # COMPARISONS
    left_out: Mapping[str, int]  # number of unusable rows of the file, by reason


def check(job: EvaluateRewardJob) -> None:
    """Look at the columns and the first rows of all files of pairs, before Ray starts.

    Raises:
        InputError: a file cannot be read or has no known format.
    """
    tests = [*job.tests, *([job.calibrate] if job.calibrate else [])]
    for name in [*(test.pairs for test in tests), *([job.rewardbench.rows] if job.rewardbench else [])]:
        preferences.check(name, Changes(accept=False))


def load(test: Test, seed: int) -> TestPairs:
    """The pairs of a test.

    Raises:
        InputError: the file is invalid or has no pair of the split.
    """
    pairs = preferences.read(test.pairs, test.dev_share, test.by_hash)
    splits = pairs.table["split"].to_pylist()
    rows = [row for row, split in enumerate(splits) if test.split in ("all", split)]
    if not rows:
        known = ", ".join(f"{split}: {count}" for split, count in sorted(Counter(splits).items()))
        raise InputError(
            f"pairs file {test.pairs} has no pair of the split {test.split} for {test.name} (it has {known}); choose "
            "another split for it"
        )
    return TestPairs(pairs.table.take(_sample(pairs.table, rows, seed, test.limit)), pairs.left_out)


def load_bench(bench: Bench, seed: int) -> TestPairs:
    """The pairs of a benchmark; the splits that the file itself names are taken together.

    The limit is one of items where rows have several chosen or rejected responses: the pairs of an item stay together.

    Raises:
        InputError: the file is invalid, a pair has no subset, or the sections do not match the subsets.
    """
    pairs = preferences.read(bench.rows, bench.dev_share, by_hash=True)
    by_subset: dict[str, list[list[int]]] = {}
    columns = pairs.table.select(["subset", "split", "item"]).to_pydict()
    for rows in rewardbench.rows_by_item(columns["subset"], columns["item"]):
        subset = columns["subset"][rows[0]]
        if bench.split not in ("all", columns["split"][rows[0]]):
            continue
        if subset is None:
            raise InputError(f"pairs file {bench.rows} has a pair without a subset; a benchmark needs a column subset")
        by_subset.setdefault(subset, []).append(rows)
    right = [True] * len(by_subset)  # wrong sections are reported now, not after hours of scoring
    rewardbench.bench_ranked(list(by_subset), right, right, bench.sections)
    taken = []
    for items in by_subset.values():
        first = set(_sample(pairs.table, [rows[0] for rows in items], seed, bench.limit))
        taken += [row for rows in items if rows[0] in first for row in rows]
    return TestPairs(pairs.table.take(sorted(taken)), pairs.left_out)


def _sample(table: pa.Table, rows: Sequence[int], seed: int, limit: int | None) -> list[int]:
    """Up to `limit` of the rows, those with the first hashes of their texts, in the order of the table."""
    if limit is None or limit >= len(rows):
        return list(rows)
    texts = table.select(["asked", "chosen", "rejected"]).take(list(rows)).to_pylist()
    order = sorted(range(len(rows)), key=lambda index: key_of(seed, texts[index]))
    return sorted(rows[index] for index in order[:limit])
