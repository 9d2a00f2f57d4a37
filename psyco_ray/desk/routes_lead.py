"""Pages of the lead: progress, agreement, people, disagreements, export; and the page on privacy, for everybody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.desk import audit, export, judgements, overview, pages, people, queue, security
from psyco_ray.desk.judgements import InvalidAnswerError
from psyco_ray.desk.store import Item, Store
from psyco_ray.desk.turns import turns_of
from psyco_ray.run.hashing import key_of

router = APIRouter()

Form = Annotated[Mapping[str, str], Depends(security.form)]
Lead = Annotated[people.Person, Depends(security.require_role("lead"))]

EXPORTED = ("pairs.parquet", "judgements.csv", "drafts.jsonl", "record.json")
"""Files of an export that a lead can load down."""

AUDIT_LINES = 200
"""Lines of the audit log on its page, the newest first."""

_CHOICES = {"left": 1, "right": -1, "tie": 0}


@router.get("/lead")
def overview_page(request: Request, person: Lead) -> Response:
    """Progress, agreement, drift and sides."""
    store = _store(request)
    values = {
        "progress": overview.progress(store),
        "kinds": overview.KINDS,
        "figures": request.app.state.figures.current(),
        "aspects": ("overall", *PRINCIPLES),
        "open_disagreements": len(overview.disagreements(store)),
        "exported": [name for name in EXPORTED if (store.directory / export.DIRECTORY / name).is_file()],
    }
    return pages.render(request, "lead.html", values)


@router.get("/lead/agreement.json")
def agreement(request: Request, person: Lead) -> Response:
    """The figures as JSON."""
    return JSONResponse(request.app.state.figures.current())


@router.get("/lead/people")
def people_page(request: Request, person: Lead) -> Response:
    """Accounts, invitations and unfinished items."""
    return _people(request)


@router.post("/lead/invite")
def invite(request: Request, person: Lead, form: Form) -> Response:
    """Makes an invitation and shows its link once."""
    role = form.get("role", "")
    token = _allowed(lambda: people.invite(_store(request), role, person))
    return _people(request, link=f"{request.base_url}join/{token}", link_for=f"one {role}")


@router.post("/lead/people/{person_id}/renew")
def renew(request: Request, person: Lead, person_id: int) -> Response:
    """Makes a link for a new passphrase."""
    token = _allowed(lambda: people.renew(_store(request), person_id, person))
    return _people(request, link=f"{request.base_url}join/{token}", link_for="a new passphrase")


@router.post("/lead/people/{person_id}/close")
def close(request: Request, person: Lead, person_id: int) -> Response:
    """Closes an account."""
    _allowed(lambda: people.deactivate(_store(request), person_id, person))
    return RedirectResponse("/lead/people", 303)


@router.post("/lead/release")
def release(request: Request, person: Lead, form: Form) -> Response:
    """Gives an unfinished item to others."""
    person_id = form.get("person_id", "")
    if not person_id.isdecimal():
        raise HTTPException(400, "The form names no person.")
    try:
        queue.release(_store(request), form.get("item_id", ""), int(person_id), person)
    except queue.NotYoursError:
        raise HTTPException(409, "This person has finished the item, or does not have it any more.") from None
    return RedirectResponse("/lead/people", 303)


@router.get("/lead/audit")
def audit_page(request: Request, person: Lead) -> Response:
    """Who did what."""
    return pages.render(request, "lead_audit.html", {"lines": overview.audit_lines(_store(request), AUDIT_LINES)})


@router.get("/lead/disagreements")
def disagreements(request: Request, person: Lead) -> Response:
    """The pairs to adjudicate."""
    return pages.render(request, "lead_disagreements.html", {"found": overview.disagreements(_store(request))})


@router.get("/lead/disagreements/{item_id}")
def disagreement(request: Request, person: Lead, item_id: str) -> Response:
    """A pair to adjudicate; what the annotators chose is folded away."""
    found = _disagreement(_store(request), item_id)
    return _adjudication(request, found)


@router.post("/lead/adjudicate/{item_id}")
def adjudicate(request: Request, person: Lead, item_id: str, form: Form) -> Response:
    """Stores the lead's decision and goes to the next pair."""
    store = _store(request)
    found = _disagreement(store, item_id)
    try:
        answer: dict[str, Any] = {
            "overall": _CHOICES[form["overall"]],
            "comment": form.get("comment", ""),
        }
        if store.settings.principles:
            answer["principles"] = {name: _CHOICES[form[name]] for name in PRINCIPLES if form.get(name)}
        judgements.adjudicate(store, person, item_id, judgements.unswapped(answer, _sides(found.item)))
    except KeyError:
        return _adjudication(request, found, "Choose the better response overall.")
    except InvalidAnswerError as error:
        return _adjudication(request, found, str(error))
    left = overview.disagreements(store)
    return RedirectResponse(f"/lead/disagreements/{left[0].item.id}" if left else "/lead/disagreements", 303)


@router.post("/lead/export")
def write_export(request: Request, person: Lead) -> Response:
    """Writes the export anew."""
    store = _store(request)
    try:
        export.export(store)
    except InputError as error:
        raise HTTPException(409, str(error)) from None
    with store.transaction() as db:
        audit.record(db, person.id, "export")
    return RedirectResponse("/lead#export", 303)


@router.get("/lead/export/{name}")
def exported(request: Request, person: Lead, name: str) -> Response:
    """A file of the export."""
    path = _store(request).directory / export.DIRECTORY / name
    if name not in EXPORTED or not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, filename=name, content_disposition_type="attachment")


@router.get("/privacy")
def privacy(request: Request) -> Response:
    """What is stored, for how long, and what leaves."""
    return pages.render(request, "privacy.html", {})


def _people(request: Request, link: str = "", link_for: str = "") -> Response:
    store = _store(request)
    values = {
        "people": people.everyone(store),
        "roles": people.ROLES,
        "unfinished": overview.unfinished(store),
        "link": link,
        "link_for": link_for,
    }
    return pages.render(request, "lead_people.html", values)


def _adjudication(request: Request, found: overview.Disagreement, sentence: str = "") -> Response:
    sides = _sides(found.item)
    values = {
        "item": found.item,
        "turns": turns_of(found.item),
        "left": found.item.responses[sides],
        "right": found.item.responses[not sides],
        "votes": [(vote.person, judgements.unswapped(vote.answer, sides)) for vote in found.votes],
        "words": {1: "left", -1: "right", 0: "tie"},
        "sentence": sentence,
    }
    return pages.render(request, "lead_disagreement.html", values, 400 if sentence else 200)


def _store(request: Request) -> Store:
    store = request.app.state.store
    assert isinstance(store, Store)
    return store


def _allowed(action: Callable[[], Any]) -> Any:
    """What an action on accounts returns; its refusal is an error page."""
    try:
        return action()
    except people.RefusedError as error:
        raise HTTPException(409, str(error)) from None


def _disagreement(store: Store, item_id: str) -> overview.Disagreement:
    found = next((one for one in overview.disagreements(store) if one.item.id == item_id), None)
    if found is None:
        raise HTTPException(404, "About this pair nobody disagrees, or it is adjudicated already.")
    return found


def _sides(item: Item) -> bool:
    """Whether a lead sees the responses swapped: the first one is the source's better one, and they must not know."""
    return bool(int(key_of("adjudication", item.id), 16) % 2)
