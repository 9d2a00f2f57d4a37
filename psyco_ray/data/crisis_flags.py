"""The flags of all stages that look for signs of a crisis, merged into the columns of the collected speeches.

collect ----> lexicon -----+
crisis.classifier          +--> crisis, crisis_flags, screened_by in collect/speeches --> pairs, card, evaluations
crisis.judge --------------+

Each stage that reads speeches after `collect` writes its flags to a table of its own, and the columns are made again
from the lexicon's flags and those tables. So a merge may be repeated, and a stage may be taken back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psyco_ray.data.dataset import Dataset
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED, COLLECTED_DIALOGUES
from psyco_ray.run.types import Row
from psyco_ray.screening.crisis import KINDS

LEXICON, CLASSIFIER, JUDGE = BY = ("lexicon", "classifier", "judge")
"""The stages that flag speeches, in the order in which they read them."""

DIRECTORIES = {CLASSIFIER: "classify", JUDGE: "crisis"}
"""The tables of the stages after `collect`, of schema CRISIS_SIGNS."""

_log = logging.getLogger(__name__)


def flag(kind: str, by: str, start: int | None = None, end: int | None = None) -> Row:
    """A flag: a kind of KINDS, the stage, and the place in characters of the transcript; None: all."""
    return {"kind": kind, "start": start, "end": end, "by": by}


def lexicon_flags(row: Row) -> list[Row] | None:
    """The lexicon's flags of a collected speech; None: it has not read the speech."""
    kinds, read = row["crisis"], row.get("screened_by")
    if read is None:  # a table of an earlier version, which the lexicon alone has read
        places = row.get("crisis_flags") or [flag(kind, LEXICON) for kind in kinds or ()]
        return None if kinds is None else [place | {"by": LEXICON} for place in places]
    return [found for found in row["crisis_flags"] or () if found["by"] == LEXICON] if LEXICON in read else None


def columns(found: Mapping[str, Sequence[Row]]) -> Row:
    """The columns of a speech.

    Args:
        found: flags by the stages that have read the speech.
    """
    read = [by for by in BY if by in found]
    flags = [one for by in read for one in found[by]]
    kinds = {one["kind"] for one in flags}
    return {
        "crisis": [kind for kind in KINDS if kind in kinds] if read else None,
        "crisis_flags": flags if read else None,
        "screened_by": read,
    }


def merge(dataset: Dataset) -> None:
    """Make the columns of all speeches again, part by part, with the finished stages that the job names."""
    root, settings = dataset.root, dataset.job.crisis
    named = {CLASSIFIER: settings.classifier, JUDGE: settings.judge}
    stages = [by for by, model in named.items() if model is not None and dataset.record(DIRECTORIES[by]) is not None]
    changed = 0
    for part in shards.list_shards(root / "collect" / "speeches"):
        rows = shards.read(root / "collect" / "speeches", part)
        found = {
            by: {row["speech_id"]: row["flags"] for row in shards.read(root / DIRECTORIES[by], part)} for by in stages
        }
        merged = []
        for row in rows:
            later = {by: flags[row["speech_id"]] for by, flags in found.items() if row["speech_id"] in flags}
            merged.append(row | columns(_by_lexicon(row) | later))
        if merged != rows:
            shards.write(
                root / "collect" / "speeches", part, merged, COLLECTED_DIALOGUES if "turn" in merged[0] else COLLECTED
            )
            changed += 1
    if changed:
        _log.info(
            f"crisis: {changed} parts of the speeches have the flags of {' and '.join(['the lexicons', *stages])}"
        )


def count(rows: Iterable[Row]) -> dict[str, Any] | None:
    """Speeches by kind, by stage and by language.

    Args:
        rows: the columns `crisis`, `crisis_flags`, `screened_by` and `language` of collected speeches.

    Returns:
        `kinds`: flagged speeches by kind. `flagged`: with any. `stages`: for each that has read a speech the speeches
        it `read` and `flagged`, those that it `alone` flagged, and its `kinds`. `not_screened`: speeches that no stage
        has read, by language, the commonest first. None without rows.
    """
    kinds, unread, number = Counter[str](), Counter[str](), 0
    stages: dict[str, Counter[str]] = {}
    of_stage: dict[str, Counter[str]] = {}
    flagged = 0
    for row in rows:
        number += 1
        row = row if row.get("screened_by") is not None else row | columns(_by_lexicon(row))
        by_stage: dict[str, set[str]] = {by: set() for by in row["screened_by"]}
        for one in row["crisis_flags"] or ():
            by_stage[one["by"]].add(one["kind"])
        flagging = [by for by, found in by_stage.items() if found]
        for by, found in by_stage.items():
            stages.setdefault(by, Counter()).update(read=1, flagged=int(bool(found)), alone=int(flagging == [by]))
            of_stage.setdefault(by, Counter()).update(found)
        kinds.update(row["crisis"] or ())
        flagged += bool(flagging)
        if not by_stage:
            unread[row.get("language") or "und"] += 1
    if not number:
        return None
    return {
        "kinds": _by_kind(kinds),
        "flagged": flagged,
        "stages": {by: {**stages[by], "kinds": _by_kind(of_stage[by])} for by in BY if by in stages},
        "not_screened": dict(unread.most_common()),
    }


def _by_lexicon(row: Row) -> dict[str, list[Row]]:
    own = lexicon_flags(row)
    return {} if own is None else {LEXICON: own}


def _by_kind(counts: Counter[str]) -> dict[str, int]:
    return {kind: counts[kind] for kind in KINDS}
