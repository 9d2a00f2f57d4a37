"""The client's words in a cell: text, a list of messages, a whole conversation, or a context in its stored form."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from psyco_ray.config.contexts import Context
from psyco_ray.config.reading import Reading
from psyco_ray.data import speakers, turns
from psyco_ray.files.cells import CellError, kind_of, text_of


class ClientText(NamedTuple):
    """What a cell says: a speech, a context, or a whole dialogue of which contexts are to be made."""

    text: str
    dialogue: bool = False


class CellReader:
    """Reads cells as a job says.

    Example:
        >>> CellReader(Reading()).read("Patient: I cannot sleep.\\nDoctor: Since when?", "text")
        ClientText(text='I cannot sleep.', dialogue=False)
    """

    def __init__(self, reading: Reading, openings: Sequence[str] = ()) -> None:
        """Compile the patterns.

        Args:
            reading: what is read of a conversation, and patterns of what is removed from every turn.
            openings: patterns of other text at the beginning of a turn, such as an instruction to a model.
        """
        self._contexts = reading.conversations == "contexts"
        self._strip = [re.compile(pattern) for pattern in reading.strip]
        self._openings = [re.compile(rf"\s*{pattern}", re.IGNORECASE | re.DOTALL) for pattern in openings]

    def read(self, value: Any, column: str) -> ClientText | None:
        """The client's words in a cell; None: it has none.

        Raises:
            UnknownSpeakerError: they cannot be told.
        """
        with _named(column):
            if isinstance(value, list | dict):
                if self._contexts:
                    return self._dialogue(speakers.turns(value))
                text = self._stripped(text_of(speakers.first_turn(value)))
            else:
                text = _text(value)
                if (stored := Context.stored(text)) is not None:
                    context = turns.changed(stored, lambda turn: self._unopened(self._stripped(turn)))
                    return None if context is None else ClientText(context.text)
                text = self._stripped(text)
                if text and not text.isspace():
                    if self._contexts:
                        return self._dialogue(speakers.conversation(text))
                    text = speakers.client_words(text)
        text = self._unopened(text).strip()
        return ClientText(text) if text else None

    def utterance(self, value: Any, column: str) -> str:
        """What one turn of a dialogue says.

        Raises:
            UnknownSpeakerError: the cell is not text.
        """
        with _named(column):
            return self._unopened(self._stripped(_text(value))).strip()

    def _dialogue(self, said: Iterable[tuple[str, str]]) -> ClientText | None:
        """A dialogue of roles and words."""
        plain = ((role, self._unopened(self._stripped(text_of(words)))) for role, words in said)
        dialogue = turns.dialogue_of(plain)
        return None if dialogue is None else ClientText(dialogue.text, True)

    def _stripped(self, text: str) -> str:
        for pattern in self._strip:
            text = pattern.sub("", text)
        return text

    def _unopened(self, text: str) -> str:
        for pattern in self._openings:
            if match := pattern.match(text):
                text = text[match.end() :]
        return text


def _text(value: Any) -> str:
    """A cell of text.

    Raises:
        CellError: it is none.
    """
    if value is None or isinstance(value, str | bytes):
        return text_of(value)
    raise CellError(kind_of(value))


@contextlib.contextmanager
def _named(column: str) -> Iterator[None]:
    """Name the column in what is wrong with its cell."""
    try:
        yield
    except CellError as error:
        raise speakers.UnknownSpeakerError(f"{column} is {error}, not text") from None
    except speakers.UnknownSpeakerError as error:
        raise speakers.UnknownSpeakerError(f"{column} is {error}") from None
