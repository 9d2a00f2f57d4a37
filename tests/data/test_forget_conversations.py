"""A client whose words are in a conversation is forgotten with all contexts of it."""

import html
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.dialogue_files import dialogue

from psyco_ray.cli.main import main
from psyco_ray.config.contexts import Context
from psyco_ray.data.pair import SCHEMA
from psyco_ray.data.splits import speech_id
from psyco_ray.data.traces import Traces
from psyco_ray.judge.calls import Answer
from psyco_ray.judge.journal import Journal
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED_DIALOGUES, RESPONSES

GONE, STAYS = dialogue(1), dialogue(2)
SHORT = Context(("I am tired.", "Of what?", "Of work, mostly.", "Since when?", "Since the spring, I think."))


def so_far(whole: Context) -> list[Context]:
    return [Context(whole.turns[:end]) for end in range(1, len(whole.turns) + 1, 2)]


def windows(whole: Context) -> list[Context]:
    """Contexts of two turns of the client, as a limit makes them."""
    return [Context(whole.turns[max(0, end - 3) : end]) for end in range(1, len(whole.turns) + 1, 2)]


def write_run(root: Path, contexts: dict[Context, list[Context]]) -> Path:
    """What `data build` leaves of some conversations with these contexts."""
    rows, answers, pairs = [], [], []
    journal = Journal(root / "journal", "writer")
    for whole, found in contexts.items():
        for turn, context in enumerate(found, start=1):
            key = speech_id(context.text)
            rows.append({"speech_id": key, "speech": context.text, "split": "train", "source": "x", "source_row": 1})
            rows[-1] |= {"dialogue": speech_id(whole.text), "turn": turn}
            answers.append({"speech_id": key, "model": "kind", "response": f"Go on, {turn}.", "finished": True})
            pairs.append(
                {"ID": key, "prefID": f"{key}-1", "question": context.text, "chosen": "Yes?", "rejected": "Hm."}
            )
            journal.add(key, key * 4, Answer("an answer", True, 9, 9))
    journal.close()
    shards.write(root / "collect" / "speeches", "0", rows, COLLECTED_DIALOGUES)
    shards.write(root / "respond", "0", answers, RESPONSES)
    (root / "pairs").mkdir()
    pq.write_table(pa.Table.from_pylist(pairs, schema=SCHEMA), root / "pairs" / "train.parquet")
    shown = "".join(f"<p>{html.escape(whole.transcript)}</p>" for whole in contexts)
    (root / "report.html").write_text(f"<!doctype html><html><body>{shown}</body></html>")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))


def left(root: Path) -> set[str]:
    """The ids of contexts that tables and journal still hold, if all of them agree."""
    found = [{row["speech_id"] for row in shards.read(root / "collect" / "speeches", "0")}]
    found.append({row["speech_id"] for row in shards.read(root / "respond", "0")})
    found.append(set(pq.read_table(root / "pairs" / "train.parquet")["ID"].to_pylist()))
    journal = {json.loads(line)["speech"] for line in (root / "journal").rglob("*.jsonl") for line in line.open()}
    found.append({key for key in journal if key})
    assert all(ids == found[0] for ids in found)
    return found[0]


def ids_of(contexts: list[Context]) -> set[str]:
    return {speech_id(context.text) for context in contexts}


@pytest.mark.parametrize("cut", [so_far, windows])
@pytest.mark.parametrize("turn", [0, 4])
def test_the_words_of_any_turn_remove_every_context(cache, tmp_path, cut, turn) -> None:
    root = write_run(tmp_path / "run", {GONE: cut(GONE), STAYS: cut(STAYS)})
    (tmp_path / "words.txt").write_text(GONE.turns[turn])
    assert main(["forget", str(root), "--text-file", str(tmp_path / "words.txt")]) == 0
    assert left(root) == ids_of(cut(STAYS))
    page = html.unescape((root / "report.html").read_text())
    assert not any(said in page for said in GONE.turns)
    assert STAYS.transcript in page


def test_the_id_of_one_context_removes_the_others(cache, tmp_path) -> None:
    root = write_run(tmp_path / "run", {GONE: so_far(GONE), STAYS: so_far(STAYS)})
    assert main(["forget", str(root), "--speech-id", speech_id(so_far(GONE)[1].text)]) == 0
    assert left(root) == ids_of(so_far(STAYS))


def test_a_conversation_is_forgotten_by_its_text(cache, tmp_path) -> None:
    root = write_run(tmp_path / "run", {GONE: so_far(GONE), STAYS: so_far(STAYS)})
    (tmp_path / "words.txt").write_text(so_far(GONE)[2].text + "\n")
    assert main(["forget", str(root), "--text-file", str(tmp_path / "words.txt")]) == 0
    assert left(root) == ids_of(so_far(STAYS))


def test_short_turns_that_others_say_too_remove_nobody_else() -> None:
    traces = Traces()
    traces.add_context(SHORT.text)
    assert traces.within(SHORT.text)
    assert traces.within(SHORT.answered("I see.", "Yes.").text)
    assert not traces.within(Context(("Hello.", "Hi.", SHORT.last)).text), "a common turn"
    assert {speech_id(context.text) for context in so_far(SHORT)[1:]} <= traces.ids
