"""The answers of a training run's policy, as `iterate`, `train-dpo` and `demo` leave them in a run directory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.data.splits import speech_id
from psyco_ray.desk.candidates import Candidate, flagged, known_facts
from psyco_ray.evaluate import run_files
from psyco_ray.files.records import SAMPLES
from psyco_ray.run import records
from psyco_ray.run.ledger import stage

_ITERATION = re.compile(r"iteration-(\d+)")
_AGAIN = "copy it from the run again"


def run_of(path: Path) -> tuple[Path, int | None] | None:
    """The run directory that a path names, and the iteration if it is one of that; None: it is none.

    Args:
        path: a run directory, ``iteration-002`` in it, or ``iteration-002/checkpoint``.
    """
    place = path.parent if path.name == "checkpoint" else path
    named = _ITERATION.fullmatch(place.name)
    root = place.parent if named else path
    if not ((root / "job.yaml").exists() and (root / "speeches.parquet").exists()):
        return None
    return root, int(named[1]) if named else None


def candidates(path: Path, split: str, pairs: bool) -> Iterator[Candidate]:
    """A policy's answers.

    Of held-out speeches (`dev`) it is the first answer of the policy that the run chose as its best, or of the named
    iteration, and for pairs the base model's answer with the same seed. Of speeches that the run trains on it is the
    preference pair that the reward model formed of the policy's answers, for drafts the better one.

    Args:
        path: as of `run_of`.
        split: dev or train.
        pairs: whether each candidate has two responses.

    Raises:
        InputError: the run is damaged, has no answers yet, or its policy is its base model.
    """
    found = run_of(path)
    assert found is not None, "the path names a run"
    root, named = found
    job = run_files.read_settings(root)
    iteration = run_files.best_of(root)["iteration"] if named is None else named
    columns = ["speech_id", "speech", "topic"]
    speeches = {
        row["speech_id"]: row for row in records.read_table(root / "speeches.parquet", _AGAIN, columns).to_pylist()
    }
    if pairs and iteration == 0:
        raise InputError(
            f"the policy of {path} is its base model, so there are no two models to compare; name another iteration, "
            f"such as {root / 'iteration-001'}"
        )
    answers = _held_out if split == "dev" else _trained_on
    shared = {"run": root.name, "split": split}
    signs = flagged(_speeches_file(job))
    contexts = _branches(root, job, iteration) if split == "train" else {}
    for key, responses, facts in answers(root, job, iteration, pairs):
        if key not in speeches or (contexts and key not in contexts):
            continue
        row = speeches[key]
        speech = contexts.get(key, row["speech"])
        yield Candidate(
            source=f"{root.name}, iteration {iteration}",
            speech=speech,
            responses=responses,
            facts=known_facts(**shared, topic=row["topic"], **facts),
            crisis=signs.get(speech_id(speech)),
        )


def _branches(root: Path, job: Mapping[str, Any], iteration: int) -> dict[str, str]:
    """The contexts that an iteration's pairs answer, by speech id, where these are not the speeches themselves."""
    if (job.get("simulate") or {}).get("branch_turn", 1) == 1:
        return {}
    path = root / f"{stage(max(iteration, 1), 'contexts')}.parquet"
    if not path.exists():
        raise InputError(
            f"{path} does not exist, so what the pairs of iteration {iteration} answer is not known; name an iteration "
            "that has trained, or take held-out answers with --split dev"
        )
    return {row["speech_id"]: row["speech"] for row in records.read_table(path, _AGAIN).to_pylist()}


_Answers = Iterator[tuple[str, tuple[str, ...], dict[str, Any]]]
"""Speech id, responses and facts."""


def _held_out(root: Path, job: Mapping[str, Any], iteration: int, pairs: bool) -> _Answers:
    ours = _answers(root, iteration)
    record = run_files.read_object(root / f"{stage(iteration, 'evaluate')}.json")
    theirs, base = (
        ({}, {}) if not pairs else (_answers(root, 0), run_files.read_object(root / f"{stage(0, 'evaluate')}.json"))
    )
    for key, own in sorted(ours.items()):
        rows = [own] if not pairs else [own, theirs[key]] if key in theirs else []
        texts = tuple(row["response"].strip() for row in rows)
        if not texts or not all(texts) or (pairs and texts[0] == texts[1]):
            continue  # nothing to compare or to read
        facts: dict[str, Any] = {
            "iteration": iteration,
            "models": [_model(job, iteration), _model(job, 0)][: len(texts)],
            "finished": [row["finished"] for row in rows],
        }
        yield key, texts, facts | (_labels(record, base, key) if pairs else {})


def _answers(root: Path, iteration: int) -> dict[str, dict[str, Any]]:
    """The first answer to each held-out speech."""
    directory = root / stage(iteration, "dev")
    files = sorted(directory.glob("*.samples.parquet"))
    if not files:
        raise InputError(f"{directory} has no answers; name an iteration that the run has evaluated")
    columns = ["speech_id", "index", "response", "finished"]
    rows = [row for file in files for row in records.read_table(file, _AGAIN, columns).to_pylist()]
    return {row["speech_id"]: row for row in rows if row["index"] == 0}


def _labels(record: Mapping[str, Any], base: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The better answer by the run's judge, else by the held-out reward model, else by the one that trains."""
    outcome = record.get("judge", {}).get("outcomes", {}).get(key) if record.get("judge") else None
    if outcome is not None:
        return {"labels": {"overall": (outcome > 0.5) - (outcome < 0.5)}, "labels_by": "the run's judge"}
    for model in ("heldout", "reward"):
        scores = [one.get(model, {}).get("scores", {}).get(key) for one in (record, base)]
        if all(scores):
            first, second = (values[0] for values in scores)
            return {"labels": {"overall": (first > second) - (first < second)}, "labels_by": f"the {model} model"}
    return {}


def _trained_on(root: Path, job: Mapping[str, Any], iteration: int, pairs: bool) -> _Answers:
    path = root / f"{stage(max(iteration, 1), 'pairs')}.parquet"
    if not path.exists():
        raise InputError(
            f"{path} does not exist, so iteration {iteration} has no pairs; name an iteration that has trained"
        )
    columns = ["speech_id", "chosen", "rejected", "chosen_finished", "rejected_finished", "policy_version"]
    for row in records.read_table(path, _AGAIN, columns).to_pylist():
        texts = tuple(row[side].strip() for side in ("chosen", "rejected"))[: 2 if pairs else 1]
        version = row["policy_version"] or 0
        facts: dict[str, Any] = {
            "iteration": version,
            "models": [_model(job, version)] * len(texts),
            "finished": [row["chosen_finished"], row["rejected_finished"]][: len(texts)],
        }
        if pairs:
            facts |= {"labels": {"overall": 1}, "labels_by": "the reward model"}
        yield row["speech_id"], texts, facts


def _model(job: Mapping[str, Any], iteration: int) -> str:
    return str(job["model"]) if iteration == 0 else f"{job['model']}, iteration {iteration}"


def _speeches_file(job: Mapping[str, Any]) -> str | None:
    name = (job.get("data") or {}).get("speeches")
    return name if isinstance(name, str) and name not in SAMPLES else None
