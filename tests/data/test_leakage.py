"""Training questions that are held out, too."""

import json
import logging
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.paths import SHARED_DATA
from support.prepared_speeches import prepared
from support.raw_speeches import speech

from psyco_ray.config.training import Data, Job, Part, Rollouts, Sampling
from psyco_ray.data import duplicates, leakage, mixture, splits

COUNSEL_PAIRS, CLIENT_SPEECHES = (
    SHARED_DATA / f"{name}.parquet" for name in ("counsel_chat_pairs", "client_speeches_permissive")
)


def pairs(seeds, **more) -> list[dict]:
    return [{"question": speech(seed), "chosen": f"yes {seed}", "rejected": f"no {seed}", **more} for seed in seeds]


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def near_copy(seed: int) -> str:
    text = speech(seed).replace("For some weeks now", "For a few weeks").replace("I don't know", "I do not know")
    text = text.replace("lately", "recently").replace("Maria", "Anna")
    assert 0.8 < duplicates.similarity(text, speech(seed)) < 0.95
    return text


@pytest.fixture
def released(tmp_path) -> str:
    """A dataset as it is released, with a test question in the training split, and a near copy of another one."""
    leaking = [*pairs(range(200, 202)), *pairs([203])]
    leaking[0]["question"] = leaking[0]["question"].upper() + "  "
    leaking[2]["question"] = near_copy(203)
    write(tmp_path / "hub" / "train-00000-of-00001.parquet", [*pairs(range(60)), *leaking])
    write(tmp_path / "hub" / "test-00000-of-00001.parquet", pairs(range(200, 220)))
    return str(tmp_path / "hub")


def data(path: str, **more) -> Data:
    return Data(**{"pairs": path, "dev_share": 0.001, **more})


def test_a_test_question_in_the_training_split_is_refused_with_counts(released) -> None:
    with pytest.raises(ValueError, match="repeat held-out questions") as caught:
        mixture.mix((), data(released), seed=0)
    message = str(caught.value)
    assert f"pairs file {released}: 3 of 63 pairs" in message
    assert f"(2 exactly, 1 nearly): 3 of the test split of pairs file {released}" in message
    assert "set data.leakage to drop" in message
    assert "or to allow" in message
    assert "Maria" not in message, "no words of a client"


def test_a_held_out_question_counts_although_its_only_pair_is_cut(tmp_path) -> None:
    write(
        tmp_path / "hub" / "train.parquet",
        [*pairs(range(20), chosen_finished=True), *pairs([200], chosen_finished=True)],
    )
    write(tmp_path / "hub" / "test.parquet", pairs([200], chosen_finished=False))
    with pytest.raises(ValueError, match="1 of the test split"):
        mixture.mix((), data(str(tmp_path / "hub")), seed=0)


def test_leaking_pairs_are_dropped_or_trained_on_as_the_job_says(released, caplog) -> None:
    caplog.set_level(logging.WARNING)
    dropped = mixture.mix((), data(released, leakage="drop"), seed=0)
    assert sorted(dropped.train["asked"].to_pylist()) == sorted(row["question"] for row in pairs(range(60)))
    [part] = dropped.parts
    leaks = {
        "rule": "drop",
        "exact": 2,
        "near": 1,
        "contained": 0,
        "of": {f"the test split of pairs file {released}": 3},
    }
    assert (part["leaks"], part["left_out"], part["of"]) == (leaks, {"its question is held out": 3}, 60)
    allowed = mixture.mix((), data(released, leakage="allow"), seed=0)
    assert allowed.train.num_rows == 63
    assert allowed.parts[0]["leaks"] == leaks | {"rule": "allow"}
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith("left out of training (data.leakage drop)")
    assert second.endswith("trained on all the same (data.leakage allow)")


def test_a_count_is_drawn_from_what_is_not_held_out(released) -> None:
    parts = (Part(pairs=released, count=60),)
    drawn = mixture.mix(parts, data(released, leakage="drop"), seed=0).train
    assert drawn.num_rows == 60
    with pytest.raises(ValueError, match="has 60 pairs to train on, not 61"):
        mixture.mix((Part(pairs=released, count=61),), data(released, leakage="drop"), seed=0)


def test_held_out_pairs_of_one_file_may_not_be_trained_on_from_another(tmp_path) -> None:
    one = write(tmp_path / "one.parquet", [*pairs(range(20), split="train"), *pairs([30, 31], split="dev")])
    other = write(tmp_path / "other.parquet", pairs(range(29, 40), split="train"))
    with pytest.raises(ValueError, match="repeat") as caught:
        mixture.mix((Part(pairs=one), Part(pairs=other)), Data(), seed=0)
    assert str(caught.value).startswith(f"pairs file {other}: 2 of 11 pairs")
    assert f"2 of the dev split of pairs file {one}" in str(caught.value)


def test_pairs_may_ask_what_training_speeches_say_but_no_held_out_speech(tmp_path) -> None:
    file = write(tmp_path / "pairs.parquet", pairs(range(20), split="train"))
    rows = [{"text": speech(seed), "split": "train"} for seed in range(30)]
    same = write(tmp_path / "train.parquet", rows)
    assert mixture.mix((), data(file, speeches=same), seed=0).parts[0]["leaks"]["of"] == {}
    rows[3]["split"], rows[4]["split"] = "test", "dev"
    rows[5] = {"text": near_copy(6), "split": "test"}
    held = write(tmp_path / "held.parquet", rows)
    with pytest.raises(ValueError, match="3 of 20 pairs") as caught:
        mixture.mix((), data(file, speeches=held), seed=0)
    assert f"1 of the dev split of speeches file {held}, 2 of the test split of speeches file {held}" in str(
        caught.value
    )


def test_messages_are_compared_by_what_is_asked(tmp_path) -> None:
    system = {"role": "system", "content": "You are a kind counsellor. Answer in a few sentences. " * 20}

    def row(seed: int, split: str) -> dict:
        prompt = [system, {"role": "user", "content": speech(seed)}]
        return {"prompt": prompt, "chosen": "yes", "rejected": "no", "split": split}

    rows = [*[row(seed, "train") for seed in range(20)], *[row(seed, "dev") for seed in range(20, 25)]]
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert mixture.mix((), data(str(chats)), seed=0).parts[0]["leaks"]["of"] == {}, "a system prompt asks nothing"
    texts = write(tmp_path / "texts.parquet", pairs(range(20, 22), split="train"))
    with pytest.raises(ValueError, match=r"2 of 2 pairs repeat held-out questions \(2 exactly"):
        mixture.mix((Part(pairs=texts), Part(pairs=str(chats))), Data(), seed=0)


def test_short_questions_leak_only_word_for_word() -> None:
    held = {"dev": ["What is the capital of France?", speech(1)]}
    asked = ["What is the capital of Franke?", "what is the capital of  france?", near_copy(1)]
    assert duplicates.similarity(asked[0], held["dev"][0]) > leakage.NEAR
    assert leakage.find(asked, held, min_chars=100) == {1: ("exact", "dev"), 2: ("near", "dev")}
    assert leakage.find(asked, {}, min_chars=100) == {}
    assert leakage.find([], held, min_chars=100) == {}


def test_a_question_that_holds_most_of_a_held_out_one_or_is_held_leaks_too() -> None:
    part, whole = speech(1), " ".join([speech(2), speech(3).upper(), speech(4)])
    held = {"test": [part, whole], "dev": [speech(5)]}
    asked = [" ".join([speech(6), part.replace(",", " -"), speech(7)]), speech(3), speech(8), part]
    assert duplicates.similarity(asked[0], part) < leakage.NEAR
    found = leakage.find(asked, held, min_chars=100)
    assert found == {0: ("contained", "test"), 1: ("contained", "test"), 3: ("exact", "test")}
    assert leakage.find(asked[:1], held, min_chars=100) == {0: ("contained", "test")}, "whatever the other rows are"
    [sentence] = leakage.sentences("pairs file x", 4, "pairs", leakage.leaks_of(Counter(found.values()), Data()))
    assert (
        "3 of 4 pairs repeat held-out questions (1 exactly, 0 nearly, 2 hold 80% of one or are held by one)" in sentence
    )


@pytest.mark.parametrize("half", [None, "a", "b"])
@pytest.mark.parametrize("dev_share", [0.1, 0.2, 0.25])
def test_the_packaged_pairs_repeat_none_of_their_held_out_questions(half, dev_share) -> None:
    mixed = mixture.mix((), Data(dev_share=dev_share), seed=0, half=half)
    assert mixed.parts[0]["leaks"] == {"rule": "refuse", "exact": 0, "near": 0, "contained": 0, "of": {}}


def job(path: str, model: Path, **more) -> Job:
    return Job(
        model=str(model),
        data=Data(**{"speeches": path, "dev_share": 0.3, **more}),
        sampling=Sampling(max_tokens=32),
        rollouts=Rollouts(max_model_len=512),
    )


def test_training_speeches_that_are_held_out_are_refused_or_dropped(local_ray, tmp_path, tiny_model) -> None:
    rows = [{"text": speech(seed), "split": "dev" if seed < 5 else "train"} for seed in range(30)]
    rows += [{"text": speech(9), "split": "test"}, {"text": near_copy(10), "split": "test"}]
    path = write(tmp_path / "s.parquet", rows)
    with pytest.raises(ValueError, match=r"speeches file .*: 2 of 25 speeches repeat") as caught:
        prepared(job(path, tiny_model))
    assert f"(1 exactly, 1 nearly): 2 of the test split of speeches file {path}" in str(caught.value)
    loaded, facts = prepared(job(path, tiny_model, leakage="drop"))
    assert facts["leaks"]["exact"] == facts["leaks"]["near"] == 1
    train = {row["speech_id"] for row in loaded if row["split"] == "train"}
    assert train == {splits.speech_id(speech(seed)) for seed in range(5, 30) if seed not in (9, 10)}
    loaded, _ = prepared(job(path, tiny_model, leakage="allow"))
    assert sum(row["split"] == "train" for row in loaded) == 25


@pytest.mark.skipif(not COUNSEL_PAIRS.exists(), reason="needs the real data")
def test_real_pairs_and_speeches_of_one_source(tmp_path) -> None:
    settings = Data(pairs=str(COUNSEL_PAIRS), speeches=str(CLIENT_SPEECHES), leakage="drop")
    began = time.perf_counter()
    [part] = mixture.mix((), settings, seed=0).parts
    assert time.perf_counter() - began < 30
    print(part)
    assert part["leaks"]["exact"] == 0, "one hash splits both files"
