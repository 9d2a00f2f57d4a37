"""Identity and tax numbers, payment cards, accounts and addresses of devices in a `normalised` text.

A number that stands alone counts where its form and check digits say what it is. With a word such as "passport" before
it, its length is enough.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from stdnum import iban, luhn
from stdnum.be import nn
from stdnum.br import cpf
from stdnum.ch import ssn as ahv
from stdnum.cn import ric
from stdnum.cz import rc
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.in_ import aadhaar, pan
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.mx import curp
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.ro import cnp
from stdnum.se import personnummer
from stdnum.tr import tckimlik
from stdnum.us import ssn
from stdnum.za import idnr as za_id

from psyco_ray.screening.phones import AFTER, BEFORE, is_crisis_line
from psyco_ray.screening.spans import Span

_Check = Callable[[str], bool]

_CARD = re.compile(rf"{BEFORE}[2-6]\d{{3}}(?:[ -]?\d{{2,6}}){{2,4}}{AFTER}")
_CARD_DIGITS = range(13, 20)
_IBAN = re.compile(r"(?<![A-Z0-9_])[A-Z]{2}\d\d(?:[ -]?[A-Z0-9]{1,4}){3,9}(?![A-Z0-9_])", re.IGNORECASE)

# Digits with or without separators, by their number, with the checks of the countries that use it.
_DIGITS = re.compile(rf"{BEFORE}\d(?:[ ./-]{{0,2}}\d){{10,17}}[Xx]?{AFTER}")
_CHECKS: dict[int, tuple[_Check, ...]] = {
    11: (cpf.is_valid, idnr.is_valid, pesel.is_valid, nn.is_valid, tckimlik.is_valid, fodselsnummer.is_valid),
    12: (aadhaar.is_valid,),
    13: (za_id.is_valid, cnp.is_valid, rrn.is_valid, ahv.is_valid),
    15: (nir.is_valid,),
    18: (ric.is_valid,),
}


def _any(number: str) -> bool:
    return True


# Forms of a number's groups and letters, with their checks.
_FORMS: list[tuple[str, _Check]] = [
    (r"\d{3}[ -]\d\d[ -]\d{4}", ssn.is_valid),
    (r"\d{8}[ -]?[A-Za-z]", dni.is_valid),
    (r"[XYZxyz][ -]?\d{7}[ -]?[A-Za-z]", nie.is_valid),
    (r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]", _any),  # National Insurance, United Kingdom
    (r"[A-Za-z]{6}\d\d[A-Za-z]\d\d[A-Za-z]\d{3}[A-Za-z]", codicefiscale.is_valid),
    (r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z0-9]\d", curp.is_valid),
    (r"[A-Z]{5}\d{4}[A-Z]", pan.is_valid),
    (r"\d{6}[-+A]\d{3}[0-9A-Y]", hetu.is_valid),
    (r"(?:\d\d)?\d{6}[-+]\d{4}", personnummer.is_valid),
    (r"\d{6}/\d{3,4}", rc.is_valid),
    (r"\d{3}-\d{3}-\d{3} \d\d", _any),  # SNILS, Russia
]
_FORM = re.compile(BEFORE + "(?:" + "|".join(f"({form})" for form, _ in _FORMS) + ")" + AFTER)

_DATE = r"(?:\d\d?[/.-]\d\d?[/.-](?:\d{4}|\d\d)|\d{4}[/.-]\d\d?[/.-]\d\d?)(?!\d)"
_NAMED = re.compile(  # my passport number is X
    r"(?:\b(?:ssn|social security|social insurance|sin|nhs|national insurance|passport|driv\w+ licen[cs]e"
    r"|licen[cs]e|tax"
    r"|tin|account|acct|routing|sort code|(?:credit |debit )?card|member(?:ship)?|policy|insurance|medicare"
    r"|medicaid|patient"
    r"|medical record|mrn|case|student|employee|id|dni|nie|nif|nss|c[eé]dula|pasaporte|cpf|rg|(?:personal)?ausweis\w*"
    r"|reisepass\w*|steuer\w*|sozialversicherung\w*|versicherten\w*|konto\w*|passeport|s[eé]curit[eé] sociale"
    r"|s[eé]cu|bsn"
    r"|aadhaa?r|паспорт\w*|инн|снилс|полис\w*)(?!\w)"
    r"|身份证|护照|银行卡|卡号|رقم الهوية|رقم الجواز|आधार|पासपोर्ट)"
    r"\s?(?:id|card|कार्ड)?\s?(?:numbers?|num|no\.?|nr\.?|#|n[uú]mero|nummer|num[eé]ro|номер|नंबर|号码?)?"
    rf"\s?(?:is|es|ist|est|é|:|=|是|为|है|هو|-)?\s?(?<![A-Za-z])(?!{_DATE})(?P<number>(?:[A-Z]{{1,3}}["
    rf" -]?)?\d(?:[ ./-]?\d){{4,17}}(?:[ -]?[A-Z])?)"
    r"(?![A-Za-z0-9_%])",
    re.IGNORECASE,
)
_MIN_NAMED_DIGITS = 6

_MAC = re.compile(r"(?<![\w:-])[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}(?![\w:-])", re.IGNORECASE)
_IP4 = re.compile(r"\d(?<![\w.]\d)\d{0,2}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}(?![\w:])", re.IGNORECASE)
_VERSION = re.compile(r"(?:version|v\.?|release|build|section|chapter) ?\Z", re.IGNORECASE)


def cards_and_accounts(text: str) -> Iterator[Span]:
    """Payment cards (Luhn's check digit) and IBANs (theirs)."""
    for match in _IBAN.finditer(text):
        number = match[0]
        while number and not iban.is_valid(number):  # the words after it look like groups
            number = number[: max(number.rfind(" "), 0)]
        if number:
            yield Span(match.start(), match.start() + len(number), "ACCOUNT")
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if len(digits) in _CARD_DIGITS and luhn.is_valid(digits):
            yield Span(*match.span(), "CARD")


def identity_numbers(text: str) -> Iterator[Span]:
    """Numbers of persons at authorities, insurers and banks."""
    for match in _FORM.finditer(text):
        assert match.lastindex is not None
        if _FORMS[match.lastindex - 1][1](match[0].replace(" ", "-")):
            yield Span(*match.span(), "ID")
    for match in _DIGITS.finditer(text):
        number = re.sub(r"[^\dXx]", "", match[0])
        if number[0] == "0" and "." not in match[0]:
            continue  # a phone
        if not is_crisis_line(number) and any(check(number) for check in _CHECKS.get(len(number), ())):
            yield Span(*match.span(), "ID")
    for match in _NAMED.finditer(text):
        if len(re.sub(r"\D", "", match["number"])) >= _MIN_NAMED_DIGITS and not is_crisis_line(match["number"]):
            yield Span(*match.span("number"), "ID")


def devices(text: str) -> Iterator[Span]:
    """IP and MAC addresses."""
    if text.count(":") >= 2:
        yield from (Span(*match.span(), "IP") for match in _IP6.finditer(text) if _is_address(match[0]))
    if text.count(":") >= 5 or text.count("-") >= 5:
        yield from (Span(*match.span(), "MAC") for match in _MAC.finditer(text))
    for match in _IP4.finditer(text):
        if _is_address(match[0]) and not _VERSION.search(text[max(0, match.start() - 10) : match.start()]):
            yield Span(*match.span(), "IP")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
