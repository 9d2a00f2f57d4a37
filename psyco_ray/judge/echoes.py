"""Messages of servers without the words that were sent to them: error bodies repeat prompts, and with them clients."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from psyco_ray.screening.letters import letters, placed_letters

_SHORTEST = 12  # letters and digits in a row that count as repeated; a single word of the prompt may be a coincidence
_SHORTEST_WHOLE = 4  # letters of a whole text, line or quoted part, such as a short turn of a client
_BETWEEN = re.compile(r"[\r\n]+|</?q-[0-9a-f]+>")  # lines, and the marks of `outside_texts.quote`
_LABEL = re.compile(r"^\s*\S+(?: \S+)?:(?=\s)")  # of a turn
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

    def hide(start: int, end: int) -> None:
        first, last = places[start][0], places[end - 1][1]
        hidden[first:last] = [True] * (last - first)

    for text in sent:
        for whole in _wholes(text):
            start = shown.find(whole)
            while start >= 0:
                hide(start, start + len(whole))
                start = shown.find(whole, start + len(whole))
        other = letters(text, tags=False)
        start = 0
        while start < len(shown):
            end = start
            while end < len(shown) and shown[start : end + 1] in other:
                end += 1
            if _weight(shown[start:end]) >= _SHORTEST:
                hide(start, end)
                start = end
            else:
                start += 1
    pieces: list[str] = []
    for character, is_hidden in zip(message, hidden, strict=True):
        if not is_hidden:
            pieces.append(character)
        elif not pieces or pieces[-1] != _OMITTED:
            pieces.append(_OMITTED)
    return "".join(pieces)


def _wholes(text: str) -> Iterator[str]:
    """The letters of the lines and quoted parts of a text that are long enough to be told from a coincidence."""
    for part in _BETWEEN.split(text):
        whole = letters(_LABEL.sub("", part), tags=False)
        if not part.rstrip().endswith(":") and _weight(whole) >= _SHORTEST_WHOLE:
            yield whole


def _weight(found: str) -> int:
    """The number of letters, of which those of a script without spaces weigh more."""
    latin = len(found.encode("ascii", "ignore"))
    return latin + _WEIGHT * (len(found) - latin)
