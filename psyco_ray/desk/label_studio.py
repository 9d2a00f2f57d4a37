"""Label Studio's tasks in its JSON format, with the labelling configuration that shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from psyco_ray.config.contexts import Context
from psyco_ray.config.desk import Desk
from psyco_ray.data.conversations import UnusablePairError
from psyco_ray.data.shapes import annotated
from psyco_ray.desk import questions
from psyco_ray.desk.entries import Entry, Vote, are_conversations, texts_of
from psyco_ray.desk.turns import SPEAKERS
from psyco_ray.run import storage

_SPEECH = '<Text name="speech" value="$speech"/>'
_SIDES = {"response-1": "left", "response-2": "right"}
_TYPES = {"choice": "choices", "rating": "rating", "text": "textarea"}


def write(out: Path, kind: str, entries: Sequence[Entry], settings: Desk) -> Path:
    """Write ``tasks.json`` to import and ``config.xml``, the labelling configuration of the project.

    Args:
        out: directory for the files.
        kind: of the items.
        entries: of this kind.
        settings: of the desk.
    """
    responses = max(len(entry.responses) for entry in entries)
    asked = questions.form_of(kind, settings, responses)
    chat = are_conversations(entries)
    tasks = [_task(number, kind, entry, asked, chat) for number, entry in enumerate(entries, start=1)]
    storage.write_text(out / "tasks.json", json.dumps(tasks, indent=1) + "\n")
    storage.write_text(out / "config.xml", _config(asked, responses, chat))
    return out


def file_of(path: Path) -> Path:
    """The file of the tasks: of a directory that `write` made the one in it."""
    return path / "tasks.json" if path.is_dir() else path


def entry(cells: Mapping[str, Any]) -> Entry:
    """The item and the answers of a task.

    Raises:
        UnusablePairError: it is no task, or its data is not a prompt and responses.
    """
    data = cells.get("data")
    if not isinstance(data, dict):
        raise UnusablePairError("no task of Label Studio with data")
    texts = {name: value for name, value in data.items() if name not in ("item", "kind", "split", "crisis")}
    names, speech, responses = texts_of(texts)
    kind, votes = data.get("kind") or "pair", []
    for number, annotation in enumerate(annotated.dicts(cells.get("annotations") or cells.get("completions"))):
        if annotation.get("was_cancelled"):
            continue
        answer = questions.answer_of(kind, list(_values(annotation)), names)
        if answer is not None:
            seconds = annotation.get("lead_time")
            votes.append(
                Vote(
                    _annotator(annotation, number), answer, float(seconds) if isinstance(seconds, int | float) else 0.0
                )
            )
    return Entry(
        item_id=data.get("item") if isinstance(data.get("item"), str) else None,
        kind=kind,
        speech=speech,
        responses=responses,
        votes=tuple(votes),
        split=data.get("split"),
    )


def _task(number: int, kind: str, one: Entry, asked: Sequence[questions.Question], chat: bool) -> dict[str, Any]:
    data = {
        "item": one.item_id,
        "kind": kind,
        "split": one.split,
        "crisis": ", ".join(one.crisis),
        "speech": _paragraphs(one.speech) if chat else one.speech,
    }
    by_name = {question.name: question for question in asked}
    annotations = [
        {
            "annotator": vote.annotator,  # Label Studio refuses users that it does not know
            "was_cancelled": False,
            "ground_truth": False,
            "lead_time": vote.seconds,
            "result": [
                _result(by_name[name], value)
                for name, value in questions.values_of(kind, vote.answer).items()
                if name in by_name
            ],
        }
        for vote in one.votes
    ]
    return {
        "id": number,
        "data": data | {f"response_{n}": text for n, text in enumerate(one.responses, start=1)},
        "annotations": annotations,
        "predictions": [],
    }


def _paragraphs(speech: str) -> list[dict[str, str]]:
    """The turns of a context, as Label Studio's tag Paragraphs takes them."""
    return [{"author": SPEAKERS[turn["role"]], "text": turn["content"]} for turn in Context.of(speech).messages]


def _result(question: questions.Question, value: Any) -> dict[str, Any]:
    kind = "pairwise" if _is_pairwise(question) else _TYPES[question.kind]
    held = {
        "pairwise": lambda: {"selected": _SIDES[value]},
        "choices": lambda: {"choices": [value]},
        "rating": lambda: {"rating": value},
        "textarea": lambda: {"text": [value]},
    }[kind]()
    return {"from_name": question.name, "to_name": _target(question), "type": kind, "value": held}


def _config(asked: Sequence[questions.Question], responses: int, chat: bool) -> str:
    shown = '<Paragraphs name="speech" value="$speech" layout="dialogue"/>' if chat else _SPEECH
    lines = ["<View>", f"  {shown}"]
    lines += [f'  <Text name="response_{n}" value="$response_{n}"/>' for n in range(1, responses + 1)]
    for question in asked:
        name, target = quoteattr(question.name), quoteattr(_target(question))
        required = ' required="true"' if question.required else ""
        lines.append(f"  <Header value={quoteattr(question.name.replace('-', ' '))}/>")
        if _is_pairwise(question):
            lines.append(f"  <Pairwise name={name} toName={target}/>")
        elif question.kind == "rating":
            lines.append(f'  <Rating name={name} toName={target} maxRating="5"{required}/>')
        elif question.kind == "text":
            lines.append(f'  <TextArea name={name} toName={target} rows="3"/>')
        else:
            lines.append(f'  <Choices name={name} toName={target} choice="single"{required}>')
            lines += [f"    <Choice value={quoteattr(option)}/>" for option in question.options]
            lines.append("  </Choices>")
    return "\n".join([*lines, "</View>", ""])


def _is_pairwise(question: questions.Question) -> bool:
    """Whether Label Studio's own comparison of two texts fits; it knows no ties."""
    return question.name == "overall" and "tie" not in question.options


def _target(question: questions.Question) -> str:
    if _is_pairwise(question):
        return "response_1,response_2"
    return "speech" if question.about is None else f"response_{question.about}"


def _annotator(annotation: Mapping[str, Any], number: int) -> str:
    """Who made an annotation: an id, never an address of mail."""
    by = annotation.get("annotator") or annotation.get("completed_by")
    found = by.get("id") if isinstance(by, dict) else by
    return str(found) if isinstance(found, str | int) and "@" not in str(found) else f"unknown-{number}"


def _values(annotation: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for result in annotated.dicts(annotation.get("result")):
        value = result.get("value")
        texts = value.get("text") if isinstance(value, dict) else None
        if isinstance(texts, str | list):
            yield str(result.get("from_name")), "\n".join([texts] if isinstance(texts, str) else map(str, texts))
            continue
        chosen = annotated.unwrapped(value)
        name = str(result.get("from_name"))
        yield name, chosen
        if result.get("type") == "rating" and "," not in str(result.get("to_name")):
            yield str(result.get("to_name")), chosen  # a rating of the response that it is about
