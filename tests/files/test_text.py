"""Encodings of text files: read right, mended and counted, or refused with a guess."""

import codecs
import logging

import pytest
from support.files import write_content
from support.records import rows_of

from psyco_ray.config.errors import InputError
from psyco_ray.files.records import open_records

WORDS = "I can’t sleep – my fiancé left"
CHINESE = "最近我总是失眠，觉得没有人理解我，工作压力很大，晚上常常一个人哭，不知道该怎么办才好。"


def table(*texts: str) -> str:
    return "\n".join(["text,topic", *(f'"{text}",sleep' for text in texts)]) + "\n"


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
        ("utf-32-le", b""),
        ("utf-32-be", b""),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_unicode_is_read_as_it_is(tmp_path, encoding, mark, newline) -> None:
    content = table(WORDS, CHINESE, "😀 \u2028 مرحبا").replace("\n", newline)
    rows = rows_of(tmp_path, "a.csv", mark + content.encode(encoding))
    assert [row["text"] for row in rows] == [WORDS, CHINESE, "😀 \u2028 مرحبا"]
    lines = f'{{"text": "{CHINESE}"}}\n'
    assert rows_of(tmp_path, "a.jsonl", mark + (lines * 3).encode(encoding)) == [{"text": CHINESE}] * 3


def test_a_declared_encoding_is_used(tmp_path) -> None:
    for encoding, text in (("gb18030", CHINESE), ("Shift_JIS", "最近よく眠れません"), ("cp1251", "не могу спать")):
        rows = rows_of(tmp_path, "a.csv", table(text, text).encode(encoding), encoding)
        assert [row["text"] for row in rows] == [text, text]
    # a mark is stronger: one encoding may be declared for several files
    assert rows_of(tmp_path, "a.csv", table(CHINESE).encode("utf-8-sig"), "gb18030")[0]["text"] == CHINESE
    path = write_content(tmp_path / "b.csv", table(CHINESE))
    for declared, message in (
        ("klingon", "the encoding 'klingon' is unknown"),
        ("rot13", "the encoding 'rot13' is unknown"),
        ("ascii", "is not in the encoding ascii: 1 of 2 lines cannot be decoded"),
    ):
        with pytest.raises(InputError, match=message):
            open_records(path, "speeches", declared)


@pytest.mark.parametrize(
    ("encoding", "text", "guess"),
    [
        ("gb18030", CHINESE, "gb18030"),
        ("big5", "最近我總是失眠，覺得沒有人理解我，不知道該怎麼辦才好。", "big5"),
        ("shift_jis", "最近よく眠れません。仕事のことを考えると不安になります。", "cp932"),
        ("cp1251", "В последнее время я не могу спать и не знаю, что мне делать.", "cp1251"),
        ("cp1256", "لا أستطيع النوم في الآونة الأخيرة ولا أعرف ماذا أفعل.", "cp1256"),
        ("mac_roman", "I don’t sleep, and I can’t eat. “Why?” she said.", "mac_roman"),
        ("cp1250", "Nem tudok aludni, és félek a jövőtől.", "cp1250"),
        ("cp1250", "Nie mogę spać i czuję się bardzo źle, bo żona odeszła wczoraj.", "cp1250"),
    ],
)
def test_what_is_not_clear_is_refused_with_a_guess(tmp_path, encoding, text, guess) -> None:
    content = table(*["I cannot sleep and I am tired"] * 20, *[text] * 2)
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path, "a.csv", content.encode(encoding))
    assert f"a.csv is not UTF-8: 2 of 23 lines cannot be decoded; it looks like {guess}" in str(caught.value)
    assert f"encoding: {guess}" in str(caught.value)
    assert rows_of(tmp_path, "a.csv", content.encode(encoding), guess)[-1]["text"] == text


def test_bytes_of_windows_among_utf_8_are_mended_and_counted(tmp_path, caplog) -> None:
    lines = [
        table(*[WORDS] * 3).encode(),
        f'"{WORDS}, café’s",x\n'.encode("cp1252"),
        '"both é and '.encode(),
        b'\xe9",x\n',
    ]
    with caplog.at_level(logging.WARNING):
        rows = rows_of(tmp_path, "a.csv", b"".join(lines))
    assert [row["text"] for row in rows] == [*[WORDS] * 3, f"{WORDS}, café’s", "both é and é"]
    assert open_records(tmp_path / "a.csv", "speeches").mended == 2
    assert "a.csv: 2 lines are not all utf-8; the rest is read as Windows-1252" in caplog.text


@pytest.mark.parametrize(
    "text", [WORDS, "Ich schlafe nicht, weil es mir schlecht geht – größer", "¿Qué hago mañana?", "J’ai été créée"]
)
def test_an_old_western_file_is_read_as_windows(tmp_path, text) -> None:
    rows = rows_of(tmp_path, "a.csv", table(text, text).encode("cp1252"))
    assert [row["text"] for row in rows] == [text, text]


def test_a_cut_character_does_not_refuse_a_file(tmp_path) -> None:
    lines = [f"line {n}" for n in range(200)]
    rows = rows_of(tmp_path, "a.csv", table(*lines, CHINESE).encode().replace("最".encode(), "最".encode()[:2]))
    assert rows[-1]["text"] == "\ufffd" + CHINESE[1:]


def test_bytes_that_are_no_text_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"a\.csv is not UTF-8: "):
        rows_of(tmp_path, "a.csv", bytes(range(128, 256)) * 50 + b"\n")
