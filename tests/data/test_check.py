"""What is said of a file before a job reads it."""

import csv
import gzip
import io
import json

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dialogue_files import annomi, dialogue, esconv
from support.files import write_content
from support.raw_speeches import speech

from psyco_ray.config.errors import InputError
from psyco_ray.config.reading import Reading
from psyco_ray.data import table_sample
from psyco_ray.data.check import check, masked
from psyco_ray.data.clean import clean

TEXTS = [speech(seed) for seed in range(30)]
GERMAN = "Seit Wochen kann ich nicht schlafen und denke jeden Abend an meine Schwester. Meine Nummer ist 0171 2345678."


def as_csv(rows: list[list[str]], header: list[str], separator: str = ",") -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows([header, *rows])
    return buffer.getvalue()


def as_jsonl(rows: list[dict]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def test_speeches_of_a_table_are_counted(tmp_path) -> None:
    rows = [[str(n), text, "sleep"] for n, text in enumerate(TEXTS)]
    rows += [["30", TEXTS[0], ""], ["31", "", ""], ["32", GERMAN, ""], ["33", "I want to die. Call me: 212-555-0123."]]
    found = check(str(write_content(tmp_path / "notes.csv", as_csv(rows, ["id", "text", "topic"], ";"))))
    assert (found.what, found.kind, found.encoding, found.read_as) == ("speeches", "CSV with ;", "utf-8", "text")
    assert (found.counts.rows, found.counts.whole, found.sampled, found.guessed) == (34, True, 34, False)
    assert found.counts.bad == {"2 cells where the header has 3": 1}
    assert found.left_out == {"2 cells where the header has 3": 1, "with an empty text": 1}
    assert found.counts.equal == 1
    assert len(found.texts) == 32
    assert found.near() == 1
    assert found.languages()["de"] == 1
    assert found.personal_data() == {"any": 1, "PHONE": 1}
    assert list(found.columns) == ["id", "text", "topic"]
    assert found.columns["topic"] == "text of 5 characters, 9% empty"


def test_signs_of_a_crisis_are_counted_by_text(tmp_path) -> None:
    rows = [{"text": "I want to die and he hits me, he beats me."}, {"text": TEXTS[0]}]
    rows += [{"text": "会社でうまく話せなくて困っています。"}]
    found = check(str(write_content(tmp_path / "a.jsonl", as_jsonl(rows)))).crisis()
    assert found["any"] == found["self-harm"] == found["abuse"] == found["not screened"] == 1


def excel() -> bytes:
    book = openpyxl.Workbook()
    for row in (["text"], *([text] for text in TEXTS)):
        book.active.append(row)
    book.save(buffer := io.BytesIO())
    return buffer.getvalue()


def parquet() -> bytes:
    pq.write_table(pa.table({"text": [text.encode() for text in TEXTS]}), buffer := io.BytesIO())
    return buffer.getvalue()


ROWS = [{"text": text} for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", as_csv([[text] for text in TEXTS], ["text"]).encode("utf-16"), "CSV"),
        ("a.tsv", as_csv([["1", text] for text in TEXTS], ["id", "text"], "\t"), "TSV"),
        ("a.json", json.dumps({"data": ROWS}), "JSON"),
        ("a.jsonl.gz", gzip.compress(as_jsonl(ROWS).encode()), "JSONL"),
        ("a.parquet", parquet(), "Parquet"),
        ("a.xlsx", excel(), "Excel"),
    ],
)
def test_files_of_every_kind_are_read(tmp_path, name: str, content: str | bytes, kind: str) -> None:
    found = check(str(write_content(tmp_path / name, content)))
    assert found.kind.startswith(kind)
    assert found.texts == TEXTS


def test_the_client_is_found_by_the_speakers(tmp_path) -> None:
    rows = [[who, f"{who} {text}"] for text in TEXTS for who in ("Client", "therapist")]
    path = str(write_content(tmp_path / "a.csv", as_csv(rows, ["speaker", "utterance"])))
    found = check(path)
    assert found.read_as == "utterance"
    assert found.guessed
    assert found.speakers == {"speaker": {"Client": 30, "therapist": 30}}
    assert found.reading.where == {"speaker": ["Client"]}
    assert found.left_out == {"outside where": 30}
    assert all(text.startswith("Client ") for text in found.texts)
    other = check(path, reading=Reading(where={"speaker": ["therapist"]}))
    assert all(text.startswith("therapist ") for text in other.texts)


def test_unknown_speakers_are_refused_until_where_names_one(tmp_path) -> None:
    rows = [[who, text] for text in TEXTS for who in ("Anna", "Ben")]
    path = str(write_content(tmp_path / "a.csv", as_csv(rows, ["speaker", "text"])))
    with pytest.raises(InputError, match=r"speaker names who speaks \(2 other values\).*--where COLUMN=VALUE"):
        check(path)
    assert len(check(path, reading=Reading(where={"speaker": ["Anna"]})).texts) == 30


LOST = "My husband left me in May and since then I cannot sleep at all, what should I do?"


@pytest.mark.parametrize("header", [["p017", LOST], ["I feel so alone", LOST], ["help me", "I want to die"]])
def test_a_first_row_of_texts_is_no_column_to_read(tmp_path, header) -> None:
    path = str(write_content(tmp_path / "a.csv", as_csv([["x", text] for text in TEXTS], header)))
    with pytest.raises(InputError, match=r"its first row looks like data; .*; name the column with --column") as caught:
        check(path)
    assert not [word for word in ("husband", "alone", "help", "die") if word in str(caught.value)]
    assert check(path, column=header[1]).texts == TEXTS


def test_clients_are_found_by_roles_alone(tmp_path) -> None:
    rows = [[who, f"{who} {text}"] for text in TEXTS for who in ("Client", "Client (cries: he left)", "Dr", "Anna")]
    path = str(write_content(tmp_path / "a.csv", as_csv(rows, ["speaker", "text"])))
    assert check(path).reading.where == {"speaker": ["Client"]}
    rows = [[who, text] for text in TEXTS for who in ("Client Anna", "Dr")]
    path = str(write_content(tmp_path / "b.csv", as_csv(rows, ["speaker", "text"])))
    with pytest.raises(InputError, match=r"\(Dr and 1 other value\); .*\{speaker: the client's name in it\}") as caught:
        check(path)
    assert "Anna" not in str(caught.value)


def test_a_column_of_replies_is_no_guess(tmp_path) -> None:
    rows = [["1", text, text * 3] for text in TEXTS]
    path = write_content(tmp_path / "a.csv", as_csv(rows, ["nr", "story", "therapist_reply"]))
    assert (found := check(str(path))).read_as == "story"
    assert found.guessed
    assert check(str(path), column="therapist_reply").read_as == "therapist_reply"


def test_message_lists_give_the_clients_turn_and_others_a_reason(tmp_path) -> None:
    rows = [{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": t}]} for t in TEXTS]
    rows.append({"messages": [{"role": "assistant", "content": "Hello."}]})
    found = check(str(write_content(tmp_path / "a.jsonl", as_jsonl(rows))))
    assert found.read_as == "messages"
    assert found.texts == TEXTS
    ((reason, count),) = found.left_out.items()
    assert count == 1
    assert "without a message of the client" in reason


def test_pairs_are_found_by_their_shape(tmp_path) -> None:
    rows = [{"prompt": text, "chosen": "a longer reply", "rejected": "short"} for text in TEXTS]
    rows.append({"prompt": "x", "chosen": "same", "rejected": "same"})
    path = str(write_content(tmp_path / "a.jsonl", as_jsonl(rows)))
    found = check(path)
    assert (found.what, found.read_as) == ("pairs", "a prompt and two responses")
    assert (found.counts.rows, found.pairs, found.chosen_longer) == (31, 30, 30)
    assert found.texts == TEXTS
    ((_, count),) = found.left_out.items()
    assert count == 1
    assert check(path, "speeches", "prompt").texts[:30] == TEXTS


def test_the_question_of_messages_is_the_last_one(tmp_path) -> None:
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "?"},
        {"role": "user", "content": "Why"},
    ]
    rows = [{"prompt": prompt, "chosen": "a", "rejected": "b"}]
    assert check(str(write_content(tmp_path / "a.jsonl", as_jsonl(rows)))).texts == ["Why"]


def test_a_large_file_is_read_in_part(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(table_sample, "_READ_BYTES", 2000 * 310)
    rows = [[f"{text[:280]} {n:06d}"] for n in range(200) for text in TEXTS]
    path = write_content(tmp_path / "a.csv", as_csv(rows, ["text"]))
    found = check(str(path))
    assert not found.counts.whole
    assert 1000 < found.counts.rows < 6000
    assert found.sampled == len(found.texts) == 1000
    assert found.counts.total == pytest.approx(6000, rel=0.05)
    assert len(set(found.texts)) == 1000
    assert any(int(text[-6:]) > 40 for text in found.texts), "not of the first rows alone"
    assert check(str(path)).texts == found.texts
    pq.write_table(pa.table({"text": [row[0] for row in rows]}), tmp_path / "a.parquet")
    assert check(str(tmp_path / "a.parquet")).counts.total == 6000


def test_rows_of_a_large_file_are_estimated_by_their_bytes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(table_sample, "_READ_BYTES", 1000)
    rows = [{"text": "最近我总是失眠，觉得没有人理解我" * 5, "topic": str(n)} for n in range(3000)]
    content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    assert check(str(write_content(tmp_path / "a.jsonl", content))).counts.total == pytest.approx(3000, rel=0.1)
    wide = as_csv([[row["text"]] for row in rows], ["text"]).encode("utf-16")
    assert check(str(write_content(tmp_path / "b.csv", wide))).counts.total == pytest.approx(3000, rel=0.1)
    packed = check(str(write_content(tmp_path / "c.jsonl.gz", gzip.compress(content.encode()))))
    assert not packed.counts.whole
    assert packed.counts.total is None


def test_long_texts_are_kept_in_part_with_their_lengths(tmp_path) -> None:
    rows = [{"text": f"{text} " * (300 if n % 2 else 100)} for n, text in enumerate(TEXTS)]
    found = check(str(write_content(tmp_path / "a.jsonl", as_jsonl(rows))))
    assert found.lengths == [len(row["text"]) - (len(row["text"]) <= 50_000) for row in rows]
    assert all(len(text) == 2000 for text in found.texts)


def test_names_of_authors_are_no_speakers(tmp_path) -> None:
    rows = [[f"anna-{chr(97 + n % 26)}{n // 26 * 'b'}" if n else "patient", text] for n, text in enumerate(TEXTS)]
    found = check(str(write_content(tmp_path / "a.csv", as_csv(rows, ["author", "text"]))))
    assert found.reading.where == {}
    assert found.texts == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,n\n1,2\n3,4\n", "neither the columns of preference pairs nor .* texts; it has id, n"),
        ("a.csv", "text\n\n", "has no rows"),
        ("a.csv", "text,text\na,b\n", "has two columns text"),
        ("a.csv", "text\n最近我总是失眠，觉得没有人理解我，工作压力很大\n".encode("gbk"), "is not UTF-8"),
        ("a.docx", "text\na\n", "has none of the endings"),
        ("a.jsonl", '{"chosen": "a", "rejected": "a", "prompt": "x"}\n', "has no usable pair"),
        ("a.csv", "text,id\n,1\n", r"has no speech in its column text \(with an empty text: 1\)"),
        ("a.jsonl", '{"text": [1, 2]}\n', "has no speech in its column text"),
    ],
)  # fmt: skip
def test_what_no_command_reads_is_refused(tmp_path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check(str(write_content(tmp_path / name, content)))
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_declared_encoding_is_used(tmp_path) -> None:
    text = "最近我总是失眠，觉得没有人理解我，工作压力很大，晚上常常一个人哭"
    path = write_content(tmp_path / "a.csv", f"text\n{text}\n".encode("gbk"))
    found = check(str(path), reading=Reading(encoding="gbk"))
    assert found.texts == [text]
    assert found.languages()["zh"] == 1


def test_pairs_without_their_columns_are_refused_by_name(tmp_path) -> None:
    path = write_content(tmp_path / "a.csv", as_csv([[text] for text in TEXTS], ["text"]))
    with pytest.raises(InputError, match="has the columns text; accepted are"):
        check(str(path), "pairs")


@given(st.text(max_size=200))
def test_masked_texts_show_no_letter_and_no_digit(text: str) -> None:
    shown = masked(text, 100)
    assert {char for char in shown if char.isalpha()} <= {"x", "X"}
    assert {char for char in shown if char.isdigit()} <= {"9"}
    assert len(shown) <= 101


def test_conversations_and_their_contexts_are_counted(tmp_path) -> None:
    dialogues = [dialogue(1, 4), dialogue(2, 1), dialogue(3, 6)]
    found = check(str(esconv(tmp_path / "esconv.json", dialogues)))
    assert (found.read_as, found.sampled, found.conversations, found.contexts) == ("dialog", 3, 2, 10)
    assert found.texts[0] == clean(dialogues[0].opening)
    whole = check(found.name, reading=Reading(conversations="contexts"))
    assert (whole.conversations, whole.contexts) == (2, 10)
    assert whole.lengths == [len("\n".join(map(clean, one.client_turns))) for one in dialogues]
    path = str(annomi(tmp_path / "annomi.csv", {str(n): one for n, one in enumerate(dialogues)}))
    settings = {"where": {"interlocutor": ["client"]}, "dialogue": "transcript_id"}
    table = check(path, reading=Reading(conversations="contexts", **settings))
    assert (table.conversations, table.contexts, len(table.texts)) == (2, 10, 22)
    assert check(path, reading=Reading(**settings)).conversations == 0
