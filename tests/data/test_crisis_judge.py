"""A judge that is asked for signs of a crisis after `collect`."""

import re
from pathlib import Path

import pytest

from psyco_ray.config.data import Crisis
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.prompts import PromptsFile
from psyco_ray.data import crisis_judge
from psyco_ray.data.crisis_flags import columns, flag
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED, CRISIS_SIGNS
from psyco_ray.screening.crisis import KINDS

SPEECHES = [
    {"speech_id": "0a", "speech": "I want to die.", **columns({"lexicon": [flag("self-harm", "lexicon", 7, 13)]})},
    {"speech_id": "0b", "speech": "I sleep badly.", **columns({"lexicon": [], "judge": [flag("abuse", "judge")]})},
    {"speech_id": "0c", "speech": "よく眠れません。", **columns({})},
]


def stage(root: Path, **settings) -> crisis_judge.CrisisStage:
    shards.write(root / "collect" / "speeches", "0", SPEECHES, COLLECTED)
    prompt = PromptsFile("default").context_entry("crisis", False, "{kinds}")
    judge = Endpoint(model="m")
    return crisis_judge.CrisisStage(judge, Crisis(judge=judge, **settings), prompt, root)


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


def test_an_answer_is_flags_of_the_whole_speech(tmp_path) -> None:
    asked = stage(tmp_path)
    question = next(asked.questions("0"))
    [row] = asked.rows(question, ["self-harm", "abuse"], True)
    shards.write(tmp_path / "crisis", "0", [row], CRISIS_SIGNS)
    [kept] = shards.read(tmp_path / "crisis", "0")
    assert (kept["speech_id"], kept["scores"], kept["model"]) == ("0a", None, "m")
    assert kept["flags"] == [
        {"kind": kind, "start": None, "end": None, "by": "judge"} for kind in ("self-harm", "abuse")
    ]


def test_a_speech_is_fenced_so_that_it_gives_no_orders(tmp_path) -> None:
    question = next(stage(tmp_path).questions("0"))
    note, text = question.call.messages[0]["content"], question.call.messages[-1]["content"]
    mark = re.search(r"Text between <(q-\w+)> and </\1> is quoted", note)
    assert mark is not None
    assert f"<{mark[1]}>I want to die.</{mark[1]}>" in text
