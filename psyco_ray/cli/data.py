"""The commands ``psyco-ray data …``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.config.data import DataJob
from psyco_ray.config.errors import RESUMABLE, InputError
from psyco_ray.data.dataset import Dataset
from psyco_ray.report import dataset as reporting
from psyco_ray.run import storage
from psyco_ray.run.remote import is_remote, refuse_key

_STAGES = {
    "collect": "clean the raw speeches, drop duplicates, split",
    "topics": "name each speech's topic",
    "respond": "let models of the pool answer",
    "rate": "let a judge rate the responses, principle by principle",
    "pair": "make preference pairs of the ratings",
    "report": "write report.html and the dataset card of what is there",
    "build": "all of the above",
}


def add(commands: Any) -> None:
    """Add ``data`` to the commands of ``psyco-ray``."""
    text = "build preference data from raw client speeches"
    data = commands.add_parser("data", help=text, description=text).add_subparsers(required=True, metavar="STAGE")
    for name, what in _STAGES.items():
        command = data.add_parser(name, help=what, description=what, allow_abbrev=False)
        _job_arguments(command)
        command.add_argument("--max-cost", type=float, help="dollars that the calls may cost; the job's max_cost")
        command.set_defaults(run=_with_ray(name), kind=DataJob)
    what = "write a blind CSV of pairs for two experts"
    command = data.add_parser("export-annotation", help=what, description=what, allow_abbrev=False)
    _job_arguments(command)
    command.add_argument("--count", type=int, default=200, help="pairs (default: 200)")
    command.set_defaults(run=export_annotation, kind=DataJob)
    what = "agreement of two experts' filled CSVs, with each other and with the labels"
    command = data.add_parser("agreement", help=what, description=what)
    command.add_argument("directory", type=Path, help="where export-annotation wrote")
    command.set_defaults(run=agreement, kind=None)


def export_annotation(job: DataJob, given: argparse.Namespace) -> int:
    """Write the experts' files."""
    import pyarrow.parquet as pq

    from psyco_ray.data import pair
    from psyco_ray.evaluate import annotation

    refuse_key(job.run_dir)
    if is_remote(job.run_dir):
        raise InputError(f"run_dir {job.run_dir} is remote, which only training runs can have; take a local one")
    run = storage.local_path(job.run_dir)
    root = run / "pairs"
    rows: list[dict[str, Any]] = []
    for split in pair.SPLITS:
        if not (root / f"{split}.parquet").exists():
            raise InputError(f"run_dir {job.run_dir} has no pairs yet; run `psyco-ray data pair` first")
        rows += pq.read_table(root / f"{split}.parquet").to_pylist()
    out = run / "annotation"
    annotation.export(rows, out, given.count, job.seed)
    print(f"{out / 'expert-1.csv'} and expert-2.csv are for the experts; keep key.json to yourself")
    return 0


def agreement(_: None, given: argparse.Namespace) -> int:
    """Print the agreement and write it beside the files."""
    from psyco_ray.evaluate import annotation

    found = annotation.agreement(given.directory)
    print(json.dumps(found, indent=1))
    (given.directory / "agreement.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _job_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("job", metavar="JOB.yaml", help="the job file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="such as collect.min_chars=80")
    command.add_argument("--address", help="a Ray cluster (default: $RAY_ADDRESS, else a local one)")


def _with_ray(name: str) -> Callable[[DataJob, argparse.Namespace], int]:
    """The command of a stage."""

    def run(job: DataJob, given: argparse.Namespace) -> int:
        if given.max_cost is not None:
            settings = {**job.model_dump(mode="json"), "max_cost": given.max_cost}
            job = job_file.parse(DataJob, settings, "--max-cost")
        return _run(name, job, given.address)

    return run


def _run(name: str, job: DataJob, address: str | None) -> int:
    import ray

    from psyco_ray.data import build
    from psyco_ray.data.dataset import Dataset
    from psyco_ray.judge.client import UnavailableError
    from psyco_ray.judge.rate_limit import BudgetExceededError
    from psyco_ray.run.progress import Progress

    dataset, progress = Dataset(job, address), Progress()
    try:
        for stage in build.STAGES if name == "build" else [name]:
            if stage in build.STAGES:
                build.STAGES[stage](dataset, progress)
        if name in ("build", "report"):
            report(dataset)
            print(f"report: {dataset.root / 'report.html'}\ncard: {dataset.root / 'dataset-card.md'}")
    except (BudgetExceededError, UnavailableError) as stop:
        print(f"psyco-ray: {stop}. What was answered is kept, and the same command goes on from there", file=sys.stderr)
        return RESUMABLE
    finally:
        ray.shutdown()
        dataset.close()
    return 0


def report(dataset: Dataset) -> None:
    """Write the page and the card of what there is so far."""
    root = dataset.root
    records = {stage: dataset.record(stage) or {} for stage in ("topics", "respond", "rate")}
    spend = {stage: _spent(record) for stage, record in records.items() if "paid" in record}
    spend |= {f"respond: {name}": _spent(record) for name, record in records["respond"].get("calls", {}).items()}
    made = reporting.Made(
        job=dataset.job,
        collected=dataset.record("collect") or {},
        spend=spend,
        licences={source.name: source.licence for source in dataset.job.sources if source.licence},
        speeches=[root / "collect" / "speeches"],
        topics=[root / "topics"],
        responses=[root / "respond"],
        ratings=[root / "rate"],
        pairs=[root / "pairs"],
        set_aside=[root / stage / "set-aside" for stage in ("topics", "respond", "rate")],
    )
    reporting.write(made, root)


def _spent(record: dict[str, Any]) -> dict[str, Any]:
    kept = {key: record[key] for key in ("paid", "reused", "prompt_tokens", "completion_tokens")}
    return kept | {"dollars": record["cost"]}
