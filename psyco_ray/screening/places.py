"""Street addresses, post codes and dates of birth in a `normalised` text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from psyco_ray.screening.spans import Span

_NUMBER = r"\d{1,5}[A-Za-z]?"
_PROPER = r"[A-ZÀ-ÖØ-ÞĀ-ŽА-ЯЁ][\w'’.-]*"
_NO_STREET_NAME = (  # 2 lanes of road, 3 minutes up the street
    r"(?:the|a|an|of|my|his|her|our|your|their|down|up|this|that|from|in|on|at|to|and|or|off|per|lanes?|ways?"
    r"|years?|days?"
    r"|min\w*|hours?|miles?|blocks?|m[ae]n|people|kids|cars?|houses?|different|main|side|busy|old|more|other)\b"
)
_UNIT = r"(?:,? ?(?:[Aa]pt|[Aa]partment|[Uu]nit|[Ss]uite|[Ff]lat|#)\.? ?#?\w{1,5})?"
# English and French streets begin with the number.
_YEAR_AND_PLACE = re.compile(  # 2010 Supreme Court
    r"(?:19|20)\d\d .* (?:Court|Place|Way|Close|Square|Drive|Grove|Gardens|St|Dr)\.?\Z"
)
_NUMBERED_STREET = re.compile(
    r"\d(?<![\w$£€.,-]\d)\d{0,4}[A-Za-z]?,? (?:"
    rf"(?:[NSEW]\.? |North |South |East |West )?(?:{_PROPER} ){{1,3}}"
    r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Place|Pl|Way|Terrace|Close"
    r"|Crescent|Square"
    rf"|Highway|Hwy|Parkway|Gardens|Grove)\b\.?{_UNIT}"
    rf"|(?:(?!{_NO_STREET_NAME})[a-z']{{3,}} ){{1,2}}(?:street|road|avenue|lane|boulevard|blvd)\b{_UNIT}"
    r"|(?:bis |ter )?,?(?:rue|avenue|av\.|boulevard|bd|chemin|impasse|allée|place|quai|route)"
    rf" (?:(?:de|du|des|la|le|les) |[ld]')*{_PROPER}(?:[ -]{_PROPER}){{0,3}}"
    r"|(?:सड़क|شارع) )"
)
_STREET = re.compile(
    r"\b[Pp]\.? ?[Oo]\.? [Bb]ox \d+"
    rf"|\b(?:{_PROPER} )?{_PROPER}(?:(?<=straße)|(?<=strasse)|(?<=Straße)|(?<=str\.)|(?<=platz)|(?<=allee)"
    rf"|(?<=gasse)|(?<=weg))"
    rf" {_NUMBER}\b"
    r"|\b(?:[Cc]alle|C/|[Aa]venida|[Aa]v\.|Avda\.?|[Pp]aseo|[Pp]laza|[Rr]ua|[Tt]ravessa|[Aa]lameda|[Vv]iale?"
    r"|[Cc]orso)"
    rf" ?(?:(?:de|del|da|do|dos|das|la|los|las|di|della) )*{_PROPER}(?: (?:(?:de|del|da|do|la) )?{_PROPER}){{0,3}}"
    rf",? ?(?:(?:n[ºo°.]|número|num\.?) ?)?{_NUMBER}\b"
    r"|(?:ул\.|улиц[аеы]|проспект\w?|пр-т|пер\.|переулок|бульвар) ?[А-ЯЁ][\w-]+(?: [А-ЯЁ][\w-]+)?,? ?(?:д\."
    r"|дом)? ?\d+\w?"
    r"(?:,? ?(?:кв\.|квартира) ?\d+)?"
    r"|[\u4e00-\u9fff]{2,6}(?:路|街|大道|巷|弄)\d+[号號弄](?:[\u4e00-\u9fff\d]{0,8}?\d+[室号楼])?"
)
_STREET_HINTS = (
    *(
        "box",
        "straße",
        "strasse",
        "str.",
        "platz",
        "allee",
        "gasse",
        "weg",
        "calle",
        "c/",
        "avenida",
        "av.",
        "avda",
        "paseo",
    ),
    *(
        "plaza",
        "rua",
        "travessa",
        "alameda",
        "vial",
        "via ",
        "corso",
        "ул",
        "пр",
        "пер",
        "бульвар",
        "路",
        "街",
        "道",
        "巷",
        "弄",
    ),
)
_STATE = (
    "A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]|W[AIVY]"
)
_POST_CODE = re.compile(
    rf"\b(?:{_STATE}),? \d{{5}}(?:-\d{{4}})?(?!\w)"
    r"|\b(?:[A-Z]{1,2}\d[A-Z\d]? ?\d[ABD-HJLNP-UW-Z]{2}|[A-CEGHJ-NPR-TVXY]\d[A-CEGHJ-NPR-TV-Z]"
    r" ?\d[A-CEGHJ-NPR-TV-Z]\d)\b"
)
_POST_CODE_DIGIT = re.compile(r"\d{4}|\d[A-Z]")
_NAMED_POST_CODE = re.compile(
    r"(?:\b(?:zip|zip ?code|post ?code|postal code|pin ?code|plz|postleitzahl|code postal|c[oó]digo postal|cep"
    r"|индекс)"
    r"|邮编|邮政编码|الرمز البريدي|पिन कोड)(?: is| ist| est| es| é)?[ :]*"
    r"(?P<code>\d{5}-?\d{3}|\d{4,6}(?:-\d{4})?(?: [A-Z]{2}\b)?|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2})(?![\w-])",
    re.IGNORECASE,
)
_CITY = re.compile(rf",? (?:[A-Z]{{1,2}}-)?\d{{4,5}},? {_PROPER}(?: {_PROPER})?")  # 10115 Berlin, after a street

_MONTH = (
    r"(?:jan|feb|f[eé]v|mar|mär|apr|abr|avr|ma[iy]|jun|jul|jui|aug|ao[uû]|ago|sep|set|o[ck]t|out|nov|de[czs]"
    r"|d[eé]c|dic|ene"
    r"|gen|янв|фев|мар|апр|ма[йя]|июн|июл|авг|сен|окт|ноя|дек)[^\W\d_]*\.?"
)
_YEAR = r"(?:19|20)\d\d(?!\d)"
_DATE = (
    rf"(?:\d{{1,4}}[./-] ?\d{{1,2}}[./-] ?\d{{2,4}}(?!\d)|\d{{1,2}}(?:st|nd|rd|th|\.|º|er|ого)?(?: of| de"
    rf"| di)? {_MONTH}"
    rf"(?:,? (?:de |of |del )?{_YEAR})?|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?!\d| (?:years?|months?|weeks?"
    rf"|days?)\b)(?:,? {_YEAR})?|\d{{1,2}}[./-]\d{{1,2}}(?![\d./-])|\d{{4}}年\d{{1,2}}月(?:\d{{1,2}}[日号])?)"
)
_BIRTH = re.compile(
    r"(?:(?<!\w)(?:d\.?o\.?b\.?|date of birth|birth ?date|birth ?day|b-?day|born|geb(?:oren|\.)|geburts(?:tag"
    r"|datum)|née?"
    r"|date de naissance|anniversaire|nac[ií]|nacid[oa]|fecha de nacimiento|cumplea[nñ]os|nasci|nascid[oa]"
    r"|data de nascimento|anivers[aá]rio|nat[oa]|data di nascita|родил(?:ся|ась)|дата рождения|день рождения"
    r"|जन्म(?: तिथि|दिन)?|مواليد|تاريخ الميلاد|ولدت)|出生于?|出生日期|生日)"
    r"(?:[\s:=,(-]|\b(?:is|was|on|am|ist|le|est|el|es|em|é|a|no dia|in|the|den|il|का|है|في|يوم)\b|是|在|于){0,6}"
    rf"(?P<date>{_DATE})",
    re.IGNORECASE,
)

_BIRTH_HINTS: tuple[str, ...] = ("born", "birth", "dob", "d.o.b", "bday", "b-day", "geb", "naissance", "anniv", "nac")
_BIRTH_HINTS += ("nee ", "nasc", "natal", "cumple", "nato", "nata", "aniv")
_BIRTH_HINTS_ELSEWHERE = (*_BIRTH_HINTS, "né", "род", "рожд", "出生", "生日", "जन्म", "ولد", "ميلاد", "مواليد")


def addresses(text: str) -> Iterator[Span]:
    """Streets with their numbers, post boxes and post codes."""
    lowered = text.lower()
    patterns = [_NUMBERED_STREET, _STREET] if any(hint in lowered for hint in _STREET_HINTS) else [_NUMBERED_STREET]
    for match in (match for pattern in patterns for match in pattern.finditer(text)):
        if _YEAR_AND_PLACE.match(match[0]):
            continue
        city = _CITY.match(text, match.end())
        yield Span(match.start(), city.end() if city else match.end(), "ADDRESS")
    if not _POST_CODE_DIGIT.search(text):
        return
    yield from (Span(*match.span(), "ADDRESS") for match in _POST_CODE.finditer(text))
    yield from (Span(*match.span("code"), "ADDRESS") for match in _NAMED_POST_CODE.finditer(text))


def birth_dates(text: str) -> Iterator[Span]:
    """Dates that the text calls dates of birth. A year alone stays."""
    lowered = text.lower()
    if any(hint in lowered for hint in (_BIRTH_HINTS if text.isascii() else _BIRTH_HINTS_ELSEWHERE)):
        yield from (Span(*match.span("date"), "BIRTHDATE") for match in _BIRTH.finditer(text))
