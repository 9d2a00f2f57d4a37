"""Preference pairs ordered by the ratings of one principle."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES

ALIKE, NOT_RATED = "both responses have one rating by the principle", "it has no ratings"
"""Reasons for leaving out a pair."""

_SIDES = (("chosen", "rejected"), ("chosen_finished", "rejected_finished"))


def by_principle(table: pa.Table, principle: str, name: str) -> tuple[pa.Table, dict[str, int]]:
    """The pairs whose responses differ by a principle, the one that it rates higher as the chosen one.

    Args:
        table: COMPARISONS.
        principle: whose ratings count.
        name: of the file of pairs, for messages.

    Returns:
        COMPARISONS whose `gap` is that of the principle, in points of its rating; and how many pairs are left out, by
        reason.

    Raises:
        InputError: no pair has ratings, or none differs by the principle.
    """
    rank = table[f"{principle}_gap"]
    differs = pc.fill_null(pc.not_equal(rank, 0), False)
    if rank.null_count == table.num_rows:
        raise InputError(
            f"pairs file {name} has no pair with ratings of both responses by all principles, such as "
            f"chosen_{principle}_rating and rejected_{principle}_rating; leave out principle: {principle}"
        )
    if not pc.any(differs).as_py():
        raise InputError(
            f"pairs file {name} has no pair whose responses differ by {principle}; name another principle, or none"
        )
    left_out = {ALIKE: table.num_rows - rank.null_count - pc.sum(differs).as_py(), NOT_RATED: rank.null_count}
    table = table.filter(differs)
    swapped = pc.less(table[f"{principle}_gap"], 0)
    changed = {
        one: pc.if_else(swapped, table[other], table[one]) for pair in _SIDES for one, other in (pair, pair[::-1])
    }
    for column in (f"{each}_gap" for each in PRINCIPLES):
        changed[column] = pc.if_else(swapped, pc.negate(table[column]), table[column])
    changed["gap"] = changed[f"{principle}_gap"]
    columns = [changed.get(field.name, table[field.name]) for field in table.schema]
    return pa.table(columns, schema=table.schema), {reason: count for reason, count in left_out.items() if count}
