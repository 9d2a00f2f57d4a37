"""Reward models and rankers on held-out pairs: real Ray, a tiny reward model, a ranker behind a real server."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
import yaml
from support import commands
from support.policy_evaluation import counts
from support.processes import kill_tree
from support.reward_evaluation import local, parsed, run, settings

from psyco_ray.cli.main import main
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.training import Prompts
from psyco_ray.evaluate import pair_scores
from psyco_ray.files import records
from psyco_ray.judge import call_run

PROMPT = load_prompt(Prompts())


DEV, TRAIN = 43, 325  # pairs of the packaged sample


def times(directory: Path) -> dict[str, int]:
    """When each part was written, by its path."""
    result = directory.rglob("*.parquet")
    return {str(path.relative_to(directory)): path.stat().st_mtime_ns for path in result if path.name[0] != "."}


def scored(directory: Path) -> list[dict]:
    return [row for path in sorted(times(directory)) for row in pq.read_table(directory / path).to_pylist()]


ONE = {"name": "one", "model": "x/y"}


RANKER = {"name": "asked", "endpoint": {"model": "judge"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tests": []}, "nothing to evaluate on"),
        ({"models": []}, "models"),
        ({"models": [ONE, ONE]}, "two models are named one"),
        ({"models": [{**ONE, **RANKER}]}, "asked needs either model .* or endpoint"),
        ({"models": [{"name": "none"}]}, "none needs either model"),
        ({"models": [{**ONE, "name": "../up"}]}, "is invalid as a directory name"),
        ({"models": [{**RANKER, "group": "ours"}]}, "asked is a ranker"),
        ({"models": [{**RANKER, "logit_token": 0}]}, "asked is a ranker, which has no reward"),
        ({"models": [{**ONE, "tables": [3]}]}, "models.0.tables.0: invalid value 3"),
        ({"models": [{"name": "b", "endpoint": {"model": "judge", "via": "batch"}}]}, "b has via: batch"),
        ({"models": [RANKER, {**RANKER, "name": "again"}]}, "two rankers have the same model judge"),
        ({"models": [RANKER], "max_cost": 1}, "max_cost needs price_in and price_out of the endpoint of asked"),
        ({"tests": [{"name": "a", "pairs": "sample", "split": "eval"}]}, "split: invalid value 'eval'"),
        ({"tests": [{"name": "a", "pairs": "sample"}] * 2}, "two sets of pairs are named a"),
        ({"tests": [{"name": "rewardbench", "pairs": "sample"}]}, "rewardbench is that of the benchmark"),
        ({"calibrate": {"name": "c", "pairs": "sample", "split": "dev"}}, "must not be fitted on test data"),
        ({"calibrate": {"name": "c", "pairs": "sample", "split": "all"}}, "calibrate has the pairs of the test dev"),
        ({"scorers": {"reward_model": "x"}}, "scorers.reward_model belongs to a training job"),
        ({"test": []}, "unknown key test; did you mean tests"),
    ],
)
def test_an_invalid_job_is_reported_in_one_sentence(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        parsed(settings(tmp_path, [ONE]) | changes)
    assert "\n" not in str(caught.value)


def test_a_model_with_training_data_is_ours_unless_it_says_otherwise():
    groups = [{}, {"trained_on": "HelpSteer2"}, {"trained_on": "HelpSteer2", "group": "external"}]
    models = [{**ONE, **more, "name": str(number)} for number, more in enumerate(groups)]
    result = parsed(settings(Path("x"), [*models, RANKER])).models
    assert [model.table_group for model in result] == ["external", "ours", "external", "ranker"]


def test_a_run_directory_of_another_kind_is_not_touched(tmp_path):
    (tmp_path / "job.yaml").write_text("iterations: 3\n")
    with pytest.raises(ValueError, match="holds a run of another kind"):
        run(settings(tmp_path, [ONE]))
    assert (tmp_path / "job.yaml").read_text() == "iterations: 3\n"


def test_what_is_no_reward_model_is_refused_before_anything_is_scored(tmp_path, tiny_model, tiny_reward_model):
    good = {"name": "good", "model": str(tiny_reward_model)}
    two = tmp_path / "two"
    shutil.copytree(tiny_reward_model, two)
    about = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps({**about, "id2label": {"0": "a", "1": "b"}}))
    (two / "manifest.json").unlink()  # as if it came from elsewhere
    for bad, message in (
        (two, "has 2 labels; one is needed"),
        (tiny_model, "is no reward model: its config.json names LlamaForCausalLM"),
        (tmp_path / "nowhere", "is neither a directory, nor a hub id"),
        (tiny_reward_model, "is no language model: its config.json names LlamaForSequence"),
    ):
        bad_one = {"name": "bad", "model": str(bad), "logit_token": 0 if bad == tiny_reward_model else None}
        with pytest.raises(ValueError, match=message):
            run(settings(tmp_path / "run", [good, bad_one]))
    assert not (tmp_path / "run" / "scores").exists()


def test_a_models_fingerprint_changes_with_its_weights(tmp_path, tiny_reward_model):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_reward_model, copy)  # keeps the times
    assert pair_scores.fingerprint(str(copy)) == pair_scores.fingerprint(str(tiny_reward_model))
    (copy / "README.md").write_text("a card")
    assert pair_scores.fingerprint(str(copy)) == pair_scores.fingerprint(str(tiny_reward_model))
    (copy / "model.safetensors").touch()
    assert pair_scores.fingerprint(str(copy)) != pair_scores.fingerprint(str(tiny_reward_model))


@pytest.mark.long
@pytest.mark.slow
def test_models_side_by_side_and_nothing_is_done_twice(local_ray, tmp_path, url, bench_rows, tiny_reward_model):
    job_settings = settings(
        tmp_path / "run",
        [
            local(url),
            {"name": "mine", "model": str(tiny_reward_model), "base": "tiny", "trained_on": "nothing"},
            local(url, "mumbler", structured="text"),
        ],
        calibrate={"name": "fit", "pairs": "sample", "split": "train", "limit": 40},
        rewardbench={"rows": str(bench_rows)},
    )
    before = counts(url)["served"]
    with patch.object(call_run, "AnswerStream", wraps=call_run.AnswerStream) as opened:
        results = run(job_settings)
    together = [[stage.name for stage in call.args[0]] for call in opened.call_args_list]
    assert together == [[f"{name} on {test}" for name in ("judge", "mumbler")] for test in ("dev", "rewardbench")]
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == results
    assert [model["name"] for model in results["models"]] == ["judge", "mine", "mumbler"]
    [about] = results["tests"]
    assert (about["rows"], about["split"], about["left_out"]) == (DEV, "dev", {})

    judge, mine, mumbler = results["models"]
    rows = scored(tmp_path / "run" / "scores" / "mine" / "dev")
    pairs = {row["prefID"]: row for row in map(json.loads, records.SAMPLE.read_text().splitlines())}
    assert len(rows) == len({row["pair_id"] for row in rows}) == DEV
    assert_scores_are_the_models(rows[::7], pairs, tiny_reward_model)
    result = mine["tests"]["dev"]
    assert result["accuracy"] == sum(row["chosen"] > row["rejected"] for row in rows) / DEV
    assert (result["pairs"], result["cut"], result["too_long"]) == (DEV, 0, 0)
    assert sum(row["pairs"] for row in result["slices"]["length"]) == DEV
    assert result["temperature"] > 0
    assert result["calibrated"]["nll"] != result["nll"]
    on_bench = scored(tmp_path / "run" / "scores" / "mine" / "rewardbench")
    assert mine["rewardbench"]["micro"] == sum(row["chosen"] > row["rejected"] for row in on_bench) / 16
    assert mine["rewardbench"]["pairs"] == 16
    assert {name: of["pairs"] for name, of in mine["rewardbench"]["subsets"].items()} == {
        "math-prm": 8, "hep-cpp": 5, "donotanswer": 3,
    }  # fmt: skip

    asked = 2 * (DEV + 16)
    assert counts(url)["served"] - before == asked + 3 * asked  # the mumbler is asked three times
    assert judge["tests"]["dev"]["unreadable"] == 0
    assert judge["tests"]["dev"]["accuracy"] == pytest.approx(
        (judge["tests"]["dev"]["first_accuracy"] + judge["tests"]["dev"]["second_accuracy"]) / 2
    )
    assert 0.2 < judge["tests"]["dev"]["accuracy"] < 0.8  # it draws lots
    assert (mumbler["tests"]["dev"]["unreadable"], mumbler["tests"]["dev"]["accuracy"]) == (2 * DEV, 0.0)
    assert mumbler["rewardbench"]["mean"] == 0
    assert judge["tests"]["dev"]["spent"]["paid"] == 2 * DEV
    for name in ("report.html", "tables.md"):
        assert "mine" in (tmp_path / "run" / name).read_text()

    served, written = counts(url)["served"], times(tmp_path / "run" / "scores")
    assert run(job_settings) == results
    more = {
        **job_settings,
        "tests": [*job_settings["tests"], {"name": "some", "pairs": "sample", "split": "dev", "limit": 9}],
    }
    again = run(more)
    now = times(tmp_path / "run" / "scores")
    assert {path: now[path] for path in written} == written
    assert all(path.startswith("mine/some/") for path in set(now) - set(written))
    assert again["models"][1]["tests"]["dev"] == result
    assert again["models"][0]["tests"]["some"]["pairs"] == 9
    assert counts(url)["served"] == served, "the journal had all answers about the same pairs"
    assert again["models"][0]["tests"]["some"]["spent"]["reused"] == 2 * 9


def assert_scores_are_the_models(rows: list[dict], pairs: dict[str, dict], path: Path) -> None:
    """Against transformers, each conversation alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    for row in rows:
        pair = pairs[row["pair_id"]]
        for side in ("chosen", "rejected"):
            turns = [*prompt_messages(PROMPT, pair["question"]), {"role": "assistant", "content": pair[side]}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            if not pair[f"{side}_finished"]:  # a cut response ends with its last word
                text = text[: text.rindex(pair[side]) + len(pair[side])]
            with torch.no_grad():
                score = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item()
            assert row[side] == pytest.approx(score, abs=1e-4)


def test_pairs_too_long_are_counted_and_a_test_without_any_other_is_refused(local_ray, tmp_path, tiny_reward_model):
    mine, one = [{"name": "mine", "model": str(tiny_reward_model)}], {"dtype": "float32", "cpus": 0.1}
    result = run(settings(tmp_path / "some", mine, max_tokens=100, scorers=one))["models"][0]["tests"]["dev"]
    assert result["cut"] > 0
    assert result["pairs"] + result["too_long"] == DEV
    assert sum(row["chosen"] is None for row in scored(tmp_path / "some" / "scores/mine/dev")) == result["too_long"]
    with pytest.raises(ValueError, match="mine has no score on dev: in every pair a response alone fills its context"):
        run(settings(tmp_path / "none", mine, max_tokens=8, scorers=one))


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "psyco_ray.cli", "evaluate-reward", str(path)]


@pytest.mark.long
def test_after_a_kill_and_a_cost_limit_nothing_is_done_twice(local_ray, tmp_path, url, tiny_reward_model):
    scores = tmp_path / "run" / "scores"
    job_settings = settings(
        tmp_path / "run",
        [{"name": "mine", "model": str(tiny_reward_model)}, local(url, "priced", price_in=1.0, price_out=2.0)],
        tests=[{"name": "all", "pairs": "sample", "split": "all"}],
        scorers={"dtype": "float32", "cpus": 0.1},
    )
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_settings))
    killed = subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not times(scores):
        assert killed.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    assert not kill_tree(killed.pid)
    before, paid = times(scores), counts(url)["by_kind"].get("priced", 0)
    assert paid == 0

    stopped = commands.here("evaluate-reward", path, "--max-cost", 0.05)
    assert stopped.returncode == 75, stopped.stderr[-3000:]
    assert "the same command continues" in stopped.stderr
    assert not (tmp_path / "run" / "evaluation.json").exists()
    scored_now = times(scores)
    assert 0 < len(before) < len(scored_now), "it was to be killed in between"
    assert len(scored(scores)) == DEV + TRAIN
    assert {name: scored_now[name] for name in before} == before
    assert 0 < counts(url)["by_kind"]["priced"] < 2 * (DEV + TRAIN)

    results = run(job_settings)
    assert times(scores) == scored_now
    assert [model["tests"]["all"]["pairs"] for model in results["models"]] == [DEV + TRAIN] * 2
    assert results["models"][1]["tests"]["all"]["unreadable"] == 0
    assert counts(url)["by_kind"]["priced"] == 2 * (DEV + TRAIN)
    assert counts(url)["paid_twice"] == 0


def test_the_command_reports_an_invalid_job(tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path / "run", [ONE])))
    assert main(["evaluate-reward", str(path), "seed=-1"]) == 2
    assert "seed: invalid value -1" in capsys.readouterr().err
    assert main(["evaluate-reward", str(path), "--max-cost", "-1"]) == 2
    assert "--max-cost: max_cost: invalid value -1.0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
