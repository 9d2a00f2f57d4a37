"""Settings of how the client's words are read from a file."""

from __future__ import annotations

import codecs
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from psyco_ray.config.job_file import Count, Section


def _texts(value: Any) -> Any:
    """One value or a list of them as a list of texts, as a file has them."""
    values = value if isinstance(value, list) else [value]
    return [str(item).lower() if isinstance(item, bool) else str(item) for item in values]


_LIMITS = ("max_turns", "max_context_chars")  # of contexts

Values = Annotated[list[str], BeforeValidator(_texts), Field(min_length=1)]
"""A value or a list of values."""


class Reading(Section):
    """Which rows of a file of speeches are the client's, and what is removed from them."""

    where: dict[str, Values] = Field(default_factory=dict)
    """Rows to read, by column and value or values, such as {interlocutor: client}; case does not matter."""
    dialogue: str | None = None
    """Column with the id of a dialogue over several rows. opening: of each, the first row that `where` names is read;
    contexts: the rows that `where` names are the client's turns, its other rows the therapist's."""
    conversations: Literal["opening", "contexts"] = "opening"
    """What is read of a conversation. opening: the client's first turn (the paper's speeches); contexts: at each of the
    client's turns the conversation so far."""
    max_turns: Count = 8
    """Most client turns of a context; a longer one begins at a later client turn."""
    max_context_chars: Count = 8000
    """Most characters of a context; the oldest exchanges of a longer one are left out, but never its last turn."""
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

    @model_validator(mode="after")
    def _limits_have_contexts(self) -> Self:
        for name in _LIMITS:
            value = getattr(self, name)
            if self.conversations == "opening" and value != Reading.model_fields[name].default:
                raise ValueError(f"{name} {value} has no effect on conversations opening; set conversations contexts")
        return self

    @model_serializer(mode="wrap")
    def _as_before_conversations(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without keys that have no effect, so that a job of speeches has the same digest as before there were any."""
        settings = serialise(self)
        if self.conversations == "opening":
            for name in ("conversations", *_LIMITS):
                settings.pop(name, None)
        return settings
