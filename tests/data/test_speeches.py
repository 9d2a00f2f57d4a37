from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.config.prompts import PRINCIPLES, load_prompt, prompt_messages
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Data, Job, Prompts, Sampling
from psyco_ray.data import speeches as data
from psyco_ray.data import splits, tables
from psyco_ray.run.schemas import PREFERENCES

FINE_TOPICS = 42
LONG = "I have not slept properly since my brother moved out, and the house is so quiet that I hear the fridge. " * 2


def rows(name: str = "sample") -> list[dict]:
    return tables.read_table(name, "pairs").to_pylist()


def test_sample_has_speeches_over_all_topics_in_the_released_schema() -> None:
    table = tables.read_table("sample", "pairs")
    assert set(PREFERENCES.names) <= set(table.column_names)
    assert table.select(PREFERENCES.names).schema.equals(PREFERENCES)
    pairs = table.to_pylist()
    assert len({splits.fold(row["question"]) for row in pairs}) == len(pairs) >= 210
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
    pairs = rows()
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


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_no_speech_is_drawn_twice_before_all_were_drawn(count: int, extra: int, seed: int) -> None:
    ids = [str(i) for i in range(count + extra)]
    drawn = [data.draw(ids, count, iteration, seed) for iteration in range(1, 9)]
    for batch in drawn:
        assert len(set(batch)) == count
    seen = Counter(key for batch in drawn for key in batch)
    assert max(seen[key] for key in ids) - min(seen[key] for key in ids) <= 1
    assert data.draw(ids, count, 5, seed) == drawn[4]


def test_drawing_more_speeches_than_there_are_is_an_input_error() -> None:
    with pytest.raises(ValueError, match="speeches_per_iteration is 5, but the training split has only 2 speeches"):
        data.draw(["a", "b"], 5, 1, 0)


def job(path: Path, **changes) -> Job:
    return Job(
        data=Data(**{"speeches": str(path), "dev_share": 0.5, "leakage": "allow", **changes}),
        sampling=Sampling(max_tokens=32),
        rollouts=Rollouts(max_model_len=256),
    )


def write_parquet(path: Path, columns: dict) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_speeches_are_cleaned_split_and_rendered(local_ray, tmp_path, tiny_model, tokenizer) -> None:
    texts = [f"{LONG} {i}" for i in range(20)] + [LONG.upper() + " 0", "too short", "x" * 1001]
    path = write_parquet(tmp_path / "s.parquet", {"text": texts, "topic": ["t"] * len(texts)})
    loaded, facts = data.load_speeches(job(path), str(tiny_model))
    assert len(loaded) == 20, "one differs from another by case only, one is too short, one too long"
    assert {row["split"] for row in loaded} == {"train", "dev"}
    rendered = tokenizer.decode(loaded[0]["prompt_ids"])
    assert loaded[0]["speech"] in rendered
    assert rendered.endswith("<|im_start|>assistant\n")
    assert rendered.count("<|im_start|>system") == 1
    assert data.load_speeches(job(path), str(tiny_model)) == (loaded, facts)


@pytest.mark.parametrize(
    ("name", "content", "changes", "message"),
    [
        ("none.parquet", None, {}, r"none\.parquet does not exist"),
        ("cut.parquet", b"PAR1 and then nothing", {}, r"cut\.parquet cannot be read"),
        ("s.txt", b"text", {}, r"s\.txt has none of the endings \.parquet"),
        ("s.csv", b"speak,topic\nhello,a\n", {}, r"no column question or speech or text; it has speak, topic"),
        ("s.csv", b"text\nhello\n", {"speech_column": "talk"}, r"no column talk; it has text"),
        ("s.csv", b'text,n\n"' + LONG.encode() + b'",1\n ,2\n', {}, r"row 2 has an empty text"),
        ("s.csv", b"text\nshort\n", {}, r"no train speech is left of 1 rows; look at data\.min_chars 100"),
        ("s.csv", b"text\n", {}, r"s\.csv has no rows"),
        ("s.jsonl", b'{"text": "a"}\n{"te', {}, r"s\.jsonl cannot be read"),
    ],
)
def test_invalid_speech_files_are_named(local_ray, tmp_path, tiny_model, name, content, changes, message) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        data.load_speeches(job(path, **changes), str(tiny_model))
    assert "\n" not in str(caught.value)


def test_a_csv_of_an_old_excel_is_read_as_cp1252(tmp_path) -> None:
    path = tmp_path / "old.csv"
    path.write_bytes("text,topic\nI can’t sleep,Café\nplain,x\n".encode("cp1252"))
    assert tables.read_table(str(path), "speeches").to_pylist() == [
        {"text": "I can’t sleep", "topic": "Café"},
        {"text": "plain", "topic": "x"},
    ]


def test_errors_about_a_table_show_none_of_its_cells(tmp_path) -> None:
    path = tmp_path / "commas.csv"
    path.write_text("text,topic\nMy husband hits me, and I am afraid,Leave\n")
    with pytest.raises(ValueError, match="Expected 2 columns, got 3") as caught:
        tables.read_table(str(path), "speeches")
    assert "husband" not in str(caught.value)


def test_a_speech_too_long_for_the_context_is_named_by_row(local_ray, tmp_path, tiny_model) -> None:
    texts = [f"{LONG} {i}" for i in range(20)] + ["word " * 190]
    path = write_parquet(tmp_path / "s.parquet", {"text": texts})
    too_small = job(path).model_copy(update={"rollouts": Rollouts(max_model_len=180)})
    with pytest.raises(ValueError, match=r"row \d+ takes \d+ tokens with its prompt, 148 fit"):
        data.load_speeches(too_small, str(tiny_model))


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
