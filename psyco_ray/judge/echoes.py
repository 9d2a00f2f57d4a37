"""Messages of servers without the words that were sent to them: error bodies repeat prompts, and with them clients."""

from __future__ import annotations

from collections.abc import Iterable

from psyco_ray.screening.letters import letters, placed_letters

_SHORTEST = 12  # letters and digits in a row that count as repeated; a single word of the prompt may be a coincidence
_WEIGHT = 3  # of a character of a script without spaces, in letters of the Latin one
_OMITTED = "[…]"


def masked(message: str, sent: Iterable[str]) -> str:
    """A message without the stretches that repeat one of the texts sent, whatever case, spaces and escapes they have.

    Example:
        >>> masked("invalid: 'My husband\\\\nleft me in May', too long", ["My husband left me in May."])
        "invalid: '[…]', too long"
    """
    shown, places = placed_letters(message, tags=False)
    hidden = [False] * len(message)
    for text in sent:
        other = letters(text, tags=False)
        start = 0
        while start < len(shown):
            end = start
            while end < len(shown) and shown[start : end + 1] in other:
                end += 1
            if sum(1 if letter.isascii() else _WEIGHT for letter in shown[start:end]) >= _SHORTEST:
                first, last = places[start][0], places[end - 1][1]
                hidden[first:last] = [True] * (last - first)
                start = end
            else:
                start += 1
    pieces: list[str] = []
    for character, hide in zip(message, hidden, strict=True):
        if not hide:
            pieces.append(character)
        elif not pieces or pieces[-1] != _OMITTED:
            pieces.append(_OMITTED)
    return "".join(pieces)
