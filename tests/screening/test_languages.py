"""The language of a text."""

import pytest

from psyco_ray.screening.languages import language_of, script_of

_TEXTS = {
    "en": "I have been feeling low since my mother moved away.",
    "es": "Desde que murió mi madre no tengo ganas de nada.",
    "de": "Seit meine Mutter weggezogen ist, geht es mir schlecht.",
    "fr": "Depuis le départ de ma mère, je ne me sens pas bien.",
    "pt": "Desde que a minha mãe se mudou, não me sinto bem.",
    "it": "Da quando mia madre è partita non riesco a dormire.",
    "nl": "Sinds mijn moeder verhuisd is voel ik me slecht.",
    "zh": "自从妈妈搬走以后,我一直很难过。",
    "ja": "母が引っ越してから、ずっと悲しいです。",
    "ko": "어머니가 이사한 뒤로 계속 슬퍼요.",
    "ar": "منذ أن رحلت أمي وأنا أشعر بالحزن كل يوم.",
    "fa": "از وقتی مادرم رفته است من خیلی ناراحت هستم.",
    "hi": "जब से मेरी माँ चली गई हैं, मुझे बहुत बुरा लगता है।",
    "ru": "С тех пор как мама уехала, мне очень плохо.",
    "uk": "Відколи мама поїхала, мені дуже погано і сумно.",
    "el": "Από τότε που έφυγε η μητέρα μου νιώθω άσχημα.",
}


@pytest.mark.parametrize("language", _TEXTS)
def test_a_sentence_is_recognised(language: str) -> None:
    found, confidence = language_of(_TEXTS[language])
    assert found == language
    assert 0.6 <= confidence <= 1


@pytest.mark.parametrize("text", ["", "ok", "hopeless", "1234 5678", "😢😢😢", "我", "lkjh qwrt zxcv bnml"])
def test_short_or_unsure_texts_are_unknown(text: str) -> None:
    language, confidence = language_of(text)
    assert language == "und"
    assert confidence < 0.6


def test_the_script_of_most_letters_counts() -> None:
    assert script_of("I met 李明 yesterday in the big park near the river") == "latin"
    assert script_of("我昨天见到了Tom,他说想回家") == "han"
    assert script_of("⚠ 12") is None


def test_a_foreign_text_with_some_english_words_is_not_english() -> None:
    assert language_of("Ik vind dat de meeting van he team to the point was, maar ik ben er niet blij mee.")[0] == "nl"
    assert (
        language_of("I am to be het van een die maar niet voor ook dan nog wel eens zijn hebben worden kunnen")[0]
        != "en"
    )
