"""Traces of a client in values and texts, whatever case, spaces, line breaks and escapes the words have there."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any

FORGOTTEN = "[forgotten]"
"""Stands where a client's words were."""

SHORTEST = 20
"""Letters and digits of a text that is looked for inside others; a shorter one may be somebody else's."""

_ESCAPES = re.compile(
    r"\\u(?P<code>[0-9a-fA-F]{4})|\\[nrtbf]|&(?P<entity>#?\w{1,10});|<[^<>]{1,400}>"
)  # of JSON, HTML and Markdown: their letters are none of the text's


@dataclass
class Traces:
    """What identifies a client: ids, and texts.

    Example:
        >>> traces = Traces()
        >>> traces.add_text("My husband left me in May.")
        >>> traces.masked("She said: <b>my husband\\nleft me</b> in May! And then?")
        'She said: <b>[forgotten]! And then?'
    """

    ids: set[str] = field(default_factory=set)  # of speeches, and of pairs and questions about them
    needles: dict[str, bytes] = field(default_factory=dict)  # the letters of each text, with a long word of it

    def add_text(self, text: str) -> None:
        """Look for a text, unless it is too short to be nobody else's."""
        if len(found := _letters(text)[0]) >= SHORTEST:
            words = re.findall(r"(?<![^\W_])[a-zA-Z]{4,}(?![^\W_])", text)  # no escape is in them
            self.needles[found] = max(words, key=len, default="").lower().encode()

    def may_be_in(self, content: bytes) -> bool:
        """Whether bytes may hold a trace; a quick test without false negatives."""
        small = content.lower()
        if any(key.encode() in small for key in self.ids):
            return True
        return any(not word or word in small for word in self.needles.values())

    def within(self, value: Any) -> bool:
        """Whether a value holds a trace, at any depth."""
        if isinstance(value, bytes):
            value = value.decode("utf-8", "ignore")
        if isinstance(value, str):
            if any(key in value for key in self.ids):
                return True
            found = _letters(value)[0] if self.needles else ""
            return any(needle in found for needle in self.needles)
        if isinstance(value, dict):
            return any(self.within(str(key)) or self.within(inner) for key, inner in value.items())
        return isinstance(value, list | tuple) and any(map(self.within, value))

    def removed_from(self, value: Any) -> Any:
        """A JSON value without entries about the client: keys, and list entries with a trace among their own texts."""
        if isinstance(value, dict):
            return {key: self.removed_from(inner) for key, inner in value.items() if not self.within(str(key))}
        if isinstance(value, list):
            return [self.removed_from(inner) for inner in value if not self._is_about(inner)]
        return self.masked(value) if isinstance(value, str) else value

    def _is_about(self, entry: Any) -> bool:
        texts = entry.values() if isinstance(entry, dict) else [entry]
        return any(isinstance(text, str) and self.within(text) for text in texts)

    def masked(self, text: str) -> str:
        """A text with `FORGOTTEN` in the place of every trace."""
        for key in self.ids:
            text = text.replace(key, FORGOTTEN)
        for needle in sorted(self.needles, key=len, reverse=True):
            text = _without(text, needle)
        return text


def _without(text: str, needle: str) -> str:
    found, places = _letters(text)
    pieces: list[str] = []
    end = at = 0
    while (at := found.find(needle, at)) >= 0:
        pieces += [text[end : places[at][0]], FORGOTTEN]
        end = places[at + len(needle) - 1][1]
        at += len(needle)
    return "".join([*pieces, text[end:]]) if pieces else text


def _letters(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The letters and digits of a text in small, and begin and end of each in it."""
    found: list[str] = []
    places: list[tuple[int, int]] = []

    def add(character: str, begin: int, end: int) -> None:
        if character.isalnum():
            folded = character.casefold()
            found.append(folded)
            places.extend([(begin, end)] * len(folded))

    start = 0
    for escape in _ESCAPES.finditer(text):
        for place in range(start, escape.start()):
            add(text[place], place, place + 1)
        meant = chr(int(escape["code"], 16)) if escape["code"] else html.unescape(escape[0]) if escape["entity"] else ""
        for character in meant if len(meant) < 3 else escape[0]:  # what is no entity after all is text
            add(character, escape.start(), escape.end())
        start = escape.end()
    for place in range(start, len(text)):
        add(text[place], place, place + 1)
    return "".join(found), places
