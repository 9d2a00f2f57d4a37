"""Pages of the lead."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.templating import Jinja2Templates


def router(templates: Jinja2Templates) -> APIRouter:
    """The routes of the lead."""
    return APIRouter()
