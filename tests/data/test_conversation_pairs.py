"""Pairs whose question is a conversation: their reading, their splits, their leaks and their encoding."""

import json
from pathlib import Path

import pytest
from support.raw_speeches import speech

from psyco_ray.cli.main import main
from psyco_ray.config.contexts import Context
from psyco_ray.config.training import Data, Job, Part
from psyco_ray.data import leakage, mixture, preferences, splits

SLEEP = Context(("I cannot sleep.", "What keeps you awake?", 'My "job".'))
SIDES = {"chosen": "Since when?", "rejected": "Hm."}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def dialogue(seed: int, turns: int = 4) -> Context:
    """A conversation whose client says something else at every turn."""
    said = [text for turn in range(turns) for text in (speech(100 * seed + turn), "I see.")]
    return Context(tuple(said[:-1]))


def contexts_of(seed: int, turns: int = 4) -> list[Context]:
    whole = dialogue(seed, turns).turns
    return [Context(whole[:end]) for end in range(1, len(whole) + 1, 2)]


@pytest.mark.parametrize("column", ["question", "speech", "prompt"])
def test_a_question_in_stored_form_is_a_context_of_the_client(tmp_path, column) -> None:
    for text in (SLEEP.text, json.dumps({"messages": SLEEP.messages}) + "\n"):
        [pair] = preferences.read(write(tmp_path / "pairs.jsonl", [{column: text, **SIDES}])).table.to_pylist()
        assert (pair["form"], pair["asked"], pair["chosen"]) == ("speech", SLEEP.text, "Since when?")
    prompt = {"system": "Be kind.", "user": "Client: {client_speech}"}
    asked = preferences.conversation(pair["form"], pair["asked"], prompt)
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in asked][1:] == ["Client: I cannot sleep.", *SLEEP.turns[1:]]


def test_a_conversation_under_a_system_message_is_its_messages(tmp_path) -> None:
    row = {"question": SLEEP.text, "system": "Be brief.", **SIDES}
    [pair] = preferences.read(write(tmp_path / "pairs.jsonl", [row])).table.to_pylist()
    assert pair["form"] == "messages"
    assert json.loads(pair["asked"]) == [{"role": "system", "content": "Be brief."}, *SLEEP.messages]


def test_a_check_of_a_file_shows_what_is_answered(tmp_path, capsys) -> None:
    context = Context((speech(1), "What keeps you awake?", speech(2)))
    assert main(["data", "check", write(tmp_path / "pairs.jsonl", [{"question": context.text, **SIDES}])]) == 0
    told = capsys.readouterr().out
    assert f" {len(speech(2))} " in told
    assert "messages" not in told


def test_all_pairs_of_a_conversation_are_in_one_split_and_half(tmp_path) -> None:
    rows = [{"question": context.text, **SIDES} for seed in range(20) for context in contexts_of(seed)]
    table = preferences.read(write(tmp_path / "pairs.jsonl", rows), dev_share=0.5).table
    places = [(pair["split"], splits.half(pair["asked"])) for pair in table.to_pylist()]
    for start in range(0, len(places), 4):
        assert len(set(places[start : start + 4])) == 1
    assert len(set(places)) == 4


def test_contexts_that_lost_their_beginning_are_in_the_half_and_split_of_their_dialogue(tmp_path) -> None:
    rows = [
        {"question": Context(context.turns[-3:]).text, "dialogue": f"{seed:016x}", **SIDES}
        for seed in range(20)
        for context in contexts_of(seed)[1:]
    ]
    table = preferences.read(write(tmp_path / "pairs.jsonl", rows), dev_share=0.5).table
    pairs = table.to_pylist()
    places = [(pair["split"], splits.half(pair["asked"], pair["dialogue"])) for pair in pairs]
    assert all(len(set(places[start : start + 3])) == 1 for start in range(0, len(places), 3))
    assert len(set(places)) == 4
    half = mixture._of_half(table, "a")
    assert {pair["dialogue"] for pair in half.to_pylist()} == {
        pair["dialogue"] for pair, (_, of) in zip(pairs, places, strict=True) if of == "a"
    }


def test_a_column_of_that_name_that_holds_something_else_is_not_read(tmp_path) -> None:
    rows = [{"question": speech(1), "dialogue": text, **SIDES} for text in ("Client: hello", "7", "")]
    table = preferences.read(write(tmp_path / "pairs.jsonl", rows)).table
    assert set(table["dialogue"].to_pylist()) == {None}


def found(asked: list[str], held_out: list[str]) -> dict[int, str]:
    return {row: kind for row, (kind, _) in leakage.find(asked, {"test": held_out}, 100).items()}


def test_a_conversation_that_is_held_out_at_another_turn_leaks() -> None:
    asked = [context.text for context in contexts_of(1, 25)]
    for held in (contexts_of(1)[0], contexts_of(1)[3]):
        assert set(found(asked, [held.text])) == set(range(25)), "before and after the turn that is held out"
    assert not found([context.text for context in contexts_of(2)], [context.text for context in contexts_of(1)])


def test_a_greeting_does_not_make_two_conversations_one() -> None:
    first, second = (Context(("Hello.", "Hi, what brings you here?", speech(seed))) for seed in (1, 2))
    assert not found([first.text], [second.text])
    assert found([first.answered("And?", "No more.").text], [first.text]) == {0: "exact"}


def test_what_the_therapist_says_is_no_leak() -> None:
    said = speech(7) + speech(8)
    first, second = (Context((speech(seed), said, speech(seed + 1))) for seed in (1, 3))
    assert not found([first.text], [second.text])
    assert not found([said], [second.text])


def test_near_duplicates_are_found_by_the_clients_words() -> None:
    held = dialogue(1, 2)
    near = held.map(lambda turn: turn.replace("I don't know", "I do not know").replace("Maria", "Anna"))
    assert near != held
    assert found([near.text], [held.text]) in ({0: "near"}, {0: "contained"})


def test_the_packaged_pairs_of_conversations() -> None:
    table = preferences.read("sample-conversations").table
    pairs = table.to_pylist()
    assert len(pairs) > 150
    contexts = [Context.of(pair["asked"]) for pair in pairs]
    assert {pair["form"] for pair in pairs} == {"speech"}
    assert len({context.turn for context in contexts}) >= 4
    assert len({pair["pair_id"] for pair in pairs}) == len(pairs)
    assert all(pair["topic"] for pair in pairs)
    openings = {
        split: {c.opening for c, p in zip(contexts, pairs, strict=True) if p["split"] == split}
        for split in ("train", "dev")
    }
    assert all(openings.values())
    assert not openings["train"] & openings["dev"]


@pytest.mark.parametrize("greeting", [(), ("Hi", "Hello, what brings you here?")])
def test_lists_of_messages_of_one_conversation_are_in_one_split_and_one_half(tmp_path, greeting) -> None:
    wholes = [Context((*greeting, *dialogue(seed, 4).turns)) for seed in range(20)]
    contexts = [context for whole in wholes for context in (*whole.earlier[len(greeting) // 2 :], whole)]
    rows = [{"prompt": c.messages, "chosen": f"Good {n}", "rejected": f"Bad {n}"} for n, c in enumerate(contexts)]
    table = preferences.read(write(tmp_path / "pairs.jsonl", rows), dev_share=0.5).table
    halves = {half: set(mixture._of_half(table, half)["pair_id"].to_pylist()) for half in "ab"}
    assert sorted([*halves["a"], *halves["b"]]) == sorted(table["pair_id"].to_pylist())
    placed = [(row["split"], row["pair_id"] in halves["a"]) for row in table.to_pylist()]
    of = [{*placed[n : n + 4]} for n in range(0, len(placed), 4)]
    assert {len(places) for places in of} == {1}
    assert len(set.union(*of)) == 4, "conversations are spread over both"


def test_the_packaged_files_are_mixed_without_leaks() -> None:
    parts = (Part(pairs="sample"), Part(pairs="sample-conversations"))
    mixed = mixture.mix(parts, Data(), seed=0)
    assert [origin["leaks"]["of"] for origin in mixed.parts] == [{}, {}]
    kinds = [Context.of(asked).is_conversation for asked in mixed.train["asked"].to_pylist()]
    assert True in kinds
    assert False in kinds


def test_a_reward_model_and_a_policy_read_all_turns_and_lose_the_oldest(tiny_model, tokenizer, tmp_path) -> None:
    row = {"question": SLEEP.text, **SIDES}
    pairs = preferences.read(write(tmp_path / "pairs.jsonl", [row]), dev_share=0.5)
    job = Job(model=str(tiny_model))
    for for_policy in (False, True):
        [whole] = mixture._encode_rows(pairs.table, job, 512, for_policy).to_pylist()
        text = tokenizer.decode(whole["prompt_ids"])
        assert [text.count(turn) for turn in SLEEP.turns] == [1, 1, 1]
        assert text.index(SLEEP.turns[0]) < text.index(SLEEP.turns[1]) < text.index(SLEEP.turns[2])
        limit = len(whole["prompt_ids"]) + max(len(whole["chosen_ids"]), len(whole["rejected_ids"])) - 20
        [cut] = mixture._encode_rows(pairs.table, job, limit, for_policy).to_pylist()
        assert cut["cut"] > 0
        kept = tokenizer.decode(cut["prompt_ids"])
        assert SLEEP.last in kept
        assert kept.endswith(text[-20:])
