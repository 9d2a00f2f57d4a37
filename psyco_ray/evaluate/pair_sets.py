"""The preference pairs that reward models are tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_reward import Bench, Test


@dataclass(frozen=True)
class TestPairs:
    """The pairs of a test, of the benchmark, or those to calibrate on."""

    table: pa.Table  # COMPARISONS
    left_out: Mapping[str, int]  # rows of the file that cannot be used, by reason


def load(test: Test, seed: int) -> TestPairs:
    """The pairs of a test.

    Raises:
        InputError: the file does not do, or has none of the wanted split.
    """
    from psyco_ray.data import preferences

    found = preferences.read(test.pairs, test.dev_share, test.by_hash)
    splits = found.table["split"].to_pylist()
    rows = [row for row, split in enumerate(splits) if test.split in ("all", split)]
    if not rows:
        known = ", ".join(f"{split}: {count}" for split, count in sorted(Counter(splits).items()))
        raise InputError(
            f"pairs file {test.pairs} has no pair of the split {test.split} for {test.name} (it has {known}); choose "
            "another split for it"
        )
    return TestPairs(found.table.take(_drawn(found.table, rows, seed, test.limit)), found.left_out)


def load_bench(bench: Bench, seed: int) -> TestPairs:
    """The pairs of a benchmark; whatever splits the file itself names are taken together.

    Raises:
        InputError: the file does not do, a pair is of no subset, or the sections do not fit.
    """
    from psyco_ray.data import preferences
    from psyco_ray.evaluate import rewardbench

    found = preferences.read(bench.rows, bench.dev_share, by_hash=True)
    by_subset: dict[str, list[int]] = {}
    columns = found.table.select(["subset", "split"]).to_pydict()
    for row, (subset, split) in enumerate(zip(columns["subset"], columns["split"], strict=True)):
        if bench.split not in ("all", split):
            continue
        if subset is None:
            raise InputError(f"pairs file {bench.rows} has a pair without a subset; a benchmark needs a column subset")
        by_subset.setdefault(subset, []).append(row)
    right = [True] * len(by_subset)  # what does not fit is told now, not after hours of scoring
    rewardbench.bench_ranked(list(by_subset), right, right, bench.sections)
    rows = sorted(row for of in by_subset.values() for row in _drawn(found.table, of, seed, bench.limit))
    return TestPairs(found.table.take(rows), found.left_out)


def _drawn(table: pa.Table, rows: Sequence[int], seed: int, limit: int | None) -> list[int]:
    """So many of the rows, the first by a hash of their texts, in the order of the table."""
    from psyco_ray.run.hashing import key_of

    if limit is None or limit >= len(rows):
        return list(rows)
    texts = table.select(["asked", "chosen", "rejected"]).take(list(rows)).to_pylist()
    order = sorted(range(len(rows)), key=lambda at: key_of(seed, texts[at]))
    return sorted(rows[at] for at in order[:limit])
