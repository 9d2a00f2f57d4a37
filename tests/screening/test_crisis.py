"""Signs of a crisis in texts of nine languages."""

import pytest

from psyco_ray.config.contexts import Context
from psyco_ray.screening import crisis, measured
from psyco_ray.screening.patterns import Phrases
from psyco_ray.screening.spelling import Speller


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("I have thought about suicide.", "self-harm"),
        ("I would NEVER kill myself, but I think of it", "self-harm"),
        ("I don’t want to live like this", "self-harm"),
        ("Sometimes I wish I had never been born.", "self-harm"),
        ("They'd all be better off without me", "self-harm"),
        ("i just want it all to end. i want to die", "self-harm"),
        ("there is no reason left to go on", "self-harm"),
        ("I can't do this anymore, I don't want to be here anymore", "self-harm"),
        ("I started cutting my arms again, self harm is my relief", "self-harm"),
        ("My friend says he took a bottle of pills", "self-harm"),
        ("I have urges to hurt people", "violence"),
        ("Some days I could kill him", "violence"),
        ("I am afraid that I will harm my baby", "violence"),
        ("Last night I hit my wife and I am ashamed", "violence"),
        ("He brought a gun to school", "violence"),
        ("My boyfriend hits me when he drinks", "abuse"),
        ("My mother used to beat me", "abuse"),
        ("I was raped when I was nine", "abuse"),
        ("he put his hands on me", "abuse"),
        ("My uncle touched me when I was small", "abuse"),
        ("I do not feel safe at home, he threatened to kill me", "abuse"),
        ("She won't let me leave the house", "abuse"),
    ],
)
def test_signs_of_danger_are_flagged(text: str, kind: str) -> None:
    assert kind in crisis.signs(text)


@pytest.mark.parametrize(
    "text",
    [
        "This homework is killing me.",
        "I am dying to see her again.",
        "I nearly died of embarrassment; we were killing time.",
        "I beat myself up over small things and shot myself in the foot at work.",
        "My feet are killing me and my skills are poor.",
        "I feel anxious at work and cannot sleep. What can I do to relax?",
        "It hit me that I cut down on sugar for nothing.",
    ],
)
def test_figures_of_speech_are_not_flagged(text: str) -> None:
    assert crisis.signs(text) == []


@pytest.mark.parametrize(
    ("harmless", "danger"),
    [
        ("This spreadsheet is killing me.", "My husband is killing me."),
        ("The humidity here is killing me.", "The loneliness here is killing me."),
        ("I could murder a cheeseburger.", "I could murder a random stranger."),
        ("The ball hit me in the face at practice.", "My father hit me in the face."),
        ("I was hit by a wave of nostalgia.", "I was hit by my stepdad."),
        ("She pushed me to sign up for the choir.", "She pushed me to the ground."),
        ("I want this meeting to end.", "I want this pain to end."),
        ("I'm going to murder that mosquito.", "I'm going to murder that man."),
        ("I overdosed on crime dramas this week.", "I overdosed on my pills this week."),
        ("We are not allowed to leave the exam room.", "I am not allowed to leave the house."),
    ],
)
def test_the_subject_and_the_object_decide(harmless: str, danger: str) -> None:
    assert crisis.signs(harmless) == []
    assert crisis.signs(danger)


@pytest.mark.parametrize(
    "harmless",
    [
        "In the book the father beats his son and it made me cry.",
        "In the opera she stabs him and jumps off the castle.",
        "The hero jumps off a bridge in the trailer.",
        "I have bruises from the climbing wall.",
        "We stood on the roof and watched the fireworks.",
        "Fasting until the blood draw at nine.",
    ],
)
@pytest.mark.parametrize("danger", ["I want to die.", "He hit me again.", "I cut myself.", "I make myself throw up."])
def test_a_harmless_sentence_hides_no_danger_beside_it(harmless: str, danger: str) -> None:
    assert crisis.signs(harmless) == []
    assert crisis.signs(f"{harmless} {danger}") == crisis.signs(f"{danger} {harmless}") != []


@pytest.mark.parametrize(
    "text",
    [
        "After the movie he hit me in the car again.",
        "While cooking I cut my wrists on purpose.",
        "I play video games all night so I don't kill myself.",
        "My coach hits us when we lose the match.",
        "On the ferry I make myself throw up after dinner.",
        "Last night after watching a movie I emptied the medicine cabinet.",
        "In the series we watch it is the same, my stepfather comes to my bed at night.",
        "I read a book about this last week and I don't want to be here anymore",
        "He hits our grandmother, just like in a film.",
        "Ich habe einen Film gesehen und will mich umbringen.",
        "Nach dem Krimi hat mein Mann mich geschlagen.",
        "看完电影我想自杀",
    ],
)
def test_a_harmless_frame_hides_no_danger_in_it(text: str) -> None:
    assert crisis.signs(text)


def test_a_wish_to_die_is_no_violence() -> None:
    assert crisis.signs("I sleep badly. I want to die.") == ["self-harm"]


def test_each_kind_is_listed_once_and_in_order() -> None:
    text = "He hits me, he abuses me. I want to die, suicide. I could kill him."
    assert crisis.signs(text) == ["self-harm", "violence", "abuse"]


@pytest.mark.parametrize(
    "text",
    [
        "I want to k i l l my self",
        "thinking about su*cide again",
        "i just wanna d!e tonight",
        "S U I C I D E",
        "thoughts of suicde every day",
        "my sucidial thoughts are back",
        "I wnat to kil myself",
        "I want to dieeee",
        "so tired, I want to 𝐝𝐢𝐞",
        "gonna unalive myself",
        "he k1lled himself",
    ],
)
def test_typos_spaces_and_masks_do_not_hide_a_sign(text: str) -> None:
    assert "self-harm" in crisis.signs(text)


@pytest.mark.parametrize(
    ("text", "language", "kind"),
    [
        ("昨天和妈妈吵架,我也不想活了,每天都很难受", "zh", "self-harm"),
        ("我覺得活著沒有意義,想要結束自己的生命", "zh", "self-harm"),
        ("Desde el divorcio no quiero vivir más, nadie me entiende", "es", "self-harm"),
        ("Mein Freund hat mich gestern wieder geschlagen", "de", "abuse"),
        ("Je me fais vomir après chaque repas depuis un mois", "fr", "eating disorder"),
        ("Tenho medo de machucar o meu bebê quando ele chora", "pt", "violence"),
        ("أفكّر في الانتِحار منذ شهور ولا أحد يعرف", "ar", "self-harm"),
        ("मेरे पति मुझे रोज़ मारते हैं और मैं कहाँ जाऊँ", "hi", "abuse"),
        ("Я больше не хочу жить и не знаю, кому сказать", "ru", "self-harm"),
    ],
)
def test_a_text_is_screened_in_its_language(text: str, language: str, kind: str) -> None:
    found = crisis.screen(text)
    assert found.language == language
    assert kind in found.kinds


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Da quando lavoro qui non dormo bene e sono sempre stanco.", "it"),
        ("会社でうまく話せなくて困っています。", "ja"),
        ("요즘 회사에서 너무 힘들고 잠을 못 자요.", "ko"),
        ("Відколи я переїхав до міста, мені дуже самотньо і сумно.", "uk"),
        ("1234 ??", "und"),
    ],
)
def test_a_text_without_a_lexicon_is_not_screened(text: str, language: str) -> None:
    assert crisis.screen(text) == crisis.Screened(language, (), None)
    assert crisis.signs(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Ik wil dood.",
        "Ölmek istiyorum, kimse beni anlamıyor.",
        "もう死にたいです。",
        "죽고 싶어요",
        "Nie chcę żyć, mam dość.",
    ],
)
def test_unmistakable_words_of_more_languages_are_flagged(text: str) -> None:
    assert crisis.signs(text) == ["self-harm"]


def test_a_sign_counts_in_a_text_that_is_not_screened() -> None:
    found = crisis.screen("Non riesco a dormire da settimane, sono stanco di tutto. I want to kill myself.")
    assert (found.language, found.kinds) == ("it", ("self-harm",))
    found = crisis.screen("I moved here last year and my only friend wrote to me yesterday: 我不想活了。")
    assert (found.language, found.kinds) == ("en", ("self-harm",))


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("Hello! I want to kill my self, really.", [("self-harm", "kill my self")]),
        ("Naïve: ﬁne. Suﬀering \u200bsuicidal today.", [("self-harm", "suicidal")]),
        ("So. Some days I w a n t to d i e.", [("self-harm", "w a n t to d i e")]),
        ("天气很好。我 想 自 杀 了。", [("self-harm", "自 杀")]),
    ],
)
def test_flags_have_the_places_of_the_text(text: str, flags: list[tuple[str, str]]) -> None:
    found = [(flag.kind, text[flag.start : flag.end]) for flag in crisis.screen(text).flags]
    assert set(flags) <= set(found)


def test_the_screen_keeps_its_figures_on_the_packaged_phrases() -> None:
    figures = measured.measure()
    # what was measured, with a margin, so that a change is noticed; the bars are in benchmarks/crisis.py
    bars = {"dev": (0.95, 0.1), "kept": (0.9, 0.1), "unseen": (0.6, 0.2), "fresh": (0.3, 0.25)}
    assert set(bars) == set(measured.PARTS)
    for part, (recall, false_alarms) in bars.items():
        assert figures[part]["recall"] >= recall, part
        assert figures[part]["false_alarms"] <= false_alarms, part
    counts = [cell[1] for kinds in figures["languages"].values() for kind, cell in kinds.items() if kind != "benign"]
    assert sum(counts) >= 300
    assert set(figures["languages"]) == {*measured.NAMES.values(), "English (unseen)", "English (fresh)"}
    for language in measured.NAMES.values():
        kinds = figures["languages"][language]
        flagged, count = (sum(values) for values in zip(*(kinds[kind] for kind in crisis.KINDS), strict=True))
        assert flagged / count >= 0.9, language


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        ("want ... (die|be dead)", "i want to just really die now", "want to just really die "),
        ("want ... die", "want a b c d die", None),
        ("want ... die", "want . die", None),
        ("want ... so? ... die", "want a b c so d e f die", "want a b c so d e f die "),
        ("want (...)? die*", "want to diee", "want to diee "),
        ("(i|we) (really|do)? want", "we want", "we want "),
        ("took # (pills|of)", "took 30 of", "took 30 of "),
        ("(#) calories", "only 300 calories", "300 calories "),
        ("the end .", "the end . no", "the end . "),
        ("kill*", "a killer", "killer "),
        ("the !(man|old man) hit me", "the ball hit me", "the ball hit me "),
        ("the !(man|old man) hit me", "the man hit me", None),
        ("the ... !(man|old man) hit me", "the big ball hit me", "the big ball hit me "),
        ("the !ball? hit", "the ball hit", None),
    ],
)
def test_phrases_are_found(phrase: str, text: str, found: str | None) -> None:
    joined = f"{text} "
    places = Phrases({"kind": [phrase]}, {}).find(text.split(), joined)
    assert [joined[start:end] for _, start, end in places] == ([found] if found else [])


@pytest.mark.parametrize("text", ["Hoy han sido 400 calorías.", "Heute waren es 400 Kalorien."])
def test_phrases_that_begin_with_a_number_are_no_comments(text: str) -> None:
    assert crisis.signs(text) == ["eating disorder"]


def test_a_number_is_no_word_in_disguise() -> None:
    assert Speller({"to", "as"}, {}).words("70") == ("70",)
    assert Speller({"suicide"}, {}).words("su1c1de") == ("suicide",)


def test_a_wrong_phrase_is_named() -> None:
    for line in ("... die", "!you die", "want? to die", "want (to", "want to) die", "(a|) die"):
        with pytest.raises(ValueError, match="the phrase"):
            Phrases({"self-harm": [line]}, {})


def test_every_turn_of_the_client_is_screened_and_none_of_the_therapist() -> None:
    said = (
        "I sleep badly since my exams began.",
        "Some people say that they want to die.",
        "I want to die, too.",
        "Oh.",
    )
    found = crisis.screen(Context((*said, "He hits me every night, and I'm afraid of him.")).text)
    assert found.kinds == ("self-harm", "abuse")
    shown = Context((*said, "He hits me every night, and I'm afraid of him.")).transcript
    assert [shown[flag.start : flag.end] for flag in found.flags][:2] == ["want to die", "He hits me"]
    assert shown.index("I want to die, too.") < found.flags[0].start
    assert crisis.signs(Context(said[:1]).text) == []
    assert crisis.signs(Context((*said[:2], "So what?")).text) == []
    assert (
        crisis.screen(Context(("Seit Wochen schlafe ich schlecht.", "Oh.", "Ich will sterben.")).text).language == "de"
    )
