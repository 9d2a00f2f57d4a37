"""The stage that makes speeches of the raw files, and makes them again when the files have changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.data import collect as collecting
from psyco_ray.data import sources, withdrawn
from psyco_ray.data.client_rows import by_count
from psyco_ray.data.dataset import Dataset
from psyco_ray.run.progress import Progress

_DEPENDENT = ("classify", "crisis", "topics", "respond", "rate", "pair")  # stages

_log = logging.getLogger(__name__)


def collect(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Clean the raw files and split their speeches; again if the files have changed.

    Stages that nothing was paid for are then made again. Paid ones lose what is about speeches that have left.

    Raises:
        InputError: the files have changed, paid stages depend on them, and changes are not accepted.
    """
    dataset.begin("collect", "sources", "collect", "scrub", crisis={"enabled": dataset.job.crisis.enabled})
    record, paid, digits = dataset.record("collect"), dataset.paid_stages(), None
    if record is not None:
        changed = _changed_sources(dataset, record)
        if not changed:
            _log.info(f"collect: done before, {record['kept']} speeches")
            return record
        told = f"{changed} has changed since collect read it"
        if paid:
            dataset.changes.found(f"{told}, and {', '.join(paid)} in {dataset.root} depend on it")
        else:
            _log.warning(f"{told}; the stages are made again")
    if paid and (parts := dataset.speeches()):
        digits = len(parts[0])
    collecting.check(dataset.job)
    began = time.time()
    dataset.connect()
    digests = {source.name: sources.digests(source) for source in dataset.job.sources}
    changes = list[dict[str, Any]]()
    before = partial(_settle, dataset, paid, changes) if digits is not None else None
    facts = collecting.collect(dataset.job, dataset.root / "collect", digits, before)
    if record is not None and not paid:  # of the files as they were
        dataset.discard(*_DEPENDENT)
    _log_collected(facts)
    earlier = (record or {}).get("changes", [])
    return dataset.finish("collect", began, **facts, digests=digests, changes=[*earlier, *changes])


def _settle(dataset: Dataset, paid: Sequence[str], changes: list[dict[str, Any]], now: Path) -> None:
    """Make what exists of the stages fit the new speeches, and record how many have left and joined."""
    dataset.discard(*(stage for stage in _DEPENDENT if stage not in paid))
    for name in (*(f"{stage}.json" for stage in paid), "report.html", "dataset-card.md"):  # counted and made again
        (dataset.root / name).unlink(missing_ok=True)
    settled = withdrawn.settle(dataset.root / "collect" / "speeches", now, [dataset.root / stage for stage in paid])
    _log.warning(
        f"collect: {settled['withdrawn']} speeches have left {', '.join(paid)}, {settled['added']} are new; "
        "`psyco-ray forget` also removes from journals and runs what clients have said"
    )
    changes += [{"at": time.time(), "change": change, **settled} for change in dataset.changes.accepted]


def _log_collected(facts: collecting.CollectCounts) -> None:
    dropped = collecting.described(facts)
    _log.info(f"collect: {facts['rows']} rows, dropped {dropped}; {facts['kept']} speeches kept {facts['splits']}")
    if (found := facts.get("conversations")) is not None:
        _log.info(
            f"collect: {found['conversations']:,} conversations with {found['contexts']:,} contexts, the longest of "
            f"{found['most turns']} turns of the client"
        )
    if unread := facts["not_screened"]:
        _log.warning(f"collect: not screened for signs of a crisis, by language: {by_count(unread)}")
    if facts["scrubbed"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts["scrubbed"].items() if kind != "speeches")
        _log.info(f"collect: replaced in {facts['scrubbed']['speeches']} speeches: {kinds or 'nothing'}")


def _changed_sources(dataset: Dataset, record: dict[str, Any]) -> str | None:
    """The first file that has changed since collect read it, in words."""
    for source in dataset.job.sources:
        if files := sources.changed(source, record.get("digests", {}).get(source.name, {})):
            return f"source {source.name}: {files[0]}"
    return None


def require_unchanged(dataset: Dataset) -> None:
    """Refuse to build on speeches of files that have changed."""
    if (record := dataset.record("collect")) is not None and (changed := _changed_sources(dataset, record)):
        raise InputError(f"{changed} has changed since collect read it; run `psyco-ray data collect` first")
