"""A judge that is asked for signs of a crisis after `collect`."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from support import commands
from support.data_jobs import rows_of, write_collected

from psyco_ray.config.data import Crisis
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.prompts import PromptsFile
from psyco_ray.data import crisis_judge
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED, JUDGED_CRISIS
from psyco_ray.screening.crisis import KINDS

SPEECHES = [
    {"speech_id": "0a", "speech": "I want to die.", "crisis": ["self-harm"]},
    {"speech_id": "0b", "speech": "I sleep badly.", "crisis": []},
    {"speech_id": "0c", "speech": "よく眠れません。", "crisis": None},
]


def stage(root: Path, **settings) -> crisis_judge.CrisisStage:
    shards.write(root / "collect" / "speeches", "0", SPEECHES, COLLECTED)
    prompt = PromptsFile("default").entry("crisis", "{client_speech}", "{kinds}")
    return crisis_judge.CrisisStage(Crisis(judge=Endpoint(model="m"), **settings), prompt, root)


def test_all_speeches_or_the_unflagged_ones_are_asked_about(tmp_path) -> None:
    questions = list(stage(tmp_path).questions("0"))
    assert [question.speech_id for question in questions] == ["0a", "0b", "0c"]
    text = questions[0].call.messages[-1]["content"]
    assert "I want to die." in text
    assert all(f"- {kind}: " in text for kind in KINDS)
    assert [q.speech_id for q in stage(tmp_path, asked="unflagged").questions("0")] == ["0b", "0c"]


def test_answers_are_kinds_in_order_or_unreadable(tmp_path) -> None:
    asked = stage(tmp_path)
    question = next(asked.questions("0"))
    assert asked.check(question, '{"kinds": ["abuse", "self-harm"]}') == ["self-harm", "abuse"]
    assert asked.check(question, '{"kinds": []}') == []
    for answer in ('{"kinds": ["sadness"]}', '{"kinds": "abuse"}', "[]", "{}"):
        with pytest.raises(UnreadableAnswerError, match="kinds is not a list of self-harm"):
            asked.check(question, answer)


def test_a_flag_of_either_counts(tmp_path) -> None:
    asked = stage(tmp_path)
    named = [("0a", ["abuse"]), ("0b", ["abuse"])]
    rows = [row for key, kinds in named for row in asked.rows(next(asked.questions("0")), kinds, True)]
    rows = [row | {"speech_id": key} for row, (key, _) in zip(rows, named, strict=True)]
    shards.write(tmp_path / "crisis", "0", rows, JUDGED_CRISIS)
    none = dict.fromkeys(KINDS, 0)
    assert crisis_judge.count(tmp_path) == {
        "judge": none | {"abuse": 2},
        "either": none | {"self-harm": 1, "abuse": 2},
        "added": 1,
        "unread": 1,
    }


def test_the_command_asks_the_judge(tmp_path, serve, local_ray) -> None:
    settings = {
        "run_dir": str(tmp_path / "run"),
        "sources": [{"name": "mine", "path": str(tmp_path / "mine.jsonl")}],
    }
    (tmp_path / "mine.jsonl").write_text('{"text": "I sleep badly."}\n')
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(settings))
    write_collected(job, 12)
    refused = commands.here("data", "crisis", job)
    assert refused.returncode == 2
    assert "crisis.judge names no model" in refused.stderr
    judge = {"base_url": serve("--share", "0"), "key_env": None, "model": "judge"}
    job.write_text(yaml.safe_dump(settings | {"crisis": {"judge": judge}}))
    done = commands.here("data", "crisis", job)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "run" / "crisis")
    record = json.loads((tmp_path / "run" / "crisis.json").read_text())
    assert len(rows) == record["units"] == 12
    assert Counter(kind for row in rows for kind in row["crisis"]) == {k: n for k, n in record["judge"].items() if n}
    assert record["added"] == 12


def test_a_speech_is_fenced_so_that_it_gives_no_orders(tmp_path) -> None:
    question = next(stage(tmp_path).questions("0"))
    note, text = question.call.messages[0]["content"], question.call.messages[-1]["content"]
    mark = re.search(r"Text between <(q-\w+)> and </\1> is quoted", note)
    assert mark is not None
    assert f"<{mark[1]}>I want to die.</{mark[1]}>" in text
