"""The commands ``psyco-ray data …``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.cli import data_check
from psyco_ray.cli.arguments import Run, add_command, add_group, add_job
from psyco_ray.cli.evaluate import add_max_cost, with_max_cost
from psyco_ray.cli.session import REPEAT, run_session
from psyco_ray.config.data import DataJob
from psyco_ray.config.errors import InputError
from psyco_ray.run import storage
from psyco_ray.run.remote import is_remote

if TYPE_CHECKING:
    from psyco_ray.data.dataset import Dataset

_STAGES = {
    "collect": "clean the raw speeches, drop duplicates, split",
    "crisis": "let crisis.classifier and crisis.judge look for signs of a crisis in the speeches",
    "topics": "name each speech's topic",
    "respond": "let models of the pool answer",
    "rate": "let a judge rate the responses, principle by principle",
    "pair": "make preference pairs from the ratings",
    "report": "write report.html and the dataset card for the finished stages",
    "build": "all of the above",
}
_READ_SOURCES = ("collect", "build")


def add(subparsers: Any) -> None:
    """Adds the commands."""
    example = "psyco-ray data build jobs/data-laptop.yaml"
    stages = add_group(subparsers, "data", "build preference data from raw client speeches", "STAGE", example)
    for name, summary in _STAGES.items():
        example = f"psyco-ray data {name} jobs/data-laptop.yaml"
        command = add_command(stages, name, _stage(name), summary, example, job=DataJob)
        add_job(command, "collect.min_chars=80")
        add_max_cost(command)
        if name in _READ_SOURCES:
            command.add_argument(
                "--accept-changes",
                action="store_true",
                help="go on though sources have changed: what paid stages hold of rows that are gone is removed",
            )
    data_check.add(stages)
    command = add_command(
        stages,
        "export-annotation",
        export_annotation,
        "write a blind CSV of pairs for two experts",
        "psyco-ray data export-annotation jobs/data.yaml --count 200",
        job=DataJob,
    )
    add_job(command, "seed=1")
    command.add_argument("--count", type=int, default=200, help="pairs (default: 200)")
    command = add_command(
        stages,
        "agreement",
        agreement,
        "agreement of two experts' filled CSVs, with each other and with the labels",
        "psyco-ray data agreement runs/data/annotation",
    )
    command.add_argument("directory", type=Path, help="where export-annotation wrote")


def export_annotation(job: DataJob, options: argparse.Namespace) -> int:
    """Writes the experts' files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from psyco_ray.data import pair
    from psyco_ray.evaluate import annotation

    if is_remote(job.run_dir):
        raise InputError(f"run_dir {job.run_dir} is remote, which only training runs can have; take a local one")
    run = storage.local_path(job.run_dir)
    rows: list[dict[str, Any]] = []
    for split in pair.SPLITS:
        path = run / "pairs" / f"{split}.parquet"
        if not path.exists():
            raise InputError(f"run_dir {job.run_dir} has no pairs yet; run `psyco-ray data pair` first")
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"pairs file {path} cannot be read: {error}; make it again") from None
        if absent := sorted({"prefID", "question", "chosen", "rejected"} - set(table.column_names)):
            raise InputError(f"pairs file {path} has no column {absent[0]}; make it again")
        rows += table.to_pylist()
    out = run / "annotation"
    annotation.export(rows, out, options.count, job.seed)
    print(f"{out / 'expert-1.csv'} and expert-2.csv are for the experts; keep key.json to yourself")
    return 0


def agreement(_: None, options: argparse.Namespace) -> int:
    """Prints the agreement and writes it beside the files."""
    from psyco_ray.evaluate import annotation
    from psyco_ray.report import annotation as report

    agreement = annotation.score(options.directory)
    report.write_report(agreement, options.directory)
    print(report.markdown(agreement))
    print(f"report: {options.directory / 'report.html'}")
    return 0


def report(dataset: Dataset) -> None:
    """Writes the page and the dataset card for the finished stages."""
    from psyco_ray.report import dataset as reporting

    root = dataset.root
    records = {stage: dataset.record(stage) or {} for stage in ("crisis", "topics", "respond", "rate")}
    spend = {stage: _spent(record) for stage, record in records.items() if "paid" in record}
    spend |= {f"respond: {name}": _spent(record) for name, record in records["respond"].get("calls", {}).items()}
    outputs = reporting.StageOutputs(
        job=dataset.job,
        collected=dataset.record("collect") or {},
        spend=spend,
        failed=records["respond"].get("failed", {}),
        licences={source.name: source.licence for source in dataset.job.sources if source.licence},
        speeches=[root / "collect" / "speeches"],
        topics=[root / "topics"],
        responses=[root / "respond"],
        ratings=[root / "rate"],
        pairs=[root / "pairs"],
        set_aside=[root / stage / "set-aside" for stage in ("crisis", "topics", "respond", "rate")],
    )
    reporting.write_report(outputs, root)


def _stage(name: str) -> Run:
    """The command of a stage."""

    def run(job: DataJob, options: argparse.Namespace) -> int:
        from psyco_ray.data import build
        from psyco_ray.data.dataset import Dataset
        from psyco_ray.run.progress import Progress

        accept = name in _READ_SOURCES and options.accept_changes
        dataset, progress = Dataset(with_max_cost(job, options.max_cost), options.address, accept), Progress()
        with run_session(dataset, REPEAT):  # a stage connects to Ray itself, if it has work left
            if name in build.STAGES:
                build.STAGES[name](dataset, progress)
            if name in ("build", "report"):
                report(dataset)
                print(f"report: {dataset.root / 'report.html'}\ncard: {dataset.root / 'dataset-card.md'}")
        return 0

    return run


def _spent(record: dict[str, Any]) -> dict[str, Any]:
    kept = {key: record[key] for key in ("paid", "reused", "prompt_tokens", "completion_tokens")}
    return kept | {"dollars": record["cost"]}
