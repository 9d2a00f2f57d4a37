"""What every request to the desk passes: host, size and time limits, session, origin, CSRF token and roles."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import parse_qsl, urlsplit

from fastapi import HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from psyco_ray.desk import people

BODY_BYTES = 256 * 1024
"""Largest body of a request."""

BODY_SECONDS = 10.0
"""A body must have arrived after this time."""

FORM_FIELDS = 200
"""Most fields of a form."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Everything comes from the desk itself, nothing is inline, and no other page may frame it."""

HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # no-referrer would make browsers send `Origin: null` with the desk's own forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "x-robots-tag": "noindex, nofollow",
}
"""On every answer."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OPEN_PATHS = ("/login", "/join/")
"""Forms that people without a session send; their CSRF token is a cookie of its own."""
PROBE = "/healthz"
"""Asked by address, so that no host is looked at, and without a session."""


class NotLoggedInError(Exception):
    """The request has no valid session; a page redirects to the login."""


class Shield:
    """ASGI middleware: checks the host, reads the body within its limits and sets the headers of every answer."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], secure: bool) -> None:
        """Wrap an application.

        Args:
            app: the application.
            hosts: host names, without port, that the server answers to (against DNS rebinding).
            secure: the desk is reached over TLS.
        """
        self.app = app
        self.hosts = frozenset(host.lower().strip("[]") for host in hosts)
        self.secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = self._with_headers(scope, send)
        if scope["path"] != PROBE and not self._serves(Headers(scope=scope)):
            await PlainTextResponse("This desk does not answer to that host name.", 421)(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await read_body(Headers(scope=scope), receive)
        except BodyTooLargeError:
            await refuse("The request is too large.", 413)(scope, receive, send)
        except TimeoutError:
            await refuse("The request took too long to arrive.", 408)(scope, receive, send)
        else:
            if body is not None:
                await self.app(scope, replay(body, receive), send)

    def _serves(self, headers: Headers) -> bool:
        return hostname(headers.get("host", "")) in self.hosts

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                set_headers(MutableHeaders(scope=message), scope["path"], self.secure)
            await send(message)

        return sender


def set_headers(headers: MutableHeaders, path: str, secure: bool) -> None:
    """Set what every answer carries; only static files may be kept by a browser, and are asked for again each time."""
    headers.update(HEADERS)
    if secure:
        headers["strict-transport-security"] = "max-age=31536000"
    headers["cache-control"] = "no-cache" if path.startswith("/static/") else "no-store"


class BodyTooLargeError(Exception):
    """A body has more than `BODY_BYTES`."""


def refuse(sentence: str, status: int) -> Response:
    """An answer after which the server closes the connection, since a rest of the body may be under way."""
    return PlainTextResponse(sentence, status, {"connection": "close"})


def hostname(host: str) -> str:
    """The name of a Host header or an Origin, without port; an empty string if it is none."""
    try:
        return urlsplit(host if "//" in host else f"//{host}").hostname or ""
    except ValueError:
        return ""


async def read_body(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body, also of a chunked request; None if the client has gone.

    Raises:
        BodyTooLargeError: it has, or says that it has, more than `BODY_BYTES`.
    """
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY_BYTES:
        raise BodyTooLargeError
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > BODY_BYTES:
            raise BodyTooLargeError
        if not message.get("more_body", False):
            return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body in one message and then what the server says."""
    sent = False

    async def receiver() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiver


async def guard(request: Request) -> None:
    """A dependency of the whole application: finds the session and checks origin and CSRF token of what changes state.

    Raises:
        HTTPException: 403, the request comes from another site or its token is missing or wrong.
    """
    request.state.session = None
    if request.url.path == PROBE:
        return
    token = request.cookies.get(cookie_name(request))
    if token:
        request.state.session = await run_in_threadpool(people.session, request.app.state.store, token)
    if request.method in SAFE_METHODS:
        return
    if not _same_origin(request):
        raise HTTPException(403, "This request comes from another site.")
    given = request.headers.get("x-csrf-token") or (await form(request)).get("csrf", "")
    expected = csrf_token(request)
    if not expected or not hmac.compare_digest(given.encode(), expected.encode()):
        raise HTTPException(403, "This page is too old. Go back, load it again and repeat the step.")


def _same_origin(request: Request) -> bool:
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or hostname(origin) == hostname(request.headers["host"])


def is_open(request: Request) -> bool:
    """Whether the page is one for people who are not logged in."""
    return request.url.path.startswith(OPEN_PATHS)


def csrf_token(request: Request) -> str:
    """The token that forms of this request's page carry and that a POST of it must show."""
    if is_open(request):
        return request.cookies.get(f"{cookie_name(request)}_form") or str(getattr(request.state, "form_token", ""))
    session = request.state.session
    return session.csrf if session else ""


def give_form_token(request: Request) -> None:
    """Give a visitor without a session the token of the page that is about to be rendered."""
    if not csrf_token(request):
        request.state.form_token = secrets.token_urlsafe(32)


def keep_form_token(request: Request, response: Response) -> None:
    """Set the cookie of a token that `give_form_token` made."""
    if token := getattr(request.state, "form_token", ""):
        set_cookie(request, response, f"{cookie_name(request)}_form", token)


async def form(request: Request) -> Mapping[str, str]:
    """The fields of a URL-encoded form, the last value of each; empty for other bodies.

    Raises:
        HTTPException: 400, the form is malformed.
    """
    return {name: values[-1] for name, values in (await form_lists(request)).items()}


async def form_lists(request: Request) -> Mapping[str, list[str]]:
    """The fields of a URL-encoded form with all values of each.

    Raises:
        HTTPException: 400, the form is malformed.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        return {}
    fields: dict[str, list[str]] = {}
    try:
        text = (await request.body()).decode()
        for name, value in parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=FORM_FIELDS):
            fields.setdefault(name, []).append(value.replace("\r\n", "\n"))
    except ValueError:
        raise HTTPException(400, "The form could not be read.") from None
    return fields


def current_session(request: Request) -> people.Session:
    """A dependency: the session of the person who asks.

    Raises:
        NotLoggedInError: there is none.
    """
    session: people.Session | None = request.state.session
    if session is None:
        raise NotLoggedInError
    return session


async def current_person(request: Request) -> people.Person:
    """A dependency: the person who asks, whatever their role. It waits for nothing; async spares a thread's turn.

    Raises:
        NotLoggedInError: there is no session.
    """
    return current_session(request).person


def require_role(*roles: str) -> Callable[[Request], Awaitable[people.Person]]:
    """A dependency: the person who asks, if they have one of the roles.

    Raises:
        HTTPException: 403, they have another role.
    """

    async def person_with_role(request: Request) -> people.Person:
        person = await current_person(request)
        if person.role not in roles:
            raise HTTPException(403, "Your role does not allow this.")
        return person

    return person_with_role


def cookie_name(request: Request) -> str:
    """`desk`; under TLS with the prefix that keeps other hosts of the same domain from setting it."""
    return "__Host-desk" if request.app.state.secure else "desk"


def set_cookie(request: Request, response: Response, name: str, value: str) -> None:
    """Set a cookie that scripts cannot read and other sites cannot send."""
    response.set_cookie(name, value, httponly=True, samesite="strict", secure=request.app.state.secure, path="/")


def start_session(request: Request, response: Response, session: people.Session) -> None:
    """Give the browser a new session; the one that it had ends."""
    end_session(request, response)
    set_cookie(request, response, cookie_name(request), session.token)


def end_session(request: Request, response: Response) -> None:
    """End the session of the request, on the server and in the browser."""
    name = cookie_name(request)
    if token := request.cookies.get(name):
        people.close_session(request.app.state.store, token)
    for cookie in (name, f"{name}_form", f"{name}_warned"):
        response.delete_cookie(cookie, path="/", secure=request.app.state.secure, httponly=True, samesite="strict")


def warned(request: Request) -> bool:
    """Whether the person has acknowledged the content warning in this session."""
    return hmac.compare_digest(request.cookies.get(f"{cookie_name(request)}_warned", "").encode(), _mark(request))


def keep_warned(request: Request, response: Response) -> None:
    """Remember for this session that the content warning was acknowledged."""
    set_cookie(request, response, f"{cookie_name(request)}_warned", _mark(request).decode())


def _mark(request: Request) -> bytes:
    return hashlib.sha256(b"warned " + current_session(request).csrf.encode()).hexdigest().encode()


def address(request: Request) -> str:
    """The address that the request comes from, as the server knows it."""
    return request.client.host if request.client else ""
