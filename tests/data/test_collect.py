"""From raw files to client speeches."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.disks import room
from support.files import write_content
from support.paths import SHARED_DATA
from support.raw_speeches import speech

from psyco_ray.config.data import DataJob, Source
from psyco_ray.config.errors import InputError
from psyco_ray.data import sources, splits
from psyco_ray.data.clean import clean
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED, DROPPED

RAW = SHARED_DATA / "raw"


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
    write_content(tmp_path / "first-1.jsonl", "\n".join(lines[:100]))
    write_content(tmp_path / "first-2.jsonl", "\n".join([*lines[100:], "{torn"]))
    other = ["topic,text", *(f'home,"{speech(n)}"' for n in range(1000, 1060))]
    other += [f'home,"{speech(11)}"', f'home,"{speech(12, "Jonathan")}"', f'home,"{speech(9, "Jonathan")}"', "ragged"]
    other += [f'home,"{speech(5000)} {speech(20)}"']  # holds row 21 of the first source
    write_content(tmp_path / "second.csv", "\n".join(other))
    return tmp_path


def read_back(out: Path) -> tuple[list[dict], list[dict]]:
    names = shards.list_shards(out / "speeches")
    dropped = pq.read_table(out / "dropped.parquet")
    assert dropped.schema == DROPPED
    return [row for name in names for row in shards.read(out / "speeches", name)], dropped.to_pylist()


def test_a_full_disk_names_the_directory_and_loses_nothing(raw, tmp_path, local_ray) -> None:
    from psyco_ray.data.collect import collect

    out = tmp_path / "out"
    with (
        pytest.raises(InputError, match=rf"{out}/.collecting cannot be written: File too large; make room"),
        room(1000),
    ):
        collect(job_of(raw), out)
    assert list(out.iterdir()) == []
    assert collect(job_of(raw), out)["kept"] == 260


def test_collect_accounts_for_every_row(raw, tmp_path, local_ray) -> None:
    from psyco_ray.data.collect import collect

    out = tmp_path / "out"
    facts = collect(job_of(raw), out)
    kept, dropped = read_back(out)
    assert [path.name for path in sorted(out.iterdir())] == ["dropped.parquet", "speeches"]
    assert facts["rows"] == 207 + 65 == facts["kept"] + len(dropped)
    assert facts["kept"] == 260 == len(kept)
    assert facts["dropped"] == Counter(row["reason"] for row in dropped)
    assert facts["dropped"] == {
        "exact duplicate": 2,
        "near duplicate": 3,
        "contained duplicate": 1,
        "too short": 1,
        "too long": 1,
        "empty": 1,
        "bad row": 3,
    }
    assert facts["sources"]["second"] == {
        "rows": 65,
        "kept": 60,
        "exact duplicate": 1,
        "near duplicate": 2,
        "contained duplicate": 1,
        "bad row": 1,
    }
    assert list(facts["dropped"].values()) == sorted(facts["dropped"].values(), reverse=True)
    assert facts["bad_rows"]["text is a number, not text"] == 1
    by_row = {(row["source"], row["source_row"]): row for row in kept}
    assert [(row["source"], row["source_row"]) for row in dropped] == sorted(
        (row["source"], row["source_row"]) for row in dropped
    )
    detail = {(row["source"], row["source_row"]): row["detail"] for row in dropped}
    for duplicate, original in {
        ("first", 201): 8,
        ("first", 202): 10,
        ("second", 61): 12,
        ("second", 62): 13,
        ("second", 65): 21,
    }.items():
        assert detail[duplicate] == f"{by_row['first', original]['speech_id']} of first"
    assert detail["first", 203] == "10 characters"
    assert detail["first", 207].startswith("invalid JSON")
    for row in kept:
        assert row["speech_id"] == splits.speech_id(row["speech"])
        assert row["speech"] == clean(row["speech"])
        assert row["source_topic"] == {"first": "work", "second": "home"}[row["source"]]
    assert by_row["first", 4]["crisis"] == ["self-harm"]
    assert by_row["first", 4]["crisis_flags"] == [
        {"kind": "self-harm", "start": at, "end": at + len("want to die"), "by": "lexicon"}
        for at in [by_row["first", 4]["speech"].index("want to die")]
    ]
    assert {(row["crisis"] is None, *row["screened_by"]) for row in kept} <= {(False, "lexicon"), (True,)}
    assert facts["crisis"]["self-harm"] == sum("self-harm" in (row["crisis"] or []) for row in kept)
    assert facts["not_screened"] == Counter(row["language"] for row in kept if row["crisis"] is None)
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


def test_speeches_of_a_language_without_a_lexicon_are_not_screened(tmp_path, local_ray) -> None:
    from psyco_ray.data.collect import collect

    texts = [
        "昨天和妈妈吵了一架,现在我也不想活了。" * 6,
        "仕事のあとで毎日とても疲れてしまい、よく眠れません。" * 5,
        "Da quando lavoro in questo ufficio non riesco a dormire e la sera sono sempre molto stanco e nervoso.",
        "Since I moved here for work I sleep badly, and in the evening I am tired and lonely most of the time.",
    ]
    write_content(tmp_path / "first-1.jsonl", "\n".join(json.dumps({"text": text}) for text in texts))
    facts = collect(job_of(tmp_path, order=("first",)), tmp_path / "out")
    kept, _ = read_back(tmp_path / "out")
    found = {row["source_row"]: (row["language"], row["crisis"], len(row["crisis_flags"] or [])) for row in kept}
    assert found == {1: ("zh", ["self-harm"], 6), 2: ("ja", None, 0), 3: ("it", None, 0), 4: ("en", [], 0)}
    assert facts["crisis"] == {"self-harm": 1, "violence": 0, "abuse": 0, "eating disorder": 0}
    assert facts["not_screened"] == {"ja": 1, "it": 1}


def test_collect_does_not_depend_on_blocks(raw, tmp_path, local_ray) -> None:
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
    assert len(few) == 64
    assert all(many[key] == row for key, row in few.items())


def test_collect_with_scrubbing_and_without_crisis_screen(tmp_path, local_ray) -> None:
    from psyco_ray.data.collect import collect

    write_content(
        tmp_path / "first.jsonl", "\n".join(json.dumps({"text": speech(1) + f" Mail me: a{n}@b.org"}) for n in "xy")
    )
    job = job_of(tmp_path, order=("first",), scrub={"enabled": True}, crisis={"enabled": False})
    facts = collect(job, tmp_path / "out")
    (row,), (dropped,) = read_back(tmp_path / "out")
    assert row["speech"].endswith("Mail me: [EMAIL]")
    assert row["speech_id"] == splits.speech_id(row["speech"])
    assert row["crisis"] is None
    assert facts["crisis"] == facts["not_screened"] == {}
    assert row["language"] is row["crisis_flags"] is None
    assert row["screened_by"] == []
    assert facts["scrubbed"] == {"speeches": 1, "EMAIL": 1}, "of the kept speech, not of its duplicate"
    assert dropped["reason"] == "exact duplicate", "the texts are the same once they are scrubbed"
    with pytest.raises(ValueError, match=r"no speech is left of 2 rows .*collect\.min_chars 999"):
        collect(job_of(tmp_path, order=("first",), collect={"min_chars": 999}), tmp_path / "out")
    assert read_back(tmp_path / "out")[0] == [row], "a failed run leaves the last result alone"


def test_a_damaged_file_is_an_input_error(tmp_path, local_ray) -> None:
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
