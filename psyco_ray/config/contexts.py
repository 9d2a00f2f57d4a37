"""Contexts: what a response answers, a client's speech or a conversation up to the client's turn.

Every table, id, journal and message of the package holds a context as one text. A speech is its own text. A
conversation is a JSON object of its messages; `Context` is the only place that writes and reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CLIENT, THERAPIST = "user", "assistant"
"""Roles of a conversation's messages, as chat templates name them."""

_START = f'{{"messages": [{{"role": "{CLIENT}", "content": '  # of a conversation's text
_SPEAKERS = {CLIENT: "Client", THERAPIST: "Therapist"}
LABELS = tuple(f"{speaker}:" for speaker in _SPEAKERS.values())
"""What the turns of a transcript begin with."""
LEAVES, NO_RESPONSE = "[The client leaves.]", "[No response.]"
"""How a transcript says that a dialogue ended early."""


class ContextError(ValueError):
    """Messages are no context; the message is the reason, without their content."""


@dataclass(frozen=True)
class Context:
    """What a response answers: one or more turns of the client, with a turn of the therapist between any two.

    Example:
        >>> context = Context.of("I cannot sleep.")
        >>> context.text, context.is_conversation
        ('I cannot sleep.', False)
        >>> print(context.answered("What keeps you awake?", "My job.").transcript)
        Client: I cannot sleep.
        <BLANKLINE>
        Therapist: What keeps you awake?
        <BLANKLINE>
        Client: My job.
    """

    turns: tuple[str, ...]
    """Contents of the messages, the client's first and last."""

    @classmethod
    def of(cls, text: str) -> Context:
        """The context that a text stands for: a conversation in its stored form, else a speech."""
        return cls.stored(text) or cls((text,))

    @classmethod
    def stored(cls, text: str) -> Context | None:
        """The context whose stored form as messages a text is; None: it is another text."""
        if not text.startswith(_START):
            return None
        try:
            value = json.loads(text)
            return cls.from_messages(value["messages"]) if value.keys() == {"messages"} else None
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):  # a text of another form
            return None

    @classmethod
    def from_messages(cls, messages: Sequence[dict[str, str]]) -> Context:
        """The context of messages with `role` and `content`.

        Raises:
            ContextError: they do not alternate, or do not begin and end with the client.
        """
        for place, message in enumerate(messages):
            if message["role"] != (CLIENT, THERAPIST)[place % 2]:
                raise ContextError(f"message {place + 1} is not the {('client', 'therapist')[place % 2]}'s")
            if not message["content"].strip():
                raise ContextError(f"message {place + 1} is empty")
        if len(messages) % 2 == 0:
            raise ContextError("the last message is not the client's" if messages else "no messages")
        return cls(tuple(message["content"] for message in messages))

    @property
    def text(self) -> str:
        """The text that stands for the context in tables, ids and journals."""
        if not self.is_conversation:
            return self.turns[0]
        return json.dumps({"messages": self.messages}, ensure_ascii=False)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns with their roles."""
        return [
            {"role": (CLIENT, THERAPIST)[place % 2], "content": content} for place, content in enumerate(self.turns)
        ]

    @property
    def is_conversation(self) -> bool:
        """Whether the therapist has spoken."""
        return len(self.turns) > 1

    @property
    def client_turns(self) -> tuple[str, ...]:
        """What the client says, turn by turn."""
        return self.turns[::2]

    @property
    def client_words(self) -> str:
        """What the client says, a line per turn; of a speech its text."""
        return "\n".join(self.client_turns)

    @property
    def therapist_turns(self) -> tuple[str, ...]:
        """What the therapist says, turn by turn."""
        return self.turns[1::2]

    @property
    def turn(self) -> int:
        """Number of the client's turns; a response is the therapist's turn of this number."""
        return len(self.turns) // 2 + 1

    @property
    def opening(self) -> str:
        """The client's first turn, which all contexts of a conversation share."""
        return self.turns[0]

    @property
    def earlier(self) -> tuple[Context, ...]:
        """The contexts that came before in the conversation, the opening first."""
        return tuple(Context(self.turns[:end]) for end in range(1, len(self.turns), 2))

    @property
    def last(self) -> str:
        """The client's last turn."""
        return self.turns[-1]

    @property
    def transcript(self) -> str:
        """The context as people and judges read it: the speech, or labelled turns with a blank line between them."""
        if not self.is_conversation:
            return self.turns[0]
        return "\n\n".join(f"{_SPEAKERS[message['role']]}: {message['content']}" for message in self.messages)

    @property
    def places(self) -> tuple[int, ...]:
        """Where each turn's words begin in the transcript."""
        if not self.is_conversation:
            return (0,)
        places, end = [], -2
        for message in self.messages:
            places.append(end + 2 + len(_SPEAKERS[message["role"]]) + 2)
            end = places[-1] + len(message["content"])
        return tuple(places)

    def answered(self, response: str, reply: str) -> Context:
        """The context after a response and the client's reply to it."""
        return Context((*self.turns, response, reply))

    def map(self, change: Callable[[str], str]) -> Context:
        """The context with every turn changed."""
        return Context(tuple(map(change, self.turns)))

    def without_oldest(self) -> Context:
        """The context without the client's first turn and the therapist's answer to it."""
        assert self.is_conversation, "a speech has no older turns"
        return Context(self.turns[2:])
