"""The desk's web application."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from psyco_ray.desk import overview, pages, queue, routes_account, routes_lead, routes_review, routes_work, security
from psyco_ray.desk.store import Store

STATIC = Path(__file__).parent / "static"

SENTENCES = {
    400: "The request could not be read.",
    404: "There is no such page, or it is not yours.",
    405: "This page cannot be used in that way.",
}
"""What an error page says where the code that refuses says nothing."""


def create_app(store: Store, hosts: Sequence[str], secure: bool) -> FastAPI:
    """The application over a desk.

    Args:
        store: the desk.
        hosts: host names, without port, that the server answers to.
        secure: people reach the desk over TLS; its cookies go over TLS only.

    Example:
        >>> uvicorn.run(create_app(Store.open(Path("desk")), ["127.0.0.1", "localhost"], secure=False))
    """
    app = FastAPI(dependencies=[Depends(security.guard)], docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store = store
    app.state.secure = secure
    app.state.templates = pages.templates()
    app.state.figures = overview.Figures(store)
    for routes in (routes_account.router, routes_work.router, routes_review.router, routes_lead.router):
        app.include_router(routes)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_api_route("/healthz", _healthy)
    app.add_exception_handler(security.NotLoggedInError, _to_login)
    app.add_exception_handler(queue.NotYoursError, _not_yours)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(security.Shield, hosts=hosts, secure=secure)
    return app


def _healthy(request: Request) -> Response:
    request.app.state.store.read().execute("SELECT 1 FROM items LIMIT 1").fetchone()
    return PlainTextResponse("ok")


def _to_login(request: Request, error: Exception) -> Response:
    if pages.wants_json(request):
        return JSONResponse({"error": "Your session has ended. Log in again."}, 401)
    return RedirectResponse("/login", 303)


def _not_yours(request: Request, error: Exception) -> Response:
    return _error(request, SENTENCES[404], 404)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    is_sentence = error.detail.endswith(".")
    return _error(
        request, error.detail if is_sentence else SENTENCES.get(error.status_code, "This failed."), error.status_code
    )


def _unreadable(request: Request, error: Exception) -> Response:
    return _error(request, SENTENCES[400], 400)


def _failed(request: Request, error: Exception) -> Response:
    response = _error(request, "The desk has a fault. What you have saved is safe; the cause is in its log.", 500)
    security.set_headers(
        response.headers, request.url.path, request.app.state.secure
    )  # it is outside of all middleware
    return response


def _error(request: Request, sentence: str, status: int) -> Response:
    if pages.wants_json(request):
        return JSONResponse({"error": sentence}, status)
    return pages.render(request, "error.html", {"sentence": sentence}, status)
