"""Plain text out of what scraped sources hold: tags, entities, broken encodings, stray white space.

Tags are found by a pattern and not by ``html.parser``, whose treatment of broken HTML differs between Python's
versions: the hash of the cleaned text names the speech, so it must be the same everywhere.
"""

from __future__ import annotations

import html
import re
import unicodedata

_BREAKS = (
    "address article aside blockquote br center dd div dl dt footer form h1 h2 h3 h4 h5 h6 header hr li main nav ol p"
)
_BREAKS += " pre section table tbody tfoot thead tr ul"
_INLINE = (
    "a abbr b bdi bdo big button cite code del dfn em font i iframe img input ins kbd label link mark meta q s samp"
)
_INLINE += " script small span strike strong style sub sup time tt u var"
_CELLS = "td th option"

_HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
# only known names with well-formed attributes: "x<y and y>z" and "<name>" are a client's words
_TAG = re.compile(
    rf"</?(?P<name>{'|'.join(f'{_BREAKS} {_INLINE} {_CELLS}'.split())})"
    r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))*\s*/?>""",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:amp;)*(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]\w{1,31});")

# the bytes 0x80 to 0xbf as they look when UTF-8 was read as cp1252, or as Latin-1 where cp1252 has no character
_TRAILING = {bytes([n]).decode("cp1252", errors="ignore") or chr(n): n for n in range(0x80, 0xC0)}
_TRAILING |= {chr(n): n for n in range(0x80, 0xA0)}
_TAIL = f"[{re.escape(''.join(_TRAILING))}]"
_MOJIBAKE = re.compile(f"[ÂÃ]{_TAIL}|â{_TAIL}{{2}}|ï»¿|ðŸ{_TAIL}{{2}}")
_LOST = re.compile(f"â€(?!{_TAIL})")  # a right quote, whose last byte cp1252 does not know
_LEADING = {"Â": 0xC2, "Ã": 0xC3, "â": 0xE2, "ï": 0xEF, "ð": 0xF0}

_CONTROLS = {n: bytes([n]).decode("cp1252", errors="ignore") for n in range(0x80, 0xA0)}
_INVISIBLE = re.compile(  # without the joiners U+200C and U+200D, which some scripts and emoji are spelled with
    "[\x00-\x08\x0e-\x1b\x7f\xad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def clean(text: str) -> str:
    """The words of a text, one line a paragraph, in Unicode's NFC; cleaning twice changes nothing more."""
    while (cleaned := _clean_once(text)) != text:  # a source may hold escaped tags, or text that was misread twice
        text = cleaned
    return text


def _clean_once(text: str) -> str:
    text = _TAG.sub(_instead_of_tag, _HIDDEN.sub(" ", text))
    text = _ENTITY.sub(lambda match: html.unescape(f"&{match[1]};"), text)
    text = _LOST.sub("”", _MOJIBAKE.sub(_repair, text))
    text = _INVISIBLE.sub("", text.translate(_CONTROLS))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return unicodedata.normalize("NFC", "\n".join(line for line in lines if line))


def _instead_of_tag(match: re.Match[str]) -> str:
    name = match["name"].lower()
    return "\n" if name in _BREAKS.split() else " " if name in _CELLS.split() else ""


def _repair(match: re.Match[str]) -> str:
    """The character that a misread UTF-8 sequence stands for; the sequence itself if it is none."""
    lead, tail = match[0][0], match[0][1:]
    try:
        return bytes([_LEADING[lead], *(_TRAILING[c] for c in tail)]).decode()
    except UnicodeDecodeError:
        return match[0]
