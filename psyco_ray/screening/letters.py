"""The letters of a text, by which words are recognised whatever form a file gives them."""

from __future__ import annotations

import html
import re

_ESCAPE = r"\\u(?P<code>[0-9a-fA-F]{4})|\\[nrtbf]|&(?P<entity>#?\w{1,10});"  # of JSON, HTML and Markdown
_ESCAPES = re.compile(_ESCAPE)
_ESCAPES_AND_TAGS = re.compile(rf"{_ESCAPE}|<[^<>]{{1,400}}>")


def letters(text: str, tags: bool) -> str:
    """The letters and digits of a text in small.

    Equal words have equal letters whatever case, white space, punctuation and escapes they are written with.

    Args:
        text: such as a page, a record or a server's message.
        tags: whether the text may be HTML, whose tags have no letters.

    Example:
        >>> letters("<b>Left</b>\\\\nme &amp; Zo&euml;", tags=True)
        'leftmezoë'
    """
    return _letters_of(_pattern(tags).sub(_meant, text))


def placed_letters(text: str, tags: bool) -> tuple[str, list[tuple[int, int]]]:
    """As `letters`, with begin and end of each letter in the text."""
    found: list[str] = []
    places: list[tuple[int, int]] = []

    def add(characters: str, begin: int, end: int) -> None:
        folded = _letters_of(characters)
        found.append(folded)
        places.extend([(begin, end)] * len(folded))

    start = 0
    for escape in _pattern(tags).finditer(text):
        for place in range(start, escape.start()):
            add(text[place], place, place + 1)
        add(_meant(escape), escape.start(), escape.end())
        start = escape.end()
    for place in range(start, len(text)):
        add(text[place], place, place + 1)
    return "".join(found), places


def _letters_of(characters: str) -> str:
    """The letters and digits among characters in small."""
    return "".join(filter(str.isalnum, characters)).casefold()


def _pattern(tags: bool) -> re.Pattern[str]:
    return _ESCAPES_AND_TAGS if tags else _ESCAPES


def _meant(escape: re.Match[str]) -> str:
    """What an escape stands for; itself if it is none after all, and nothing for a tag or a line break."""
    if escape["code"]:
        return chr(int(escape["code"], 16))
    if escape["entity"]:
        meant = html.unescape(escape[0])
        return meant if len(meant) < 3 else escape[0]
    return ""
