"""Messages of servers without the words that were sent to them: error bodies repeat prompts, and with them clients."""

from __future__ import annotations

from collections.abc import Iterable

_SHORTEST = 12  # letters and digits in a row that count as repeated; a single word of the prompt may be a coincidence
_WEIGHT = 3  # of a character of a script without spaces, in letters of the Latin one
_OMITTED = "[…]"


def masked(message: str, sent: Iterable[str]) -> str:
    """A message without the stretches that repeat one of the texts sent, whatever case, spaces and escapes they have.

    Example:
        >>> masked("invalid: 'My husband\\\\nleft me in May', too long", ["My husband left me in May."])
        "invalid: '[…]', too long"
    """
    letters, places = _letters(message)
    hidden = [False] * len(message)
    for text in sent:
        other, _ = _letters(text)
        start = 0
        while start < len(letters):
            end = start
            while end < len(letters) and letters[start : end + 1] in other:
                end += 1
            if sum(1 if letter.isascii() else _WEIGHT for letter in letters[start:end]) >= _SHORTEST:
                hidden[places[start] : places[end - 1] + 1] = [True] * (places[end - 1] + 1 - places[start])
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


def _letters(text: str) -> tuple[str, list[int]]:
    """The letters and digits of a text, folded, and the place of each in it; escapes such as backslash-n are none."""
    letters: list[str] = []
    places: list[int] = []
    escaped = False
    for place, character in enumerate(text):
        if character == "\\" or (escaped and character in "nrt"):
            escaped = character == "\\"
            continue
        escaped = False
        if character.isalnum():
            folded = character.casefold()
            letters.append(folded)
            places += [place] * len(folded)
    return "".join(letters), places
