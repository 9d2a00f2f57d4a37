"""Pages of review: proposed texts that a second person approves or refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from psyco_ray.desk import approvals, judgements, pages, people, security, texts
from psyco_ray.desk.forms import REASONS
from psyco_ray.desk.turns import turns_of

router = APIRouter()

Reviewer = Annotated[people.Person, Depends(security.require_role("reviewer", "lead"))]


@router.get("/review")
def review(request: Request, person: Reviewer) -> Response:
    """The first proposed text that waits for the person."""
    return _page(request, person, "", 200)


@router.post("/review/{item_id}")
def decide(
    request: Request, person: Reviewer, item_id: str, form: Annotated[Mapping[str, str], Depends(security.form)]
) -> Response:
    """Approve or refuse the text that the page has shown."""
    store = request.app.state.store
    shown = [each for each in approvals.waiting(store, person) if each.item.id == item_id]
    text = next((each.text for each in shown if approvals.digest(each.text) == form.get("text")), None)
    if text is None or form.get("decision") not in ("approve", "refuse"):
        return _page(request, person, "This text is no longer proposed. Here is what waits now.", 409)
    try:
        approvals.decide(store, person, item_id, text, form["decision"] == "approve", form.get("reason", "").strip())
    except judgements.ConflictError:
        return _page(request, person, "This text is no longer proposed. Here is what waits now.", 409)
    except (approvals.NotAllowedError, judgements.InvalidAnswerError) as error:
        return _page(request, person, f"Not saved: {error}.", 422)
    return RedirectResponse("/review", 303)


def _page(request: Request, person: people.Person, sentence: str, status: int) -> Response:
    waiting = approvals.waiting(request.app.state.store, person)
    first = waiting[0] if waiting else None
    if first and first.item.crisis and not security.warned(request):
        return pages.render(request, "warning.html", {"item_id": ""})
    values = {
        "waiting": len(waiting),
        "first": first,
        "item": first.item if first else None,
        "turns": turns_of(first.item) if first else [],
        "text": approvals.digest(first.text) if first else "",
        "pieces": texts.difference(first.item.responses[0], first.text) if first else [],
        "reasons": [REASONS.get(reason, reason) for reason in first.reasons] if first else [],
        "sentence": sentence,
    }
    return pages.render(request, "review.html", values, status)
