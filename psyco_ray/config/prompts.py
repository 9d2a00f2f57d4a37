"""The prompts file: reading, checking and filling in its texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Prompts

PACKAGED = Path(__file__).with_name("prompts.yaml")
"""The prompts of the package, which a job's own file may replace."""

Messages = list[dict[str, str]]


def load_prompt(prompts: Prompts) -> dict[str, str]:
    """The texts of the named prompt: `user` and perhaps `system`.

    Raises:
        InputError: the file or the entry is missing, or the entry has no place for the speech.
    """
    path = PACKAGED if prompts.file == "default" else Path(prompts.file)
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"prompts file {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(entries, dict) or prompts.respond not in entries:
        known = ", ".join(entries) if isinstance(entries, dict) else "nothing"
        raise InputError(f"prompts file {path} has no entry {prompts.respond}; it has {known}")
    entry = entries[prompts.respond]
    if not isinstance(entry, dict) or "{client_speech}" not in str(entry.get("user")):
        raise InputError(f"prompts file {path}: the user text of {prompts.respond} does not contain {{client_speech}}")
    return entry


def prompt_messages(prompt: dict[str, str], speech: str) -> Messages:
    """The conversation that asks for a response to a speech."""
    system = [{"role": "system", "content": prompt["system"]}] if prompt.get("system") else []
    return [*system, {"role": "user", "content": prompt["user"].replace("{client_speech}", speech)}]


def load_texts(name: str, packaged: str) -> Any:
    """A YAML file of the user's, or the packaged one where it is called `default`.

    Raises:
        InputError: the file is missing or no YAML.
    """
    places = {"prompts": "config/prompts.yaml", "pool": "data/pool.yaml", "topics": "data/topics.yaml"}
    path = Path(__file__).parent.parent / places[packaged] if name == "default" else Path(name)
    return job_file.read_yaml(path, f"{packaged} file")


def fill(template: str, values: dict[str, str]) -> str:
    """Put values in their places, all at once, so that a place's name inside a value stays as it is."""
    places = "|".join(re.escape(place) for place in values)
    return re.sub(places, lambda found: values[found[0]], template) if values else template


def filled_messages(prompt: Mapping[str, str], values: dict[str, str]) -> tuple[dict[str, str], ...]:
    """A prompt's `system` text, if it has one, and its `user` text, with their places filled."""
    return tuple(
        {"role": role, "content": fill(prompt[role], values)} for role in ("system", "user") if prompt.get(role)
    )
