"""Conversations as a training job's speeches."""

from collections import defaultdict
from pathlib import Path

from support import logs
from support.dialogue_files import dialogue, esconv, stored
from support.prepared_speeches import prepared

from psyco_ray.config.contexts import Context
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Data, Job, Sampling
from psyco_ray.data import fitting, held_out, leakage, speech_file, splits
from psyco_ray.models import templates


def job_of(path: Path, model: Path, tokens: int = 4096, **changes) -> Job:
    return Job(
        model=str(model),
        data=Data(**{"speeches": str(path), "conversations": "contexts", "dev_share": 0.5, **changes}),
        sampling=Sampling(max_tokens=32),
        rollouts=Rollouts(max_model_len=tokens),
    )


def test_contexts_of_a_dialogue_are_in_one_split(local_ray, tmp_path, tiny_model, tokenizer) -> None:
    dialogues = [dialogue(n, 1 + n % 6) for n in range(24)]
    dialogues.append(Context(("Hi.", "Hello.", *dialogue(50, 2).turns)))
    path = esconv(tmp_path / "a.json", dialogues)
    job = job_of(path, tiny_model, max_turns=3)
    rows, facts = prepared(job)
    assert facts["left_out"] == {"shorter than data.min_chars 100": 1}
    of_dialogue = {
        Context(whole.turns[max(0, end - 5) : end]).text: whole
        for whole in dialogues
        for end in range(1, len(whole.turns) + 1, 2)
    }
    assert {row["speech"] for row in rows} == of_dialogue.keys() - {"Hi."}
    assert [row["speech_id"] for row in rows] == sorted(splits.speech_id(row["speech"]) for row in rows)
    found = defaultdict(set)
    for row in rows:
        whole = of_dialogue[row["speech"]]
        found[whole].add(row["split"])
        assert row["split"] == ("dev" if splits.is_dev(whole.text, 0.5) else "train")
        messages = prompt_messages(load_prompt(job.prompts), row["speech"])
        assert row["prompt_ids"] == templates.conversation_ids(tokenizer, messages)
    assert {len(names) for names in found.values()} == {1}


def test_a_context_that_is_too_long_loses_its_oldest_exchanges(local_ray, tmp_path, tiny_model, tokenizer) -> None:
    dialogues = [dialogue(n, 6) for n in range(6)]
    path = esconv(tmp_path / "a.json", dialogues)
    job = job_of(path, tiny_model, tokens=900)
    logged = logs.messages()
    rows, _ = prepared(job)
    prompt, room = load_prompt(job.prompts), fitting.room(job)

    def tokens(context: Context) -> int:
        return len(templates.conversation_ids(tokenizer, prompt_messages(prompt, context.text)))

    by_end = {
        (whole.turns[:1], whole.turns[end - 1]): whole.turns[:end] for whole in dialogues for end in (1, 3, 5, 7, 9, 11)
    }
    shortened = 0
    assert len(rows) == len(by_end) == 36
    for row in rows:
        context = Context.of(row["speech"])
        assert len(row["prompt_ids"]) == tokens(context) <= room
        (full,) = (turns for (_, last), turns in by_end.items() if last == context.last)
        assert full[-len(context.turns) :] == context.turns, "by whole turns"
        if len(full) > len(context.turns):
            shortened += 1
            assert tokens(Context(full[-len(context.turns) - 2 :])) > room, "no more than it takes"
    assert 0 < shortened < 36
    (line,) = (message for message in logged if "oldest exchanges" in message)
    assert line.startswith(
        f"speeches file {path}: {shortened} of 36 contexts lose their oldest exchanges, as {room} tokens"
    )
    alone = fitting.fitted(dialogues[0].text, tokenizer, prompt, 10)
    assert alone == dialogues[0].last, "a single turn that does not fit stays"


def test_a_training_context_leaks_if_its_dialogue_is_held_out(local_ray, tmp_path, tiny_model) -> None:
    rows = [
        {"messages": dialogue(n, 3).messages, "split": split}
        for n, split in enumerate(["train"] * 4 + ["dev"] * 2 + ["test"])
    ]
    began = Context(
        (*dialogue(5, 3).turns[:1], "Go on.", *dialogue(60, 2).turns)
    )  # as a dev one, and goes on otherwise
    nearly = dialogue(6, 3).map(lambda turn: turn.replace("I miss", "I do miss"))  # says what a test one says
    rows += [{"messages": context.messages, "split": "train"} for context in (began, nearly)]
    path = stored(tmp_path / "a.jsonl", rows)
    loaded, facts = prepared(job_of(path, tiny_model, leakage="drop"))
    assert facts["leaks"]["of"] == {
        f"the dev split of speeches file {path}": 3,
        f"the test split of speeches file {path}": 3,
    }
    assert {Context.of(row["speech"]).opening for row in loaded if row["split"] == "train"} == {
        dialogue(n).opening for n in range(4)
    }
    read = held_out.read(job_of(path, tiny_model).data)
    assert [len(texts) for texts in read.values()] == [3, 6]
    asked = [dialogue(4, 3).text, dialogue(1, 3).text]
    assert list(leakage.find(asked, read, 100)) == [0]


def test_dialogues_that_begin_with_a_greeting_are_spread_over_the_splits(tmp_path) -> None:
    wholes = [
        Context(("Hi", "Go on.", f"This is the story number {n} that I tell.", "And?", "Yes.")) for n in range(40)
    ]
    data = Data(speeches=str(esconv(tmp_path / "a.json", wholes)), conversations="contexts", dev_share=0.5)
    (table,) = speech_file.read(data)
    found = defaultdict(set)
    for row in table.to_pylist():
        found[row["row"]].add(speech_file.speech_and_split(row, data)[1])
    assert list(found.values()) == [{"dev" if splits.is_dev(whole.text, 0.5) else "train"} for whole in wholes]
    assert set().union(*found.values()) == {"train", "dev"}
