"""The answers of policies and their opponent, as `evaluate-policy` leaves them, with the judges' verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.desk.candidates import Candidate, flagged, known_facts
from psyco_ray.run import records

_CHOICES = {"ours": 1, "tie": 0, "theirs": -1}
_AGAIN = "run evaluate-policy again"


def candidates(root: Path) -> Iterator[Candidate]:
    """Each policy's answer beside the opponent's, of every comparison: a policy under a variant.

    Raises:
        InputError: a file is missing or damaged.
    """
    evaluation = records.read_json(root / "evaluation.json", _AGAIN)
    opponent, judges = evaluation["opponent"], evaluation["judges"]
    job = job_file.read_yaml(root / "job.yaml", "job file") or {}
    signs = flagged((job.get("speeches") or {}).get("file"))
    split = evaluation.get("split")
    theirs = _responses(root, opponent)
    for policy in evaluation["policies"]:
        for variant in policy["variants"]:
            place = f"{policy['name']}/{variant}"
            verdicts = {judge: _verdicts(root / "judged" / judge / f"{place}.parquet") for judge in judges}
            for key, ours in sorted(_responses(root, place).items()):
                texts = tuple(row["response"].strip() for row in (ours, theirs.get(key, {"response": ""})))
                if not all(texts) or texts[0] == texts[1]:
                    continue  # a judge need not see it either
                label = verdicts[judges[0]].get(key) if judges else None
                yield Candidate(
                    source=f"{root.name}, {policy['name']}, {variant}",
                    speech=ours["speech"],
                    responses=texts,
                    crisis=signs.get(key),
                    facts=known_facts(
                        policy=policy["name"],
                        variant=variant,
                        run=policy.get("run"),
                        iteration=policy.get("iteration"),
                        models=[policy["name"], opponent],
                        finished=[ours["finished"], theirs[key]["finished"]],
                        coarse_topic=ours["topic"],
                        dialogue=ours.get("dialogue"),
                        split=split if split in ("dev", "test") else "test",
                        labels=None if label is None else {"overall": label},
                        labels_by=None if label is None else judges[0],
                        verdicts={judge: choices[key] for judge, choices in verdicts.items() if key in choices} or None,
                    ),
                )


def _responses(root: Path, place: str) -> dict[str, dict[str, Any]]:
    path = root / "responses" / place / "responses.parquet"
    if not path.exists():
        raise InputError(f"{path} does not exist; {_AGAIN}, or copy the whole directory")
    return {row["speech_id"]: row for row in records.read_table(path, _AGAIN).to_pylist()}


def _verdicts(path: Path) -> dict[str, int]:
    """A judge's choices by speech id; unreadable ones are left out."""
    if not path.exists():
        return {}
    rows = records.read_table(path, _AGAIN, ["key", "better"]).to_pylist()
    return {row["key"]: _CHOICES[row["better"]] for row in rows if row["better"] in _CHOICES}
