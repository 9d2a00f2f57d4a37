"""Traces of a client in values and texts, whatever case, spaces, line breaks and escapes the words have there."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.data.splits import speech_id
from psyco_ray.screening.letters import letters, placed_letters

FORGOTTEN = "[forgotten]"
"""Stands where a client's words were."""

SHORTEST = 20
"""Letters and digits of a text that is looked for inside others; a shorter one may be somebody else's."""

SURELY_OWN = 2 * SHORTEST
"""Letters and digits of a text that is looked for though nobody has named it."""

_TAG = re.compile(r"<[^<>]{1,400}>")


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
        for form in (_TAG.sub(" ", text), text):  # what looks like a tag is text once a page has escaped it
            if len(found := letters(form, tags=False)) >= SHORTEST:
                self._look_for(found, form)

    def add_context(self, text: str) -> None:
        """Look for a speech, or for all contexts of a conversation, given as the text of one.

        Another context of the conversation has its opening, or an exchange of it: a turn of the client, the answer and
        the client's next turn. The client's later turns alone say too little: simulated clients repeat each other's.
        """
        context = Context.of(text)
        if not context.is_conversation:
            self.add_text(text)
            return
        for one in (*context.earlier, context):
            if _count("".join(one.client_turns)) >= SHORTEST:
                self.ids.add(speech_id(one.text))
        if _count(context.opening) >= SURELY_OWN:
            self.add_text(context.opening)
        for start in range(0, len(context.turns) - 2, 2):
            exchange = Context(context.turns[start : start + 3])
            if _count("".join(exchange.turns)) >= SURELY_OWN:
                for form in (exchange.transcript, json.dumps(exchange.messages, ensure_ascii=False)):
                    self._look_for(letters(form, tags=False), " ".join(exchange.turns))

    def add_turns(self, context: Context) -> None:
        """Look for each turn of a conversation, where a mistake masks words and removes nothing."""
        for number, turn in enumerate(context.turns):
            if _count(turn) >= (SURELY_OWN if number % 2 else SHORTEST):
                self.add_text(turn)

    def _look_for(self, found: str, text: str) -> None:
        """Look for letters, which a text has."""
        words = re.findall(r"(?<![^\W_])[a-zA-Z]{4,}(?![^\W_])", text)  # no escape is in them
        self.needles[found] = max(words, key=len, default="").lower().encode()

    @property
    def size(self) -> int:
        """Number of ids and texts."""
        return len(self.ids) + len(self.needles)

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
            small = value.lower()
            if not any(word.decode() in small for word in self.needles.values()):
                return False
            found = letters(value, tags=True)
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


def _count(text: str) -> int:
    return len(letters(text, tags=False))


def _without(text: str, needle: str) -> str:
    found, places = placed_letters(text, tags=True)
    pieces: list[str] = []
    end = at = 0
    while (at := found.find(needle, at)) >= 0:
        pieces += [text[end : places[at][0]], FORGOTTEN]
        end = places[at + len(needle) - 1][1]
        at += len(needle)
    return "".join([*pieces, text[end:]]) if pieces else text
