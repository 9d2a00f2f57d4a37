"""Pages of accounts: log in, log out, join by an invitation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from psyco_ray.desk import pages, people, security

Form = Annotated[Mapping[str, str], Depends(security.form)]

router = APIRouter()


@router.get("/login")
def login_page(request: Request) -> Response:
    """The form to log in."""
    return RedirectResponse("/", 303) if request.state.session else _page(request, "login.html")


@router.post("/login")
def log_in(request: Request, form: Form) -> Response:
    """Open a session for a name and passphrase."""
    name = form.get("name", "")
    try:
        person = people.log_in(request.app.state.store, name, form.get("passphrase", ""), security.address(request))
    except people.RefusedError as error:
        return _page(request, "login.html", 429 if error.limited else 401, sentence=pages.sentence(error), name=name)
    return _welcome(request, person)


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session."""
    response = RedirectResponse("/login", 303)
    security.end_session(request, response)
    return response


@router.get("/join/{token}")
def join_page(request: Request, token: str) -> Response:
    """The form of an invitation."""
    if people.invited(request.app.state.store, token) is None:
        sentence = "This invitation has been used or is too old. Ask the lead of the desk for a new one."
        return pages.render(request, "error.html", {"sentence": sentence}, 410)
    return _page(request, "join.html", token=token)


@router.post("/join/{token}")
def join(request: Request, token: str, form: Form) -> Response:
    """Use an invitation and open a session."""
    name, passphrase = form.get("name", ""), form.get("passphrase", "")
    if passphrase != form.get("again"):
        return _page(request, "join.html", 400, token=token, name=name, sentence="The two passphrases differ.")
    try:
        person = people.join(request.app.state.store, token, name, passphrase)
    except people.RefusedError as error:
        return _page(request, "join.html", 400, token=token, name=name, sentence=pages.sentence(error))
    return _welcome(request, person)


@router.get("/session")
def session(request: Request) -> Response:
    """Whose session it is and its CSRF token, for a page that was opened in an earlier session."""
    current = security.current_session(request)
    return JSONResponse({"person": current.person.id, "csrf": current.csrf})


def _page(request: Request, template: str, status: int = 200, **values: str) -> Response:
    security.give_form_token(request)
    response = pages.render(request, template, {"sentence": "", "name": "", **values}, status)
    security.keep_form_token(request, response)
    return response


def _welcome(request: Request, person: people.Person) -> Response:
    response = RedirectResponse("/", 303)
    security.start_session(request, response, people.open_session(request.app.state.store, person))
    return response
