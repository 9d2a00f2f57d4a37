"""The pairs of tests and benchmarks."""

import json
from collections import Counter
from unittest.mock import patch

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.cli.main import main
from psyco_ray.config import evaluate_reward as jobs
from psyco_ray.evaluate import pair_sets
from psyco_ray.files import records

DEV, TRAIN = 43, 325  # pairs of the packaged sample


@hypothesis.settings(max_examples=30)
@given(st.integers(0, 5), st.integers(1, TRAIN), st.integers(1, TRAIN))
def test_a_larger_sample_contains_a_smaller_one_in_the_same_order(seed, one, other):
    few, more = sorted((one, other))
    ids = [
        pair_sets.load(jobs.Test(name="t", pairs="sample", split="train", limit=limit), seed)
        .table["pair_id"]
        .to_pylist()
        for limit in (few, more)
    ]
    assert [len(rows) for rows in ids] == [few, more]
    assert [key for key in ids[1] if key in set(ids[0])] == ids[0]


def test_the_sample_depends_on_the_texts_and_not_on_their_order(tmp_path):
    lines = records.SAMPLE.read_text().splitlines(keepends=True)
    (tmp_path / "mirrored.jsonl").write_text("".join(reversed(lines)))
    drawn = [
        pair_sets.load(jobs.Test(name="t", pairs=pairs, split="all", limit=20), seed).table["pair_id"].to_pylist()
        for pairs, seed in (("sample", 0), (str(tmp_path / "mirrored.jsonl"), 0), ("sample", 1))
    ]
    assert drawn[0] == drawn[1][::-1]
    assert drawn[0] != drawn[2]


def test_a_missing_split_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no pair of the split test for t \(it has dev: 43, train: 325\)"):
        pair_sets.load(jobs.Test(name="t", pairs="sample"), 0)
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        pair_sets.load(jobs.Test(name="t", pairs=str(tmp_path / "none.jsonl")), 0)


def test_a_limit_of_the_benchmark_holds_for_each_subset(bench_rows):
    pairs = pair_sets.load_bench(jobs.Bench(rows=str(bench_rows), limit=4), 0)
    assert Counter(pairs.table["subset"].to_pylist()) == {"math-prm": 4, "hep-cpp": 4, "donotanswer": 3}


def test_a_limit_keeps_the_pairs_of_an_item_together(tmp_path):
    rows = [
        {"id": number, "prompt": f"q{number}", "chosen": ["a", "b"], "rejected": ["c", "d", "e"], "subset": "Focus"}
        for number in range(9)
    ]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pair_sets.load_bench(jobs.Bench(rows=str(tmp_path / "bench.jsonl"), limit=4), 0).table
    assert sorted(Counter(table["item"].to_pylist()).values()) == [3, 3, 3, 3]


@pytest.mark.parametrize("key", ["tests.0.pairs", "rewardbench.rows", "calibrate.pairs"])
def test_errors_of_pair_files_come_before_ray(tmp_path, capsys, key):
    (tmp_path / "good.csv").write_text("prompt,chosen,rejected,subset\na,b,c,d\n")
    (tmp_path / "bad.csv").write_text("prompt,better,worse,subset\na,b,c,d\n")
    test = {"name": "t", "pairs": str(tmp_path / "good.csv"), "split": "dev"}
    settings = {
        "run_dir": str(tmp_path / "run"),
        "models": [{"name": "one", "model": "x/y"}],
        "tests": [test],
        "rewardbench": {"rows": test["pairs"]},
        "calibrate": {**test, "name": "c", "split": "train"},
    }
    section, _, field = key.rpartition(".")
    (settings["tests"][0] if section == "tests.0" else settings[section])[field] = str(tmp_path / "bad.csv")
    (tmp_path / "job.yaml").write_text(json.dumps(settings))
    with patch("ray.init", side_effect=AssertionError("Ray starts")):
        assert main(["evaluate-reward", str(tmp_path / "job.yaml")]) == 2
    assert "bad.csv has the columns prompt, better, worse, subset; accepted are" in capsys.readouterr().err


def test_a_benchmark_without_subsets_or_with_wrong_sections_is_refused(bench_rows):
    with pytest.raises(ValueError, match="needs a column subset"):
        pair_sets.load_bench(jobs.Bench(rows="sample"), 0)
    with pytest.raises(ValueError, match="hep-go"):
        pair_sets.load_bench(jobs.Bench(rows=str(bench_rows), sections={"all": ["math-prm", "hep-go"]}), 0)
