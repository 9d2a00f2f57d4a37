"""Renders the desk's pages and decides whether an answer is a page or JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from psyco_ray.config.prompts import PRINCIPLES, PromptsFile
from psyco_ray.desk import security
from psyco_ray.desk.turns import turns_of
from psyco_ray.report import render as report

TEMPLATES = Path(__file__).parent / "templates"

_FILTERS = ("decimal", "decimal_interval", "percent", "percent_interval", "thousands")


def templates() -> Jinja2Templates:
    """The templates; each sees `person` (None without a session), `csrf`, `settings` and `principles`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,  # the templates of a running server are those of its code, whatever is installed meanwhile
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(report, name) for name in _FILTERS} | {"moment": moment, "turns": turns_of}
    return Jinja2Templates(env=environment, context_processors=[_context])


def render(request: Request, name: str, values: Mapping[str, Any] | None = None, status: int = 200) -> Response:
    """A page from a template."""
    made: Jinja2Templates = request.app.state.templates
    return made.TemplateResponse(request, name, dict(values or {}), status)


def sentence(error: Exception) -> str:
    """The message of an error as a page says it."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def wants_json(request: Request) -> bool:
    """Whether a script asks, not a person's browser."""
    return "application/json" in request.headers.get("accept", "")


def moment(seconds: float) -> str:
    """A time as a page shows it, in UTC.

    Example:
        >>> moment(0)
        '1970-01-01 00:00'
    """
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


@cache
def principles() -> Mapping[str, Mapping[str, str]]:
    """`title` and `text` of every principle, by name, in the released order."""
    texts = PromptsFile("default").principles()
    return {name: {"title": texts[name]["title"], "text": _joined(texts[name]["text"])} for name in PRINCIPLES}


def _joined(text: str) -> str:
    """A text whose lines are wrapped for a file, with a line per paragraph and list entry."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and line.startswith("  "):
            lines[-1] += f" {line.strip()}"
        elif lines and not line.startswith("- ") and not lines[-1].startswith("- "):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _context(request: Request) -> dict[str, Any]:
    session = getattr(request.state, "session", None)
    return {
        "person": session.person if session else None,
        "csrf": security.csrf_token(request) if hasattr(request.state, "session") else "",
        "settings": request.app.state.store.settings,
        "principles": principles(),
    }
