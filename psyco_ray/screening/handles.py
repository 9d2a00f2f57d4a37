"""Names of accounts in a `normalised` text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from importlib.resources import files

import yaml

from psyco_ray.screening.contacts import CLAUSE_END
from psyco_ray.screening.spans import WORD, Span

_PLATFORM = (
    r"(?:insta(?:gram)?|ig|snap(?:chat)?|kik|discord|telegram|tg|tik ?tok|twitter|facebook|fb|whats ?app|skype|tumblr"
    r"|reddit|wechat|weixin|wx|qq|line id|vk|signal|twitch|youtube|threads|steam|psn|x(?=[:=]))"
)
_PLATFORM_ELSEWHERE = (
    r"(?:微信号?|微信|扣扣|抖音号?|小红书号?|微博|телеграмм?|телега|тг|инст(?:а|аграм\w*)|вк|вконтакте|дискорд"
    r"|انستا(?:جرام|غرام|قرام)?|سناب(?: ?شات)?|تيليج?رام|تلجرام|تويتر|इंस्टा(?:ग्राम)?|टेलीग्राम|स्नैपचैट)"
)
_TOKEN = r"(?P<token>(?:live:)?@?[a-z0-9_](?:[\w.-]*\w)?(?:#\d{4})?)(?!/)"
_AT_HANDLE = re.compile(rf"(?<!{WORD})(?<![@./])@{WORD}(?:(?:{WORD}|\.)*{WORD})?(?:#\d{{4}})?")
_TAGGED = re.compile(rf"(?<!{WORD})(?:/?u/[\w-]{{3,}}|{WORD}{{2,32}}#\d{{4}}(?!\d))", re.IGNORECASE)
_NUMBERED = re.compile(rf"(?:(?<!{WORD})qq|扣扣|微信)[号群]?\s?[:是]?\s?(?P<token>\d{{5,12}})(?!{WORD})", re.IGNORECASE)
_NAMED_HANDLE = re.compile(  # my insta is X, snap: X
    rf"(?<!{WORD})(?P<own>(?:my|mi|meine?|mon|meu|mio|мой|моя)\s)?(?:"
    rf"{_PLATFORM}(?:\s?(?:name|handle|id|user(?:name)?|account|acc|tag|konto|usuario|nick))?"
    r"|(?:user|screen|account|nick)\s?name|handle|gamertag|usuario|benutzername|pseudo|usu[aá]rio|nick|ник|логин)"
    rf"\s?(?P<link>:|=|\s(?:is|es|ist|est|é|called|-)\s|'s\s|\s)\s?{_TOKEN}"
    rf"|(?:{_PLATFORM_ELSEWHERE})\s?(?:号|是|为|叫|है|هو|:|：|-|id)*\s?(?P<elsewhere>@?[a-z0-9_][a-z0-9_.-]*[a-z0-9_])",
    re.IGNORECASE,
)
_REACHED = re.compile(  # kik me at X, add me on snap: X
    rf"(?<!{WORD})(?:(?P<verb>kik|snap|dm|pm|add|message|msg|find|follow|hit|contact|reach|write)\sme(?:\sup)?\s?"
    rf"|hmu\s?)"
    rf"(?:(?:at|on|@|:|via)\s?)?(?P<platform>{_PLATFORM}(?!{WORD})\s?(?:at|as|under|:|is|@|-|=)?\s?)?{_TOKEN}",
    re.IGNORECASE,
)

# A text without one of these is not searched.
_HINTS: tuple[str, ...] = (
    "insta",
    "kik",
    "discord",
    "telegram",
    "tiktok",
    "tik tok",
    "whatsapp",
    "whats app",
    "twitter",
)
_HINTS += (
    "facebook",
    "skype",
    "tumblr",
    "reddit",
    "wechat",
    "weixin",
    "twitch",
    "youtube",
    "username",
    "gamertag",
    "usuario",
)
_HINTS += (
    "benutzername",
    "pseudo",
    "snap:",
    "snap is",
    "snapchat",
    " steam",
    "hmu",
    "add me ",
    " me on ",
    " me at ",
    " me up ",
    " me @",
)
_HINTS += tuple(
    f"{name}{link}" for name in ("handle", "name", "nick", "ig", "fb", "tg", "wx", "qq", "vk") for link in (":", " is ")
)
_HINTS_ELSEWHERE: tuple[str, ...] = (
    "微",
    "扣扣",
    "抖音",
    "小红书",
    "тел",
    "тг",
    "инст",
    "вк",
    "диск",
    "ник",
    "логин",
    "انستا",
    "سناب",
    "تل",
    "تيل",
)
_HINTS_ELSEWHERE += ("توي", "usuá", "इंस्टा", "टेली", "स्नैप")
_ADJECTIVE = re.compile(r"[a-z]+(?:ed|ing|ly|ful|less|ive|ous)\Z", re.IGNORECASE)


@functools.cache
def _no_handles() -> frozenset[str]:
    """Words after "my insta is" that are no name."""
    lists = yaml.safe_load(files("psyco_ray.screening").joinpath("contacts.yaml").read_text(encoding="utf-8"))
    return frozenset(lists["no_handles"].split())


def handles(text: str) -> Iterator[Span]:
    """Names of accounts: @name, u/name, name#1234, "my insta is name". A forum (r/name) is none."""
    if "@" in text:
        for match in _AT_HANDLE.finditer(text):
            if match[0][1:].lower() not in _no_handles():  # "see you @home"
                yield Span(*match.span(), "HANDLE")
    if "u/" in text or "U/" in text or "#" in text:
        yield from (Span(*match.span(), "HANDLE") for match in _TAGGED.finditer(text))
    lowered = text.lower()
    if "qq" in lowered or "微信" in text or "扣扣" in text:
        yield from (Span(*match.span("token"), "HANDLE") for match in _NUMBERED.finditer(text))
    if not any(hint in lowered for hint in (_HINTS if text.isascii() else _HINTS + _HINTS_ELSEWHERE)):
        return
    for match in _NAMED_HANDLE.finditer(text):
        group = "token" if match["token"] else "elsewhere"
        certain = group == "elsewhere" or match["link"].strip() in (":", "=")
        certain = certain or (bool(match["own"]) and CLAUSE_END.match(text, match.end(group)) is not None)
        if _is_handle(text, match.span(group), certain):
            yield Span(*match.span(group), "HANDLE")
    for match in _REACHED.finditer(text):
        certain = bool(match["platform"]) or (match["verb"] or "").lower() in ("kik", "snap")
        if _is_handle(text, match.span("token"), certain):
            yield Span(*match.span("token"), "HANDLE")


def _is_handle(text: str, span: tuple[int, int], certain: bool) -> bool:
    """Whether a word after "my insta is" is a name.

    Args:
        text: the text.
        span: the word.
        certain: what precedes the word says that a name follows; else it needs a sign of its own.
    """
    token = text[slice(*span)]
    if token.lower() in _no_handles() or len(token.strip("@")) < 3 or "[" in text[max(0, span[0] - 1) : span[0]]:
        return False
    if not re.search(r"[^\W\d_]", token) or re.match(r"[\d-]{7}", token):
        return False
    if re.search(r"[\d_@.#]", token):
        return True
    return certain and not _ADJECTIVE.match(token)
