"""Rows of tables that are memory-mapped from a file."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def take(table: pa.Table, rows: np.ndarray, names: list[str]) -> pa.Table:
    """Some rows of a table in their order, batch by batch: `pa.Table.take` would load the whole file into memory."""
    batches = table.select(names).to_batches()
    starts = np.cumsum([0, *(len(batch) for batch in batches)])
    order = np.argsort(rows)
    bounds = np.searchsorted(rows, starts, sorter=order)
    pieces = [
        batch.take(pa.array(rows[order[first:last]] - start))
        for batch, start, first, last in zip(batches, starts[:-1], bounds[:-1], bounds[1:], strict=True)
        if last > first
    ]
    return pa.Table.from_batches(pieces, table.select(names).schema).take(np.argsort(order))
