"""Synthetic conversations, and their contexts turn by turn."""

from psyco_ray.config.contexts import Context
from support.raw_speeches import speech


def talk(seed: int, turns: int = 3) -> Context:
    """A conversation whose client says something else at every turn, and so does the therapist."""
    said = [
        text
        for turn in range(turns)
        for text in (speech(1000 * seed + turn), f"What would it take, after {seed} weeks and {turn} days of this?")
    ]
    return Context(tuple(said[:-1]))


def contexts_of(whole: Context) -> list[Context]:
    """The contexts of a conversation, the opening first."""
    return [*whole.earlier, whole]
