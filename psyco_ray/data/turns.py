"""From the turns of a dialogue, in one record or over several rows of a file, to the contexts of responses.

Example:
    >>> said = [("assistant", "Hello."), ("user", "I'm tired."), ("user", "Always."), ("assistant", "Since when?")]
    >>> dialogue = dialogue_of([*said, ("user", "May."), ("assistant", "What was in May?")])
    >>> dialogue.turns
    ("I'm tired.\\nAlways.", 'Since when?', 'May.')
    >>> [context.turns for context in contexts(dialogue, max_turns=1, max_chars=8000)]
    [("I'm tired.\\nAlways.",), ('May.',)]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from psyco_ray.config.contexts import CLIENT, THERAPIST, Context
from psyco_ray.files.records import Record


def dialogue_of(said: Iterable[tuple[str, str]]) -> Context | None:
    """What was said up to the client's last turn, as one context; None: the client says nothing.

    Turns of one speaker that follow each other are joined by a line break, blank ones and those before the client's
    first one are left out.

    Args:
        said: role (CLIENT or THERAPIST) and words, in their order.
    """
    turns: list[str] = []
    for role, words in said:
        words = words.strip()
        is_next = (role == CLIENT) == (len(turns) % 2 == 0)
        if words and is_next:
            turns.append(words)
        elif words and turns:
            turns[-1] += "\n" + words
    turns = turns if len(turns) % 2 else turns[:-1]
    return Context(tuple(turns)) if turns else None


def of_messages(messages: Iterable[Mapping[str, str]]) -> Context | None:
    """What was said in chat messages, without those of a system; None: the client says nothing."""
    said = ((message["role"], message["content"]) for message in messages)
    return dialogue_of((role, words) for role, words in said if role in (CLIENT, THERAPIST))


def changed(dialogue: Context, change: Callable[[str], str]) -> Context | None:
    """A dialogue with every turn changed; turns that become blank are left out."""
    return dialogue_of((message["role"], change(message["content"])) for message in dialogue.messages)


def contexts(dialogue: Context, max_turns: int, max_chars: int) -> Iterator[Context]:
    """The dialogue so far at each of the client's turns.

    Args:
        dialogue: up to the client's last turn.
        max_turns: client turns of a context; a longer one begins at a later client turn.
        max_chars: characters of a context; the oldest exchanges of a longer one are left out, but not its last turn.
    """
    for end in range(1, len(dialogue.turns) + 1, 2):
        context = Context(dialogue.turns[max(0, end - 2 * max_turns + 1) : end])
        while context.is_conversation and sum(map(len, context.turns)) > max_chars:
            context = context.without_oldest()
        yield context


def beginning(context: Context, least: int) -> str | None:
    """The client's first turns that have so many characters together, a line per turn; None: there are fewer.

    Many conversations begin with a greeting. This is the same at all later turns of one.
    """
    said = itertools.accumulate(context.client_turns, "{}\n{}".format)
    return next((words for words in said if len(words) >= least), None)


@dataclass
class Gathered:
    """The rows of one dialogue.

    Attributes:
        key: of the dialogue.
        number: of its first row; of the client's first one, once it is there.
        cells: of the client's first row; None: there is none.
        said: role and words of its rows.
        problem: why the dialogue cannot be read.
    """

    key: str
    number: int
    cells: Mapping[str, Any] | None = None
    said: list[tuple[str, str]] = field(default_factory=list)
    problem: str | None = None

    def add(self, record: Record, role: str, words: str | None, problem: str | None) -> None:
        """Add a row, or why it cannot be read.

        A table with a row for each annotator of an utterance repeats it: the same words of the same speaker are one.
        """
        if role == CLIENT and self.cells is None:
            self.number, self.cells = record.number, record.cells
        if words and (role, words) not in self.said[-1:]:
            self.said.append((role, words))
        if problem is not None and self.problem is None:
            self.problem = f"a dialogue with a row that cannot be read: {problem}"


def scattered(keys: Iterable[str | None]) -> set[str]:
    """The keys of dialogues whose rows are not together.

    Args:
        keys: of the rows of a file, in their order.
    """
    begun: set[str] = set()
    found: set[str] = set()
    last = None
    for key in keys:
        if key is not None and key != last:
            if key in begun:
                found.add(key)
            begun.add(key)
        last = key
    return found
