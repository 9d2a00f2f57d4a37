"""Dialogues of a policy with simulated clients: what was said, and who has the next turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from psyco_ray.config.contexts import LABELS, LEAVES, NO_RESPONSE, Context
from psyco_ray.judge import outside_texts
from psyco_ray.run.types import Group


@dataclass(frozen=True)
class Answer:
    """A response of the policy in a dialogue."""

    text: str  # empty: the policy gave none
    tokens: int = 0
    finished: bool = True
    scores: Mapping[str, float] = field(default_factory=dict)  # by reward model; empty where it was not scored

    @classmethod
    def of(cls, group: Group, index: int) -> Answer:
        """A response of a group."""
        response = group.responses[index]
        scores = {model: values[index] for model, values in group.scores.items()}
        return cls(response.text, response.tokens, response.finished, scores)


@dataclass(frozen=True)
class Reply:
    """A client's turn."""

    text: str
    ended: bool  # the client leaves: no turn follows, and the text may be empty


@dataclass
class Dialogue:
    """A dialogue as far as it has come.

    It ends with the client who leaves, with a response without text, to which nobody reacts, or as failed.

    Example:
        >>> dialogue = Dialogue("3f2a", Context.of("I cannot sleep."))
        >>> dialogue.answers.append(Answer("What keeps you awake?"))
        >>> dialogue.replies.append(Reply("My job.", ended=False))
        >>> dialogue.context.turn, dialogue.waits_for_policy
        (2, True)
    """

    speech_id: str
    start: Context  # where it began, which the client's profile is drawn for
    index: int | None = None  # of the response at the branch; None: before it, or nothing branches
    answers: list[Answer] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    failed: str | None = None  # why it was given up, which is no client's doing

    @property
    def key(self) -> str:
        """The speech's id, from the branch on with the number of the response."""
        return self.speech_id if self.index is None else f"{self.speech_id}:{self.index}"

    @property
    def left(self) -> bool:
        """Whether the client has ended it."""
        return bool(self.replies) and self.replies[-1].ended

    @property
    def waits_for_client(self) -> bool:
        """Whether the client's turn follows."""
        return self._goes_on and len(self.answers) > len(self.replies) and bool(self.response.strip())

    @property
    def waits_for_policy(self) -> bool:
        """Whether a response follows."""
        return self._goes_on and len(self.answers) == len(self.replies)

    @property
    def _goes_on(self) -> bool:
        return not self.left and self.failed is None

    @property
    def response(self) -> str:
        """The last response."""
        return self.answers[-1].text

    @property
    def responses(self) -> list[str]:
        """All responses with a text."""
        return [answer.text for answer in self.answers if answer.text.strip()]

    @property
    def context(self) -> Context:
        """What the next response answers, or the last one if no other follows."""
        return self._until(len(self.replies) - self.left)

    @property
    def whole(self) -> Context:
        """All up to the client's last words, also those with which it left."""
        return self._until(len(self.replies) - (self.left and not self.replies[-1].text))

    def rewards(self, model: str = "reward") -> dict[int, float]:
        """The scores of a reward model, by turn of the policy; turns that were not scored are left out."""
        return {
            turn: answer.scores[model] for turn, answer in enumerate(self.answers, start=1) if model in answer.scores
        }

    def exchanges(self) -> Iterator[tuple[Context, Answer, Reply | None]]:
        """Each response with the context that it answers and the client's reply to it, if there is one."""
        for place, answer in enumerate(self.answers):
            yield self._until(place), answer, self.replies[place] if place < len(self.replies) else None

    def transcript(self, until: int | None = None, change: Callable[[str], str] = str) -> str:
        """The turns behind the start, as a judge reads them; no turn can pass for another one, or for the end.

        Args:
            until: the last response to show; None: the whole dialogue, with how it ended.
            change: what every turn goes through.
        """
        client, therapist = LABELS

        def said(text: str) -> str:
            return outside_texts.as_data(change(text), LABELS)

        lines = []
        for turn, (_, answer, reply) in enumerate(self.exchanges(), start=1):
            if until is not None and turn > until:
                break
            lines.append(f"{therapist} {said(answer.text) if answer.text.strip() else NO_RESPONSE}")
            if reply is not None and turn != until:
                texts = (client, said(reply.text) if reply.text else "", LEAVES if reply.ended else "")
                lines.append(" ".join(filter(None, texts)))
        return "\n\n".join(lines)

    def _until(self, exchanges: int) -> Context:
        """The context after a number of exchanges."""
        context = self.start
        for answer, reply in zip(self.answers[:exchanges], self.replies, strict=False):
            context = context.answered(answer.text, reply.text)
        return context
