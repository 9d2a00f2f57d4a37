"""Responses of open models that share one set of weights."""

from dataclasses import replace

import pytest
from support.chat_templates import R1, with_template

from psyco_ray.config.prompts import load_prompt
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Deadlines, Prompts
from psyco_ray.data import generate, respond
from psyco_ray.run import shards
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import COLLECTED, RESPONSES

ROOM = 256 - 16  # tokens of a prompt


def test_models_answer_the_speeches_drawn_for_them(tmp_path, tiny_model, local_ray) -> None:
    speeches = tmp_path / "speeches"
    for part in "0123":
        texts = [f"I cannot sleep. This is night {part}{n}." for n in range(12)]
        texts[5] = texts[5] * (40 if part == "2" else 1)
        rows = [{"speech_id": f"{part}{n:015x}", "speech": text} for n, text in enumerate(texts)]
        shards.write(speeches, part, rows, COLLECTED)
    prompt = load_prompt(Prompts(respond="respond-small"))
    draw = respond.Draw(("a", "b", "c"), per_speech=2)
    tasks = [
        respond.ResponseTask(
            name, respond.ResponseSampling(prompt, temperature, 1.0, 16, seed=3), speeches, tmp_path / name, draw
        )
        for name, temperature in (("a", 0.5), ("b", 1.0), ("c", 1.0))
    ]
    rollouts = Rollouts(cpus=0.5, max_model_len=256, max_num_seqs=8, kv_cache_gb=0.5)
    model = generate.LocalModel(str(tiny_model), rollouts, seed=3)

    resumed = replace(tasks[0], out=tmp_path / "resumed")
    for part in "023":  # done before
        shards.write(resumed.out, part, [], RESPONSES)

    generate.generate(model, [*tasks, resumed], Deadlines(), Progress(), "respond")
    responses = {}
    for task in tasks:
        assert task.missing() == []
        for part in task.parts():
            stored = shards.read(task.out, part)
            set_aside = shards.read(task.out / "set-aside", part)
            ids = [row["speech_id"] for row in stored]
            assert ids == sorted(ids)
            assert {*ids, *(row["speech_id"] for row in set_aside)} == {row["speech_id"] for row in task.rows(part)}
            assert all(f"{ROOM} fit" in row["reason"] for row in set_aside if row["answer"] is None)
            responses |= {(task.name, row["speech_id"]): row["response"] for row in stored}
    too_long = [row for task in tasks for row in shards.read(task.out / "set-aside", "2") if row["answer"] is None]
    assert [row["speech_id"] for row in too_long] == [f"2{5:015x}"] * 2, "two models were drawn for it"
    both = [key for name, key in responses if name == "b" and ("c", key) in responses]
    assert sum(responses["b", key] != responses["c", key] for key in both) > len(both) / 2, "seeds differ by model"

    assert not any(shards.read(resumed.out, part) for part in "023"), "what is done is not done again"
    again = {row["speech_id"]: row["response"] for row in shards.read(resumed.out, "1")}
    assert again == {key: text for (name, key), text in responses.items() if name == "a" and key.startswith("1")}

    merged = sum(respond.merge(tasks, tmp_path / "merged", part) for part in tasks[0].parts())
    assert merged == len(responses)


@pytest.mark.long
def test_reasoning_that_its_prompt_opened_and_that_never_ends_is_no_response(tmp_path, tiny_model, local_ray) -> None:
    rows = [{"speech_id": f"0{n:015x}", "speech": f"I cannot sleep. This is night {n}."} for n in range(4)]
    shards.write(tmp_path / "speeches", "0", rows, COLLECTED)
    sampling = respond.ResponseSampling(load_prompt(Prompts(respond="respond-small")), 1.0, 1.0, 16, seed=3)
    task = respond.ResponseTask("thinker", sampling, tmp_path / "speeches", tmp_path / "answers")
    rollouts = Rollouts(cpus=0.5, max_model_len=256, max_num_seqs=8, kv_cache_gb=0.5)
    thinker = with_template(tiny_model, R1, tmp_path / "thinker")
    generate.generate(generate.LocalModel(str(thinker), rollouts, seed=3), [task], Deadlines(), Progress(), "respond")
    assert shards.read(task.out, "0") == []
    assert {row["reason"] for row in shards.read(task.out / "set-aside", "0")} == {respond.EMPTY}
