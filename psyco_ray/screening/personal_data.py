"""Removes personal data from speeches: e-mail addresses, phone numbers, links, and the names people give as their own.

Numbers of crisis lines stay, as do numbers that are not phone numbers.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError

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
    "3114": "France",
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
    "0800 567 567": "South Africa",
}
"""Crisis and emergency lines with their countries; the long ones may be preceded by 1 or a country code."""

_CRISIS_DIGITS = [re.sub(r"\D", "", number).lstrip("0") for number in CRISIS_LINES]

_AT, _DOT = r"(?:@|\s?[\[(]\s?at\s?[\])]\s?)", r"(?:\.|\s?[\[(]\s?dot\s?[\])]\s?|\sdot\s)"
_EMAIL = re.compile(rf"(?<![\w.+-])[\w.+-]+{_AT}[\w-]+(?:{_DOT}[\w-]+)+", re.IGNORECASE)

_PATH = r"[^\s<>]*[^\s<>.,;:!?)\]'\"]"  # without the punctuation of the sentence
_LINK = re.compile(
    rf"(?:https?://|www\.){_PATH}"
    rf"|(?<![\w.-])(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|io|co\.uk|org\.uk)\b(?:/{_PATH})?"
    r"|(?<![\w@./])@[a-z_](?:[\w.]*\w)?",  # a handle
    re.IGNORECASE,
)

_GAP = r"[ .-]{0,2}"
_PHONE = re.compile(
    rf"(?<![\w$£€.,/-])(?:"
    rf"(?:\+|00)[1-9]\d{{0,2}}(?:{_GAP}\(?\d{{1,5}}\)?){{2,5}}"  # with a country code
    rf"|(?:1{_GAP})?\(?[2-9]\d\d\)?{_GAP}\d{{3}}{_GAP}\d{{4}}"  # North America
    rf"|\(?0\d{{1,4}}\)?(?:{_GAP}\d{{2,6}}){{1,4}}"  # with a leading zero
    rf")(?![\w%]|[.,/-]\d)"
)
_MIN_PHONE_DIGITS = 9  # fewer may be a date
_NAMED_PHONE = re.compile(  # a shorter number that the sentence calls a phone number
    r"(\b(?:call|text|phone|reach|ring)(?:ing)? (?:me |us )?(?:at |on )?"
    r"|\b(?:phone|cell|mobile|number)(?: number)?(?: is|'s|’s|:)? )(\+?\d[\d ().-]{5,16}\d)(?!\w)",
    re.IGNORECASE,
)
_MIN_NAMED_PHONE_DIGITS = 7

_NAME = (
    r"(?!(?:God|Lord|Jesus|Allah|All|Every\w*|Any\w*|You|Doc\w*|In|For|So|Please|Help|The|This|That|And|But|My|Not)\b)"
    r"[A-Z][\w'’-]*[a-z](?: [A-Z]\.)?(?: [A-Z][\w'’-]*[a-z]){0,2}"
)
_OWN_NAME = re.compile(
    r"(\b[Mm]y (?:first |full |real |last )?name(?: is|['’]s) "
    r"|\b(?:Hi|Hello|Hey|hi|hello|hey)(?: there| all| everyone)?[,.!]? (?:I['’]m|Im|I am|[Mm]y name is|[Tt]his is) )"
    rf"{_NAME}"
)
_CLOSING = (
    r"(?:[Mm]any |[Kk]ind |[Bb]est )?(?:[Tt]hanks|[Tt]hank you|[Tt]hx|[Rr]egards|[Bb]est|[Ww]ishes|[Ss]incerely"
    r"|[Yy]ours|[Ll]ove|[Cc]heers|[Ss]igned)(?: in advance| so much| again| truly)?"
)
_SIGNED = re.compile(rf"((?:^|\n|[.!?] ){_CLOSING}(?:,|!|\n| [-–—])\s?[-–—]?|(?:\n|[.!?] )[-–—~] ?){_NAME}(?=\.?\s*\Z)")

_ENTITIES = {"PERSON": "[NAME]", "LOCATION": "[PLACE]"}
_SPACY_MODEL = "en_core_web_lg"


def scrub(text: str, presidio: bool = False) -> str:
    """Replace personal data by [EMAIL], [LINK], [PHONE] and [NAME].

    Args:
        text: a cleaned speech.
        presidio: also replace persons and places ([NAME], [PLACE]) that Presidio finds.

    Raises:
        InputError: the `presidio` extra is missing.
    """
    text = _EMAIL.sub("[EMAIL]", text)
    text = _LINK.sub("[LINK]", text)
    text = _PHONE.sub(lambda match: _mask_phone(match[0], _MIN_PHONE_DIGITS), text)
    text = _NAMED_PHONE.sub(lambda match: match[1] + _mask_phone(match[2], _MIN_NAMED_PHONE_DIGITS), text)
    text = _OWN_NAME.sub(r"\1[NAME]", text)
    text = _SIGNED.sub(r"\1[NAME]", text)
    return _mask_entities(text) if presidio else text


@functools.lru_cache(maxsize=1)
def analyzer(model: str = _SPACY_MODEL) -> Any:
    """Presidio's analyzer with an installed spaCy model.

    Raises:
        InputError: the `presidio` extra or the model is missing.
    """
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError:
        raise InputError("scrub.presidio needs an extra: pip install 'psyco-ray[presidio]'") from None
    if not (spacy.util.is_package(model) or Path(model).is_dir()):
        raise InputError(f"scrub.presidio needs a spaCy model: python -m spacy download {model}")
    models = [{"lang_code": "en", "model_name": model}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    return AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=["en"])


def _mask_phone(number: str, min_digits: int) -> str:
    """[PHONE], or the number itself if it is a crisis line or too short."""
    digits = re.sub(r"\D", "", number)
    crisis = any(digits.endswith(line) and len(digits) - len(line) <= 3 for line in _CRISIS_DIGITS if len(line) >= 6)
    return number if crisis or not min_digits <= len(digits) <= 15 else "[PHONE]"


def _mask_entities(text: str) -> str:
    entities = analyzer().analyze(text, language="en", entities=list(_ENTITIES))
    done = len(text)  # start of the part that is masked; entities may overlap
    for entity in sorted(entities, key=lambda entity: entity.start, reverse=True):
        masked = "[" in text[max(0, entity.start - 1) : entity.end]
        if entity.end <= done and not masked:
            text = text[: entity.start] + _ENTITIES[entity.entity_type] + text[entity.end :]
            done = entity.start
    return text
