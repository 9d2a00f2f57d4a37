"""Raw files as untidy as they come, to client speeches."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st
from support.paths import SHARED_DATA

from psyco_ray.config.data import DataJob, Source
from psyco_ray.data import duplicates, sources, splits
from psyco_ray.data.clean import clean
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED, DROPPED

RAW = SHARED_DATA / "raw"

OPENINGS = (
    "I've been feeling overwhelmed lately, and",
    "For some weeks now I have noticed that",
    "I don't know why, but",
)
MIDDLES = (
    "my sister {name} has stopped talking to me",
    "every night I wake up at three and think about {name}",
    "my husband {name} reads all my messages",
    "my friend {name} moved away and our calls have become short",
)
SYLLABLES = [first + vowel for first in "bdfghklmnprstvz" for vowel in "aeiou"]


def speech(seed: int, name: str = "Maria") -> str:
    """A synthetic speech of 200 to 400 characters, most of it words of its own."""
    draw = random.Random(seed)
    words = " ".join("".join(draw.choices(SYLLABLES, k=draw.randint(2, 4))) for _ in range(30))
    return f"{draw.choice(OPENINGS)} {draw.choice(MIDDLES)}. I miss {words}, and {name}.".format(name=name)


# --- cleaning


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<p>I feel sad.</p><p>Very&nbsp;sad.</p>", "I feel sad.\nVery sad."),
        ("one<br>two<BR />three<br/><br/>four", "one\ntwo\nthree\nfour"),
        ("<div class=\"a b\"><b>No</b>body <a href='https://x.org/?a=1'>calls</a> me</div>", "Nobody calls me"),
        ("a<script type='x'>var a = '<b>';</script>b<style>p {}</style>c<!-- no -->d", "a b c d"),
        ("I feel < 3 and > 5", "I feel < 3 and > 5"),
        ("x<y and y>z, I <3 you, <name> <I feel bad>", "x<y and y>z, I <3 you, <name> <I feel bad>"),
        ("Tom &amp; I &lt;3 you &#39;now&#x27; &copy R&B &amp;amp;", "Tom & I <3 you 'now' &copy R&B &"),
        ("&lt;p&gt;escaped&lt;/p&gt;", "escaped"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"),
        ("a \u00a0 b\u200b\u2060c\ufeff \x00d\x07", "a bc d"),
        ("  a\r\n\r\n \t b\rc\u2028d  ", "a\nb\nc\nd"),
        ("cafe\u0301", "café"),
        ("I donâ€™t â€œknowâ€\x9d â€” cafÃ© Â£5 â€¦", "I don’t “know” — café £5 …"),
        ("itÃ¢â‚¬â„¢s", "it’s"),
        ("ðŸ˜€ ok", "😀 ok"),
        ("I don\x92t", "I don’t"),
        ("Ünïcödé stays: 日本語 😀 naïve â la carte À propos", "Ünïcödé stays: 日本語 😀 naïve â la carte À propos"),
        ("half \ud83d character", "half character"),
        (" \n\u200b<p></p>", ""),
    ],
)
def test_cleaning(raw: str, text: str) -> None:
    assert clean(raw) == text


FRAGMENTS = (
    "<p>",
    "</p",
    ">",
    "<",
    "&",
    "amp;",
    "lt;",
    "#39;",
    "&#x26;",
    "â€™",
    "Ã",
    "â",
    "€",
    "\x92",
    "\u0301",
    "\n",
    " ",
    "b",
)


@given(st.text() | st.lists(st.sampled_from(FRAGMENTS)).map("".join))
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert not once.startswith(("\n", " "))
    assert "  " not in once
    assert "\n\n" not in once
    once.encode()


# --- reading


def rows_of(path: Path | str, **more: str) -> list[sources.RawRow]:
    return list(sources.read(Source(name="s", path=str(path), **more)))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_as_it_comes(tmp_path) -> None:
    content = (
        b"\xef\xbb\xbfid, text ,topic\r\n"
        b'1,"two\r\nlines, ""quoted""",sleep\r\n'
        b"2,caf\xc3\xa9 and caf\xe9 \x93so\x94,\r\n"
        b"\r\n"
        b"3,one,cell,more\r\n"
        b"4\r\n"
        b"5,with \x00 nul,work\r\n"
        b"6,,\r\n"
    )
    found = rows_of(write(tmp_path / "a.csv", content))
    assert [row.number for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row.text for row in found] == [
        'two\r\nlines, "quoted"',
        "cafÃ© and café “so”",
        None,
        None,
        "with \x00 nul",
        None,
    ]
    assert [row.topic for row in found] == ["sleep", None, None, None, "work", None]
    assert [row.problem for row in found] == [
        None,
        None,
        "4 cells where the header has 3",
        "1 cells where the header has 3",
        None,
        None,
    ]


def test_a_csv_cell_without_end_spoils_one_row_only(tmp_path) -> None:
    lines = ["text", '"no end'] + [f"line {n} " + "x" * 100 for n in range(3000)]
    found = rows_of(write(tmp_path / "a.csv", "\n".join(lines)))
    assert found[0].problem.startswith("invalid CSV: field larger")
    assert found[-1].text.startswith("line 2999")
    assert len(found) > 1000


def test_utf_16_csv(tmp_path) -> None:
    path = write(tmp_path / "a.csv", 'text\n"café\nça"\nvoilà\n'.encode("utf-16"))
    assert [row.text for row in rows_of(path)] == ["café\nça", "voilà"]


def test_json_as_it_comes(tmp_path) -> None:
    lines = [
        json.dumps({"text": "first"}),
        "",
        '{"text": "torn',
        "[1, 2]",
        json.dumps({"text": 7}),
        json.dumps({"text": None, "topic": ["a", 1, "b"]}),
        json.dumps({"other": "x"}),
        '{"text": "raw\ttab"}',
        '{"text": "half \\ud83d character"}',
        json.dumps({"text": {"deep": 1}}),
    ]
    for name in ("a.jsonl", "a.json"):
        found = rows_of(write(tmp_path / name, b"\xef\xbb\xbf" + "\n".join(lines).encode() + b'\n{"text": "caf\xe9"}'))
        assert [row.text for row in found] == ["first", *[None] * 5, "raw\ttab", "half  character", None, "café"]
        assert [row.number for row in found if row.problem] == [2, 3, 4, 9]
        assert found[1].problem.startswith("invalid JSON: ")
        assert [found[n].problem for n in (2, 3, 8)] == [
            "a list instead of an object",
            "text is a int, not text",
            "text is a dict, not text",
        ]
        assert found[4].topic == "a; b"


def test_json_array(tmp_path) -> None:
    path = write(tmp_path / "a.json", json.dumps([{"text": "one"}, 2, {"text": "three"}], indent=1))
    assert [(row.text, row.problem) for row in rows_of(path)] == [
        ("one", None),
        (None, "a int instead of an object"),
        ("three", None),
    ]
    with pytest.raises(ValueError, match=r"b\.json is not a JSON array"):
        rows_of(write(tmp_path / "b.json", '[{"text": "one"},'))


def test_parquet_and_globs_are_numbered_through(tmp_path) -> None:
    for n, words in enumerate((["a", None], ["", "d"])):
        pq.write_table(pa.table({"speech": words, "x": [1, 2]}), tmp_path / f"part-{n}.parquet")
    found = rows_of(tmp_path / "part-*.parquet")
    assert [(row.number, row.text) for row in found] == [(1, "a"), (2, None), (3, None), (4, "d")]


def test_adapters_read_their_sources(tmp_path) -> None:
    psych8k = (
        "If you are a licensed psychologist, please provide this patient with a helpful response to their concern."
    )
    chat16k = (
        "You are a helpful mental health counselling assistant, please answer the mental health questions based on the "
        "patient's description. The assistant gives helpful, comprehensive, and appropriate answers to the user's "
        "questions."
    )
    cases = {
        "counsel-chat": [
            ({"questionTitle": "Title", "questionText": "Words", "topic": "sleep"}, "Words"),
            ({"questionTitle": "Title", "questionText": " "}, "Title"),
        ],
        "mentalagora": [({"post": "Words"}, "Words")],
        "therapistqa": [({"Patient Question": "Words", "Dominant Distortion": "x"}, "Words")],
        "psych8k": [
            ({"instruction": psych8k, "input": "Words", "output": "x"}, "Words"),
            ({"instruction": psych8k, "input": "", "output": "x"}, None),
            ({"instruction": psych8k + " Words", "output": "x"}, "Words"),
        ],
        "amod-counseling": [({"Context": "Words", "Response": "x"}, "Words")],
        "mentalchat16k": [
            ({"instruction": chat16k, "input": "Words"}, "Words"),
            ({"instruction": chat16k, "input": ""}, None),
            ({"instruction": "Words", "response": "x"}, "Words"),
        ],
        "phi2-mental": [
            ({"text": "<HUMAN>: Words,\nmore <ASSISTANT>: x <HUMAN>: y"}, "Words,\nmore"),
            ({"text": "###Human: Words\n\n###Assistant: x"}, "Words"),
            ({"text": "Instruct: Words\nmore\nOutput: x"}, "Words\nmore"),
            ({"text": "<s>[INST] <<SYS>> be kind <</SYS>> Words [/INST] x </s>"}, "Words"),
            ({"text": "<|im_start|>system\nx<|im_end|>\n<|im_start|>user\nWords<|im_end|>"}, "Words"),
            ({"text": "Plain words"}, "Plain words"),
            ({"text": [{"from": "system", "value": "x"}, {"from": "human", "value": "Words"}]}, "Words"),
            ({"text": [{"role": "assistant", "content": "x"}]}, None),
        ],
    }
    assert set(cases) | {"generic"} == set(sources.adapters())
    for adapter, expected in cases.items():
        path = write(tmp_path / f"{adapter}.jsonl", "\n".join(json.dumps(cells) for cells, _ in expected))
        assert [row.text for row in rows_of(path, adapter=adapter)] == [text for _, text in expected], adapter
    assert rows_of(tmp_path / "counsel-chat.jsonl", adapter="counsel-chat")[0].topic == "sleep"
    path = write(tmp_path / "own.csv", "Words,Field\nhello,sleep\n")
    assert rows_of(path, text="Words", topic="Field") == [sources.RawRow("s", 1, "hello", "sleep")]


def test_wrong_files_and_columns_are_clear_errors(tmp_path) -> None:
    table = write(tmp_path / "a.csv", "one,two\n1,2\n")
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"text": ["x" * 100] * 1000}), whole)
    cases = [
        (table, {}, r"a\.csv has no column text or speech or question or client; it has one, two; .* source's text"),
        (table, {"text": "three"}, "no column three; it has one, two"),
        (table, {"text": "one", "topic": "three"}, "no column three; it has one, two; .* source's topic"),
        (table, {"adapter": "nope"}, "unknown adapter nope; known are amod-counseling, counsel-chat"),
        (tmp_path / "no*.csv", {}, r"no file matches .*no\*\.csv"),
        (write(tmp_path / "a.txt", "x"), {}, r"a\.txt has none of the endings \.csv"),
        (write(tmp_path / "b.csv", ""), {}, r"b\.csv has no rows"),
        (write(tmp_path / "c.csv", "text\n"), {}, r"c\.csv has no rows"),
        (write(tmp_path / "d.jsonl", "\n"), {}, r"d\.jsonl has no rows"),
        (write(tmp_path / "e.jsonl", '{"one": 1}\n'), {}, "no column text .*; it has one"),
        (write(tmp_path / "f.parquet", whole.read_bytes()[:-9]), {}, r"f\.parquet cannot be read"),
    ]
    for path, more, message in cases:
        for look in (sources.check, lambda source: list(sources.read(source))):
            with pytest.raises(ValueError, match=message):
                look(Source(name="s", path=str(path), **more))


def test_hub_datasets_are_read_in_one_of_their_forms(tmp_path, monkeypatch) -> None:
    import huggingface_hub

    (tmp_path / "data").mkdir()
    for name in ("data/test.jsonl", "data/train.jsonl"):
        write(tmp_path / name, json.dumps({"text": name}))
    write(tmp_path / "same.csv", "text\nthe same again\n")
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **more: asked.append((name, more["repo_type"])) or str(tmp_path),
    )
    found = list(sources.read(Source(name="h", hub="somebody/some-set")))
    assert [row.text for row in found] == ["data/test.jsonl", "data/train.jsonl"]
    assert asked == [("somebody/some-set", "dataset")]


# --- duplicates


def near_of(texts: list[str], threshold: float = 0.6) -> dict[int, int]:
    return duplicates.near(duplicates.signatures(texts), texts.__getitem__, threshold)


@given(st.integers(0, 10**6), st.sampled_from(["Bob", "Alexandra", "Jo", "Kim Lee"]))
def test_a_speech_with_another_name_is_a_near_duplicate(seed: int, name: str) -> None:
    text = f"I argue with Maria. {speech(seed)[60:200]}, and Maria."
    other = text.replace("Maria", name).replace("I ", "i ").replace(".", " !")
    assert duplicates.similarity(text, other) >= 0.6
    assert near_of([speech(seed + 1), text, other]) == {2: 1}


def test_short_speeches_about_the_same_are_kept() -> None:
    texts = [
        "I've been feeling overwhelmed lately with work and my family. I can't balance it all. What can I do?",
        "I've been feeling overwhelmed lately, and I find it hard to sleep. My mind keeps racing. What can I do?",
        "I've been feeling overwhelmed lately because of my exams. I am afraid to fail and to disappoint my parents.",
        "I've been feeling overwhelmed and anxious lately, and my partner doesn't understand why. How do I explain it?",
    ]
    assert near_of(texts) == {}


def test_what_stays_is_pairwise_different_and_nearly_nothing_is_missed() -> None:
    draw = random.Random(0)
    texts = [speech(seed) for seed in range(120)]
    for text in texts[:80]:
        words = text.split()
        for _ in range(draw.randrange(1, 6)):
            words[draw.randrange(len(words))] = draw.choice(["perhaps", "sometimes", "really"])
        texts.append(" ".join(words))
    draw.shuffle(texts)
    found = near_of(texts)
    stays = [n for n in range(len(texts)) if n not in found]
    assert all(mate < n and mate in stays for n, mate in found.items())
    grams = [duplicates.grams(text) for text in texts]
    close = [
        (a, b) for a in stays for b in stays if a < b and len(grams[a] & grams[b]) >= 0.6 * len(grams[a] | grams[b])
    ]
    assert len(found) >= 60
    assert len(close) <= 1


def test_signatures_are_the_same_everywhere() -> None:
    signed = duplicates.signatures(["I cannot sleep.", "i CANNOT   sleep", "Ok", ""])
    assert signed.shape == (4, duplicates.PERMUTATIONS)
    assert signed.dtype == np.uint32
    assert (signed[0] == signed[1]).all()
    assert signed[0, :3].tolist() == [637405928, 64659928, 15991927]  # frozen


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.text("abÄß 日_.\n"), max_size=12))
def test_signatures_are_those_of_datasketch(texts: list[str]) -> None:
    encoded = ([gram.encode() for gram in duplicates.grams(text)] for text in texts)
    peer = [minhash.hashvalues for minhash in MinHash.generator(encoded, num_perm=duplicates.PERMUTATIONS, seed=1)]
    assert duplicates.signatures(texts).tolist() == [signature.tolist() for signature in peer]


def test_duplicates_do_not_depend_on_what_is_looked_at_together(monkeypatch) -> None:
    texts = [speech(seed % 60, name) for seed, name in enumerate(["Maria", "Bob", "Jo", "Alexandra"] * 60)]
    random.Random(0).shuffle(texts)
    signed = duplicates.signatures(texts)
    for rows in (1, 7, 100):
        pieces = [duplicates.signatures(texts[start : start + rows]) for start in range(0, len(texts), rows)]
        assert (np.concatenate(pieces) == signed).all()
    whole = near_of(texts)
    assert len(whole) > 100
    for pairs in (1, 10, 1000):
        monkeypatch.setattr(duplicates, "_BLOCK_PAIRS", pairs)
        assert near_of(texts) == whole


# --- the whole


def job_of(directory: Path, blocks: int | None = None, order: tuple[str, ...] = ("first", "second"), **more) -> DataJob:
    paths = {"first": "first*.jsonl", "second": "second.csv"}
    return DataJob(
        sources=[Source(name=name, path=str(directory / paths[name])) for name in order],
        collect={"blocks": blocks, **more.pop("collect", {})},
        **more,
    )


@pytest.fixture
def raw(tmp_path) -> Path:
    """260 speeches in two sources, with one of each thing that can be wrong, and planted duplicates."""
    own = [{"text": f"<p>{speech(n)}</p>", "topic": " work "} for n in range(200)]
    own[3]["text"] += " I want to die."
    own += [
        {"text": speech(7).upper()},  # exact duplicate of row 8
        {"text": speech(9, "Jonathan").replace("miss", "missed")},  # near duplicate of row 10
        {"text": "Too short."},
        {"text": "long " * 300},
        {"text": "<br>"},
        {"text": 5},
    ]
    lines = [json.dumps(row) for row in own]
    write(tmp_path / "first-1.jsonl", "\n".join(lines[:100]))
    write(tmp_path / "first-2.jsonl", "\n".join([*lines[100:], "{torn"]))
    other = ["topic,text", *(f'home,"{speech(n)}"' for n in range(1000, 1060))]
    other += [f'home,"{speech(11)}"', f'home,"{speech(12, "Jonathan")}"', f'home,"{speech(9, "Jonathan")}"', "ragged"]
    write(tmp_path / "second.csv", "\n".join(other))
    return tmp_path


def read_back(out: Path) -> tuple[list[dict], list[dict]]:
    names = shards.list_shards(out / "speeches")
    dropped = pq.read_table(out / "dropped.parquet")
    assert dropped.schema == DROPPED
    return [row for name in names for row in shards.read(out / "speeches", name)], dropped.to_pylist()


def test_collect_tells_where_every_row_went(raw, tmp_path, local_ray) -> None:
    from psyco_ray.data.collect import collect

    out = tmp_path / "out"
    facts = collect(job_of(raw), out)
    kept, dropped = read_back(out)
    assert [path.name for path in sorted(out.iterdir())] == ["dropped.parquet", "speeches"]
    assert facts["rows"] == 207 + 64 == facts["kept"] + len(dropped)
    assert facts["kept"] == 260 == len(kept)
    assert facts["dropped"] == Counter(row["reason"] for row in dropped)
    assert facts["dropped"] == {
        "exact duplicate": 2,
        "near duplicate": 3,
        "too short": 1,
        "too long": 1,
        "empty": 1,
        "bad row": 3,
    }
    assert facts["sources"]["second"] == {
        "rows": 64,
        "kept": 60,
        "exact duplicate": 1,
        "near duplicate": 2,
        "bad row": 1,
    }
    by_row = {(row["source"], row["source_row"]): row for row in kept}
    assert [(row["source"], row["source_row"]) for row in dropped] == sorted(
        (row["source"], row["source_row"]) for row in dropped
    )
    detail = {(row["source"], row["source_row"]): row["detail"] for row in dropped}
    for duplicate, original in {("first", 201): 8, ("first", 202): 10, ("second", 61): 12, ("second", 62): 13}.items():
        assert detail[duplicate] == f"{by_row['first', original]['speech_id']} of first"
    assert detail["first", 203] == "10 characters"
    assert detail["first", 207].startswith("invalid JSON")
    for row in kept:
        assert row["speech_id"] == splits.speech_id(row["speech"])
        assert row["speech"] == clean(row["speech"])
        assert row["source_topic"] == {"first": "work", "second": "home"}[row["source"]]
    assert by_row["first", 4]["crisis"] == ["self-harm"]
    assert facts["crisis"]["self-harm"] == sum("self-harm" in row["crisis"] for row in kept)
    assert facts["splits"] == Counter(row["split"] for row in kept)
    for row in kept:
        test = splits.unit("test", row["speech"]) < 0.1243
        dev = splits.is_dev(row["speech"], 0.1)
        assert row["split"] == ("test" if test else "dev" if dev else "train")
    assert len(shards.list_shards(out / "speeches")) == 16
    for name in shards.list_shards(out / "speeches"):
        part = shards.read(out / "speeches", name)
        assert [row["speech_id"] for row in part] == sorted(row["speech_id"] for row in part)
        assert all(row["speech_id"].startswith(name) for row in part)
        assert pq.read_schema(out / "speeches" / f"{name}.parquet") == COLLECTED


def test_collect_gives_the_same_however_it_is_cut(raw, tmp_path, local_ray) -> None:
    from psyco_ray.data.collect import collect

    outcomes = []
    for n, blocks in enumerate((1, 4, None)):
        facts = collect(job_of(raw, blocks), tmp_path / f"out{n}")
        outcomes.append((facts, *read_back(tmp_path / f"out{n}")))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    collect(job_of(raw, order=("second", "first")), tmp_path / "out0")
    swapped, _ = read_back(tmp_path / "out0")
    assert {row["source"] for row in swapped if row["speech"] == clean(speech(11))} == {"second"}, (
        "the first source wins"
    )


def test_more_data_moves_no_speech_between_splits(raw, tmp_path, local_ray) -> None:
    from psyco_ray.data.collect import collect

    collect(job_of(raw, order=("second",)), tmp_path / "few")
    collect(job_of(raw, order=("second", "first")), tmp_path / "many")
    few, many = ({row["speech_id"]: row for row in read_back(tmp_path / name)[0]} for name in ("few", "many"))
    assert len(few) == 63
    assert all(many[key] == row for key, row in few.items())


def test_collect_with_scrubbing_and_without_a_screen(tmp_path, local_ray) -> None:
    from psyco_ray.data.collect import collect

    write(tmp_path / "first.jsonl", "\n".join(json.dumps({"text": speech(1) + f" Mail me: a{n}@b.org"}) for n in "xy"))
    job = job_of(tmp_path, order=("first",), scrub={"enabled": True}, crisis={"enabled": False})
    facts = collect(job, tmp_path / "out")
    (row,), (dropped,) = read_back(tmp_path / "out")
    assert row["speech"].endswith("Mail me: [EMAIL]")
    assert row["speech_id"] == splits.speech_id(row["speech"])
    assert row["crisis"] is None
    assert facts["crisis"] == {}
    assert dropped["reason"] == "exact duplicate", "the texts are the same once they are scrubbed"
    with pytest.raises(ValueError, match=r"no speech is left of 2 rows .*collect\.min_chars 999"):
        collect(job_of(tmp_path, order=("first",), collect={"min_chars": 999}), tmp_path / "out")
    assert read_back(tmp_path / "out")[0] == [row], "a failed run leaves the last result alone"


def test_a_broken_file_is_a_clear_error(tmp_path, local_ray) -> None:
    from psyco_ray.data.collect import collect

    path = tmp_path / "first.parquet"
    pq.write_table(pa.table({"text": [speech(n) for n in range(3000)]}), path, row_group_size=500)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) * 3 // 4] = bytes(len(content) * 3 // 4 - len(content) // 2)
    path.write_bytes(content)
    sources.check(Source(name="first", path=str(path)))
    job = DataJob(sources=[Source(name="first", path=str(path))])
    with pytest.raises(ValueError, match=r"^source first: .*first\.parquet cannot be read"):
        collect(job, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(not RAW.is_dir(), reason="needs the raw files beside the checkout")
def test_real_sources(tmp_path, local_ray) -> None:
    from psyco_ray.data.collect import collect

    chat = Source(name="mentalchat16k", adapter="mentalchat16k", path=str(RAW / "mentalchat16k_synthetic*.jsonl"))
    real = Source(name="counsel-chat", adapter="counsel-chat", path=str(RAW / "counsel_chat_20200325.csv"))
    facts = collect(DataJob(sources=[real, chat]), tmp_path / "out")
    assert facts["sources"]["counsel-chat"]["rows"] == 2129
    assert facts["sources"]["mentalchat16k"]["rows"] == 2359
    assert facts["sources"]["counsel-chat"]["exact duplicate"] > 1000, "one row a therapist's answer"
    assert 2500 < facts["kept"] < 3200
    kept, _ = read_back(tmp_path / "out")
    assert not any("\u00a0" in row["speech"] or "<p>" in row["speech"] for row in kept)
