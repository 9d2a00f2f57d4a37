"""Which texts a message may show: names and short settings, but no words that a client may have said.

Names come from headers, keys, sheets, cells and command lines. Where a header is missing, or a text stands in the place
of a file, they are what a client has written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_KEY = re.compile(r"[\w./\-]{1,40}")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Characters of scripts without spaces; two of them count as a word."""
_SENTENCE = (".", "!", "?", "…", "。", "！", "？")
_MOST_SHOWN = 200  # characters of a setting


def words_in(text: str) -> float:
    """The number of words of a text, also in a script without spaces.

    Example:
        >>> words_in("I want to die"), words_in("想死")
        (4.0, 1.0)
    """
    unspaced = len(_UNSPACED.findall(text))
    return len(_UNSPACED.sub(" ", text).split()) + unspaced / 2


def is_key(text: str) -> bool:
    """Whether a text is one word as keys and columns are, and no number.

    Example:
        >>> [is_key(text) for text in ("chosen-rating", "2", "Client story", "0171-2345678")]
        [True, True, False, False]
    """
    has_letters = any(map(str.isalpha, text)) or len(text) <= 4
    return bool(_KEY.fullmatch(text)) and has_letters and words_in(text) <= 3


def is_name(text: str) -> bool:
    """Whether a text reads as the name of a column, list or sheet: three words at most, no sentence and no number.

    Example:
        >>> [is_name(text) for text in ("Client story", "I want to die", "Help me!", "2024-05-01")]
        [True, False, False, False]
    """
    return _is_short(text, 3) and (any(map(str.isalpha, text)) or not any(map(str.isdigit, text)))


def is_label(text: str) -> bool:
    """Whether a cell reads as a label, such as a topic or a subset: four words at most and no sentence, or an id."""
    return _is_short(text, 4) or is_id(text)


def is_id(text: str) -> bool:
    """Whether a cell reads as an id: at most 80 characters without white space."""
    return 0 < len(text) <= 80 and not re.search(r"\s", text) and words_in(text) <= 4


def size_of(text: str) -> str:
    """What a message says of a text that it does not show.

    Example:
        >>> size_of("Thank you.")
        'a text of 10 characters'
    """
    return f"a text of {len(text)} character{'s' if len(text) != 1 else ''}"


def setting(value: Any) -> str:
    """A value of a job or an argument of a command for a message; one with a text of more than two words by its length.

    Example:
        >>> setting("many"), setting([1]), setting("My husband left me")
        ("'many'", '[1]', 'of 20 characters')
    """
    shown = repr(value)
    is_short = all(words_in(text) <= 2 for text in _texts_in(value))
    return shown if is_short and len(shown) <= _MOST_SHOWN else f"of {len(shown)} characters"


def dotted(path: list[str]) -> str:
    """The dotted key of a setting; a part that is no key is told by its length.

    Example:
        >>> dotted(["sampling", "My husband left me"])
        'sampling.(a text of 18 characters)'
    """
    return ".".join(part if is_key(part.strip("[]")) else f"({size_of(part)})" for part in path)


def named_file(path: str | Path) -> str:
    """The path of a file that may not exist; words in its place are told by their number of characters.

    Example:
        >>> named_file("my notes of May.csv"), named_file("My husband left me in May")
        ('my notes of May.csv', 'with a name of 25 characters')
    """
    name = Path(path).name
    is_named = words_in(name) <= 2 or re.search(r"\w\.[a-zA-Z]\w{0,7}$", name)
    return str(path) if is_named and len(name) <= 255 else f"with a name of {len(str(path))} characters"


def _is_short(text: str, words: int) -> bool:
    """Whether a text has a number of words at most and is no sentence."""
    return len(text) <= 40 and words_in(text) <= words and "\n" not in text and not text.rstrip().endswith(_SENTENCE)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts_in(key)
            yield from _texts_in(inner)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from _texts_in(inner)
