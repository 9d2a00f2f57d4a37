"""Argilla's records: the directory that its ``Dataset.from_disk`` reads, and what its exports hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.desk import Desk
from psyco_ray.data.conversations import UnusablePairError
from psyco_ray.data.shapes import annotated
from psyco_ray.desk import questions
from psyco_ray.desk.entries import Entry, Vote, are_conversations, texts_of
from psyco_ray.run import storage

RECORDS = "records.json"

_PROMPT = "prompt"


def write(out: Path, kind: str, entries: Sequence[Entry], settings: Desk) -> Path:
    """Write a dataset of Argilla 2 for one kind of item.

    Args:
        out: directory of the dataset.
        kind: of the items.
        entries: of this kind.
        settings: of the desk.
    """
    responses = max(len(entry.responses) for entry in entries)
    asked = questions.form_of(kind, settings, responses)
    chat = are_conversations(entries)
    dataset = {"name": f"desk-{kind}", "status": "ready", "allow_extra_metadata": True}
    storage.write_text(out / RECORDS, json.dumps([_record(kind, entry, chat) for entry in entries], indent=1) + "\n")
    storage.write_text(
        out / ".argilla" / "settings.json", json.dumps(_settings(asked, responses, chat), indent=1) + "\n"
    )
    storage.write_text(out / ".argilla" / "dataset.json", json.dumps(dataset, indent=1) + "\n")
    return out


def file_of(path: Path) -> Path:
    """The file of the records: of a directory of ``to_disk`` the one in it."""
    return path / RECORDS if path.is_dir() else path


def entry(cells: Mapping[str, Any]) -> Entry:
    """The item and the answers of a record.

    Raises:
        UnusablePairError: it is no record, or its fields are not a prompt and responses.
    """
    fields = cells.get("fields")
    if not isinstance(fields, dict):
        raise UnusablePairError("no record of Argilla with fields")
    names, speech, responses = texts_of(fields)
    metadata = cells["metadata"] if isinstance(cells.get("metadata"), dict) else {}
    kind = metadata.get("kind") or "pair"
    votes = []
    for annotator, values in _by_annotator(cells.get("responses")).items():
        if (answer := questions.answer_of(kind, values, names)) is not None:
            votes.append(Vote(annotator, answer))
    identity = metadata.get("item") or cells.get("id")
    return Entry(
        item_id=identity if isinstance(identity, str) else None,
        kind=kind,
        speech=speech,
        responses=responses,
        votes=tuple(votes),
        split=metadata.get("split"),
    )


def _record(kind: str, one: Entry, chat: bool) -> dict[str, Any]:
    prompt = Context.of(one.speech).messages if chat else one.speech
    answers: dict[str, list[dict[str, Any]]] = {}
    for vote in one.votes:
        for question, value in questions.values_of(kind, vote.answer).items():
            answers.setdefault(question, []).append({"value": value, "user_id": vote.annotator, "status": "submitted"})
    return {
        "id": one.item_id,
        "fields": {_PROMPT: prompt} | {f"response-{n}": text for n, text in enumerate(one.responses, start=1)},
        "metadata": {"item": one.item_id, "kind": kind, "split": one.split, "crisis": ", ".join(one.crisis)},
        "suggestions": {},
        "responses": answers,
        "vectors": {},
        "_server_id": None,
    }


def _settings(asked: Sequence[questions.Question], responses: int, chat: bool) -> dict[str, Any]:
    fields = [_PROMPT, *(f"response-{number}" for number in range(1, responses + 1))]
    return {
        "guidelines": None,
        "questions": [
            {
                "name": question.name,
                "title": question.name.capitalize(),
                "required": question.required,
                "settings": _kind_of(question),
            }
            for question in asked
        ],
        "fields": [
            {
                "name": name,
                "title": name.capitalize(),
                "required": True,
                "settings": {"type": "chat" if chat and name == _PROMPT else "text", "use_markdown": False},
            }
            for name in fields
        ],
        "vectors": [],
        "metadata": [
            {"name": name, "title": name, "settings": {"type": "terms"}} for name in ("item", "kind", "split", "crisis")
        ],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "mapping": None,
    }


def _kind_of(question: questions.Question) -> dict[str, Any]:
    if question.kind == "rating":
        return {"type": "rating", "options": [{"value": points} for points in range(1, 6)]}
    if question.kind == "text":
        return {"type": "text", "use_markdown": False}
    options = [{"value": option, "text": option, "description": None} for option in question.options]
    return {"type": "label_selection", "options": options}


def _by_annotator(responses: Any) -> dict[str, list[tuple[str, Any]]]:
    """Questions and submitted values of each annotator: of Argilla 2 by question, of Argilla 1 by annotator."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for annotator, question, value in _values(responses):
        found.setdefault(annotator, []).append((question, value))
    return found


def _values(responses: Any) -> Iterator[tuple[str, str, Any]]:
    if isinstance(responses, dict):
        for question, answers in responses.items():
            for answer in annotated.dicts(answers):
                if annotated.is_submitted(answer):
                    yield str(answer.get("user_id") or ""), question, answer.get("value")
    for one in annotated.dicts(responses):
        values = one.get("values")
        if annotated.is_submitted(one) and isinstance(values, dict):
            for question, value in values.items():
                if isinstance(value, dict):
                    yield str(one.get("user_id") or ""), question, value.get("value")
