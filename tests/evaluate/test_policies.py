"""Policies against an opponent: a real engine, real Ray, judges behind a real server."""

import json
import string
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
import yaml
from support import commands
from support.policy_evaluation import (
    SAMPLE,
    counts,
    load,
    local,
    parsed,
    settings,
)
from support.processes import kill_tree

from psyco_ray.cli.main import main
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PACKAGED
from psyco_ray.evaluate import policies as evaluating
from psyco_ray.judge import call_run
from psyco_ray.report import policies as report
from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.progress import Progress


@pytest.fixture(scope="module")
def slow_url(serve):
    return serve("--latency", "0.3")


def run(job_settings: dict) -> dict:
    directory = RunDirectory(job_settings["run_dir"])
    try:
        results, cases, conversed = evaluating.evaluate(parsed(job_settings), directory, Progress())
        report.write_report(results, cases, directory.root, conversed)
        return results
    finally:
        directory.close()


ONE = {"name": "one", "model": "x/y"}


BATCH = {"name": "b", "endpoint": {"model": "judge", "via": "batch"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": []}, "policies"),
        ({"judges": []}, "judges"),
        ({"variants": []}, "variants"),
        ({"policies": [ONE, ONE]}, "two models are named one"),
        ({"policies": [{**ONE, "name": "other"}]}, "two models are named other"),
        ({"policies": [{**ONE, "name": "../up"}]}, "is invalid as a directory name"),
        ({"variants": ["free", "free"]}, "two variants are named free"),
        ({"variants": ["short"]}, "invalid value 'short'"),
        ({"judges": [BATCH]}, "the judge b has via: batch"),
        ({"judges": [{**BATCH, "name": n, "endpoint": local("x")} for n in "ab"]}, "judge a has the same model judge"),
        ({"opponent": {"name": "o"}}, "exactly one of responses .*, endpoint and model"),
        ({"opponent": {"name": "o", "model": "x/y", "responses": "z"}}, "the opponent o needs exactly one"),
        ({"max_cost": 1.0}, "max_cost needs price_in and price_out of the endpoint of the judge judge"),
        ({"sampling": {"max_tokens": 512}}, "sampling.max_tokens 512 leaves no room"),
        ({"rollouts": {"tensor_parallel": 2}}, "tensor_parallel 2 needs as many"),
        ({"judge": []}, "unknown key judge; did you mean judges"),
    ],
)
def test_an_invalid_job_is_reported_in_one_sentence(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        parsed(settings(tmp_path) | changes)
    assert "\n" not in str(caught.value)


def test_the_papers_settings_are_the_defaults(tmp_path):
    job = parsed({key: settings(tmp_path)[key] for key in ("policies", "opponent", "judges")})
    assert (job.speeches.split, job.sampling.temperature, job.sampling.max_tokens) == ("test", 0, 1024)
    assert (job.variants, job.judging.order) == (["free", "matched"], "seeded")


def test_the_packaged_prompts_have_every_placeholder_once():
    texts = yaml.safe_load(PACKAGED.read_text())
    expected = {
        "judge": {"principles", "client_speech", "response_a", "response_b"},
        "judge-conversation": {"principles", "conversation", "response_a", "response_b"},
        "judge-dialogue": {"principles", "client_speech", "dialogue_a", "dialogue_b"},
        "consistency": {"dialogue"},
        "respond-matched": {"client_speech", "words"},
        "respond-small-matched": {"client_speech", "words"},
    }
    for name, placeholders in expected.items():
        for text in (texts[name]["user"], texts[name].get("later")):
            result = [field for _, field, _, _ in string.Formatter().parse(text or "") if field]
            assert sorted(result) == (sorted(placeholders) if text else [])
    assert texts["judge"]["user"].splitlines()[-1].startswith("- better: ")


@pytest.mark.parametrize(
    ("entry", "placeholder", "message"),
    [
        ("judge", "{response_b}", r"the user text of judge does not contain \{response_b\}"),
        ("respond-matched", "{words}", r"the user text of respond-matched does not contain \{words\}"),
    ],
)
def test_a_prompts_file_without_a_placeholder_is_refused(entry, placeholder, message, tmp_path, responses):
    texts = yaml.safe_load(PACKAGED.read_text())
    texts[entry]["user"] = texts[entry]["user"].replace(placeholder, "")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(texts))
    opponent = {"name": "other", "responses": responses}
    with pytest.raises(ValueError, match=message):
        run(settings(tmp_path / "run", opponent=opponent, prompts={"file": str(tmp_path / "mine.yaml")}))


def test_a_run_directory_of_another_kind_is_not_touched(tmp_path):
    (tmp_path / "job.yaml").write_text("iterations: 3\n")
    with pytest.raises(ValueError, match="holds a run of another kind"):
        run(settings(tmp_path))
    assert (tmp_path / "job.yaml").read_text() == "iterations: 3\n"


def test_a_run_that_chose_its_base_model_is_refused_before_anything_is_answered(tmp_path, tiny_model, responses):
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "job.yaml").write_text(yaml.safe_dump({"model": str(tiny_model), "seed": 0, "iterations": 1}))
    best = {"iteration": 0, "steps": 0, "by": "mean reward by the held-out reward model on the held-out speeches"}
    (trained / "summary.json").write_text(json.dumps({"iterations": 1, "best": best}))
    policies = [{"name": "tiny", "model": str(trained)}]
    with pytest.raises(InputError, match=r"has chosen its base model") as caught:
        run(settings(tmp_path / "run", policies=policies, opponent={"name": "file", "responses": responses}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "answers").exists()


def test_entries_that_dialogues_need_are_missed_before_anything_is_answered(tmp_path, tiny_model):
    opponent = {"name": "talker", "endpoint": local("http://127.0.0.1:1", "talker")}
    client = {"endpoint": local("http://127.0.0.1:1", "client")}
    policies = [{"name": "tiny", "model": str(tiny_model)}]
    for entry in ("judge-dialogue", "consistency", "client", "profiles"):
        texts = yaml.safe_load(PACKAGED.read_text())
        del texts[entry]
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(texts))
        simulate = {"client": client, "consistency": True}
        job_settings = settings(tmp_path / "run", opponent=opponent, policies=policies, simulate=simulate)
        with pytest.raises(InputError, match=entry):
            run(job_settings | {"prompts": {"file": str(tmp_path / "mine.yaml")}})
        assert not (tmp_path / "run" / "questions").exists()


@pytest.mark.slow
def test_policies_meet_their_opponent_and_nothing_is_done_twice(local_ray, tmp_path, url, tiny_model, responses):
    """The policies are the checkpoints of a run that learned nothing, so they share answers and verdicts."""
    trained = tmp_path / "trained"
    (trained / "iteration-001").mkdir(parents=True)
    (trained / "iteration-001" / "checkpoint").symlink_to(tiny_model)
    (trained / "iteration-001" / "train.json").write_text(json.dumps({"steps": [{"loss": 0.7}] * 5}))
    (trained / "job.yaml").write_text(yaml.safe_dump({"model": str(tiny_model), "seed": 0, "iterations": 1}))
    job_settings = settings(
        tmp_path / "run",
        policies=[
            {"name": "tiny", "model": str(trained), "iteration": "all"},
            {"name": "base", "model": str(tiny_model)},
        ],
        opponent={"name": "file", "responses": responses},
        speeches={"split": "dev", "limit": 12},
        judges=[
            {"name": "first", "endpoint": local(url)},
            {"name": "second", "endpoint": local(url, "another")},
            {"name": "mumbler", "endpoint": local(url, "mumbler", structured="text")},
        ],
    )
    before = counts(url)["served"]
    with patch.object(call_run, "AnswerStream", wraps=call_run.AnswerStream) as opened:
        results = run(job_settings)
    together = [[stage.name for stage in call.args[0]] for call in opened.call_args_list]
    assert together == [
        [f"{judge} on tiny iteration 0, {variant}" for judge in ("first", "second", "mumbler")]
        for variant in ("free", "matched")
    ], "all judges at the same time"
    root = tmp_path / "run"
    assert json.loads((root / "evaluation.json").read_text()) == results
    base, policy, named = results["policies"]
    assert base["variants"] == policy["variants"] == named["variants"]
    assert {path.name for path in (root / "answers").iterdir()} == {"tiny iteration 0"}, "of one and the same model"
    for iteration, row in enumerate((base, policy)):
        origin = (row["name"], row["run"], row["iteration"], row["steps"], row["series"])
        assert origin == (f"tiny iteration {iteration}", str(trained), iteration, 5 * iteration, "tiny")
    tested = [(test["a"], test["b"]) for test in results["mcnemar"]["free"]]
    assert tested == [(base["name"], "base"), (policy["name"], "base")], "not two checkpoints of one run"
    assert counts(url)["served"] - before == 12 * 2 * (1 + 1 + 3), "the mumbler is asked three times"
    expected = {row["question"]: row["chosen"] for row in SAMPLE}
    for variant, result in policy["variants"].items():
        assert result["overall"]["speeches"] == 12
        assert result["overall"]["unreadable"] == 0
        assert result["overall"] == result["by_judge"]["first"]["overall"]
        assert result["by_judge"]["mumbler"]["overall"]["unreadable"] == 12
        assert result["by_judge"]["mumbler"]["overall"]["rate"] == 0
        assert result["by_judge"]["second"]["spent"]["paid"] == 12
        rows = pq.read_table(root / "responses" / policy["name"] / variant / "responses.parquet").to_pylist()
        assert len(rows) == 12
        assert {row["speech_id"] for row in rows} == {row["speech_id"] for row in load(limit=12)}
        judged = pq.read_table(root / "judged" / "first" / policy["name"] / f"{variant}.parquet").to_pylist()
        assert sum(row["outcome"] for row in judged) / 12 == pytest.approx(result["overall"]["rate"])
        assert Counter(row["better"] for row in judged)["ours"] == result["overall"]["wins"]
        opponent_words = [len(expected[row["speech"]].split()) for row in rows]
        assert result["opponent_mean_words"] == pytest.approx(sum(opponent_words) / 12)
        assert result["cut"] == sum(not row["finished"] for row in rows) > 0, "random weights hardly ever end"
        assert result["finished_share"] == 1 - (result["cut"] + result["unanswered"]) / 12
    kinds = Counter(tuple(row["judges"]) for row in results["agreement"])
    assert kinds == {("first", "second"): 6, ("first", "mumbler"): 6}
    by_pair = {(row["judges"][1], row["variant"]): row["percent"] for row in results["agreement"]}
    assert by_pair["second", "free"]["items"] == 12
    assert by_pair["mumbler", "free"]["items"] == 0
    prompts = [
        row["speech"] for path in (root / "questions").rglob("*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    assert len(prompts) == 24
    matched = [text for text in prompts if "in about" in text]
    for text in matched:
        speech = next(row["question"] for row in SAMPLE if row["question"] in text)
        assert f"in about {len(expected[speech].split())}\nwords" in text
    assert len(matched) == 12

    times = {path: path.stat().st_mtime_ns for path in (root / "answers").rglob("*.parquet")}
    assert run(job_settings) == results
    assert {path: path.stat().st_mtime_ns for path in (root / "answers").rglob("*.parquet")} == times
    assert counts(url)["served"] - before == 12 * 2 * (1 + 1 + 3)
    for name in ("report.html", "tables.md"):
        assert "tiny" in (root / name).read_text()


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "psyco_ray.cli", "evaluate-policy", str(path)]


@pytest.mark.long
def test_after_a_kill_and_a_cost_limit_nothing_is_paid_twice(local_ray, tmp_path, slow_url, tiny_model):
    flying = 2
    priced = {"price_in": 1.0, "price_out": 2.0, "concurrency": flying}
    job_settings = settings(
        tmp_path / "run",
        policies=[{"name": "tiny", "model": str(tiny_model)}],
        opponent={"name": "talker", "endpoint": local(slow_url, "talker", **priced)},
        speeches={"split": "dev", "limit": 30},
        variants=["free"],
        judges=[{"name": "judge", "endpoint": local(slow_url, "judge", **priced)}],
    )
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_settings))
    killed = subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while counts(slow_url)["by_kind"].get("judge", 0) < 6:
        assert killed.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    assert not kill_tree(killed.pid)
    assert counts(slow_url)["by_kind"]["talker"] == 30
    assert counts(slow_url)["by_kind"]["judge"] < 30, "it was to be killed in between"

    stopped = commands.here("evaluate-policy", path, "--max-cost", 0.01)
    assert stopped.returncode == 75, stopped.stderr[-3000:]
    assert "the same command continues" in stopped.stderr
    assert not (tmp_path / "run" / "evaluation.json").exists()

    results = run(job_settings)
    result = results["policies"][0]["variants"]["free"]
    assert (result["overall"]["speeches"], result["overall"]["unreadable"]) == (30, 0)
    assert counts(slow_url)["by_kind"]["talker"] == 30
    assert counts(slow_url)["paid_twice"] <= flying, "only what was in flight when it was killed"
    assert counts(slow_url)["by_kind"]["judge"] <= 30 + flying
    shown = json.dumps(opponent_rows(tmp_path / "run"))
    assert "I hear you." in shown


def opponent_rows(root: Path) -> list[dict]:
    return pq.read_table(root / "responses" / "talker" / "responses.parquet").to_pylist()


def test_an_opponent_without_any_response_is_an_error(local_ray, tmp_path, url, tiny_model):
    policies = [{"name": "tiny", "model": str(tiny_model)}]
    opponent = {"name": "silent", "endpoint": local(url, "filter", structured="text")}
    with pytest.raises(
        ValueError, match=r"silent answered none of the 3 speeches; the first reason: stopped by the content filter"
    ):
        run(settings(tmp_path, policies=policies, opponent=opponent, speeches={"split": "dev", "limit": 3}))


def test_the_command_reports_an_invalid_job(tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path / "run")))
    assert main(["evaluate-policy", str(path), "seed=-1"]) == 2
    assert "seed: invalid value -1" in capsys.readouterr().err
    assert main(["evaluate-policy", str(path), "--max-cost", "-1"]) == 2
    assert "--max-cost: max_cost: invalid value -1.0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
