"""What a data job produced: a page to read and a card that travels with the dataset.

Tables are read and counted in batches, so that memory does not grow with the dataset.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from psyco_ray.config import job_file
from psyco_ray.config.contexts import Context
from psyco_ray.config.data import DataJob
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data import crisis_classifier, crisis_flags
from psyco_ray.data.pair import SCHEMA
from psyco_ray.data.splits import text_hash
from psyco_ray.report.render import render
from psyco_ray.run import records, shards, storage
from psyco_ray.run.schemas import PREFERENCES
from psyco_ray.screening import measured
from psyco_ray.screening.crisis import KINDS

PAPER = {
    "speeches": {"train": 23_192, "test": 3_291},
    "pairs": {"train": 34_329, "test": 2_324},
    "rejected_safer": 0.0193,
}
"""Sizes of the paper's dataset; its train split includes the dev speeches (paper §3.3)."""

SAMPLES_SHOWN = 3
SPLITS = ("train", "dev", "test")

_TOPICS_FILE = Path(__file__).parents[1] / "data" / "topics.yaml"
_PAIR_COLUMNS = [name for name in PREFERENCES.names if not name.endswith("_rating")]
_SAFETY_COLUMNS = ["chosen_safety_rating", "rejected_safety_rating"]
_CRISIS_COLUMNS = ["crisis", "crisis_flags", "screened_by", "language"]
_FINISHED_COLUMNS = ["chosen_finished", "rejected_finished"]


@dataclass(frozen=True)
class StageOutputs:
    """Outputs of the stages of a data job; those of a stage that has not run are empty.

    Tables are directories of Parquet parts; a stage that writes several has several directories.

    Attributes:
        job: the data job.
        collected: facts that `collect` returned.
        spend: by stage `paid` and `reused` calls, `prompt_tokens`, `completion_tokens` and `dollars` (None: unknown).
        failed: reasons why members of the pool could not answer, by name.
        licences: licences of sources by name.
        speeches: of schema COLLECTED.
        topics: of schema TOPICS.
        responses: of schema RESPONSES.
        ratings: of schema RATINGS.
        pairs: of the schema of built pairs.
        set_aside: of schema SET_ASIDE.
    """

    job: DataJob
    collected: Mapping[str, Any] = field(default_factory=dict)
    spend: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)
    speeches: Sequence[Path] = ()
    topics: Sequence[Path] = ()
    responses: Sequence[Path] = ()
    ratings: Sequence[Path] = ()
    pairs: Sequence[Path] = ()
    set_aside: Sequence[Path] = ()


def write_report(outputs: StageOutputs, out: Path) -> dict[str, Any]:
    """Write ``report.html`` and ``dataset-card.md``.

    Args:
        outputs: what the stages produced.
        out: directory for both files.

    Returns:
        The figures in them; None for a section whose stage has not run.
    """
    figures = measure(outputs)
    constants: dict[str, Any] = {"principles": PRINCIPLES, "splits": SPLITS, "columns": _pair_columns()}
    constants["screen"] = _screen() if outputs.job.crisis.enabled else None
    for template, name in (("dataset.html", "report.html"), ("dataset_card.md.j2", "dataset-card.md")):
        text = render(template, figures, job=outputs.job, licences=outputs.licences, **constants)
        storage.write_text(out / name, text)
    return figures


def measure(outputs: StageOutputs) -> dict[str, Any]:
    """All figures of the report by section; None for a section whose stage has not run."""
    ratings = _ratings(outputs.ratings)
    return {
        "paper": PAPER,
        "name": Path(outputs.job.run_dir).name,
        "collected": outputs.collected or None,
        "speeches": _speeches(outputs.speeches),
        "crisis": _crisis(outputs.speeches, outputs.job),
        "topics": _topics(outputs.topics),
        "models": _models(outputs.responses, ratings),
        "failed": dict(outputs.failed) or None,
        "ratings": ratings,
        "pairs": _pairs(outputs.pairs, outputs.job.seed),
        "set_aside": _set_aside(outputs.set_aside),
        "spend": outputs.spend or None,
    }


class Lengths:
    """Lengths of texts as counts by length: exact quantiles without keeping the texts."""

    def __init__(self) -> None:
        self._words: Counter[int] = Counter()
        self._characters: Counter[int] = Counter()

    def add(self, text: str) -> None:
        """Count a text."""
        self._words[len(text.split())] += 1
        self._characters[len(text)] += 1

    def summary(self) -> dict[str, dict[str, float]]:
        """For `words` and `characters` the `mean`, the `median`, and the 5 % (`low`) and 95 % (`high`) quantiles."""
        return {"words": _spread(self._words), "characters": _spread(self._characters)}


def _spread(counts: Counter[int]) -> dict[str, float]:
    total = sum(counts.values())
    spread: dict[str, float] = {"mean": sum(length * count for length, count in counts.items()) / total}
    for name, share in (("low", 0.05), ("median", 0.5), ("high", 0.95)):
        remaining = share * total
        for length in sorted(counts):
            remaining -= counts[length]
            if remaining <= 0:
                spread[name] = length
                break
    return spread


def _crisis(directories: Sequence[Path], job: DataJob) -> dict[str, Any] | None:
    """Counts of `crisis_flags.count`, the `names` of the stages in them, and how the card names these `readers`."""
    counted = crisis_flags.count(_rows(directories, _CRISIS_COLUMNS))
    if counted is None:
        return None
    stages = [_reader(by, job) for by in counted["stages"]]
    return counted | {"names": [name for name, _ in stages], "readers": [reader for _, reader in stages]}


def _reader(by: str, job: DataJob) -> tuple[str, str]:
    """The name of a stage that looks for signs of a crisis, and what the card says of it."""
    classifier, judge = job.crisis.classifier, job.crisis.judge
    if by == crisis_flags.LEXICON:
        return "lexicons", f"lexicons of phrases in {', '.join(measured.NAMES.values())}"
    if by == crisis_flags.CLASSIFIER and classifier is not None:
        name = crisis_classifier.name_of(classifier)
        at = f" at {classifier.revision}" if classifier.revision else ""
        labels = ", ".join(f"{label} for {kind}" for label, kind in classifier.labels.items())
        return name, f"the classifier {name}{at} on this cluster, by the labels {labels} from {classifier.threshold:g}"
    if by == crisis_flags.JUDGE and judge is not None:
        return judge.model, f"the judge {judge.model}"
    return by, f"a {by} that the job no longer names"


def _screen() -> dict[str, Any]:
    """What the lexicons flag of the packaged phrases."""
    figures = measured.measure()
    count = sum(cell[1] for kinds in figures["languages"].values() for cell in kinds.values())
    return {**figures, "kinds": [*KINDS, measured.BENIGN], "count": count}


def _speeches(directories: Sequence[Path]) -> dict[str, Any] | None:
    """Counts and lengths of the contexts: by number of the client's turns, if any is a conversation, else None."""
    lengths, turns = Lengths(), Counter[int]()
    for row in _rows(directories, ["speech"]):
        context = Context.of(row["speech"])
        lengths.add(context.transcript)
        turns[context.turn] += 1
    if not turns:
        return None
    by_turn = dict(sorted(turns.items())) if max(turns) > 1 else None
    return {"count": turns.total(), "turns": by_turn, "lengths": lengths.summary()}


def _topics(directories: Sequence[Path]) -> dict[str, Any] | None:
    """Speeches by topic in the order of the paper's table 5, then topics that the table lacks."""
    counts: Counter[tuple[str | None, str | None]] = Counter()
    for row in _rows(directories, ["topic", "coarse_topic"]):
        counts[row["coarse_topic"], row["topic"]] += 1
    if not counts:
        return None
    without = sum(counts.pop(key) for key in list(counts) if key[1] is None)
    groups = {
        coarse: [
            {"topic": topic, "count": counts.pop((coarse, topic), 0), "paper": entry["paper_count"]}
            for topic, entry in topics.items()
        ]
        for coarse, topics in job_file.read_yaml(_TOPICS_FILE, "topics file").items()
    }
    for (coarse, topic), count in sorted(counts.items(), key=str):
        groups.setdefault(coarse or "Without a coarse topic", []).append(
            {"topic": topic, "count": count, "paper": None}
        )
    rows = [row for group in groups.values() for row in group]
    return {
        "groups": groups,
        "total": sum(row["count"] for row in rows),
        "paper_total": sum(row["paper"] or 0 for row in rows),
        "used": sum(row["count"] > 0 for row in rows),
        "without": without,
    }


def _ratings(directories: Sequence[Path]) -> dict[str, Any] | None:
    """Counts of the ratings 1 to 5 by principle, and mean ratings by model and principle."""
    counts: Counter[tuple[str, str, int]] = Counter()
    judges: set[str] = set()
    for row in _rows(directories, ["model", "principle", "rating", "judge"]):
        counts[row["model"], row["principle"], row["rating"]] += 1
        judges.add(row["judge"])
    if not counts:
        return None
    by_principle: dict[str, list[int]] = {}
    points: Counter[tuple[str, str]] = Counter()
    numbers: Counter[tuple[str, str]] = Counter()
    for (model, principle, rating), count in counts.items():
        by_principle.setdefault(principle, [0] * 5)[rating - 1] += count
        points[model, principle] += rating * count
        numbers[model, principle] += count
    means: dict[str, dict[str, float]] = {}
    for (model, principle), number in numbers.items():
        means.setdefault(model, {})[principle] = points[model, principle] / number
    return {
        "count": counts.total(),
        "judges": sorted(judges),
        "by_principle": {name: by_principle[name] for name in PRINCIPLES if name in by_principle},
        "means": means,
    }


def _models(directories: Sequence[Path], ratings: dict[str, Any] | None) -> list[dict[str, Any]] | None:
    """Responses of each model, how many were cut off, the share that was not, mean ratings; the best rated first."""
    answers: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    for row in _rows(directories, ["model", "finished"]):
        answers[row["model"]] += 1
        cut[row["model"]] += not row["finished"]
    by_model = ratings["means"] if ratings else {}
    models = []
    for model in sorted({*answers, *by_model}):
        means = by_model.get(model, {})
        overall = sum(means.values()) / len(means) if means else None
        share = 1 - cut[model] / answers[model] if answers[model] else None
        row = {"model": model, "answers": answers[model], "cut": cut[model], "finished": share}
        models.append(row | {"means": means, "overall": overall})
    return sorted(models, key=lambda row: -(row["overall"] or 0)) or None


def _pairs(directories: Sequence[Path], seed: int) -> dict[str, Any] | None:
    splits: Counter[str] = Counter()
    models = {"chosen": Counter[str](), "rejected": Counter[str]()}
    lengths = {"chosen": Lengths(), "rejected": Lengths()}
    longer = safer = 0
    unfinished, turns = Counter[str](), Counter[int]()
    samples: list[dict[str, Any]] = []
    for row in _rows(directories, [*_PAIR_COLUMNS, *_SAFETY_COLUMNS, *_FINISHED_COLUMNS, "topic", "split"]):
        splits[row["split"]] += 1
        longer += len(row["chosen"]) > len(row["rejected"])
        safer += row["rejected_safety_rating"] > row["chosen_safety_rating"]
        for side in ("chosen", "rejected"):
            models[side][row[f"{side}_model"]] += 1
            lengths[side].add(row[side])
            unfinished[side] += row.get(f"{side}_finished") is False  # not in older files
        row["draw"] = text_hash(f"sample {seed}", row["prefID"])
        context = Context.of(row["question"])
        turns[context.turn] += 1
        row["question"] = context.transcript
        samples = heapq.nsmallest(SAMPLES_SHOWN, [*samples, row], key=lambda pair: pair["draw"])
    count = splits.total()
    if not count:
        return None
    return {
        "count": count,
        "splits": {**{name: splits[name] for name in SPLITS if name in splits}, **splits},
        "turns": dict(sorted(turns.items())) if max(turns) > 1 else None,
        "models": {side: _shares(counter) for side, counter in models.items()},
        "lengths": {side: measured.summary() for side, measured in lengths.items()},
        "chosen_longer": longer / count,
        "rejected_safer": safer / count,
        "unfinished": {side: unfinished[side] for side in models},
        "samples": samples,
    }


def _shares(counts: Counter[str]) -> list[dict[str, Any]]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"model": model, "count": count, "share": count / counts.total()} for model, count in ordered]


def _set_aside(directories: Sequence[Path]) -> list[dict[str, Any]] | None:
    """Calls without a usable answer, by reason; None if no stage has made calls yet."""
    if not any(shards.list_shards(directory) for directory in directories):
        return None
    counts = Counter((row["reason"], row["what"]) for row in _rows(directories, ["what", "reason"]))
    return [{"reason": reason, "what": what, "count": count} for (reason, what), count in sorted(counts.items())]


def _rows(directories: Sequence[Path], columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of all parts; one batch at a time is in memory."""
    for directory in directories:
        for part in shards.list_shards(directory):
            path = directory / f"{part}.parquet"
            with records.ParquetReading(path, shards.AGAIN), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=4096, columns=columns):
                    yield from batch.to_pylist()


def _pair_columns() -> list[tuple[str, str]]:
    """Names and types of a pair's columns."""
    return [(column.name, str(column.type)) for column in SCHEMA]
