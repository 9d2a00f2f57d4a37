"""Pages of work: what is to be done, an item and its answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from psyco_ray.desk import answers, approvals, audit, forms, judgements, pages, people, queue, security, texts
from psyco_ray.desk.turns import turns_of

NAMES = {"pair": "Pair", "scores": "Scores", "draft": "Draft"}

router = APIRouter()

Someone = Annotated[people.Person, Depends(security.current_person)]


@dataclass(frozen=True)
class Submitted:
    """What a page or a script sends to be saved.

    Attributes:
        answer: of a script, in terms of what is shown; None: `fields` has it.
        fields: of a form.
        base_version: the version that the page showed.
        seconds: that the person spent on the item.
    """

    answer: Any
    fields: forms.Fields
    base_version: int
    seconds: float

    def answer_to(self, assigned: queue.Assigned) -> Any:
        """The answer in terms of what is shown."""
        if self.answer is not None:
            return self.answer
        return forms.answer_of(assigned.item.kind, self.fields, len(assigned.item.responses))


async def submitted(request: Request) -> Submitted:
    """A dependency: the body of a save.

    Raises:
        HTTPException: 400, it has not the shape of one.
    """
    fields = await security.form_lists(request)
    try:
        if fields:
            values: Any = {name: values[-1] for name, values in fields.items()}
            values |= {"answer": None}
        else:
            values = json.loads(await request.body(), parse_constant=_no_number)
            if values["answer"] is None:
                raise ValueError
        version, seconds = int(values["base_version"]), float(values["seconds"])
        if not 0 <= version < 2**31 or not math.isfinite(seconds):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise HTTPException(400) from None
    return Submitted(values["answer"], fields, version, min(max(seconds, 0.0), 86_400.0))


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


@router.get("/")
def home(request: Request, person: Someone) -> Response:
    """How far the person is and where to go on."""
    store = request.app.state.store
    return pages.render(
        request,
        "home.html",
        {
            "counts": queue.counts(store, person),
            "waiting": len(approvals.waiting(store, person)) if person.role != "annotator" else 0,
            "recent": _recent(request, person),
            "names": NAMES,
        },
    )


def _recent(request: Request, person: people.Person, limit: int = 8) -> list[Any]:
    """The items that the person answered last, with kind, number and whether the newest answer is complete."""
    return list(
        request.app.state.store.read().execute(
            """SELECT a.item_id, i.kind, j.complete, max(j.version),
                (SELECT count(*) FROM assignments b WHERE b.person_id = a.person_id AND b.position <= a.position) number
            FROM assignments a JOIN items i ON i.id = a.item_id
            JOIN judgements j ON j.item_id = a.item_id AND j.person_id = a.person_id
            WHERE a.person_id = ? AND a.released_at IS NULL
            GROUP BY a.item_id ORDER BY max(j.saved_at) DESC LIMIT ?""",
            (person.id, limit),
        )
    )


@router.get("/work")
def work(request: Request, person: Someone) -> Response:
    """The next item."""
    assigned = queue.next_item(request.app.state.store, person)
    return RedirectResponse(f"/items/{assigned.item.id}" if assigned else "/", 303)


@router.get("/principles")
def principles(request: Request, person: Someone) -> Response:
    """The texts of the principles."""
    return pages.render(request, "principles.html")


@router.post("/warning")
def acknowledge(
    request: Request, person: Someone, form: Annotated[Mapping[str, str], Depends(security.form)]
) -> Response:
    """Remember that the person has read the content warning, and go on to where it stood."""
    store = request.app.state.store
    item_id = form.get("item") or None
    address = "/review"
    if item_id:
        address = f"/items/{queue.assigned(store, person, item_id).item.id}"
    response = RedirectResponse(address, 303)
    security.keep_warned(request, response)
    with store.transaction() as db:
        audit.record(db, person.id, "read_warning", item_id)
    return response


@router.get("/items/{item_id}")
def item(request: Request, person: Someone, item_id: str, incomplete: bool = False) -> Response:
    """An item of the person."""
    assigned = queue.assigned(request.app.state.store, person, item_id)
    if assigned.item.crisis and not security.warned(request):
        return pages.render(request, "warning.html", {"item_id": item_id})
    answer = judgements.unswapped(assigned.answer, assigned.sides)
    return _item_page(request, person, assigned, answer, "An answer is still missing." if incomplete else "")


@router.post("/items/{item_id}/save")
def save(request: Request, person: Someone, item_id: str, given: Annotated[Submitted, Depends(submitted)]) -> Response:
    """Save an answer; a script gets the version and whether it is complete, a person the next page."""
    store = request.app.state.store
    assigned = queue.assigned(store, person, item_id)
    answer = given.answer_to(assigned)
    as_json = given.answer is not None or pages.wants_json(request)
    try:
        stored = judgements.unswapped(answer, assigned.sides)
        version = judgements.save(store, person, item_id, stored, given.base_version, given.seconds)
        complete = queue.assigned(store, person, item_id).complete
    except (judgements.InvalidAnswerError, judgements.ConflictError) as error:
        status = 409 if isinstance(error, judgements.ConflictError) else 422
        sentence = f"Not saved: {error}."
        if as_json:
            return JSONResponse({"error": sentence}, status)
        return _item_page(request, person, assigned, answer, sentence, status)
    if as_json:
        return JSONResponse({"version": version, "complete": complete})
    return RedirectResponse("/work" if complete else f"/items/{item_id}?incomplete=1", 303)


@router.post("/items/{item_id}/undo")
def undo(request: Request, person: Someone, item_id: str) -> Response:
    """Take the last change of an item back; where there is none, go to the item before."""
    store = request.app.state.store
    assigned = queue.assigned(store, person, item_id)
    if assigned.answer is not None:
        judgements.undo(store, person, item_id)
    else:
        item_id = next((row["item_id"] for row in _recent(request, person) if row["item_id"] != item_id), item_id)
    return RedirectResponse(f"/items/{item_id}", 303)


@router.post("/items/{item_id}/difference")
def difference(
    request: Request, person: Someone, item_id: str, form: Annotated[Mapping[str, str], Depends(security.form)]
) -> Response:
    """What an edit changes in its draft, for a script: pairs of kind and text."""
    assigned = queue.assigned(request.app.state.store, person, item_id)
    edit = form.get("edit", "")
    if assigned.item.kind != "draft" or len(edit) > answers.LONGEST_EDIT:
        raise HTTPException(400)
    pieces = texts.difference(assigned.item.responses[0], edit)
    return JSONResponse({"pieces": [(piece.kind, piece.text) for piece in pieces]})


def _item_page(
    request: Request, person: people.Person, assigned: queue.Assigned, answer: Any, sentence: str, status: int = 200
) -> Response:
    store = request.app.state.store
    item = assigned.item
    shown = queue.shown(item, assigned.sides)
    rows = texts.side_by_side(*shown) if len(shown) == 2 else []
    filled = forms.shown_answer(item.kind, answer, len(shown))
    values = {
        "item": {"id": item.id, "kind": item.kind, "responses": shown, "crisis": item.crisis},
        "turns": turns_of(item),
        "number": assigned.number,
        "version": assigned.version,
        "complete": assigned.complete,
        "counts": queue.counts(store, person),
        "seconds": _seconds(request, person, item.id),
        "sentence": sentence,
        "answer": filled,
        "rows": rows,
        "marks": any(piece.kind == "same" for row in rows for cell in row for each in cell for piece in each),
        "names": NAMES,
        "longest": answers.LONGEST_COMMENT,
        **_choices(item.kind, len(shown), store.settings.ties),
    }
    if item.kind == "draft":
        values["longest_edit"] = answers.LONGEST_EDIT
        values["pieces"] = texts.difference(shown[0], filled["edit"] or shown[0])
    return pages.render(request, f"{item.kind}.html", values, status)


def _seconds(request: Request, person: people.Person, item_id: str) -> float:
    """What the person has spent on an item so far."""
    asked = "SELECT seconds FROM judgements WHERE item_id = ? AND person_id = ? ORDER BY version DESC LIMIT 1"
    row = request.app.state.store.read().execute(asked, (item_id, person.id)).fetchone()
    return row["seconds"] if row else 0.0


def _choices(kind: str, responses: int, ties: bool) -> dict[str, Any]:
    """What can be chosen and by which keys."""
    sides = [_choice("left", "Left", "1", "ArrowLeft"), _choice("right", "Right", "2", "ArrowRight")]
    if ties:
        sides.append(_choice("tie", "Equal", "0"))
    decisions = [_choice("approve", "Approve", "1"), _choice("edit", "Edit", "2"), _choice("reject", "Reject", "3")]
    letters = "asdfghj"
    keys: dict[str, list[tuple[tuple[str, ...], str]]] = {
        "pair": [(("1", "2"), "left or right for the question with the mark, then on to the next; so do ← and →")],
        "scores": [(tuple("12345"), "the score for the question with the mark, then on to the next")],
        "draft": [(("1", "2", "3"), "approve, edit or reject")],
    }
    of_kind = keys[kind]
    if ties and kind == "pair":
        of_kind.append((("0",), "both are equally good"))
    if kind != "draft":
        of_kind.append(((letters[0], "…", letters[-1]), "go to a principle"))
    return {
        "sides": sides,
        "scale": [_choice(str(number), str(number), str(number)) for number in range(1, 6)],
        "decisions": decisions,
        "reasons": forms.REASONS,
        "letters": letters,
        "titles": ("Left response", "Right response") if responses == 2 else ("Response",),
        "help": [
            *of_kind,
            (("Enter",), "save and go on; inside a text Ctrl and Enter"),
            (("u",), "take the last change back; on a fresh item go to the one before"),
            (("c",), "write a comment; Esc leaves it"),
            (("p",), "principles"),
            (("b",), "pause"),
            (("?",), "these keys"),
        ],
    }


def _choice(value: str, title: str, *keys: str) -> dict[str, Any]:
    return {"value": value, "title": title, "by": keys}
