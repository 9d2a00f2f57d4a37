"""What became of the data: a page to read and a card that travels with the dataset.

Tables are read part by part and counted, so that memory does not grow with the dataset.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray.config import job_file
from psyco_ray.config.data import DataJob
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data.splits import text_hash
from psyco_ray.report.render import environment
from psyco_ray.run import shards
from psyco_ray.run.schemas import PREFERENCES

PAPER = {
    "speeches": {"train": 23_192, "test": 3_291},
    "pairs": {"train": 34_329, "test": 2_324},
    "rejected_safer": 0.0193,
}
"""What the paper's dataset has; its train holds the dev speeches too (paper §3.3)."""

SAMPLES_SHOWN = 3
SPLITS = ("train", "dev", "test")

_PACKAGE = Path(__file__).parents[1]
_PAIR_COLUMNS = [name for name in PREFERENCES.names if not name.endswith("_rating")]
_SAFETY = ("chosen_safety_rating", "rejected_safety_rating")


@dataclass(frozen=True)
class Made:
    """What the stages of a data job have left so far; empty is what is not there yet.

    Tables are directories of Parquet parts, several where a stage writes to several.
    """

    job: DataJob
    collected: Mapping[str, Any] = field(default_factory=dict)  # the facts that `collect` returned
    spend: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By stage: `paid` and `reused` calls, `prompt_tokens`, `completion_tokens`, `dollars` (None: no prices known)."""

    licences: Mapping[str, str] = field(default_factory=dict)  # of sources, by their names
    speeches: Sequence[Path] = ()  # COLLECTED
    topics: Sequence[Path] = ()  # TOPICS
    responses: Sequence[Path] = ()  # RESPONSES
    ratings: Sequence[Path] = ()  # RATINGS
    pairs: Sequence[Path] = ()  # PREFERENCES, topic, coarse_topic, split
    set_aside: Sequence[Path] = ()  # SET_ASIDE


def write(made: Made, out: Path) -> dict[str, Any]:
    """Write ``report.html`` and ``dataset-card.md``.

    Args:
        made: what there is to report.
        out: directory for both.

    Returns:
        The figures in them; None for a section whose stage has not run.
    """
    figures = measure(made)
    out.mkdir(parents=True, exist_ok=True)
    for template, name in (("dataset.html", "report.html"), ("card.md.j2", "dataset-card.md")):
        text = _environment(escape=template.endswith(".html")).get_template(template).render(figures, made=made)
        (out / name).write_text(text, encoding="utf-8")
    return figures


def measure(made: Made) -> dict[str, Any]:
    """All figures of the report, by section; None for a section whose stage has not run."""
    ratings = _ratings(made.ratings)
    return {
        "paper": PAPER,
        "name": Path(made.job.run_dir).name,
        "collected": made.collected or None,
        "speeches": _speeches(made.speeches),
        "topics": _topics(made.topics),
        "models": _models(made.responses, ratings),
        "ratings": ratings,
        "pairs": _pairs(made.pairs, made.job.seed),
        "set_aside": _set_aside(made.set_aside),
        "spend": made.spend or None,
    }


class _Lengths:
    """Lengths of texts as counts by length: exact quantiles without the texts."""

    def __init__(self) -> None:
        self.words: Counter[int] = Counter()
        self.characters: Counter[int] = Counter()

    def add(self, text: str) -> None:
        self.words[len(text.split())] += 1
        self.characters[len(text)] += 1

    def summary(self) -> dict[str, dict[str, float]]:
        return {"words": _spread(self.words), "characters": _spread(self.characters)}


def _spread(counts: Counter[int]) -> dict[str, float]:
    """Mean, median and the bounds of the middle 90 %."""
    total = sum(counts.values())
    found: dict[str, float] = {"mean": sum(length * count for length, count in counts.items()) / total}
    for name, share in (("low", 0.05), ("median", 0.5), ("high", 0.95)):
        left = share * total
        for length in sorted(counts):
            left -= counts[length]
            if left <= 0:
                found[name] = length
                break
    return found


def _speeches(places: Sequence[Path]) -> dict[str, Any] | None:
    lengths, count = _Lengths(), 0
    for row in _rows(places, ["speech"]):
        lengths.add(row["speech"])
        count += 1
    return {"count": count, "lengths": lengths.summary()} if count else None


def _topics(places: Sequence[Path]) -> dict[str, Any] | None:
    """Speeches by topic in the order of table 5, then topics that it does not have."""
    counts: Counter[tuple[str | None, str | None]] = Counter()
    for row in _rows(places, ["topic", "coarse_topic"]):
        counts[row["coarse_topic"], row["topic"]] += 1
    if not counts:
        return None
    without = sum(counts.pop(key) for key in list(counts) if key[1] is None)
    table = job_file.read_yaml(_PACKAGE / "data" / "topics.yaml", "topics file")
    groups = {
        coarse: [
            {"topic": topic, "count": counts.pop((coarse, topic), 0), "paper": about["paper_count"]}
            for topic, about in fine.items()
        ]
        for coarse, fine in table.items()
    }
    for (other, topic), count in sorted(counts.items(), key=str):
        groups.setdefault(other or "Of no coarse topic", []).append({"topic": topic, "count": count, "paper": None})
    rows = [row for group in groups.values() for row in group]
    return {
        "groups": groups,
        "total": sum(row["count"] for row in rows),
        "paper_total": sum(row["paper"] or 0 for row in rows),
        "used": sum(row["count"] > 0 for row in rows),
        "without": without,
    }


def _ratings(places: Sequence[Path]) -> dict[str, Any] | None:
    counts: Counter[tuple[str, str, int]] = Counter()
    judges: set[str] = set()
    for row in _rows(places, ["model", "principle", "rating", "judge"]):
        counts[row["model"], row["principle"], row["rating"]] += 1
        judges.add(row["judge"])
    if not counts:
        return None
    by_principle: dict[str, list[int]] = {}
    sums: dict[str, dict[str, list[int]]] = {}  # model, principle: sum and number of ratings
    for (model, principle, rating), count in counts.items():
        by_principle.setdefault(principle, [0] * 5)[rating - 1] += count
        pair = sums.setdefault(model, {}).setdefault(principle, [0, 0])
        pair[0] += rating * count
        pair[1] += count
    return {
        "count": sum(counts.values()),
        "judges": sorted(judges),
        "by_principle": {name: by_principle[name] for name in PRINCIPLES if name in by_principle},
        "means": {m: {name: total / number for name, (total, number) in of.items()} for m, of in sums.items()},
    }


def _models(places: Sequence[Path], ratings: dict[str, Any] | None) -> list[dict[str, Any]] | None:
    """Each model's answers, how many were cut, and its mean ratings; the best rated first."""
    answers: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    for row in _rows(places, ["model", "finished"]):
        answers[row["model"]] += 1
        cut[row["model"]] += not row["finished"]
    means = ratings["means"] if ratings else {}
    found = []
    for model in sorted({*answers, *means}):
        of = means.get(model, {})
        overall = sum(of.values()) / len(of) if of else None
        found.append({"model": model, "answers": answers[model], "cut": cut[model], "means": of, "overall": overall})
    return sorted(found, key=lambda row: -(row["overall"] or 0)) or None


def _pairs(places: Sequence[Path], seed: int) -> dict[str, Any] | None:
    splits: Counter[str] = Counter()
    models = {"chosen": Counter[str](), "rejected": Counter[str]()}
    lengths = {"chosen": _Lengths(), "rejected": _Lengths()}
    longer = safer = 0
    samples: list[dict[str, Any]] = []
    for row in _rows(places, [*_PAIR_COLUMNS, *_SAFETY, "topic", "split"]):
        splits[row["split"]] += 1
        longer += len(row["chosen"]) > len(row["rejected"])
        safer += row["rejected_safety_rating"] > row["chosen_safety_rating"]
        for side in ("chosen", "rejected"):
            models[side][row[f"{side}_model"]] += 1
            lengths[side].add(row[side])
        row["draw"] = text_hash(f"sample {seed}", row["prefID"])
        samples = heapq.nsmallest(SAMPLES_SHOWN, [*samples, row], key=lambda pair: pair["draw"])
    count = sum(splits.values())
    if not count:
        return None
    return {
        "count": count,
        "splits": {**{name: splits[name] for name in SPLITS if name in splits}, **splits},
        "models": {side: _shares(counter) for side, counter in models.items()},
        "lengths": {side: measured.summary() for side, measured in lengths.items()},
        "chosen_longer": longer / count,
        "rejected_safer": safer / count,
        "samples": samples,
    }


def _shares(counts: Counter[str]) -> list[dict[str, Any]]:
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"model": model, "count": count, "share": count / total} for model, count in ordered]


def _set_aside(places: Sequence[Path]) -> list[dict[str, Any]] | None:
    if not any(shards.list_shards(directory) for directory in places):
        return None
    counts = Counter((row["reason"], row["what"]) for row in _rows(places, ["what", "reason"]))
    return [{"reason": reason, "what": what, "count": count} for (reason, what), count in sorted(counts.items())]


def _rows(places: Sequence[Path], columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of all parts, of which one batch at a time is in memory."""
    for directory in places:
        for part in shards.list_shards(directory):
            with pq.ParquetFile(directory / f"{part}.parquet") as file:
                for batch in file.iter_batches(batch_size=4096, columns=columns):
                    yield from batch.to_pylist()


def _environment(escape: bool) -> jinja2.Environment:
    found = environment(escape)
    found.filters["share"] = lambda part: f"{100 * part:.1f} %"
    found.globals |= {"principles": PRINCIPLES, "splits": SPLITS, "schema": _schema()}
    return found


def _schema() -> list[tuple[str, str]]:
    """Names and types of a pair's columns."""
    extra = [pa.field(name, pa.string()) for name in ("topic", "coarse_topic", "split")]
    return [(column.name, str(column.type)) for column in [*PREFERENCES, *extra]]
