"""Traces of a client in values and texts, whatever case, spaces, line breaks and escapes the words have there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.data.splits import begins, conversation_of, dialogue_in, speech_id
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

    Two clients may open with the same words. What is known of an opening alone, because it is that of a conversation
    which was named, is `shared`: it removes what has it, but leads to nothing else, and not to another dialogue.

    Example:
        >>> traces = Traces()
        >>> traces.add_text("My husband left me in May.")
        >>> traces.masked("She said: <b>my husband\\nleft me</b> in May! And then?")
        'She said: <b>[forgotten]! And then?'
    """

    ids: set[str] = field(default_factory=set)  # of speeches, and of pairs and questions about them
    needles: dict[str, bytes] = field(default_factory=dict)  # the letters of each text, with a long word of it
    shared: set[str] = field(default_factory=set)  # those of both that another client may have, too

    def add_ids(self, keys: Iterable[str], shared: bool = False) -> None:
        """Look for ids."""
        for key in keys:
            self._mark(key, key in self.ids, shared)
            self.ids.add(key)

    def add_text(self, text: str, shared: bool = False) -> None:
        """Look for a text, unless it is too short to be nobody else's."""
        for form in (_TAG.sub(" ", text), text):  # what looks like a tag is text once a page has escaped it
            if len(found := letters(form, tags=False)) >= SHORTEST:
                self._look_for(found, form, shared)

    def add_context(self, text: str, shared: bool = False) -> None:
        """Look for a speech, or for all contexts of a conversation, given as the text of one.

        Another context of the conversation has its opening, or an exchange of it: a turn of the client, the answer and
        the client's next turn. The client's later turns alone say too little: simulated clients repeat each other's.

        Args:
            text: of the context.
            shared: of a speech, whether another client may say it: that of a dialogue that is known by its id.
        """
        context = Context.of(text)
        if not context.is_conversation:
            self.add_text(text, shared)
            return
        for one in (*context.earlier, context):
            if _count("".join(one.client_turns)) >= SHORTEST:
                self.add_ids([speech_id(one.text)], shared=not one.is_conversation)
        if _count(context.opening) >= SURELY_OWN:
            self.add_text(context.opening, shared=True)
        if _count(begun := begins(context)) >= SURELY_OWN:
            self.add_ids([conversation_of(begun)], shared=begun == context.opening)
        for start in range(0, len(context.turns) - 2, 2):
            exchange = Context(context.turns[start : start + 3])
            if _count("".join(exchange.turns)) >= SURELY_OWN:
                for form in (exchange.transcript, json.dumps(exchange.messages, ensure_ascii=False)):
                    self._look_for(letters(form, tags=False), " ".join(exchange.turns))

    def add_later_turns(self, context: Context) -> None:
        """Look for the client's later turns, which may be contexts alone; another client may say the same."""
        for turn in context.client_turns[1:]:
            if _count(turn) >= SURELY_OWN:
                self.add_text(turn, shared=True)

    def add_turns(self, context: Context) -> None:
        """Look for each turn of a conversation, where a mistake masks words and removes nothing."""
        for number, turn in enumerate(context.turns):
            if _count(turn) >= (SURELY_OWN if number % 2 else SHORTEST):
                self.add_text(turn)

    def _mark(self, trace: str, known: bool, shared: bool) -> None:
        if not shared:
            self.shared.discard(trace)
        elif not known:
            self.shared.add(trace)

    def _look_for(self, found: str, text: str, shared: bool = False) -> None:
        """Look for letters, which a text has."""
        self._mark(found, found in self.needles, shared)
        words = re.findall(r"(?<![^\W_])[a-zA-Z]{4,}(?![^\W_])", text)  # no escape is in them
        self.needles[found] = max(words, key=len, default="").lower().encode()

    @property
    def size(self) -> int:
        """Number of ids and texts, of which those that nobody else has count twice."""
        return 2 * (len(self.ids) + len(self.needles)) - len(self.shared)

    def surely_within(self, value: Any) -> bool:
        """Whether a value holds a trace that nobody else has."""
        own = {needle: word for needle, word in self.needles.items() if needle not in self.shared}
        return Traces(self.ids - self.shared, own).within(value)

    def is_of_another(self, dialogue: Any, contexts: Iterable[Context], value: Any) -> bool:
        """Whether what holds a trace is about another client, who only opens as this one does.

        Args:
            dialogue: the id of its dialogue, if it is known.
            contexts: that it is about.
            value: all of it.
        """
        if dialogue_in(dialogue) is None or dialogue in self.ids or self.surely_within(value):
            return False
        return not any(not context.is_conversation and self.within(context.opening) for context in contexts)

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
