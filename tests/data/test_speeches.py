import json
import weakref
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import logs
from support.prepared_speeches import prepared
from support.raw_speeches import speech

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES, load_prompt, prompt_messages
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Data, Job, Prompts, Sampling
from psyco_ray.data import speeches, splits
from psyco_ray.files import records
from psyco_ray.models import templates
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.schemas import PREFERENCES, SPEECHES

FINE_TOPICS = 42
LONG = "I have not slept properly since my brother moved out, and the house is so quiet that I hear the fridge. " * 2


def rows(name: str = "sample") -> list[dict]:
    return records.read_rows(name, "pairs")


def test_sample_has_speeches_over_all_topics_in_the_released_schema() -> None:
    pairs = rows()
    table = pa.Table.from_pylist(pairs)
    assert set(PREFERENCES.names) <= set(table.column_names)
    assert table.select(PREFERENCES.names).schema.equals(PREFERENCES)
    assert len({splits.fold(row["question"]) for row in pairs}) == len({row["ID"] for row in pairs}) >= 210
    topics = Counter(row["topic"] for row in pairs)
    assert len(topics) == FINE_TOPICS
    assert min(topics.values()) >= 5
    assert all(100 <= len(row["question"]) <= 1000 for row in pairs)
    assert len({row["prefID"] for row in pairs}) == len(pairs)


def test_sample_ratings_agree_with_the_labels() -> None:
    for row in rows():
        sums = {
            side: sum(row[f"{side}_{principle}_rating"] for principle in PRINCIPLES) for side in ("chosen", "rejected")
        }
        assert all(1 <= row[f"{s}_{p}_rating"] <= 5 for s in ("chosen", "rejected") for p in PRINCIPLES)
        assert sums["chosen"] - sums["rejected"] >= 7, row["prefID"]  # a mean gap of at least 1 (paper §3.3)


def test_neither_length_nor_question_marks_reveal_the_labels_of_the_sample() -> None:
    pairs = [row for row in rows() if row["rejected_finished"]]  # a cut response is the chosen one, shortened
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in pairs) / len(pairs)
    assert 0.4 <= longer <= 0.6
    flaws = Counter(row["rejected_model"] for row in pairs)
    assert len(flaws) >= 7
    for flaw in ("synthetic:directive", "synthetic:generic", "synthetic:judging", "synthetic:unsafe"):
        of_flaw = [row for row in pairs if row["rejected_model"] == flaw]
        assert len(of_flaw) >= 25
        assert 0.3 <= sum(len(r["chosen"]) > len(r["rejected"]) for r in of_flaw) / len(of_flaw) <= 0.7, flaw
    asks = {side: sum("?" in row[side] for row in pairs) / len(pairs) for side in ("chosen", "rejected")}
    assert asks["rejected"] >= 0.35
    safer = sum(r["rejected_safety_rating"] > r["chosen_safety_rating"] for r in pairs) / len(pairs)
    assert safer <= 0.05


def test_split_and_halves_depend_on_the_text_alone() -> None:
    assert splits.unit("split", "Some  TEXT\nhere") == splits.unit("split", "some text here")
    assert splits.unit("split", "a") != splits.unit("half", "a")
    texts = [f"speech number {i}" for i in range(4000)]
    dev = [t for t in texts if splits.is_dev(t, 0.1)]
    assert 0.08 < len(dev) / len(texts) < 0.12
    assert set(dev) <= {t for t in texts if splits.is_dev(t, 0.2)}, "a larger share only adds"
    assert 0.45 < sum(splits.half(t) == "a" for t in texts) / len(texts) < 0.55
    # frozen: a speech must never move between splits from one version to the next
    assert splits.speech_id("I cannot sleep.") == "9cd0b5407c428a9c"
    assert splits.unit("split", "I cannot sleep.") == pytest.approx(0.717521298529)


def job(path: Path, model: Path = Path("smollm2-135m"), **changes) -> Job:
    return Job(
        model=str(model),
        data=Data(**{"speeches": str(path), "dev_share": 0.5, "leakage": "allow", **changes}),
        sampling=Sampling(max_tokens=32),
        rollouts=Rollouts(max_model_len=512),
    )


def write_parquet(path: Path, columns: dict) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_speeches_are_cleaned_split_and_rendered(local_ray, tmp_path, tiny_model, tokenizer) -> None:
    texts = [f"{LONG} {i}" for i in range(20)] + [LONG.upper() + " 0", "too short", "x" * 1001]
    path = write_parquet(tmp_path / "s.parquet", {"text": texts, "topic": ["t"] * len(texts)})
    loaded, facts = prepared(job(path, tiny_model))
    assert len(loaded) == 20, "one differs from another by case only, one is too short, one too long"
    assert {row["split"] for row in loaded} == {"train", "dev"}
    rendered = tokenizer.decode(loaded[0]["prompt_ids"])
    assert loaded[0]["speech"] in rendered
    assert rendered.endswith("<|im_start|>assistant\n")
    assert rendered.count("<|im_start|>system") == 1
    assert prepared(job(path, tiny_model)) == (loaded, facts)


def straightforward(job: Job, raw: list[dict], tokenizer) -> list[dict]:
    """What `prepare` streams, from lists and dictionaries; no training speech is held out."""
    data, prompt, first = job.data, load_prompt(job.prompts), {}
    for row in raw:
        text = row["text"].strip()
        split = row["split"] or ("dev" if splits.is_dev(text, data.dev_share) else "train")
        if data.min_chars <= len(text) <= data.max_chars and split != "test":
            found = {"speech_id": splits.speech_id(text), "speech": text, "split": split, "topic": row["topic"]}
            first.setdefault(found["speech_id"], found)
    for row in first.values():
        row["prompt_ids"] = templates.conversation_ids(tokenizer, prompt_messages(prompt, row["speech"]))
    return [first[key] for key in sorted(first)]


def raw_rows(number: int) -> list[dict]:
    """Speeches of different lengths; some are repeated in other words' case, some are of the test split."""
    rows = []
    for n in range(number):
        text = f"{n} {speech(n)}"[: 90 + 7 * n % 400]
        rows.append({"text": f" {text}\n", "split": "test" if n % 11 == 0 else None, "topic": f"t{n % 3}"})
        if n % 5 == 0:
            rows.insert(n // 2, {"text": text.upper(), "split": rows[-1]["split"], "topic": "repeated"})
    return rows


def test_the_stream_has_the_rows_of_the_straightforward_way(
    local_ray, tmp_path, tiny_model, tokenizer, monkeypatch
) -> None:
    for name, size in (
        ("_BLOCK_BYTES", 2**14),
        ("_SORTED_BYTES", 2**15),
        ("_RANGE_BYTES", 2**14),
        ("_WRITTEN_ROWS", 7),
    ):
        monkeypatch.setattr(speeches, name, size)
    raw = raw_rows(300)
    path = tmp_path / "s.parquet"
    pq.write_table(pa.Table.from_pylist(raw), path, row_group_size=70)
    asked = job(path, tiny_model, dev_share=0.2)
    expected = straightforward(asked, raw, tokenizer)
    assert 150 < len(expected) < 280
    assert prepared(asked)[0] == expected


def test_the_table_of_a_run_has_the_same_bytes_again(local_ray, tmp_path, tiny_model, monkeypatch) -> None:
    for name, size in (("_BLOCK_BYTES", 2**14), ("_RANGE_BYTES", 2**14), ("_WRITTEN_ROWS", 16)):
        monkeypatch.setattr(speeches, name, size)
    path = tmp_path / "s.parquet"
    pq.write_table(pa.Table.from_pylist(raw_rows(100)), path)
    files = []
    for run in ("one", "two"):
        ledger = Ledger(job(path, tiny_model).model_copy(update={"run_dir": str(tmp_path / run)}), resume=False)
        made = ledger.table("speeches", SPEECHES, lambda: speeches.prepare(job(path, tiny_model)))
        files.append(made.read_bytes())
        again = ledger.table("speeches", SPEECHES, lambda: pytest.fail("made again"))
        assert again.read_bytes() == files[-1]
        ledger.close()
    assert files[0] == files[1]


def test_the_first_invalid_row_of_the_file_is_named(local_ray, tmp_path, tiny_model) -> None:
    splits = ["train"] * 400
    for number in (390, 123, 200):
        splits[number - 1] = "held-out"
    path = write_parquet(tmp_path / "s.parquet", {"text": [f"{LONG} {n}" for n in range(400)], "split": splits})
    with pytest.raises(ValueError, match=r"s\.parquet: row 123: the split is a text of 8 characters"):
        prepared(job(path, tiny_model))


def test_rows_without_a_speech_are_left_out_and_counted(local_ray, tmp_path, tiny_model) -> None:
    whole = [f"{LONG} {n}" for n in range(12)]
    rows = [{"text": text, "speaker": "seeker"} for text in whole]
    rows += [{"text": text, "speaker": "seeker"} for text in (None, " ", "", whole[0].upper(), "short", "x" * 2000)]
    rows += [{"text": whole[1] + " I see.", "speaker": "supporter"} for _ in range(5)]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"{LONG} 12"}]
    rows += [
        {"text": messages, "speaker": "seeker"},
        {"text": f"Patient: {LONG} 13\nDoctor: {LONG}", "speaker": "Seeker"},
    ]
    rows += [{"text": ["one", "two"], "speaker": "seeker"}, {"text": 7, "speaker": "seeker"}]
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"torn')
    logged = logs.messages()
    loaded, facts = prepared(job(path, tiny_model, where={"speaker": ["seeker"]}))
    assert {row["speech"] for row in loaded} == {
        text.strip() for text in [*whole[1:], whole[0], f"{LONG} 12", f"{LONG} 13"]
    }
    assert list(facts["left_out"].items()) == [
        ("outside data.where", 5),
        ("with an empty text", 3),
        *[(reason, 1) for reason in facts["left_out"] if reason not in ("outside data.where", "with an empty text")],
    ]
    assert set(facts["left_out"]) == {
        "outside data.where",
        "with an empty text",
        "repeated",
        "shorter than data.min_chars 100",
        "longer than data.max_chars 1000",
        "text is a list of values that name no speaker",
        "text is a number, not text",
        *[reason for reason in facts["left_out"] if reason.startswith("invalid JSON")],
    }
    assert sum(facts["left_out"].values()) + len(loaded) == len(rows) + 1
    (line,) = (message for message in logged if "left out" in message)
    assert line.startswith(f"speeches file {path}: left out 5 outside data.where, 3 with an empty text, 1 ")


def test_the_driver_never_holds_the_speeches(local_ray, tmp_path, tiny_model, monkeypatch) -> None:
    for name, size in (("_BLOCK_BYTES", 2**18), ("_RANGE_BYTES", 2**18), ("_WRITTEN_ROWS", 100)):
        monkeypatch.setattr(speeches, name, size)
    path = write_parquet(tmp_path / "s.parquet", {"text": [f"{n} {speech(n)}" for n in range(3000)]})
    stream, _ = speeches.prepare(job(path, tiny_model, dev_share=0.05))
    alive: list[weakref.ref] = []
    most = rows = 0
    for table in stream:
        alive = [ref for ref in alive if ref() is not None] + [weakref.ref(table)]
        most, rows = max(most, sum(ref().num_rows for ref in alive if ref() is not None)), rows + table.num_rows
        del table
    assert rows == 3000
    assert most <= 200, "one table and the one before it"


@pytest.mark.parametrize(
    ("name", "content", "changes", "message"),
    [
        ("none.parquet", None, {}, r"none\.parquet does not exist"),
        ("cut.parquet", b"PAR1 and then nothing", {}, r"cut\.parquet cannot be read"),
        ("s.txt", b"text", {}, r"s\.txt has none of the endings"),
        ("s.csv", b"speak,topic\nhello,a\n", {}, r"no column question or speech or text; it has speak, topic"),
        ("s.csv", b"text\nhello\n", {"speech_column": "talk"}, r"no column talk; it has text"),
        (
            "s.csv",
            b"text,n\nshort,1\n ,2\n ,3\n",
            {},
            r"no train speech is left of 3 rows \(left out: 2 with an empty text, 1 shorter than data\.min_chars 100\)",
        ),
        ("s.csv", b"text\n", {}, r"s\.csv has no rows"),
        ("s.jsonl", b'{"text": "a"}\n{"te', {}, r"no train speech is left of 2 rows \(left out: 1 invalid JSON"),
    ],
)
def test_invalid_speech_files_are_named(local_ray, tmp_path, tiny_model, name, content, changes, message) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        prepared(job(path, tiny_model, **changes))
    assert "\n" not in str(caught.value)


def test_a_speech_too_long_for_the_context_is_named_by_row(local_ray, tmp_path, tiny_model) -> None:
    texts = [f"{LONG} {i}" for i in range(20)] + ["word " * 190]
    path = write_parquet(tmp_path / "s.parquet", {"text": texts})
    too_small = job(path, tiny_model).model_copy(update={"rollouts": Rollouts(max_model_len=180)})
    with pytest.raises(ValueError, match=r"row \d+ takes \d+ tokens with its prompt, 148 fit"):
        prepared(too_small)


def test_prompts_come_from_a_replaceable_file(tmp_path) -> None:
    own = tmp_path / "prompts.yaml"
    own.write_text(
        "mine:\n  system: Be kind.\n  user: 'Client: {client_speech}'\nbroken:\n  user: nothing\n"
        "text: You are kind.\nempty:\n  user:\n"
    )
    prompt = load_prompt(Prompts(file=str(own), respond="mine"))
    assert prompt_messages(prompt, "Hi {x}") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Client: Hi {x}"},
    ]
    with pytest.raises(ValueError, match="no entry yours; it has mine, broken, text, empty"):
        load_prompt(Prompts(file=str(own), respond="yours"))
    for wrong in ("broken", "text", "empty"):
        with pytest.raises(ValueError, match=rf"the user text of {wrong} does not contain \{{client_speech\}}"):
            load_prompt(Prompts(file=str(own), respond=wrong))
    assert len(prompt_messages(load_prompt(Prompts()), "Hi")) == 1


def test_examples_of_a_prompt_are_turns_before_the_speech(tmp_path) -> None:
    own = tmp_path / "prompts.yaml"
    own.write_text(
        "mine:\n  system: Be kind.\n  user: 'Client: {client_speech}'\n"
        "  examples:\n  - {client: I am sad., response: Go on.}\n"
        "half:\n  user: '{client_speech}'\n  examples:\n  - {client: I am sad.}\n"
        "none:\n  user: '{client_speech}'\n  examples: I am sad.\n"
        "rank:\n  user: '{client_speech} {response_1} {response_2}'\n  examples:\n  - {client: a, response: b}\n"
    )
    assert prompt_messages(load_prompt(Prompts(file=str(own), respond="mine")), "Hi") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Client: I am sad."},
        {"role": "assistant", "content": "Go on."},
        {"role": "user", "content": "Client: Hi"},
    ]
    with pytest.raises(InputError, match="example 1 of half needs the texts client and response"):
        load_prompt(Prompts(file=str(own), respond="half"))
    for name in ("none", "rank"):
        with pytest.raises(InputError, match=f"examples of {name} must be a list of turns"):
            load_prompt(Prompts(file=str(own), respond=name))


def test_the_packaged_pairs_show_that_a_cut_response_is_worse() -> None:
    pairs = rows()
    cut = [row for row in pairs if not row["rejected_finished"]]
    assert len(cut) >= 60
    assert all(row["chosen_finished"] for row in pairs)
    for row in cut:
        assert row["chosen"].startswith(row["rejected"])
        assert row["rejected_model"] == "synthetic:cut"


def test_a_greeting_does_not_decide_the_split_of_a_conversation() -> None:
    greeted = [
        Context(("Hi", "Go on.", f"This is the story number {n} that I tell.", "And?", "Yes.")) for n in range(40)
    ]
    dev = [{splits.is_dev(Context(whole.turns[:end]).text, 0.5) for end in (3, 5)} for whole in greeted]
    assert {len(found) for found in dev} == {1}
    assert 10 < sum(found == {True} for found in dev) < 30
    halves = [splits.half(whole.text) for whole in greeted]
    assert 10 < halves.count("a") < 30
    for text in ("Hi", "I cannot sleep."):
        assert splits.unit("split", text) == splits.share_of("split", text)
