"""A dataset whose speeches are screened by lexicons, a classifier and a judge, from raw file to evaluation."""

import json
from pathlib import Path

import pytest
import yaml
from support import commands
from support.classifiers import write_classifier
from support.data_jobs import asked, rows_of

from psyco_ray.config.evaluate_policy import Speeches
from psyco_ray.evaluate.speech_sets import load_speeches
from psyco_ray.files import records

GRAVE = "I want to kill myself. I have written the letters, and tonight, when the others sleep, I am going to do it."
UNREAD = "仕事のあとで毎日とても疲れてしまい、よく眠れません。" * 5
TEXTS = [*(json.loads(line)["question"] for line in records.SAMPLE.read_text().splitlines()[:12]), GRAVE, UNREAD]


def write_job(where: Path, url: str, **crisis) -> Path:
    (where / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    api = {"base_url": url, "key_env": None}
    members = [{"name": name, "api": {**api, "model": name}} for name in ("model-0", "model-1")]
    (where / "pool.yaml").write_text(yaml.safe_dump(members))
    job = {
        "run_dir": str(where / "run"),
        "sources": [{"name": "mine", "path": str(where / "raw.jsonl")}],
        "collect": {"blocks": 1},
        "crisis": crisis,
        "respond": {"pool": str(where / "pool.yaml"), "per_speech": 2, "max_tokens": 60},
        "rate": {"endpoint": {**api, "model": "judge"}},
        "pair": {"min_gap": 0.1},
    }
    (where / "job.yaml").write_text(yaml.safe_dump(job))
    return where / "job.yaml"


def tables(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.parquet")}


@pytest.mark.long
def test_a_dataset_is_screened_by_lexicons_classifier_and_judge(tmp_path, serve, local_ray) -> None:
    url, run = serve("--share", "0"), tmp_path / "run"
    classifier = {
        "model": str(write_classifier(tmp_path / "tiny-classifier", positions=256)),
        "labels": {"suicidal": "self-harm", "hostile": "violence"},
        "threshold": 0.35,
    }
    judge = {"base_url": url, "key_env": None, "model": "reader"}
    job = write_job(tmp_path, url, classifier=classifier, judge=judge)
    done = commands.here("data", "build", job)
    assert done.returncode == 0, done.stderr[-3000:]

    speeches = {row["speech"]: row for row in rows_of(run / "collect" / "speeches")}
    assert len(speeches) == len(TEXTS)
    assert speeches[GRAVE]["screened_by"] == ["lexicon", "classifier", "judge"]
    assert speeches[UNREAD]["screened_by"] == ["classifier", "judge"], "no lexicon can read it"
    assert speeches[UNREAD]["crisis"] is not None
    assert {one["by"] for row in speeches.values() for one in row["crisis_flags"]} == {"lexicon", "classifier", "judge"}
    for row in speeches.values():
        for one in row["crisis_flags"]:
            assert (one["start"] is None) == (one["by"] == "judge")
            assert one["start"] is None or row["speech"][one["start"] : one["end"]]
    [record] = [json.loads((run / "classify.json").read_text())]
    assert record["function"] == "softmax"
    assert len(record["weights"]) == 32

    pairs = [row for split in ("train", "dev", "test") for row in rows_of(run / "pairs") if row["split"] == split]
    assert pairs
    assert all(row["crisis"] == speeches[row["question"]]["crisis"] for row in pairs)
    read = load_speeches(Speeches(file=str(run / "collect" / "speeches"), split="all"), 0)
    assert {row["speech"]: row["crisis"] for row in read} == {
        text: bool(row["crisis"]) for text, row in speeches.items()
    }
    card = (run / "dataset-card.md").read_text()
    for who, count in (("lexicons of phrases in English", 13), ("the classifier tiny-classifier", 14), ("reader", 14)):
        [line] = [line for line in card.splitlines() if line.startswith("- ") and who in line]
        assert f"read {count} speeches" in line
    assert "Not screened" not in card
    assert str(tmp_path) not in card

    before, paid = tables(run), asked(url)["paid"]
    for name in ("classify.json", "crisis.json", "pair.json"):
        (run / name).unlink()
    next((run / "classify").glob("*.parquet")).unlink()
    again = commands.here("data", "build", job)
    assert again.returncode == 0, again.stderr[-3000:]
    assert tables(run) == before
    assert asked(url)["paid"] == paid

    changed = commands.here("data", "crisis", job, "crisis.classifier.threshold=0.6")
    assert changed.returncode == 2
    assert "holds classify made with classifier.threshold 0.35, now it is 0.6" in changed.stderr


@pytest.mark.parametrize(
    ("crisis", "message"),
    [
        ({}, "crisis.classifier and crisis.judge name no model; collect has flagged the speeches by the lexicons"),
        (
            {"classifier": {"model": "somewhere/else", "labels": {"bad": "abuse"}}},
            "crisis.classifier.model somewhere/else is no directory here; of a hub id pin crisis.classifier.revision",
        ),
    ],
)
def test_a_screen_without_a_usable_model_ends_before_ray_starts(tmp_path, crisis, message) -> None:
    job = write_job(tmp_path, "http://127.0.0.1:9/v1", **crisis)
    ended = commands.here("data", "build" if crisis else "crisis", job)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert not (tmp_path / "run" / "collect").exists()
