"""What a desk hands on, in DESK/export: pairs in the released columns, all judgements, and the approved drafts.

A draft is handed on only as the text that a reviewer has approved, and an edit that waits or was refused is in no file.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data import pair
from psyco_ray.desk import approvals, judgements
from psyco_ray.desk.store import Item, Store
from psyco_ray.evaluate.expert_csv import write_table
from psyco_ray.run import manifests, storage
from psyco_ray.run.directory import versions
from psyco_ray.run.directory import write_table as write_parquet
from psyco_ray.run.hashing import key_of
from psyco_ray.run.locks import locked
from psyco_ray.run.types import Row

DIRECTORY = "export"
LOCK = ".export.lock"
"""File that one writer of exports locks at a time."""

PAIRS = "pairs.parquet"

PAIRS_SCHEMA = pa.schema(
    [
        *pair.SCHEMA,
        ("annotators", pa.int32()),  # who judged the pair; of an edit who approved it
        ("agreement", pa.float64()),  # share of them for the chosen response
        ("confidence", pa.float64()),  # their mean, 1 to 5; null: none was given
        ("weight", pa.float64()),  # |for - against| / annotators; 1 for an adjudicated pair and for an approved edit
        ("origin", pa.string()),  # comparison or edit
    ]
)
"""The columns of exported pairs: those of built ones, and what people said. `prefID` is the item's id."""

_DIALOGUE = pair.SCHEMA_OF_DIALOGUES.field("dialogue")  # one more column where an item knows its dialogue

_SIDES = ("chosen", "rejected")
_SHOWN = {1: "first", -1: "second", 0: "tie"}
_COLUMNS = (
    *("item", "kind", "source", "split", "annotator", "overall", *(f"{p} preference" for p in PRINCIPLES)),
    *(f"{p} {side}" for p in PRINCIPLES for side in _SHOWN.values() if side != "tie"),
    *("confidence", "decision", "reasons", "comment", "label", "labelled by", "seconds", "saved at", "version"),
)


@dataclass(frozen=True)
class Decision:
    """What all people together say of a pair.

    Attributes:
        choice: 1 for the first response, -1 for the second, 0 for neither.
        annotators: who judged it.
        agreement: share of them with this choice.
        confidence: their mean confidence, 1 to 5; None: none was given.
        weight: |for - against| / annotators; 1 where a lead has adjudicated.
    """

    choice: int
    annotators: int
    agreement: float
    confidence: float | None
    weight: float


def export(store: Store) -> dict[str, Any]:
    """Write DESK/export anew, whole or not at all.

    Returns:
        The content of its ``record.json``; `counts` says how many pairs, edits, judgements and drafts it has, and what
        was left out.

    Raises:
        InputError: the files cannot be written.
    """
    with locked(store.directory / LOCK):
        return _export(store)


def _export(store: Store) -> dict[str, Any]:
    judged = judgements.latest(store)
    adjudicated = {
        row["item_id"]: json.loads(row["answer"])
        for row in store.read().execute("SELECT item_id, answer FROM adjudications")
    }
    approved = approvals.approved(store)
    items = {item.id: item for item in store.items()}  # last: people may judge new ones meanwhile
    counts: Counter[str] = Counter({f"{kind}_items": 0 for kind in ("pair", "scores", "draft")})
    counts.update(f"{item.kind}_items" for item in items.values())
    rows = [*_compared(items, judged, adjudicated, counts), *_edited(approved, counts)]
    names = _annotators(judged)
    counts.update(judgements=len(judged), annotators=len(names), adjudicated=len(adjudicated))  # `|=` drops zeros
    with storage.atomic_dir(store.directory / DIRECTORY) as out:
        if rows:
            known = any(row["dialogue"] is not None for row in rows)
            schema = PAIRS_SCHEMA.append(_DIALOGUE) if known else PAIRS_SCHEMA
            write_parquet(out / PAIRS, pa.Table.from_pylist(rows, schema=schema))
        sheet = [_sheet_row(items[one.item_id], names[one.person_id], one) for one in judged]
        sheet += [_sheet_row(items[key], "adjudication", None, answer) for key, answer in sorted(adjudicated.items())]
        write_table(out / "judgements.csv", _COLUMNS, sheet)
        storage.write_text(out / "drafts.jsonl", "".join(json.dumps(_draft(one)) + "\n" for one in approved))
        record = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "counts": dict(counts),
            "settings": store.settings.model_dump(mode="json"),
            "files": {path.name: manifests.digest_of_file(path) for path in sorted(out.iterdir())},
            "versions": versions(),
        }
        storage.write_text(out / "record.json", json.dumps(record, indent=1) + "\n")
    return record


def decide(answers: Sequence[Mapping[str, Any]], adjudication: Mapping[str, Any] | None = None) -> Decision:
    """The decision on a pair.

    Args:
        answers: of each person, with `overall` and perhaps `confidence`.
        adjudication: the lead's answer, which replaces the others' choice.
    """
    votes = [answer["overall"] for answer in answers]
    balance = sum(votes)
    choice = (balance > 0) - (balance < 0) if adjudication is None else adjudication["overall"]
    given = [answer["confidence"] for answer in answers if answer.get("confidence") is not None]
    count = len(votes)
    return Decision(
        choice=choice,
        annotators=count,
        agreement=votes.count(choice) / count if count else 1.0,
        confidence=fmean(given) if given else None,
        weight=float(choice != 0) if adjudication is not None else abs(balance) / count if count else 0.0,
    )


def pairs_of(directory: str | Path) -> Path:
    """The exported pairs of a desk.

    Raises:
        InputError: there are none.
    """
    path = storage.local_path(directory) / DIRECTORY / PAIRS
    if not path.exists():
        raise InputError(f"desk {directory} has no export yet; run psyco-ray desk export {directory}")
    return path


def _compared(
    items: Mapping[str, Item],
    judged: Sequence[judgements.Judgement],
    adjudicated: Mapping[str, Mapping[str, Any]],
    counts: Counter[str],
) -> list[Row]:
    by_item: dict[str, list[Mapping[str, Any]]] = {key: [] for key in adjudicated if items[key].kind == "pair"}
    for one in judged:
        if items[one.item_id].kind == "pair":
            by_item.setdefault(one.item_id, []).append(one.answer)
    rows = []
    for key in sorted(by_item):
        decision = decide(by_item[key], adjudicated.get(key))
        if decision.choice == 0:
            counts["undecided"] += 1
            continue
        counts["pairs"] += 1
        rows.append(_pair_row(items[key], decision))
    return rows


def _pair_row(item: Item, decision: Decision) -> Row:
    """A row of PAIRS_SCHEMA; a judge's ratings that contradict the people are left out."""
    facts, order = item.facts, (0, 1) if decision.choice > 0 else (1, 0)
    row: Row = _question_columns(item, item.id)
    for side, place in zip(_SIDES, order, strict=True):
        row |= {
            side: item.responses[place],
            f"{side}_model": (facts.get("models") or [None, None])[place],
            f"{side}_finished": (facts.get("finished") or [None, None])[place],
        }
    if ratings := facts.get("ratings"):
        better, worse = (ratings[place] for place in order)
        if sum(better.values()) >= sum(worse.values()):
            row |= {f"chosen_{name}_rating": value for name, value in better.items()}
            row |= {f"rejected_{name}_rating": value for name, value in worse.items()}
    return row | {
        "annotators": decision.annotators,
        "agreement": decision.agreement,
        "confidence": decision.confidence,
        "weight": decision.weight,
        "origin": "comparison",
    }


def _edited(approved: Sequence[approvals.Approved], counts: Counter[str]) -> list[Row]:
    """A pair of each approved edit with the draft that it corrects."""
    rows = []
    for one in approved:
        counts["drafts"] += 1
        draft = one.item.responses[0]
        if not one.edited or one.text.strip() == draft.strip():
            continue
        counts["edits"] += 1
        finished = (one.item.facts.get("finished") or [None])[0]
        model = (one.item.facts.get("models") or [None])[0]
        rows.append(
            _question_columns(one.item, f"{one.item.id}-{key_of(one.text)[:6]}")
            | {"chosen": one.text.strip(), "rejected": draft, "chosen_model": "human edit", "rejected_model": model}
            | {"chosen_finished": True, "rejected_finished": finished}
            | {"annotators": len(one.by), "agreement": 1.0, "weight": 1.0, "origin": "edit"}
        )
    return rows


def _question_columns(item: Item, pair_id: str) -> Row:
    facts = item.facts
    return {
        "ID": item.speech_id,
        "prefID": pair_id,
        "question": question(item),
        "topic": facts.get("topic"),
        "coarse_topic": facts.get("coarse_topic") or facts.get("topic"),
        "split": facts.get("split"),
        "dialogue": facts.get("dialogue"),
        "crisis": list(item.crisis) if facts.get("screened", True) else None,
    }


def question(item: Item) -> str:
    """What a pair asks, as `data.preferences` reads it: a speech, or messages as JSON."""
    form = item.facts.get("form")
    if form is None:
        return item.speech
    asked: str = item.facts["asked"]
    return asked if form == "messages" else json.dumps([{"role": "user", "content": asked}])


def _annotators(judged: Sequence[judgements.Judgement]) -> dict[int, str]:
    """Names without the people's own: annotator-1 and so on."""
    people = sorted({one.person_id for one in judged})
    return {person: f"annotator-{number}" for number, person in enumerate(people, start=1)}


def _sheet_row(
    item: Item, annotator: str, one: judgements.Judgement | None, answer: Mapping[str, Any] | None = None
) -> list[str]:
    answer = answer if one is None else one.answer
    assert answer is not None, "a row has a judgement or an adjudication"
    cells: dict[str, Any] = {
        "item": item.id,
        "kind": item.kind,
        "source": item.source,
        "split": item.facts.get("split"),
        "annotator": annotator,
        "overall": _SHOWN.get(answer.get("overall", 9)),
        **{f"{name} preference": _SHOWN.get(choice) for name, choice in (answer.get("principles") or {}).items()},
        "confidence": answer.get("confidence"),
        "decision": answer.get("decision"),
        "reasons": "; ".join(answer.get("reasons") or []),
        "comment": answer.get("comment"),
        "label": _SHOWN.get((item.facts.get("labels") or {}).get("overall", 9)),
        "labelled by": item.facts.get("labels_by"),
    }
    for side, scores in zip(("first", "second"), answer.get("scores") or [], strict=False):
        cells |= {f"{name} {side}": score for name, score in scores.items()}
    if one is not None:
        saved = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.saved_at))
        cells |= {"seconds": round(one.seconds, 1), "saved at": saved, "version": one.version}
    return ["" if cells.get(name) is None else str(cells[name]) for name in _COLUMNS]


def _draft(one: approvals.Approved) -> Row:
    facts = one.item.facts
    return {
        "item": one.item.id,
        "speech_id": one.item.speech_id,
        "speech": one.item.speech,
        "response": one.text,
        "edited": one.edited,
        "approvals": len(one.by),
        "crisis": list(one.item.crisis),
        **{name: facts.get(name) for name in ("run", "iteration", "split")},
    }
