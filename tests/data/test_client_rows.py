"""The client's words in tables with several speakers, lists and whole conversations."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.files import write_content

from psyco_ray.config.errors import InputError
from psyco_ray.config.reading import Reading
from psyco_ray.data.client_rows import ClientFile, ClientRow, by_count
from psyco_ray.data.speaker_columns import Keys

KEYS = Keys("data.speech_column", "data.where", "data.dialogue")


def open_file(path: Path, **reading) -> ClientFile:
    return ClientFile(path, "speeches", ["text"], KEYS, Reading(**reading))


def rows_of(path: Path, **reading) -> list[ClientRow]:
    return list(open_file(path, **reading).rows())


def texts_of(path: Path, **reading) -> list[str | None]:
    return [row.text for row in rows_of(path, **reading)]


DIALOGUES = [
    ("a", "therapist", "Hello."),
    ("a", "client", "I lie awake."),
    ("b", "Client ", "I left him."),
    ("a", "client", "Since May."),
    ("b", "therapist", "Why?"),
    ("c", "client", " "),
    ("c", "client", "I am here."),
    ("c", "observer", "Notes."),
]


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def dialogues(request, tmp_path) -> Path:
    path = tmp_path / f"table.{request.param}"
    rows = [dict(zip(("id", "interlocutor", "text"), row, strict=True)) for row in DIALOGUES]
    if request.param == "csv":
        return write_content(path, "\n".join([";".join(rows[0]), *(";".join(row.values()) for row in rows)]))
    if request.param == "jsonl":
        return write_content(path, "\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_a_table_with_several_speakers_needs_where(dialogues) -> None:
    with pytest.raises(InputError) as caught:
        open_file(dialogues)
    assert str(caught.value) == (
        f"speeches file {dialogues}: the column interlocutor names who speaks (therapist, client, Client and 1 other "
        "value); say which rows are the client's with data.where: {interlocutor: client}"
    )
    said = ["I lie awake.", "I left him.", "Since May.", None, "I am here."]
    rows = rows_of(dialogues, where={"interlocutor": "client"})
    assert [row.text for row in rows if not row.skipped] == said
    assert [row.number for row in rows if row.skipped] == [1, 5, 8]
    assert texts_of(dialogues, where={"interlocutor": ["client", "observer"]})[-1] == "Notes."
    assert texts_of(dialogues, where={"interlocutor": "client", "id": "b"}) == [None, None, "I left him.", *[None] * 5]


def test_of_each_dialogue_the_first_turn_is_read(dialogues) -> None:
    rows = rows_of(dialogues, where={"interlocutor": "client"}, dialogue="id")
    assert [(row.number, row.text) for row in rows if row.text] == [
        (2, "I lie awake."),
        (3, "I left him."),
        (7, "I am here."),
    ]
    assert [row.number for row in rows if row.skipped] == [1, 4, 5, 8]


def test_values_of_where_are_those_of_the_file(tmp_path) -> None:
    rows = [{"text": "one", "speaker": 1, "ok": True}, {"text": "two", "speaker": 2, "ok": False}]
    path = write_content(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert texts_of(path, where={"speaker": 1}) == ["one", None]
    assert texts_of(path, where={"ok": False, "speaker": [1, 2]}) == [None, "two"]
    with pytest.raises(InputError, match=r"a\.jsonl: no row is chosen by data\.where; speaker is 1, 2$"):
        open_file(path, where={"speaker": 3}).check()
    with pytest.raises(InputError, match=r"a\.jsonl has no column role; it has text, speaker, ok"):
        open_file(path, where={"role": "client"})


def test_names_of_authors_and_rows_of_clients_alone_need_no_where(tmp_path) -> None:
    def write(*speakers: str | None) -> Path:
        rows = [{"text": f"words {n}", "Author": name} for n, name in enumerate(speakers)]
        return write_content(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))

    assert texts_of(write(*(f"name{n}x" for n in range(21)), "Dr. Lee"))[20:] == ["words 20", None]
    rows = rows_of(write(*["client"] * 1000, None, "therapist"))
    assert [row.text for row in rows[999:]] == ["words 999", "words 1000", None]
    assert rows[-1].problem == "Author names another speaker than the client"
    long = "I have told nobody about this yet and"
    many = [f"{name} {n}" for n in range(30) for name in ("client", "therapist")]
    for names in (("Ann", "Lee"), ("therapist",), ("client", "therapist"), (long, "client"), many):
        with pytest.raises(InputError, match="the column Author names who speaks") as caught:
            open_file(write(*names))
        assert long not in str(caught.value)


def test_patterns_are_removed_before_layouts_are_recognised(tmp_path) -> None:
    cells = ["Consider this post: I left. -> sad", "NOTE 12\nPatient: I left.\nDoctor: Why?", "I left."]
    path = write_content(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": cell}) for cell in cells))
    assert texts_of(path, strip=[r"(?i)^consider this post:", r"->.*", r"NOTE \d+"]) == ["I left."] * 3


def test_a_declared_encoding_is_used(tmp_path) -> None:
    path = write_content(tmp_path / "a.csv", "text\n我最近总是失眠，觉得没有人理解我\n".encode("gb18030"))
    assert texts_of(path, encoding="gb18030") == ["我最近总是失眠，觉得没有人理解我"]


def test_cells_that_are_no_text_are_named_without_their_content(tmp_path) -> None:
    secret = "nobody knows this"
    client = [{"from": "system", "value": "x"}, {"from": "human", "value": secret}]
    cells = [client, str(client), json.dumps(client), {"messages": client}, secret.encode(), [secret]]
    problems = [
        ([secret, secret], "text is a list of values that name no speaker"),
        ([{"role": "bot", "content": secret}], "text is a list without a message of the client; its speakers are bot"),
        ({"deep": {"er": secret}}, "text is an object without a message of the client"),
        (f"Ann: {secret}\nLee: {secret}", "text is a conversation of unknown speakers"),
        (True, "text is true or false, not text"),
        (1.5, "text is a number, not text"),
        (secret.encode("utf-16"), "text is bytes that are not UTF-8, not text"),
    ]
    for cell, problem in [*((cell, None) for cell in cells), *problems]:
        path = tmp_path / "cell.parquet"
        pq.write_table(pa.table({"text": [cell, None]}), path)
        row, _ = rows_of(path)
        assert (row.text, row.problem) == (secret if problem is None else None, problem)


@given(
    st.lists(st.none() | st.text(max_size=20) | st.integers() | st.lists(st.text(max_size=3), max_size=2), max_size=8)
)
def test_every_row_of_any_cells_is_accounted_for(tmp_path_factory, cells) -> None:
    path = tmp_path_factory.mktemp("cells") / "a.jsonl"
    write_content(path, "\n".join(json.dumps({"text": cell}) for cell in [*cells, "last"]))
    rows = rows_of(path)
    assert [row.number for row in rows] == list(range(1, len(cells) + 2))
    assert rows[-1].text == "last"
    assert all(row.text is None or row.problem is None for row in rows)


def test_reasons_come_by_their_number() -> None:
    assert by_count({"b": 2, "a": 2, "c": 1000}) == "1,000 c, 2 a, 2 b"
