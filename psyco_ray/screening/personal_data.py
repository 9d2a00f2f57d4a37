"""Removes personal data from speeches and says of which kinds it was.

Patterns find addresses, numbers and the names people give as their own, in English, Spanish, German, French,
Portuguese, Chinese, Arabic, Hindi and Russian. Only Presidio finds names of other persons and of places. Numbers of
crisis lines stay, as do years, ages, doses and scores.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.screening.contacts import emails, links
from psyco_ray.screening.handles import handles
from psyco_ray.screening.identity_numbers import cards_and_accounts, devices, identity_numbers
from psyco_ray.screening.own_names import first_names, own_names
from psyco_ray.screening.phones import phones
from psyco_ray.screening.places import addresses, birth_dates
from psyco_ray.screening.spans import Span, normalised

KINDS = (
    "NAME",
    "EMAIL",
    "PHONE",
    "HANDLE",
    "LINK",
    "ADDRESS",
    "BIRTHDATE",
    "ID",
    "CARD",
    "ACCOUNT",
    "IP",
    "MAC",
    "PLACE",
)
"""The kinds that are told apart; a text has them in brackets where something was removed. PLACE is of Presidio only."""

_Finder = Callable[[str], Iterator[Span]]
_DIGIT = re.compile(r"\d")
_MANY_DIGITS = re.compile(r"\d(?:\D{0,3}\d){4}")

_ENTITIES = {"PERSON": "NAME", "LOCATION": "PLACE"}
_SPACY_MODEL = "en_core_web_lg"


class Scrubbed(NamedTuple):
    """A text without the personal data that was found in it."""

    text: str
    kinds: list[str]
    """The KINDS of what was replaced, one for each place."""


def scrub(text: str, presidio: bool = False) -> Scrubbed:
    """Replace personal data by its kind in brackets, such as [EMAIL] or [NAME]. Idempotent.

    Args:
        text: a cleaned speech, or a context in its stored form: a name that is given in one turn is replaced in all.
        presidio: also replace persons and places ([NAME], [PLACE]) that Presidio finds.

    Raises:
        InputError: the `presidio` extra is missing.
    """
    scrubbed = scrub_turns(Context.of(text).turns, presidio)
    return Scrubbed(Context(tuple(one.text for one in scrubbed)).text, [kind for one in scrubbed for kind in one.kinds])


def scrub_turns(turns: Sequence[str], presidio: bool = False) -> list[Scrubbed]:
    """As `scrub`, of each turn of a conversation: a name that is given in one of them is replaced in all.

    Raises:
        InputError: the `presidio` extra is missing.
    """
    names = set[str]().union(*(first_names(normalised(turn)) for turn in turns)) if len(turns) > 1 else ()
    return [_scrub(turn, presidio, names) for turn in turns]


def _scrub(text: str, presidio: bool, names: Collection[str]) -> Scrubbed:
    kinds: list[str] = []
    while spans := personal_data(text, names):  # what is replaced may separate what was joined
        text = _replaced(text, spans)
        kinds += [span.kind for span in spans]
    if presidio and (spans := _entities(text)):
        text = _replaced(text, spans)
        kinds += [span.kind for span in spans]
    return Scrubbed(text, kinds)


def personal_data(text: str, names: Collection[str] = ()) -> list[Span]:
    """The places of personal data in a text, in their order; of two that overlap, the one of the first finder.

    Args:
        text: a speech or one turn.
        names: first names that are personal data wherever they are.
    """
    readable, spans = normalised(text), list[Span]()
    for finder in _finders(readable, names):
        for span in finder(readable):
            if all(span.end <= other.start or span.start >= other.end for other in spans):
                spans.append(span)
    return sorted(spans)


def _finders(text: str, names: Collection[str]) -> Iterator[_Finder]:
    yield from (emails, links, handles, devices)
    if _DIGIT.search(text):
        yield birth_dates
        if _MANY_DIGITS.search(text):
            yield from (cards_and_accounts, identity_numbers, phones)
        yield addresses
    yield functools.partial(own_names, others=names)


def _replaced(text: str, spans: list[Span]) -> str:
    for span in reversed(spans):
        text = f"{text[: span.start]}[{span.kind}]{text[span.end :]}"
    return text


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


def _entities(text: str) -> list[Span]:
    spans: list[Span] = []
    done = len(text)  # start of the part that is masked; entities may overlap
    for entity in sorted(
        analyzer().analyze(text, language="en", entities=list(_ENTITIES)), key=lambda entity: -entity.start
    ):
        masked = "[" in text[max(0, entity.start - 1) : entity.end]
        if entity.end <= done and not masked:
            spans.append(Span(entity.start, entity.end, _ENTITIES[entity.entity_type]))
            done = entity.start
    return spans[::-1]
