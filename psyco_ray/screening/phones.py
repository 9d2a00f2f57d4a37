"""Phone numbers in a `normalised` text, and the crisis lines that stay in it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from psyco_ray.screening.spans import Span

CRISIS_LINES = {
    "911": "United States, Canada",
    "988": "United States, Canada",
    "741741": "United States, Canada",
    "838255": "United States",
    "800-273-8255": "United States",
    "800-799-7233": "United States",
    "800-656-4673": "United States",
    "800-662-4357": "United States",
    "800-422-4453": "United States",
    "866-488-7386": "United States",
    "877-565-8860": "United States, Canada",
    "800-668-6868": "Canada",
    "833-456-4566": "Canada",
    "999": "United Kingdom, Ireland",
    "116 123": "United Kingdom, Ireland",
    "85258": "United Kingdom",
    "0800 1111": "United Kingdom",
    "0800 068 4141": "United Kingdom",
    "0808 2000 247": "United Kingdom",
    "50808": "Ireland",
    "112": "European Union, India",
    "116 111": "European Union",
    "0800 111 0 111": "Germany",
    "0800 111 0 222": "Germany",
    "142": "Austria",
    "143": "Switzerland",
    "3114": "France",
    "024": "Spain",
    "717 003 717": "Spain",
    "213 544 545": "Portugal",
    "188": "Brazil",
    "800 911 2000": "Mexico",
    "55 5259 8121": "Mexico",
    "135": "Argentina",
    "12356": "China",
    "400-161-9995": "China",
    "010-82951332": "China",
    "8-800-2000-122": "Russia",
    "000": "Australia",
    "13 11 14": "Australia",
    "1800 55 1800": "Australia",
    "1800 737 732": "Australia",
    "1300 22 4636": "Australia",
    "1300 659 467": "Australia",
    "111": "New Zealand",
    "1737": "New Zealand",
    "0800 543 354": "New Zealand",
    "0508 828 865": "New Zealand",
    "14416": "India",
    "9152987821": "India",
    "9820466726": "India",
    "9999 666 555": "India",
    "1800-599-0019": "India",
    "0800 567 567": "South Africa",
    "16328": "Egypt",
}
"""Crisis and emergency lines with their countries; the long ones may be preceded by 1 or a country code."""

_CRISIS_DIGITS = [re.sub(r"\D", "", number).lstrip("0") for number in CRISIS_LINES]

BEFORE = r"(?<![A-Za-z0-9_$£€¥.,/#-])"
"""No letter, digit or sign of money before a number. Letters of other scripts may be joined to it."""
AFTER = r"(?![A-Za-z0-9_%]|[.,/-]\d)"

_GAP = r"[ .-]{0,2}"
_PHONE = re.compile(
    rf"{BEFORE}(?:"
    rf"(?:\+|00 ?)[1-9]\d{{0,2}}(?:[ ./-]{{0,2}}\(?\d{{1,5}}\)?){{2,5}}"  # with a country code
    rf"|(?:1{_GAP})?\(?[2-9]\d\d\)?{_GAP}\d{{3}}{_GAP}\d{{4}}"  # North America
    rf"|\(?0\d{{1,4}}\)?(?:{_GAP}\d{{2,6}}){{1,4}}|0\d{{2,5}} ?/ ?\d{{5,8}}"  # with a leading zero
    rf"|[78]{_GAP}\(?[3489]\d\d\)?{_GAP}\d{{3}}{_GAP}\d\d{_GAP}\d\d"  # Russia
    rf"|1[3-9]\d{{9}}|1[3-9]\d[ -]\d{{4}}[ -]\d{{4}}"  # China
    rf"|[6-9]\d{{4}}[ -]\d{{5}}"  # India
    rf"|\([1-9]\d\) ?9?\d{{4}}-?\d{{4}}|[1-9]\d 9\d{{4}}-\d{{4}}"  # Brazil
    rf"|[679]\d\d(?: \d\d){{3}}|[679]\d\d[ .-]\d{{3}}[ .-](?!000)\d{{3}}"  # Spain, Portugal
    rf"|[2-9]\d \d{{4}} \d{{4}}"  # Mexico
    rf"){AFTER}"
)
_MIN_DIGITS = 9  # fewer may be a date
_NAMED_PHONE = re.compile(  # a shorter number that the sentence calls a phone number
    r"(?:\b(?:(?:call|text|phone|reach|ring|whats ?app)(?:ing)? (?:me |us )?(?:at |on )?"
    r"|(?:phone|cell|mobile|number|tel|whats ?app)(?: number| no)?(?: is|'s|:|\.)? "
    r"|(?:tel[eé]fono|celular|m[oó]vil|n[uú]mero|telefone|handy(?:nummer)?|telefon(?:nummer)?|nummer|t[eé]l[eé]phone"
    r"|portable|num[eé]ro)(?: es| é| est| ist)?:? (?:el |o |le )?"
    r"|ll[aá]m[ae](?:me|nme) al? |rufe?n? (?:sie )?mich an:? (?:unter )?|appelle[zr]?-moi au |me liga:? (?:no )?"
    r"|(?:номер|телефон|тел)\w{0,2}\.?:? )"
    r"|(?:电话|手机|号码)(?:号码?)?(?:是|:|为)? ?"
    r"|(?:رقمي|هاتفي|جوالي|नंबर|फ़ोन|फोन|मोबाइल)(?: है| هو|:)? ?:?)"
    r"(?P<number>\+?\(?\d[\d ().-]{5,17}\d)(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_MIN_NAMED_DIGITS = 7
_MAX_DIGITS = 15


def is_crisis_line(number: str) -> bool:
    """Whether it is a crisis line of six or more digits, with up to three digits before it."""
    digits = re.sub(r"\D", "", number)
    return any(digits.endswith(line) and len(digits) - len(line) <= 3 for line in _CRISIS_DIGITS if len(line) >= 6)


def phones(text: str) -> Iterator[Span]:
    """Phone numbers of the forms of many countries, and shorter ones that the text calls so."""
    for match in _PHONE.finditer(text):
        if _is_phone(match[0], _MIN_DIGITS):
            yield Span(*match.span(), "PHONE")
    for match in _NAMED_PHONE.finditer(text):
        if _is_phone(match["number"], _MIN_NAMED_DIGITS):
            yield Span(*match.span("number"), "PHONE")


def _is_phone(number: str, least: int) -> bool:
    return least <= len(re.sub(r"\D", "", number)) <= _MAX_DIGITS and not is_crisis_line(number)
