"""Synthetic client speeches."""

import random

OPENINGS = (
    "I've been feeling overwhelmed lately, and",
    "For some weeks now I have noticed that",
    "I don't know why, but",
)
MIDDLES = (
    "my sister {name} has stopped talking to me",
    "every night I wake up at three and think about {name}",
    "my husband {name} reads all my messages",
    "my friend {name} moved away and our calls have become short",
)
SYLLABLES = [first + vowel for first in "bdfghklmnprstvz" for vowel in "aeiou"]


def speech(seed: int, name: str = "Maria") -> str:
    """A synthetic speech of 200 to 400 characters, most of it words of its own."""
    draw = random.Random(seed)
    words = " ".join("".join(draw.choices(SYLLABLES, k=draw.randint(2, 4))) for _ in range(30))
    return f"{draw.choice(OPENINGS)} {draw.choice(MIDDLES)}. I miss {words}, and {name}.".format(name=name)
