"""E-mail addresses and links in a `normalised` text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

import yaml

from psyco_ray.screening.languages import language_of
from psyco_ray.screening.spans import WORD, Span

_AT_WORDS = ("at", "ät", "arroba", "arobase", "собака")
_DOT_WORDS = ("dot", "punkt", "punto", "point", "ponto", "точка")
_PROVIDERS: tuple[str, ...] = (
    "gmail",
    "googlemail",
    "yahoo",
    "hotmail",
    "outlook",
    "icloud",
    "aol",
    "proton",
    "protonmail",
    "gmx",
    "live",
)
_PROVIDERS += ("msn", "yandex", "web", "qq", "163")
_AT_WORD, _DOT_WORD = f"(?:{'|'.join(_AT_WORDS)})", f"(?:{'|'.join(_DOT_WORDS)})"
_BRACKETED_AT = re.compile(rf"[\[({{<]\s?{_AT_WORD}\s?[\])}}>]", re.IGNORECASE)
_AT = rf"(?:@|\s?{_BRACKETED_AT.pattern}\s?)"
_DOT = rf"(?:\.|\s?[\[({{<]\s?{_DOT_WORD}\s?[\])}}>]\s?)"
_START = rf"(?<!{WORD})(?<![.+%-])"  # of an address or a domain
_EMAIL = re.compile(rf"{_START}(?:{WORD}|[.+%-])+{_AT}{WORD}(?:{WORD}|-)*(?:{_DOT}{WORD}(?:{WORD}|-)*)+", re.IGNORECASE)

_PROVIDER = f"(?:{'|'.join(_PROVIDERS)})"
_SPOKEN_LOCAL = rf"{_START}{WORD}+(?:(?:[.+-]|\s{_DOT_WORD}\s|\s?underscore\s?)(?:{WORD})+)*"
_SPOKEN_EMAIL = re.compile(  # jane dot doe at gmail dot com; jane at gmail.com
    rf"{_SPOKEN_LOCAL}\s(?:{_AT_WORD}|@)\s(?:(?:{WORD}|-)+\s(?:"
    r"dot\s(?:com|org|net|edu|gov|info|io|co|ac|de|es|fr|pt|br|mx|ar|ru|uk|in|au|ca|it|nl|eu|at|ch"
    r"|me)(?:\sdot\s[a-z]{2})?"
    rf"|(?!dot){_DOT_WORD}\s(?:com|org|net|de|es|fr|pt|br|mx|ar|ru))"  # "at some point in"
    rf"|{_PROVIDER}(?:\.|\s{_DOT_WORD}\s)[a-z]{{2,3}})(?!{WORD})",
    re.IGNORECASE,
)
_WEBMAIL = r"(?:g(?:oogle)?mail|yahoo|hotmail|outlook|icloud|aol|gmx|proton(?:mail)?)"
_SHORT_EMAIL = re.compile(  # jane@gmail; my email is jane at gmail
    rf"(?P<address>{_START}(?:{WORD}|[.+-])+@{_WEBMAIL})(?!{WORD})"
    rf"|e?-?mail(?: me| address)?(?: is|:| at| to)* (?P<spoken>{_SPOKEN_LOCAL} at {_WEBMAIL})(?!{WORD})",
    re.IGNORECASE,
)
_SPOKEN_HINTS = (*(f" {word} " for word in _DOT_WORDS), "mail", *(f" {name}." for name in _PROVIDERS))
_NOT_LOCAL = re.compile(
    r"(?:account|address|e?-?mail|inbox|me|it|us|is|an|works?|worked|him|her|them)\Z", re.IGNORECASE
)

_PATH = (
    r"[^\s<>\u3000-\u303f\uff00-\uffef]*[^\s<>.,;:!?)\]'\"\u3000-\u303f\uff00-\uffef]"  # without the sentence's marks
)
_LINK = re.compile(rf"(?:https?://|(?<!{WORD})www\.){_PATH}", re.IGNORECASE)
_DOMAIN = re.compile(
    rf"{_START}(?<![@/'])((?:{WORD}(?:{WORD}|-)*\.)+)([a-z]{{2,7}})(?!{WORD})(?!-{WORD})((?::\d{{2,5}})?/(?:{_PATH})?)?",
    re.IGNORECASE,
)
_HERE = re.compile(
    r"\b(?:on|at|from|via|visit|see|called|site|website|blog|page|link|url|auf|bei|unter|seite|sur|en|página"
    r"|sitio|em|su)"
    r"(?: is|:)? ?\Z",
    re.IGNORECASE,
)
CLAUSE_END = re.compile(r"\s*(?:\Z|[.,;:!?)\]\n]|\s(?:and|und|y|et|e|и)\b)")
"""What follows a name that ends a clause."""


class _Domains(NamedTuple):
    """Top-level domains."""

    plain: frozenset[str]
    """No words."""
    english: frozenset[str]
    elsewhere: dict[str, list[str]]
    """Words of some languages, with their codes."""


@functools.cache
def _domains() -> _Domains:
    lists = yaml.safe_load(files("psyco_ray.screening").joinpath("contacts.yaml").read_text(encoding="utf-8"))
    elsewhere = {name: languages.split() for name, languages in lists["elsewhere"].items()}
    return _Domains(frozenset(lists["plain"].split()), frozenset(lists["english"].split()), elsewhere)


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses, also with (at) and (dot), and spoken ones: jane at gmail dot com."""
    if "@" in text or _BRACKETED_AT.search(text):
        for match in _EMAIL.finditer(text):
            yield Span(*match.span(), "EMAIL")
    lowered = text.lower()
    if any(hint in lowered for hint in _SPOKEN_HINTS):
        for match in _SPOKEN_EMAIL.finditer(text):
            if not _NOT_LOCAL.match(match[0].split()[0]):
                yield Span(*match.span(), "EMAIL")
    if "mail" in lowered or "@" in text:
        for match in _SHORT_EMAIL.finditer(text):
            group = "address" if match["address"] else "spoken"
            if not _NOT_LOCAL.match(match[group].split()[0]):
                yield Span(*match.span(group), "EMAIL")


def links(text: str) -> Iterator[Span]:
    """Links with or without a scheme. "him.It" and "e.g." are none, "forum.de" and "gf.me/u/abc" are."""
    if "://" in text or "www." in text.lower():
        for match in _LINK.finditer(text):
            yield Span(*match.span(), "LINK")
    if text.count(".") == text.count(". ") + text.count(".\n") + text.endswith("."):
        return  # no word follows a dot at once
    for match in _DOMAIN.finditer(text):
        if _is_domain(text, match):
            yield Span(*match.span(), "LINK")


def _is_domain(text: str, match: re.Match[str]) -> bool:
    host, top, path = match[1], match[2], match[3]
    if top != top.lower() and top != top.upper() and top.lower() != "com":
        return False  # the next sentence: "him.It"
    label, domains = host.split(".")[-2], _domains()
    if top.lower() in domains.plain:
        return bool(path) or len(label) > 1 or label.isdigit()
    if top != top.lower():
        return False
    if (
        (path and len(path) > 1)
        or (host.count(".") > 1 and len(host) > 5)
        or "-" in label
        or (re.search(r"\d", label) and len(label) > 3)
    ):
        return True
    named = _HERE.search(text[max(0, match.start() - 20) : match.start()])
    if named and len(label) > 2 and CLAUSE_END.match(text, match.end()):
        return True
    return top in domains.elsewhere and len(label) > 2 and language_of(text)[0] not in domains.elsewhere[top]
