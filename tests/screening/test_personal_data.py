import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.config.contexts import Context
from psyco_ray.screening import personal_data
from psyco_ray.screening.phones import CRISIS_LINES

PIECES = ("I am 12 years old", "call me at", "555-0123", "(212) 555-0123", "988", "Thanks,", "Maria", "\n", "-", ".")
PIECES += (
    "hi im",
    "clara",
    "u/clara",
    "my insta is",
    "born 3.4.1999",
    "12 Oak Street",
    "123-45-6789",
    "a.de/x",
    "Clara here",
)
PIECES += ("My name is", "a@b.org", "@ana_b", "https://x.org/y?z=1.", "+44 20 7946 0958", "1-800-273-8255", "24/7")


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Write to ana.b+1@mail.example.co.uk, please.", "Write to [EMAIL], please."),
        ("It is ana (at) mail (dot) com now", "It is [EMAIL] now"),
        ("I found https://forum.example.org/t/12?x=1. It helped.", "I found [LINK]. It helped."),
        ("see www.example.com/a-b, or example.org!", "see [LINK], or [LINK]!"),
        ("I post as @sad_ana99 there", "I post as [HANDLE] there"),
        ("Call me at (212) 555-0123.", "Call me at [PHONE]."),
        ("My cell is 212.555.0123, or +44 20 7946 0958", "My cell is [PHONE], or [PHONE]"),
        ("Ring 07911 123456 or 06 12 34 56 78 or 2125550123", "Ring [PHONE] or [PHONE] or [PHONE]"),
        ("My number is 555-0123, any time", "My number is [PHONE], any time"),
        ("My name is Ana Maria Lopez and I am 15.", "My name is [NAME] and I am 15."),
        ("Hi, I'm Ana. I am lost.", "Hi, I'm [NAME]. I am lost."),
        ("I need help. Thanks, Maria", "I need help. Thanks, [NAME]"),
        ("I need help.\nKind regards\nMaria K. Lopez.", "I need help.\nKind regards\n[NAME]."),
        ("What should I do?\n- John Doe", "What should I do?\n- [NAME]"),
        ("What should I do? – John", "What should I do? – [NAME]"),
    ],
)
def test_personal_data_is_replaced(text: str, scrubbed: str) -> None:
    assert personal_data.scrub(text).text == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "I am 15, he is 47, and we met in 2010-2015.",
        "She takes 20 mg, then 100-200 mg, and 1000-2000 calories a day.",
        "It goes on 24/7 and we share 50/50, 100%.",
        "Since 03/12/2019, 2019-12-03 and 09-11-2001 I have slept 3.5 hours.",
        "We owe $1,250,000.00 and £200 300 4000, with pi at 3.14159265358.",
        "I told him.He said no at 10:30 p.m.",
        "My name is not important. My name is on the lease.",
        "I'm Muslim and bipolar. I am American.",
        "The one I love, Maria, has left. Thanks, God",
        "We are a well-known couple - John and I - in town.",
        "Thanks in advance, everyone",
    ],
)
def test_other_numbers_and_words_are_kept(text: str) -> None:
    assert personal_data.scrub(text).text == text


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("hi im clara and i cant sleep", "hi im [NAME] and i cant sleep"),
        ("hey, i'm trevor. please help", "hey, i'm [NAME]. please help"),
        ("my name's jake, im new here", "my name's [NAME], im new here"),
        ("my name is jane mcarthur and i am tired", "my name is [NAME] and i am tired"),
        ("MY NAME IS JANE AND I AM TIRED", "MY NAME IS [NAME] AND I AM TIRED"),
        ("I'm Tobias, 31, and out of work", "I'm [NAME], 31, and out of work"),
        ("You can call me Gwen. I go by Gwen.", "You can call me [NAME]. I go by [NAME]."),
        ("Trevor here, 23 m. Name: Tom Baker Age: 23", "[NAME] here, 23 m. Name: [NAME] Age: 23"),
        ("My name is Xqwyla. They say Xqwyla is odd.", "My name is [NAME]. They say [NAME] is odd."),
        ("Dear Dr. Okafor, I need you", "Dear Dr. [NAME], I need you"),
        ("Hi Rachel, I wonder", "Hi [NAME], I wonder"),
        ("I cannot go on. thanks, greg", "I cannot go on. thanks, [NAME]"),
        ("Please answer. love, tess xx", "Please answer. love, [NAME] xx"),
        ("What now?\nyours sincerely,\nzuleika", "What now?\nyours sincerely,\n[NAME]"),
        ("What should I do? Nathan Birch", "What should I do? [NAME]"),
        ("Me llamo Lucía y tengo 20 años", "Me llamo [NAME] y tengo 20 años"),
        ("Hola, soy carlos, estoy triste. Un abrazo, carlos", "Hola, soy [NAME], estoy triste. Un abrazo, [NAME]"),
        ("Ich heiße Jule und bin 17.\nViele Grüße\nJule", "Ich heiße [NAME] und bin 17.\nViele Grüße\n[NAME]"),
        ("Je m'appelle Hélène Petit. Merci, Hélène", "Je m'appelle [NAME]. Merci, [NAME]"),
        ("Meu nome é João. Obrigado, João", "Meu nome é [NAME]. Obrigado, [NAME]"),
        ("Привет, меня зовут Ольга Белова, мне 30", "Привет, меня зовут [NAME], мне 30"),
        ("大家好，我叫陈小雨，今年十九岁", "大家好，我叫[NAME]，今年十九岁"),
        ("本人李娜，女，25岁", "本人[NAME]，女，25岁"),
        ("اسمي سارة وعمري 20 سنة", "اسمي [NAME] وعمري 20 سنة"),
        ("mera naam rohit hai", "mera naam [NAME] hai"),
        ("मेरा नाम अनिल वर्मा है", "मेरा नाम [NAME] है"),
    ],
)
def test_names_that_people_give_are_replaced(text: str, scrubbed: str) -> None:
    assert personal_data.scrub(text).text == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "Hi, I am Depressed. Hello, I'm Anxious and lonely.",
        "Hi, I Am Desperate And Alone And Nobody In My Whole Family Ever Wants To Listen",
        "hi im lost. Hey, im gay and scared. hi im in my twenties",
        "call me crazy, but they call me fat and ugly",
        "My name is irrelevant. My name is being dragged through the mud.",
        "I'm Christian and he is Muslim. I'm Nigerian, 24, and new here.",
        "I am going to Sarah's, I'm Mike's sister, and this is Joan.",
        "thanks, guys",
        "Dear therapist, hello everyone, hi there! Love, light and peace.",
        "Confused in Ohio",
        "It helps me to:\n- Walk\n- Call Friends\n- Sleep",
        "Soy estudiante. Hola, soy Bipolar y estoy sola. Yo soy clara y soy linda.",
        "Hallo, ich bin Lehrerin und komme nicht weiter. Ich bin Student, 24.",
        "Bonjour, je suis Triste, mais je suis claire. Merci, docteur",
        "Меня зовут в гости. Привет, я Одна",
        "我叫高中同学一起去，我叫外卖。我是单亲，马上高考",
        "اسمي ليس مهما",
        "मेरा नाम खराब है",
    ],
)
def test_states_and_peoples_are_no_names(text: str) -> None:
    assert personal_data.scrub(text).text == text


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("jane dot q at outlook dot com or jq at gmail.com", "[EMAIL] or [EMAIL]"),
        ("jq_77@hotmail or my email is jq at gmail", "[EMAIL] or my email is [EMAIL]"),
        ("escríbeme a juan arroba gmail punto com", "escríbeme a [EMAIL]"),
        ("邮箱是chen.yu@mail.cn，谢谢", "邮箱是[EMAIL]，谢谢"),
        ("go-fund.me/abc, youtu.be/a1 and seelenhilfe.de", "[LINK], [LINK] and [LINK]"),
        ("see help-line.org.uk or my blog at moon.me", "see [LINK] or my blog at [LINK]"),
        ("as u/sad_panda or /u/Sad-Panda in r/lonely", "as [HANDLE] or [HANDLE] in r/lonely"),
        ("my insta is moongirl. snap: moon_girl7", "my insta is [HANDLE]. snap: [HANDLE]"),
        ("dm me on telegram @moon or moon#1234", "dm me on telegram [HANDLE] or [HANDLE]"),
        ("my snap is moongirl and add me moon_77 on kik", "my snap is [HANDLE] and add me [HANDLE] on kik"),
        ("kik me at quietmoon, my username is Quiet77", "kik me at [HANDLE], my username is [HANDLE]"),
        ("我的微信号是moon_88，QQ：123456789", "我的微信号是[HANDLE]，QQ：[HANDLE]"),
        ("мой телеграм: moon_88", "мой телеграм: [HANDLE]"),
        ("00 49 171 2345678 and 0171/2345678", "[PHONE] and [PHONE]"),
        ("8 (916) 123-45-67, llámame al 612 345 678", "[PHONE], llámame al [PHONE]"),
        ("رقمي ٠٥٠١٢٣٤٥٦٧ و नंबर ९८७६५ ४३२१०", "رقمي [PHONE] و नंबर [PHONE]"),
        ("我的电话是13912345678。", "我的电话是[PHONE]。"),
        ("I live at 12b Elm Tree Road, Leeds LS6 3HN", "I live at [ADDRESS], Leeds [ADDRESS]"),
        ("at 7 oak street, zip 90210", "at [ADDRESS], zip [ADDRESS]"),
        ("Lindenstraße 5, 10969 Berlin", "[ADDRESS]"),
        ("12 rue de la Paix ou Calle Mayor 45", "[ADDRESS] ou [ADDRESS]"),
        ("ул. Садовая, д. 5, кв. 12", "[ADDRESS]"),
        ("my bday is 12/5; 123 45 6789 is my ssn", "my bday is [BIRTHDATE]; [ID] is my ssn"),
        ("born 3.4.1999, dob: 04/12/88", "born [BIRTHDATE], dob: [BIRTHDATE]"),
        ("geboren am 3. April 1985, née le 12/05/1990", "geboren am [BIRTHDATE], née le [BIRTHDATE]"),
        ("my birthday is on May 3rd; 我出生于1990年5月12日", "my birthday is on [BIRTHDATE]; 我出生于[BIRTHDATE]"),
        ("from 192.168.7.1, fe80::1ff:fe23:4567:890a, 00:1a:2b:3c:4d:5e", "from [IP], [IP], [MAC]"),
        ("my ssn is 123-45-6789, nhs number 9434765919", "my ssn is [ID], nhs number [ID]"),
        ("passport no. X1234567, CPF 529.982.247-25", "passport no. [ID], CPF [ID]"),
        ("the DNI 12345678Z and 11010519491231002X", "the DNI [ID] and [ID]"),
        ("card 5500 0000 0000 0004, GB82 WEST 1234 5698 7654 32 please", "card [CARD], [ACCOUNT] please"),
    ],
)
def test_contacts_places_and_numbers_are_replaced(text: str, scrubbed: str) -> None:
    assert personal_data.scrub(text).text == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "I told him.It hurt.so i left.me too, e.g. this, i.e.so, etc.And that",
        "Estaba en casa.de la abuela y mal.es que no puedo",
        "my facebook is private, my insta is down again, everyone on FB is happy",
        "I opened an email account at gmail and email me at gmail is no address, meet me @work",
        "They snap at me, find me at home, and text me on weekends. at some point in life",
        "born in 1999, since 1.2.2019, at 10:30:00, version 1.2.3.4",
        "PHQ-9 of 21, GAD-7 15/21, 150 mg x 2, 10 000 steps, BMI 18.5, 5 000 000 people, grades 1-2-3-4-5-6",
        "4111 1111 1111 1112 and 1234567890123 are no cards, 529.982.247-26 neither",
        "I had 2 hours down the road, 3 kids on main street, the 2010 Supreme Court, order 12345678",
        "10 people live on our street; the 2 lane road; Platz 3 im Kurs",
        "r/depression and either/or, 50/50, C# 1234",
    ],
)
def test_ordinary_text_is_kept(text: str) -> None:
    assert personal_data.scrub(text).text == text


def test_kinds_of_what_was_replaced_are_reported() -> None:
    scrubbed = personal_data.scrub("I'm Ana, 20. Mail a@b.org or c@d.org, thanks, Ana")
    assert scrubbed.kinds == ["NAME", "EMAIL", "EMAIL", "NAME"]
    assert set(scrubbed.kinds) <= set(personal_data.KINDS)
    assert personal_data.scrub("I cannot sleep.") == ("I cannot sleep.", [])


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        (
            "hello, i am clara. mail clara.b@posteo.net or 07700 900123, insta @clara.b, see clara-b.uk/me",
            "hello, i am [NAME]. mail [EMAIL] or [PHONE], insta [HANDLE], see [LINK]",
        ),
        (
            "Hola, me llamo Inés Gil. Mi correo: ines@correo.es, mi móvil 611 22 33 44, insta: ines_g, web ines-g.es",
            "Hola, me llamo [NAME]. Mi correo: [EMAIL], mi móvil [PHONE], insta: [HANDLE], web [LINK]",
        ),
        (
            "Hallo, ich heiße Jonas Krüger, schreib an jonas@web.de oder 030 1234567, Insta: jonas.k, Seite jonas-k.de",
            "Hallo, ich heiße [NAME], schreib an [EMAIL] oder [PHONE], Insta: [HANDLE], Seite [LINK]",
        ),
        (
            "Bonjour, je m'appelle Lou. Écris à camille@orange.fr ou 06 11 22 33 44, snap: cam_3, voir camille-b.fr",
            "Bonjour, je m'appelle [NAME]. Écris à [EMAIL] ou [PHONE], snap: [HANDLE], voir [LINK]",
        ),
        (
            "Oi, meu nome é Tiago Reis, email tiago@uol.com.br, (11) 98765-4321, insta: tiago.r, blog tiago-r.com.br",
            "Oi, meu nome é [NAME], email [EMAIL], [PHONE], insta: [HANDLE], blog [LINK]",
        ),
        (
            "大家好，我叫李小龙。邮箱lxl@qq.com，手机13812345678，微信：lxl_88，网站www.lxl.cn",
            "大家好，我叫[NAME]。邮箱[EMAIL]，手机[PHONE]，微信：[HANDLE]，网站[LINK]",
        ),
        (
            "مرحبا، اسمي ليلى. بريدي laila@mail.ae ورقمي ٠٥٥١٢٣٤٥٦٧ وانستا: laila_9 وموقعي laila.ae/me",
            "مرحبا، اسمي [NAME]. بريدي [EMAIL] ورقمي [PHONE] وانستا: [HANDLE] وموقعي [LINK]",
        ),
        (
            "नमस्ते, मेरा नाम पूजा है। ईमेल pooja@mail.in, फ़ोन ९८७६५४३२१०, इंस्टा: pooja_9, साइट pooja.in/blog",
            "नमस्ते, मेरा नाम [NAME] है। ईमेल [EMAIL], फ़ोन [PHONE], इंस्टा: [HANDLE], साइट [LINK]",
        ),
        (
            "Привет, меня зовут Катя Орлова. Почта katya@yandex.ru, +7 916 123-45-67, телеграм: katya_9, сайт katya.ru",
            "Привет, меня зовут [NAME]. Почта [EMAIL], [PHONE], телеграм: [HANDLE], сайт [LINK]",
        ),
    ],
)
def test_each_language_loses_names_and_contacts(text: str, scrubbed: str) -> None:
    assert personal_data.scrub(text).text == scrubbed


@pytest.mark.parametrize("number", CRISIS_LINES)
def test_numbers_of_crisis_lines_are_kept(number: str) -> None:
    for text in (f"I called {number} last night.", f"Their number is {number}", f"text {number}, he said"):
        assert personal_data.scrub(text).text == text


def test_crisis_lines_are_kept_with_a_country_code_and_similar_numbers_are_not() -> None:
    for text in ("Call 1-800-273-8255 now", "Call +1 (800) 273-8255 now", "Call +44 116 123 now", "Call 18002738255"):
        assert personal_data.scrub(text).text == text
    assert personal_data.scrub("Call 1-800-273-8254 now").text == "Call [PHONE] now"
    assert personal_data.scrub("Call 988, or me: 212-555-0988").text == "Call 988, or me: [PHONE]"


@given(st.lists(st.sampled_from(PIECES)).map(" ".join) | st.text())
def test_scrubbing_is_idempotent(text: str) -> None:
    once = personal_data.scrub(text).text
    assert personal_data.scrub(once).text == once


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is not None, reason="the extra is installed")
def test_presidio_without_its_extra_is_an_input_error() -> None:
    with pytest.raises(ValueError, match=r"psyco-ray\[presidio\]"):
        personal_data.scrub("Ana lives in Lisbon.", presidio=True)


def test_presidio_finds_persons_and_places(tmp_path, monkeypatch) -> None:
    pytest.importorskip("presidio_analyzer", reason="needs the presidio extra")
    import spacy

    with pytest.raises(ValueError, match="spacy download no_such_model"):
        personal_data.analyzer("no_such_model")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "PERSON", "pattern": "Ana"}, {"label": "GPE", "pattern": "Lisbon"}]
    )
    pipeline.to_disk(tmp_path / "model")
    analyzer = personal_data.analyzer(str(tmp_path / "model"))
    monkeypatch.setattr(personal_data, "analyzer", lambda: analyzer)
    text = "My name is Ana and Ana moved to Lisbon."
    assert personal_data.scrub(text, presidio=True).text == "My name is [NAME] and [NAME] moved to [PLACE]."


@pytest.mark.parametrize("text", ["I am Eirik Gwizdala and I need help.", "I'm Ilmari Okonkwoski."])
def test_two_unknown_words_with_capitals_after_i_am_are_a_name(text) -> None:
    scrubbed = personal_data.scrub(text).text
    assert "[NAME]" in scrubbed
    assert not any(word in scrubbed for word in ("Eirik", "Gwizdala", "Ilmari", "Okonkwoski"))


@pytest.mark.parametrize(
    "text", ["I am African American and gay.", "I'm Roman Catholic, and she is not.", "I am Very Depressed."]
)
def test_an_origin_or_a_faith_is_no_name(text) -> None:
    assert personal_data.scrub(text).text == text


def test_a_name_that_one_turn_gives_is_replaced_in_all() -> None:
    turns = ("Hi, my name is Sarah. Mail a@b.org.", "I wonder what Sarah wants most.", "Nobody calls me Sarah now.")
    expected = (
        "Hi, my name is [NAME]. Mail [EMAIL].",
        "I wonder what [NAME] wants most.",
        "Nobody calls me [NAME] now.",
    )
    scrubbed = personal_data.scrub(Context(turns).text)
    assert Context.of(scrubbed.text).turns == expected
    assert sorted(scrubbed.kinds) == ["EMAIL", "NAME", "NAME", "NAME"]
    assert personal_data.scrub(scrubbed.text) == personal_data.Scrubbed(scrubbed.text, [])
    assert [one.text for one in personal_data.scrub_turns(turns)] == list(expected)
    assert personal_data.scrub(turns[1]).text == turns[1], "nobody gives it"
