"""Plain text from scraped sources: removes tags, entities, marks of Markdown, wrong encodings and stray white space.

Tags are found by a pattern: HTML parsers (html.parser, BeautifulSoup) drop a client's "x<y" or "<name>", and the hash
of the cleaned text names the speech, so the result must not depend on a parser's version.
"""

from __future__ import annotations

import html
import re
import unicodedata

from ftfy import fix_encoding

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
_TAG = re.compile(  # known names with well-formed attributes only: anything else is a client's words
    rf"</?(?P<name>{'|'.join(f'{_BREAKS} {_INLINE} {_CELLS}'.split())})"
    r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))*\s*/?>""",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:amp;)*(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]\w{1,31});")
_CUT_QUOTE = re.compile("â€(?![\x80-\x9f])")  # a right quote whose last byte is lost, which ftfy leaves
_CONTROLS = {n: bytes([n]).decode("cp1252", errors="ignore") for n in range(0x80, 0xA0)}
_INVISIBLE = re.compile(  # without the joiners U+200C and U+200D, which some scripts and emoji need
    "[\x00-\x08\x0e-\x1b\x7f\xad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_BOLD = re.compile(
    r"(?<![\w*])(\*{2,3})(?=[^\s*])([^*\n]*[^\s*])\1(?![\w*])|(?<!\w)__(?=[^\s_])([^_\n]*[^\s_])__(?!\w)"
)
_ESCAPE = re.compile(r"(?<![:;=-])\\([_*#>~\[\]()|^`+.!-])")  # not the faces :\ and ;-\
_ORIGIN = re.compile(  # a line of the site above a letter: "From a teen in Ohio:", "From the U.S.:"
    r"\AFrom (?:an? [\w' -]{2,40}? in )?(?:the |[a-z]{3,12} ){0,2}"
    r"[A-Z][\w.'’]*(?:[, -]+(?:of |and |the )?[A-Z][\w.'’]*){0,4}:\s*"
    r"(?=[\W\d]?[A-Z])"
)


def clean(text: str) -> str:
    """The words of a text, one line per paragraph, in Unicode's NFC. Idempotent."""
    while (cleaned := _clean_once(text)) != text:  # tags may be escaped, and text may be misread twice
        text = cleaned
    return text


def _clean_once(text: str) -> str:
    text = _TAG.sub(_tag_replacement, _HIDDEN.sub(" ", text))
    text = _ENTITY.sub(lambda match: html.unescape(f"&{match[1]};"), text)
    text = _CUT_QUOTE.sub("”", fix_encoding(text))
    text = _INVISIBLE.sub("", text.translate(_CONTROLS))
    text = _ESCAPE.sub(r"\1", _BOLD.sub(lambda match: match[2] or match[3], text))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return _ORIGIN.sub("", unicodedata.normalize("NFC", "\n".join(line for line in lines if line)))


def _tag_replacement(match: re.Match[str]) -> str:
    name = match["name"].lower()
    return "\n" if name in _BREAKS.split() else " " if name in _CELLS.split() else ""
