"""Two clients open with the same words, and one of them is forgotten."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.dialogue_files import contexts_of, dialogue

from psyco_ray.cli.main import main
from psyco_ray.config.contexts import Context
from psyco_ray.config.evaluate_policy import Speeches
from psyco_ray.data import pair
from psyco_ray.data.splits import speech_id
from psyco_ray.desk import sources
from psyco_ray.desk.candidates import Candidate
from psyco_ray.desk.store import Store
from psyco_ray.evaluate import dialogue_matchups, policies, speech_sets
from psyco_ray.evaluate.dialogues import DIALOGUES
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED_DIALOGUES, COMPARISONS, RESPONSES

SHORT, LONG = "Hi there", "Hello, I found your number and would like to talk to somebody about how I have been lately."
WAYS = ("an id", "a later turn", "a transcript", "its text")


def opened(opening: str, seed: int) -> Context:
    return Context((opening, "Hello, what brings you here?", *dialogue(seed, 3).turns))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))


def write_dataset(root: Path, wholes: list[Context]) -> Path:
    """What `data build` leaves; an opening that two conversations share is a context of the first one."""
    rows, answers, pairs, asked = [], [], [], []
    known = set()
    for whole in wholes:
        for turn, context in enumerate(contexts_of(whole), start=1):
            key = speech_id(context.text)
            if key in known:
                continue
            known.add(key)
            place = {"dialogue": speech_id(whole.text), "split": "train"}
            rows.append(
                {"speech_id": key, "speech": context.text, "source": "x", "source_row": 1, "turn": turn} | place
            )
            answers.append({"speech_id": key, "model": "kind", "response": f"Go on, {turn}.", "finished": True})
            sides = {"chosen": "Yes?", "rejected": "Hm."}
            pairs.append({"ID": key, "prefID": f"{key}-1", "question": context.text} | sides | place)
            asked.append({"pair_id": f"{key}-1", "form": "speech", "asked": context.text} | sides | place)
    shards.write(root / "collect" / "speeches", "0", rows, COLLECTED_DIALOGUES)
    shards.write(root / "respond", "0", answers, RESPONSES)
    (root / "pairs").mkdir()
    pq.write_table(pa.Table.from_pylist(pairs, schema=pair.SCHEMA_OF_DIALOGUES), root / "pairs" / "train.parquet")
    pq.write_table(pa.Table.from_pylist(asked, schema=COMPARISONS), root / "comparisons.parquet")
    return root


def left(root: Path) -> dict[str, set[str]]:
    """The ids of contexts that each table still has."""
    return {
        "collect": {row["speech_id"] for row in shards.read(root / "collect" / "speeches", "0")},
        "respond": {row["speech_id"] for row in shards.read(root / "respond", "0")},
        "pairs": set(pq.read_table(root / "pairs" / "train.parquet")["ID"].to_pylist()),
        "comparisons": {speech_id(text) for text in pq.read_table(root / "comparisons.parquet")["asked"].to_pylist()},
    }


def forget(by: str, gone: Context, *roots: Path) -> None:
    named = ["--speech-id", speech_id(contexts_of(gone)[2].text)]
    if by != "an id":
        texts = {"a later turn": gone.turns[4], "a transcript": gone.transcript, "its text": gone.text}
        (roots[0].parent / "words.txt").write_text(texts[by])
        named = ["--text-file", str(roots[0].parent / "words.txt")]
    assert main(["forget", *map(str, roots), *named]) == 0


def ids_of(*contexts: Context) -> set[str]:
    return {speech_id(context.text) for context in contexts}


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("first", ["gone", "stays"])
@pytest.mark.parametrize("opening", [SHORT, LONG])
def test_a_dataset_keeps_the_other_clients_dialogue(tmp_path, opening, first, by) -> None:
    gone, stays = opened(opening, 1), opened(opening, 2)
    root = write_dataset(tmp_path / "run", [gone, stays] if first == "gone" else [stays, gone])
    other = write_dataset(tmp_path / "other", [stays])
    forget(by, gone, root, other)
    theirs = ids_of(*contexts_of(stays)[1:])
    for name, found in left(root).items():
        greeted = first == "stays" and opening == SHORT  # the greeting is the other one's, whose context it is
        assert found == theirs | (ids_of(Context((opening,))) if greeted else set()), name
    for name, found in left(other).items():
        assert found >= theirs, name


def test_the_words_of_both_remove_both(tmp_path) -> None:
    root = write_dataset(tmp_path / "run", [opened(LONG, 1), opened(LONG, 2), dialogue(3)])
    (tmp_path / "words.txt").write_text(LONG)
    assert main(["forget", str(root), "--text-file", str(tmp_path / "words.txt")]) == 0
    assert set(map(frozenset, left(root).values())) == {frozenset(ids_of(*contexts_of(dialogue(3))))}


def test_turns_that_are_contexts_alone_are_found_by_a_part_of_the_transcript(tmp_path) -> None:
    """Of a limit of one turn: nothing but the dialogue's id ties the rows together."""
    gone, stays = opened(LONG, 1), opened(LONG, 2)
    rows = [
        {"speech_id": speech_id(turn), "speech": turn, "dialogue": speech_id(whole.text), "split": "train", "turn": n}
        for whole in (stays, gone)
        for n, turn in enumerate(whole.client_turns, start=1)
        if whole is stays or n > 1
    ]
    shards.write(tmp_path / "run" / "collect" / "speeches", "0", rows, COLLECTED_DIALOGUES)
    (tmp_path / "words.txt").write_text(Context(gone.turns[:5]).transcript)
    assert main(["forget", str(tmp_path / "run"), "--text-file", str(tmp_path / "words.txt")]) == 0
    found = [row["speech"] for row in shards.read(tmp_path / "run" / "collect" / "speeches", "0")]
    assert found == [*stays.client_turns[1:], gone.client_turns[3]], "what was not named stays"


@pytest.mark.parametrize("named", ["begins", "dialogue"])
def test_an_evaluation_loses_the_dialogues_of_one_client_alone(tmp_path, named) -> None:
    """What simulated clients said after a greeting goes with the client who greeted."""
    wholes = [opened(SHORT, seed) for seed in (1, 2)]
    held = tmp_path / "held.jsonl"
    place = [{} if named == "begins" else {"dialogue": f"{n:016x}", "turn": 2} for n in (1, 2)]
    held.write_text(
        "".join(
            json.dumps({"text": Context(w.turns[:3]).text, **of}) + "\n" for w, of in zip(wholes, place, strict=True)
        )
    )
    root = tmp_path / "run"
    answered = speech_sets.load_speeches(Speeches(file=str(held), split="all"), 0)
    answers = {row["speech_id"]: {"response": f"I hear you, {n}.", "finished": True} for n, row in enumerate(answered)}
    (root / "responses").mkdir(parents=True)
    pq.write_table(policies.answered_table(answered, answers), root / "responses" / "dpo.parquet")
    began = dialogue_matchups.openings(answered)
    spoken = [
        {
            "dialogue": key,
            "model": "dpo",
            "turn": 1,
            "speech": row["opening"],
            "response": "Hm?",
            "reply": f"Reply {n}.",
        }
        for n, (key, row) in enumerate(began.items())
    ]
    (root / "dialogues").mkdir()
    pq.write_table(pa.Table.from_pylist(spoken, schema=DIALOGUES), root / "dialogues" / "dpo.parquet")
    (tmp_path / "words.txt").write_text(wholes[0].turns[2])
    assert main(["forget", str(root), "--text-file", str(tmp_path / "words.txt")]) == 0
    theirs = next(row["conversation"] for row in answered if row["speech"] == Context(wholes[1].turns[:3]).text)
    for path in (root / "dialogues" / "dpo.parquet", root / "responses" / "dpo.parquet"):
        assert pq.read_table(path)["dialogue"].to_pylist() == [theirs], path.name


def test_a_desk_keeps_the_items_of_the_other_client(tmp_path) -> None:
    gone, stays = opened(LONG, 1), opened(LONG, 2)
    items = {
        whole: [
            sources.item_of(
                Candidate("a", context.text, (f"Go on {n}.", "No."), {"dialogue": speech_id(whole.text)}), "pair"
            )
            for n, context in enumerate(contexts_of(whole)[1:])
        ]
        for whole in (gone, stays)
    }
    store = Store.open(tmp_path / "desk", create=True)
    store.add_items([item for of in items.values() for item in of])
    (tmp_path / "words.txt").write_text(gone.transcript)
    assert main(["forget", str(tmp_path / "desk"), "--text-file", str(tmp_path / "words.txt")]) == 0
    assert [item.id for item in Store.open(tmp_path / "desk").items()] == [item.id for item in items[stays]]


@pytest.mark.parametrize("by", ["an opening", "a later turn", "a transcript"])
@pytest.mark.parametrize("opening", [SHORT, "I have not slept well since my brother left us in May, and nobody knows."])
def test_pairs_of_messages_go_at_every_turn(tmp_path, opening, by) -> None:
    gone, stays = opened(opening, 1), opened(SHORT, 2)
    asked = [
        {
            "pair_id": f"{n}",
            "form": "messages",
            "asked": json.dumps(context.messages),
            "chosen": "Yes?",
            "rejected": "Hm.",
        }
        for n, context in enumerate([*contexts_of(gone)[1:], *contexts_of(stays)[1:]])
    ]
    (tmp_path / "run").mkdir()
    pq.write_table(pa.Table.from_pylist(asked, schema=COMPARISONS), tmp_path / "run" / "comparisons.parquet")
    texts = {"an opening": gone.turns[2], "a later turn": gone.last, "a transcript": gone.transcript}
    (tmp_path / "words.txt").write_text(texts[by])
    assert main(["forget", str(tmp_path / "run"), "--text-file", str(tmp_path / "words.txt")]) == 0
    left = pq.read_table(tmp_path / "run" / "comparisons.parquet")["pair_id"].to_pylist()
    assert left == ["3", "4", "5"]


def test_items_of_messages_go_at_every_turn(tmp_path) -> None:
    gone, stays = opened(SHORT, 1), opened(SHORT, 2)
    rows = [
        {
            "prompt": [{"role": "system", "content": "Be kind."}, *context.messages],
            "chosen": f"Go on {n}.",
            "rejected": "No.",
        }
        for n, context in enumerate([*contexts_of(gone)[1:], *contexts_of(stays)[1:]])
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store.open(tmp_path / "desk", create=True)
    store.add_items(sources.read(str(tmp_path / "pairs.jsonl"), sources.Request()))
    (tmp_path / "words.txt").write_text(gone.last)
    assert main(["forget", str(tmp_path / "desk"), "--text-file", str(tmp_path / "words.txt")]) == 0
    left = {item.responses[0] for item in Store.open(tmp_path / "desk").items()}
    assert left == {"Go on 3.", "Go on 4.", "Go on 5."}


def test_records_with_lists_of_messages_go_at_every_turn(tmp_path) -> None:
    gone, stays = opened(SHORT, 1), opened(SHORT, 2)
    contexts = [*contexts_of(gone)[1:], *contexts_of(stays)[1:]]
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "pairs.jsonl"
    path.write_text("".join(json.dumps({"n": n, "prompt": c.messages}) + "\n" for n, c in enumerate(contexts)))
    (tmp_path / "words.txt").write_text(gone.last)
    assert main(["forget", str(tmp_path / "run"), "--text-file", str(tmp_path / "words.txt")]) == 0
    left = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["n"] for row in left if "prompt" in row] == [3, 4, 5]
    assert gone.turns[2][-40:] not in path.read_text()
