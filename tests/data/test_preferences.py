"""Preference pairs of several kinds in one form, and the mixtures drawn of them."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.config.training import Data, Job, Part, Reward
from psyco_ray.data import mixture, preferences
from psyco_ray.models import encoding, templates
from psyco_ray.run.changes import Changes
from psyco_ray.run.schemas import COMPARISONS

REFUSE = Changes(accept=False)
ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "I cannot sleep."}]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def plain(count: int, **more) -> list[dict]:
    return [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}", **more} for i in range(count)]


def test_the_released_columns_include_rating_gaps() -> None:
    comparisons = preferences.read("sample")
    assert comparisons.table.schema.equals(COMPARISONS)
    assert comparisons.left_out == {}
    row = comparisons.table.to_pylist()[0]
    assert row["form"] == "speech"
    principles = [value for name, value in row.items() if name.endswith("_gap")]
    assert row["gap"] == pytest.approx(sum(principles) / 7)
    messages = preferences.conversation("speech", row["asked"], {"system": "S", "user": "Client: {client_speech}"})
    assert messages[-1]["content"] == f"Client: {row['asked']}"


def test_ratings_may_be_fractions_or_texts_and_an_invalid_one_gives_no_gap(tmp_path) -> None:
    ratings = {f"{side}_{principle}_rating": 3.0 for side in ("chosen", "rejected") for principle in PRINCIPLES}
    for chosen, gap in ((4.5, 1.5), ("4 ", 1.0), ("n/a", None), (float("nan"), None)):
        row = {"question": "q", "chosen": "a", "rejected": "b", **ratings, "chosen_safety_rating": chosen}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rated.parquet")
        [pair] = preferences.read(str(tmp_path / "rated.parquet")).table.to_pylist()
        assert pair["safety_gap"] == gap
        assert pair["gap"] == (None if gap is None else pytest.approx(gap / 7))
    row = {"prompt": "q", "response_1": "one", "response_2": "two", "preference_strength": "2"}
    [pair] = preferences.read(write(tmp_path / "strength.jsonl", [row])).table.to_pylist()
    assert pair["chosen"] == "two"


def test_texts_messages_conversations_and_strengths(tmp_path) -> None:
    answer = [{"role": "assistant", "content": "That is hard."}]
    cases = {
        "texts": ({"prompt": "hello", "chosen": "a", "rejected": "b"}, [{"role": "user", "content": "hello"}], "a"),
        "messages": ({"prompt": ASKED, "chosen": answer, "rejected": "b"}, ASKED, "That is hard."),
        "whole": (
            {"chosen": ASKED + answer, "rejected": [*ASKED, answer[0] | {"content": "b"}]},
            ASKED,
            "That is hard.",
        ),
        "strength": (
            {"prompt": "q", "response_1": "one", "response_2": "two", "preference_strength": -2},
            [{"role": "user", "content": "q"}],
            "one",
        ),
    }
    for name, (row, asked, chosen) in cases.items():
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
        [pair] = preferences.read(str(tmp_path / f"{name}.parquet")).table.to_pylist()
        assert preferences.conversation(pair["form"], pair["asked"], {}) == asked, name
        assert pair["chosen"] == chosen, name


RATED = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def rated(prompt: str, *ratings: int | None) -> list[dict]:
    """Two rows of HelpSteer2's ratings: five ratings of the response "one", then five of "two"."""
    halves = zip(("one", "two"), (ratings[:5], ratings[5:]), strict=True)
    return [{"prompt": prompt, "response": text, **dict(zip(RATED, five, strict=True))} for text, five in halves]


def test_two_rated_responses_become_a_pair(tmp_path) -> None:
    rows = [
        *rated("helpfulness decides", 3, 0, 0, 0, 4, 2, 4, 4, 4, 0),
        *rated("equal helpfulness: correctness outweighs coherence", 3, 2, 4, 2, 2, 3, 3, 3, 2, 2),
        *rated("equal helpfulness: brevity", 3, 3, 4, 2, 1, 3, 3, 4, 2, 2),
        *rated("equal rewards", 3, 3, 4, 2, 2, 3, 3, 4, 2, 2),
        *rated("equal rewards of different ratings", 1, 2, 3, 1, 3, 1, 1, 3, 1, 1),
        *rated("a rating is missing", 3, 3, 4, 2, 2, 3, None, 4, 2, 2),
        *rated("Hello.<extra_id_1>Assistant\nHi.\n<extra_id_1>User\nHelp me.", 0, 0, 0, 0, 0, 4, 4, 4, 2, 2),
    ]
    pairs = preferences.read(write(tmp_path / "train.jsonl", rows))
    chosen = {row["asked"]: (row["chosen"], row["rejected"]) for row in pairs.table.to_pylist()[:3]}
    assert chosen == {
        "helpfulness decides": ("one", "two"),
        "equal helpfulness: correctness outweighs coherence": ("two", "one"),
        "equal helpfulness: brevity": ("one", "two"),
    }
    assert pairs.left_out == {"no preference": 3}
    turns = pairs.table.to_pylist()[3]
    assert (turns["form"], len(json.loads(turns["asked"])), turns["chosen"]) == ("messages", 3, "two")
    for rows_left, pairs_left in ((rows[1:], 3), (rows[:3], 1)):
        pairs = preferences.read(write(tmp_path / "odd.jsonl", rows_left))
        assert pairs.table.num_rows == pairs_left
        assert pairs.left_out["a prompt with one response"] == 1


def test_a_count_above_the_pairs_of_a_file_of_ratings_names_their_number(tmp_path) -> None:
    rows = [row for i in range(40) for row in rated(f"question {i}", 3, 3, 4, 2, 2, 4 - i % 2, 3, 4, 2, 2)]
    file = write(tmp_path / "train.jsonl", rows)
    there = len(mixture.mix([Part(pairs=file)], Data(dev_share=0.1), seed=0).train)
    assert 10 < there < 20, "20 pairs have a preference, and some are held out"
    with pytest.raises(ValueError, match=f"has {there} pairs to train on, not 10000; lower its count"):
        mixture.mix([Part(pairs=file, count=10000)], Data(dev_share=0.1), seed=0)


def test_a_speech_column_is_accepted(tmp_path) -> None:
    row = {"speech": "I cannot sleep.", "chosen": "a", "rejected": "b"}
    [pair] = preferences.read(write(tmp_path / "spoken.jsonl", [row])).table.to_pylist()
    prompt = {"user": "Client: {client_speech}"}
    assert preferences.conversation(pair["form"], pair["asked"], prompt)[-1]["content"] == "Client: I cannot sleep."


def test_the_turns_of_a_conversation_become_messages(tmp_path) -> None:
    prompt = "Hello.<extra_id_1>Assistant\nHi, what is it?\n<extra_id_1>User\nI cannot sleep.\nAt all.\n"
    row = {"prompt": prompt, "response_1": "one", "response_2": "two", "preference_strength": 1}
    [pair] = preferences.read(write(tmp_path / "turns.jsonl", [row])).table.to_pylist()
    assert preferences.conversation(pair["form"], pair["asked"], {}) == [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi, what is it?"},
        {"role": "user", "content": "I cannot sleep.\nAt all."},
    ]
    assert pair["chosen"] == "two"


def test_file_names_of_a_hub_directory_give_the_split(tmp_path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    for split in ("train", "test"):
        rows = [row | {"prompt": f"{split} {row['prompt']}"} for row in plain(300)]
        pq.write_table(pa.Table.from_pylist(rows), hub / f"{split}-00000-of-00001.parquet")
    pairs = preferences.read(str(hub), dev_share=0.2).table.to_pylist()
    by_split = {split: {row["asked"].split()[0] for row in pairs if row["split"] == split} for split in ("dev", "test")}
    assert by_split == {"dev": {"train"}, "test": {"test"}}, "what is held out of training comes out of its own file"
    assert sum(row["split"] == "test" for row in pairs) == 300
    pq.write_table(pa.Table.from_pylist(plain(9)), hub / "validation-0.parquet")
    pairs = preferences.read(str(hub)).table["split"].to_pylist()
    assert Counter(pairs) == {"train": 300, "test": 300, "dev": 9}
    pq.write_table(pa.Table.from_pylist(plain(9)), hub / "more.parquet")
    with pytest.raises(
        ValueError, match=r"has more\.parquet, which does not begin with the name of a split \(train, test, dev"
    ):
        preferences.read(str(hub))


def test_unusable_pairs_are_counted_by_reason(tmp_path) -> None:
    rows = [
        *plain(3),
        {"prompt": "q", "chosen": "same", "rejected": " same "},
        {"prompt": "q", "chosen": "", "rejected": "b"},
        {"prompt": None, "chosen": "a", "rejected": "b"},
    ]
    other = [[{"human": "q"}, {"said by": "gpt", "words": text}] for text in "ab"]
    with pytest.raises(ValueError, match=r"no usable pair \(a message without role and content: 1\)"):
        preferences.read(write(tmp_path / "other.jsonl", [{"chosen": other[0], "rejected": other[1]}]))
    comparisons = preferences.read(write(tmp_path / "pairs.jsonl", rows))
    assert comparisons.table.num_rows == 3
    assert comparisons.left_out == {"chosen and rejected are the same": 1, "empty chosen": 1, "empty prompt": 1}
    with pytest.raises(ValueError, match=r"none\.jsonl has no usable pair \(empty chosen: 1\)"):
        preferences.read(write(tmp_path / "none.jsonl", rows[4:5]))


def test_invalid_files_are_input_errors(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"x\.jsonl has the columns prompt, good; accepted are question, chosen"):
        preferences.read(write(tmp_path / "x.jsonl", [{"prompt": "a", "good": "b"}]))
    with pytest.raises(ValueError, match="row 2 has a text of 7 characters as its split; known are train"):
        preferences.read(write(tmp_path / "y.jsonl", [*plain(1, split="eval"), *plain(1, split="holdout")]))
    with pytest.raises(ValueError, match="not of the form hub:owner/name/path/to/file"):
        preferences.read("hub:owner/name")


def test_splits_come_from_the_file_or_from_a_hash(tmp_path) -> None:
    file = write(tmp_path / "pairs.jsonl", plain(400, split="validation"))
    assert set(preferences.read(file).table["split"].to_pylist()) == {"dev"}
    hashed = Counter(preferences.read(file, dev_share=0.25, by_hash=True).table["split"].to_pylist())
    assert 70 < hashed["dev"] < 130
    assert hashed["train"] == 400 - hashed["dev"]


def of(*parts: dict) -> list[Part]:
    return [Part(**part) for part in parts]


def test_a_mixture_draws_counts_and_fractions_by_its_seed(tmp_path) -> None:
    first, second = (write(tmp_path / f"{n}.jsonl", plain(200, source=n)) for n in ("first", "second"))
    settings = of({"pairs": first, "count": 50}, {"pairs": second, "fraction": 0.5})
    mixed = mixture.mix(settings, Data(), seed=3)
    drawn = Counter(mixed.train["subset"].to_pylist())
    available = {part["pairs"]: part["of"] for part in mixed.parts}
    assert drawn == {"first": 50, "second": round(0.5 * available[second])}
    assert [part["seed"] for part in mixed.parts] == [[3, 0], [3, 1]]
    assert mixture.mix(settings, Data(), seed=3).train.equals(mixed.train)
    other = mixture.mix(settings, Data(), seed=4)
    assert other.train["asked"].to_pylist() != mixed.train["asked"].to_pylist()
    assert other.dev.equals(mixed.dev), "what is held out does not hang on the seed"
    assert not set(mixed.dev["asked"].to_pylist()) & set(mixed.train["asked"].to_pylist())


def test_a_mixture_with_too_large_a_count_is_an_input_error(tmp_path) -> None:
    file = write(tmp_path / "pairs.jsonl", plain(20, split="train"))
    with pytest.raises(ValueError, match=r"pairs\.jsonl has 20 pairs to train on, not 30; lower its count"):
        mixture.mix(of({"pairs": file, "count": 30}), Data(), seed=0)
    with pytest.raises(ValueError, match="both a count and a fraction"):
        Part(pairs=file, count=3, fraction=0.5)


def test_prompts_are_truncated_on_the_left_and_responses_never(tokenizer) -> None:
    asked = [{"role": "user", "content": "word " * 300}]
    whole = encoding.encode(tokenizer, asked, ("short", "a longer answer than that"), None)
    longest = max(len(whole.prompt_ids) + len(ids) for ids in whole.response_ids)
    truncated = encoding.encode(tokenizer, asked, ("short", "a longer answer than that"), 120)
    assert truncated.cut == longest - 120
    assert truncated.response_ids == whole.response_ids
    assert truncated.prompt_ids == (*whole.prompt_ids[:1], *whole.prompt_ids[1 + truncated.cut :])
    assert tokenizer.bos_token_id == whole.prompt_ids[0], "the first token stays, for it begins the text"
    with pytest.raises(encoding.ResponseTooLongError):
        encoding.encode(tokenizer, asked, ("word " * 200, "b"), 120)


def test_pairs_are_encoded_in_the_order_of_the_plan(local_ray, tiny_model, tmp_path, tokenizer) -> None:
    rows = [*plain(150), {"prompt": "long", "chosen": "word " * 300, "rejected": "no"}]
    table = preferences.read(write(tmp_path / "pairs.jsonl", rows)).table
    job = Job(model=str(tiny_model), reward=Reward(max_tokens=80))
    plan = [[150, 3, 149], [7, 7, 0], list(range(100, 20, -1))]
    encoder = mixture.Encoder(job)
    batches = list(encoder.batches(table, plan))
    ids = table["pair_id"].to_pylist()
    assert [[e.key for e in batch] for batch in batches] == [
        [ids[3], ids[149]],
        *([ids[i] for i in b] for b in plan[1:]),
    ]
    assert (encoder.too_long, encoder.cut) == (1, 0)
    asked = [{"role": "user", "content": table["asked"][7].as_py()}]
    conversation = [*asked, {"role": "assistant", "content": table["chosen"][7].as_py()}]
    example = batches[1][0]
    assert list(example.prompt_ids + example.chosen_ids) == templates.conversation_ids(tokenizer, conversation)
    with pytest.raises(ValueError, match="every pair of a batch exceeds the limit"):
        list(encoder.batches(table, [[150]]))


def test_files_may_say_which_responses_are_finished(tmp_path) -> None:
    [first, second, third] = plain(3)
    first |= {"chosen_finished": False, "rejected_finished": True}
    second |= {"chosen_finished": True, "rejected_finished": False}
    file = write(tmp_path / "pairs.jsonl", [first, second, third])
    table = preferences.read(file).table
    assert table["chosen_finished"].to_pylist() == [False, True, None]
    assert table["rejected_finished"].to_pylist() == [True, False, None]
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected,chosen_finished\na,b,c,0\nd,e,f,True\n")
    assert preferences.read(str(tmp_path / "pairs.csv")).table["chosen_finished"].to_pylist() == [False, True]
    (tmp_path / "bad.csv").write_text("prompt,chosen,rejected,chosen_finished\na,b,c,true\nd,e,f,stop\n")
    with pytest.raises(InputError, match=r"bad\.csv: row 2: chosen_finished is neither true, false nor empty"):
        preferences.read(str(tmp_path / "bad.csv"))

    whole = Data(dev_share=1e-9)
    mixed = mixture.mix(of({"pairs": file}), whole, seed=0)
    assert sorted(mixed.train["chosen"].to_pylist()) == ["yes 1", "yes 2"], "no model learns to write a cut response"
    assert mixed.parts[0]["left_out"] == {"its chosen response is unfinished": 1}
    assert mixture.mix(of({"pairs": file}), whole, seed=0, unfinished="allow").train.num_rows == 3


def test_a_cut_response_is_encoded_without_its_end_of_turn(tiny_model, tokenizer, tmp_path) -> None:
    rows = [plain(1)[0] | {"rejected_finished": False}]
    table = preferences.read(write(tmp_path / "pairs.jsonl", rows)).table
    job = Job(model=str(tiny_model))
    for for_policy in (True, False):
        encoded = mixture._encode_rows(table, job, 512, for_policy).to_pylist()[0]
        texts = [tokenizer.decode(encoded[f"{side}_ids"]) for side in ("chosen", "rejected")]
        assert texts[0].rstrip().endswith("<|im_end|>")
        assert "<|im_end|>" not in texts[1]


def test_ratings_become_margins(local_ray, tiny_model) -> None:
    table = preferences.read("sample").table.slice(0, 3)
    job = Job(model=str(tiny_model), reward=Reward(margin=0.5))
    examples = mixture.Encoder(job).examples(table)
    assert [e.margin for e in examples] == pytest.approx([0.5 * gap for gap in table["gap"].to_pylist()])


def test_a_file_may_give_a_weight_to_each_pair(tmp_path, caplog) -> None:
    rows = [{**row, "weight": weight} for row, weight in zip(plain(4), (1, 0.25, None, "0.5"), strict=True)]
    with caplog.at_level("INFO"):
        table = preferences.read(write(tmp_path / "pairs.jsonl", rows)).table
    assert table["weight"].to_pylist() == [1.0, 0.25, None, 0.5]
    assert "2 pairs have a weight below 1" in caplog.text
    assert preferences.read(write(tmp_path / "plain.jsonl", plain(2))).table["weight"].to_pylist() == [None, None]
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected,weight\na,b,c,0.75\nd,e,f,\n")
    assert preferences.read(str(tmp_path / "pairs.csv")).table["weight"].to_pylist() == [0.75, None]


@pytest.mark.parametrize("weight", [0, -0.5, 1.01, "much", True, [0.5], 1e-60])
def test_a_weight_out_of_range_is_refused(tmp_path, weight) -> None:
    file = write(tmp_path / "pairs.jsonl", [*plain(1, weight=1.0), *plain(1, weight=weight)])
    with pytest.raises(InputError, match=r"pairs\.jsonl: row 2: weight is not a number above 0 and at most 1; correct"):
        preferences.read(file)


def test_a_desk_stands_for_the_pairs_that_it_has_exported(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^pairs desk:study: the directory study does not exist"):
        preferences.read("desk:study")
    Path("study").mkdir()
    with pytest.raises(InputError, match=r"^desk study has no export yet; run psyco-ray desk export study$"):
        mixture.check(of({"pairs": "desk:study"}), Data(), [], REFUSE)
    with pytest.raises(InputError, match=r"^pairs desk: names no desk; give desk:DIR"):
        preferences.read("desk:")
    Path("study/export").mkdir()
    rows = [
        {**row, "weight": 0.5, "split": split} for row, split in zip(plain(3), ("train", "train", "dev"), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), "study/export/pairs.parquet")
    for name in ("desk:study", f"desk:{tmp_path}/study"):
        mixed = mixture.mix(of({"pairs": name}), Data(), seed=0)
        assert (mixed.train["weight"].to_pylist(), mixed.dev["chosen"].to_pylist()) == ([0.5, 0.5], ["yes 2"])
        assert mixed.parts[0]["pairs"] == name
    mixture.check(of({"pairs": "desk:study"}), Data(), mixed.parts, REFUSE)


def test_an_export_that_changed_after_a_run_read_it_is_refused(tmp_path, caplog) -> None:
    export, parts = tmp_path / "export" / "pairs.parquet", of({"pairs": f"desk:{tmp_path}"})
    export.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(plain(3, split="train")), export)
    read = mixture.mix(parts, Data(), seed=0).parts
    mixture.check(parts, Data(), read, REFUSE)
    pq.write_table(pa.Table.from_pylist(plain(4, split="train")), export)
    with pytest.raises(InputError, match=r"pairs file desk:.* has changed since this run read it"):
        mixture.check(parts, Data(), read, REFUSE)
    export.unlink()
    mixture.check(parts, Data(), read, REFUSE)
    assert "is gone; the run goes on where it does not read it again" in caplog.text
