"""Settings of how the client's words are read from a file."""

from __future__ import annotations

import codecs
import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from psyco_ray.config.job_file import Section


def _texts(value: Any) -> Any:
    """One value or a list of them as a list of texts, as a file has them."""
    values = value if isinstance(value, list) else [value]
    return [str(item).lower() if isinstance(item, bool) else str(item) for item in values]


Values = Annotated[list[str], BeforeValidator(_texts), Field(min_length=1)]
"""A value or a list of values."""


class Reading(Section):
    """Which rows of a file of speeches are the client's, and what is removed from them."""

    where: dict[str, Values] = Field(default_factory=dict)
    """Rows to read, by column and value or values, such as {interlocutor: client}; case does not matter."""
    dialogue: str | None = None
    """Column with the id of a dialogue over several rows: of each, the first row that `where` names is read."""
    strip: list[str] = Field(default_factory=list)
    """Regular expressions; what they match is removed from the texts, before chat layouts are looked for."""
    encoding: str | None = None
    """Encoding of text files, such as gb18030; null: UTF-8, or UTF-16 with a byte-order mark."""

    @field_validator("strip")
    @classmethod
    def _compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                empty = re.compile(pattern).match("")
            except re.error as error:
                raise ValueError(f"strip {pattern!r} is not a regular expression: {error}") from None
            if empty is not None:
                raise ValueError(f"strip {pattern!r} also matches an empty text; make it match what is to be removed")
        return patterns

    @field_validator("encoding")
    @classmethod
    def _look_up(cls, name: str | None) -> str | None:
        try:
            return None if name is None else codecs.lookup(name).name
        except LookupError:
            raise ValueError(f"encoding {name!r} is unknown; take one of Python's, such as cp1252 or gb18030") from None

    @model_validator(mode="after")
    def _dialogue_has_a_speaker(self) -> Self:
        if self.dialogue is not None and not self.where:
            raise ValueError("dialogue needs where, which tells the client's rows, such as {speaker: client}")
        return self
