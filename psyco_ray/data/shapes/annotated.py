"""Pairs from the exports of annotation tools: Argilla and Label Studio.

The responses are the fields that share a name and differ in a number or letter at its end (`response-1`, `response-2`;
`answer_a`, `answer_b`; `left`, `right`). The prompt is the field of a usual name, or the only other one. All submitted
answers of the annotators count, of a question `overall` alone where there is one: their mean rank, else their choices,
else their mean rating decides, and the best response is paired with the worst one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from psyco_ray.data.conversations import UnusablePairError
from psyco_ray.data.shapes.pairs import SYSTEM, UNREAD, answered, filled, number, system_of
from psyco_ray.data.shapes.ranked import extremes
from psyco_ray.run.types import Row

Ballot = Mapping[str, float]
"""Scores of responses in one answer of one annotator, by field; higher is better."""

_ENDING = re.compile(
    r"(?P<stem>.*?)(?:[\s_-]*(?P<number>\d+)|[\s_-]+(?P<letter>[a-hA-H])|(?<=[a-z])(?P<capital>[A-H])"
    r"|(?:^|[\s_-]+)(?P<side>left|right))"
)
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "conversation", "chat", "context", "speech", "text")
_ANSWER_KEYS = {"value", "status"}  # of an answer in the columns of Argilla 1
_FLAT = ".responses"  # ends the columns of answers of Argilla 2
_PLACES = {"left": 0, "first": 0, "right": 1, "second": 1}
_OVERALL = ("overall", "overall preference")  # beside such a question others are about single aspects
_TIES = ("tie", "both", "equal", "neither", "none", "same")
_MINIMAL = ("annotation_id", "annotator", "lead_time")  # columns of Label Studio's flat exports


def is_argilla(cells: Row) -> bool:
    """Whether a row is a record of Argilla, nested or with a column for each field and question."""
    if isinstance(cells.get("fields"), dict) and "responses" in cells:
        return True
    return any(name.endswith(_FLAT) or _is_answers(value) for name, value in cells.items())


def argilla(cells: Row) -> list[Row]:
    """The pair of a record of Argilla 1 or 2."""
    if isinstance(cells.get("fields"), dict):
        return _pair(cells["fields"], list(_nested_answers(cells["responses"])))
    answers = list(_flat_answers(cells))
    fields = {name: value for name, value in cells.items() if not _is_answers(value) and "." not in name}
    return _pair(fields, answers)


def _nested_answers(responses: Any) -> Iterator[tuple[str, Any]]:
    """Question and answer: of a list of annotators (Argilla 1), or of a dict of questions (Argilla 2)."""
    if isinstance(responses, dict):
        for question, answers in responses.items():
            yield from ((question, answer.get("value")) for answer in dicts(answers) if is_submitted(answer))
    for annotator in dicts(responses):
        values = annotator.get("values")
        if is_submitted(annotator) and isinstance(values, dict):
            yield from ((name, value.get("value")) for name, value in values.items() if isinstance(value, dict))


def _flat_answers(cells: Row) -> Iterator[tuple[str, Any]]:
    for name, value in cells.items():
        if name.endswith(_FLAT) and isinstance(value, list):
            states = cells.get(f"{name}.status")
            states = states if isinstance(states, list) else [None] * len(value)
            yield from (
                (name.removesuffix(_FLAT), answer)
                for answer, status in zip(value, states, strict=False)
                if is_submitted({"status": status})
            )
        elif _is_answers(value):
            answers = dicts(_objects(value) if isinstance(value, dict) else value)
            yield from ((name, answer.get("value")) for answer in answers if is_submitted(answer))


def is_label_studio(cells: Row) -> bool:
    """Whether a row is a task of Label Studio, in its full or in a flat export."""
    tasks = isinstance(cells.get("data"), dict) and ("annotations" in cells or "completions" in cells)
    return tasks or all(name in cells for name in _MINIMAL)


def label_studio(cells: Row) -> list[Row]:
    """The pair of a task of Label Studio; annotations that were skipped do not count."""
    if not isinstance(cells.get("data"), dict):
        return _pair(cells, [(name, unwrapped(value)) for name, value in cells.items()], strict=False)
    answers = []
    for annotation in dicts(cells.get("annotations") or cells.get("completions")):
        if not annotation.get("was_cancelled"):
            for result in dicts(annotation.get("result")):
                question = result.get("to_name") if result.get("type") == "rating" else result.get("from_name")
                answers.append((str(question), unwrapped(result.get("value"))))
    return _pair(cells["data"], answers)


def unwrapped(value: Any) -> Any:
    """What an annotator chose: `{"selected": "left"}`, `{"choices": ["Response 1"]}`, `{"rating": 4}`, or itself."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if not isinstance(value, dict):
        return value
    value = next((value[key] for key in ("selected", "choices", "rating", "ranker") if key in value), None)
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _pair(fields: Mapping[str, Any], answers: Iterable[tuple[str, Any]], strict: bool = True) -> list[Row]:
    """The pair of a record.

    Args:
        fields: texts by name.
        answers: questions and what annotators answered.
        strict: whether `fields` holds texts alone, so that the only one beside the responses is the prompt.
    """
    names = responses_of(fields)
    if len(names) < 2:
        raise UnusablePairError("no two fields whose names differ in a number or letter at the end")
    prompt = prompt_of([name for name in fields if name not in names], strict)
    if field := filled(fields, UNREAD - {prompt}):
        raise UnusablePairError(f"a field {field} beside the prompt, which is not read")
    counted = ballots_of(answers, names)
    if not counted:
        raise UnusablePairError("no answer that compares the responses")
    chosen, rejected = extremes([(fields[name], _mean(name, counted)) for name in names])
    return [answered(fields[prompt], chosen, rejected, system_of(fields))]


def ballots_of(answers: Iterable[tuple[str, Any]], names: list[str]) -> list[Ballot]:
    """The scores of responses in the answers that count.

    Args:
        answers: questions and what annotators answered.
        names: fields of the responses.
    """
    cast = [(question, ballot) for question, value in answers if (ballot := _ballot(question, value, names))]
    overall = [ballot for question, ballot in cast if re.sub(r"[\W_]+", " ", question.casefold()).strip() in _OVERALL]
    ballots = overall or [ballot for _, ballot in cast]
    kind = min((kind for kind, _ in ballots), default=0)
    return [ballot for own, ballot in ballots if own == kind]


def responses_of(fields: Mapping[str, Any]) -> list[str]:
    """The fields that hold the responses, in the order of their endings; the largest group of one stem."""
    groups: dict[str, dict[Any, str]] = {}
    for name, value in fields.items():
        match = _ENDING.fullmatch(name)
        if match and isinstance(value, str | list | dict) and not _is_answers(value):
            ending = match["number"] or (match["letter"] or match["capital"] or match["side"]).casefold()
            groups.setdefault(match["stem"].rstrip(" _-").casefold(), {})[ending] = name
    largest = max(groups.values(), key=len, default={})
    return [largest[ending] for ending in sorted(largest, key=lambda ending: (len(ending), ending))]


def prompt_of(names: list[str], strict: bool = True) -> str:
    """The field of the prompt.

    Args:
        names: of the fields that hold no response.
        strict: whether these are texts alone, so that the only one is the prompt.

    Raises:
        UnusablePairError: no field is known to be it.
    """
    usual = [name for candidate in _PROMPTS for name in names if name.casefold() == candidate]
    if usual:
        return usual[0]
    others = [name for name in names if name not in SYSTEM]
    if strict and len(others) == 1:
        return others[0]
    raise UnusablePairError(f"no field for the prompt ({', '.join(_PROMPTS)})")


def _ballot(question: str, value: Any, names: list[str]) -> tuple[int, Ballot] | None:
    """The kind of an answer, 0 a ranking, 1 a choice, 2 a rating, and the scores that it gives."""
    if isinstance(value, dict) and {"value", "rank"} <= value.keys():
        value = _objects(value)
    if isinstance(value, list) and len(value) > 1:
        ranks = [
            (entry.get("value"), number(entry.get("rank"))) if isinstance(entry, dict) else (entry, place)
            for place, entry in enumerate(value)
        ]
        ballot = {name: -rank for text, rank in ranks if (name := _named(text, names)) and rank is not None}
        return (0, ballot) if len(ballot) > 1 else None
    if isinstance(value, str):
        chosen = _named(value, names)
        if chosen is None and len(names) == 2 and value.strip().casefold() in _PLACES:
            chosen = names[_PLACES[value.strip().casefold()]]
        if chosen is None and not value.strip().casefold().startswith(_TIES):
            return None
        return 1, {name: float(name == chosen) for name in names}
    rated = _named(question, names)
    if rated is not None and not isinstance(value, bool) and (rating := number(value)) is not None:
        return 2, {rated: rating}
    return None


def _named(text: Any, names: list[str]) -> str | None:
    """The response that a text names: by its field, which it may hold, or by the ending of one."""
    if not isinstance(text, str):
        return None
    plain, words = _plain(text), re.findall(r"[^\W_]+", text.casefold())
    endings = {name: _plain(name)[len(_plain(_stem(name))) :] for name in names}
    for found in (
        [name for name in names if _plain(name) == plain],
        [name for name in names if _plain(name) in plain],
        [
            name
            for name in names
            if endings[name] in ([plain, *words] if endings[name].isdigit() else [plain, *words[-1:]])
        ],
    ):
        if len(found) == 1:
            return found[0]
    return None


def _stem(name: str) -> str:
    match = _ENDING.fullmatch(name)
    assert match, "responses have an ending"
    return match["stem"]


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def _mean(name: str, ballots: list[Ballot]) -> float | None:
    scores = [ballot[name] for ballot in ballots if name in ballot]
    return sum(scores) / len(scores) if scores else None


def _is_answers(value: Any) -> bool:
    """Whether a value holds the answers to a question of Argilla 1."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and first.keys() >= _ANSWER_KEYS


def is_submitted(answer: Mapping[str, Any]) -> bool:
    """Whether an answer of Argilla counts: no draft, and not discarded."""
    return answer.get("status") in (None, "submitted")


def _objects(lists: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects of a list that `datasets` stores as a list of each key."""
    columns = [value if isinstance(value, list) else [] for value in lists.values()]
    return [dict(zip(lists, values, strict=True)) for values in zip(*columns, strict=False)]


def dicts(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; of another value none."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
