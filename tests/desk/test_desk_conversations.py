"""A desk asks about conversations: pages, order, exports and other tools."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support import desks
from support.desk_server import Visitor, serving
from support.desk_sources import DEV, TRAIN, training_run
from support.dialogue_files import contexts_of, dialogue

from psyco_ray.config.contexts import Context
from psyco_ray.data import preferences
from psyco_ray.data.splits import speech_id
from psyco_ray.desk import exchange, judgements, overview, queue, sources, suggest, turns
from psyco_ray.desk.candidates import Candidate
from psyco_ray.desk.export import export
from psyco_ray.desk.store import Item, Store
from psyco_ray.run.schemas import CONTEXTS

ODD = Context(("I <b>cannot</b> & sleep.", 'Since "when"?', "Since May.\nOr June."))
DANGER = Context(("I am so tired.", "Of what?", "I want to kill myself tonight.", "Are you safe?", "Yes, leave it."))


def item(kind: str, context: Context, *responses: str, **facts: object) -> Item:
    candidate = Candidate("test", context.text, responses, {"split": "train", **facts})
    return sources.item_of(candidate, kind)


def pair_of(context: Context, number: int = 0) -> Item:
    return item("pair", context, f"That sounds hard ({number}).", f"Cheer up ({number}).", labels={"overall": 1})


@pytest.fixture
def desk(tmp_path) -> Iterator[tuple[Store, str]]:
    store = desks.new_desk(tmp_path / "desk", crisis_text="Call 112.", overlap=9)
    with serving(store) as url:
        yield store, url


def visitor(desk: tuple[Store, str], role: str = "annotator") -> Visitor:
    return Visitor(desk[1], desk[0], desks.add_person(desk[0], role))


def shown(page: str) -> list[tuple[str, str]]:
    """Speakers and words of the list of turns, and what is answered."""
    turns = re.findall(r"<li class=\"\w+\"><strong>(\w+)</strong> <p>(.*?)</p></li>", page, re.DOTALL)
    [last] = re.findall(r'<div class="words"[^>]*><p>(.*?)</p></div>', page, re.DOTALL)
    return [(speaker, html.unescape(words)) for speaker, words in (*turns, ("said", last))]


TURNS = [("Client", ODD.turns[0]), ("Therapist", ODD.turns[1]), ("said", ODD.turns[2])]


@pytest.mark.parametrize("kind", ["pair", "scores", "draft"])
def test_a_conversation_is_shown_turn_by_turn_and_its_last_turn_is_marked(desk, kind) -> None:
    store, _ = desk
    store.add_items([item(kind, ODD, "I hear you.", *["Cheer up."] * (kind != "draft"))])
    with visitor(desk) as anna:
        page = anna.read("/work")
    assert shown(page) == TURNS
    assert '"messages"' not in page
    assert "<b>cannot" not in page
    assert "last turn, which is to be answered" in page


def test_a_speech_alone_is_shown_as_before(desk) -> None:
    store, _ = desk
    store.add_items([item("pair", Context(("I cannot sleep.",)), "I hear you.", "Cheer up.")])
    with visitor(desk) as anna:
        page = anna.read("/work")
    assert shown(page) == [("said", "I cannot sleep.")]
    assert '<h2 id="said">The client says</h2>' in page
    assert "<ol" not in page


def test_messages_of_another_format_are_shown_turn_by_turn(desk, tmp_path) -> None:
    store, _ = desk
    asked = [{"role": "system", "content": "Be kind."}, *ODD.messages]
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": asked, "chosen": "Hm?", "rejected": "No."}) + "\n")
    store.add_items(sources.read(str(tmp_path / "pairs.jsonl"), sources.Request()))
    with visitor(desk) as anna:
        assert shown(anna.read("/work")) == [("System", "Be kind."), *TURNS]


def test_reviewers_and_leads_see_the_same_turns(desk) -> None:
    store, _ = desk
    items = [item("draft", ODD, "I hear you."), pair_of(ODD)]
    store.add_items(items)
    for overall in (1, -1):
        said = {items[0].id: desks.draft_answer("approve"), items[1].id: desks.pair_answer(overall)}
        desks.answer_all(store, desks.add_person(store), said)
    with visitor(desk, "reviewer") as rita, visitor(desk, "lead") as lena:
        assert shown(rita.read("/review")) == TURNS
        assert shown(lena.read(f"/lead/disagreements/{items[1].id}")) == TURNS
        preview = lena.read("/lead/disagreements")
    assert "<td>Since May." in preview
    assert "messages" not in preview


def test_signs_of_a_crisis_in_any_turn_of_the_client_bring_the_warning(desk) -> None:
    store, _ = desk
    store.add_items([pair_of(DANGER), pair_of(DANGER.map(str.upper), 1)])
    assert {one.crisis for one in store.items()} == {("self-harm",)}
    with visitor(desk) as anna:
        assert store.settings.content_warning in anna.read("/work")
    of_therapist = Context((DANGER.turns[0], "Do you want to kill yourself?", "No. I want to sleep."))
    assert pair_of(of_therapist).crisis == ()


def test_earlier_turns_of_a_conversation_come_first_for_everybody(tmp_path) -> None:
    items = [pair_of(context, seed) for seed in range(6) for context in contexts_of(dialogue(seed, 3))]
    store = desks.new_desk(tmp_path / "desk", [*items[::-1], pair_of(Context(("I cannot sleep at all.",)), 99)])
    orders = []
    for _ in range(3):
        person, order = desks.add_person(store), []
        while (assigned := queue.next_item(store, person)) is not None:
            order.append(Context.of(assigned.item.speech))
            judgements.save(store, person, assigned.item.id, desks.pair_answer(), 0, 1.0)
        assert len(order) == 19
        for context in order:
            before = order[: order.index(context)]
            assert [earlier for earlier in context.earlier if earlier not in before] == []
        orders.append([context.opening for context in order])
    assert len(set(map(tuple, orders))) == 3, "the order of the conversations is each person's own"


def test_what_is_suggested_is_spread_over_conversations() -> None:
    items = [pair_of(context) for seed in (1, 2) for context in contexts_of(dialogue(seed, 3))]
    clients = [turns.conversation_of(one) for one in items]
    assert clients == [speech_id(dialogue(seed, 3).opening) for seed in (1, 1, 1, 2, 2, 2)]
    assert suggest.select(np.zeros((1, 6)) + np.arange(6), clients, 2) == [0, 3]
    alone = pair_of(Context(("I cannot sleep.",)))
    assert turns.conversation_of(alone) == alone.speech_id


GREETED = [Context(("Hi", "Hello.", *dialogue(seed, 3).turns)) for seed in (1, 2)]
OF_GREETED = [(place, context) for place, whole in enumerate(GREETED) for context in contexts_of(whole)[1:]]


def read_pairs(path: Path, *columns: dict) -> list[Item]:
    """Items of a file of pairs, in its order."""
    path.write_text(
        "".join(
            json.dumps({"chosen": f"Say more, {n}.", "rejected": f"Hm {n}.", "split": "train", **cells}) + "\n"
            for n, cells in enumerate(columns)
        )
    )
    items = sources.read(str(path), sources.Request())
    return sorted(items, key=lambda one: int(re.findall(r"\d+", one.responses[0])[0]))


def test_clients_who_greet_alike_are_two(tmp_path) -> None:
    """By how they begin, in stored form or in messages, or by the dialogue that a dataset names."""
    system = {"role": "system", "content": "Be kind."}
    stored = read_pairs(tmp_path / "a.jsonl", *({"question": context.text} for _, context in OF_GREETED))
    messages = read_pairs(tmp_path / "b.jsonl", *({"prompt": [system, *c.messages]} for _, c in OF_GREETED))
    cut = [{"question": context.last, "dialogue": f"{place:016x}"} for place, context in OF_GREETED]
    for items in (stored, messages, read_pairs(tmp_path / "c.jsonl", *cut)):
        clients = [turns.conversation_of(one) for one in items]
        assert [clients.index(client) // 3 for client in clients] == [place for place, _ in OF_GREETED]
        assert suggest.select(np.zeros((1, 6)) + np.arange(6), clients, 2) == [0, 3]
    assert turns.conversations(stored) == {one.id: turns.conversation_of(one) for one in stored}
    assert turns.conversations([pair_of(Context(("I cannot sleep.",)))]) is None


def test_the_overview_takes_the_items_of_a_conversation_together(tmp_path) -> None:
    """Of two conversations, one is judged alike and one is not."""
    items = [(pair_of(context), place) for place, context in OF_GREETED]
    store = desks.new_desk(tmp_path / "desk", [one for one, _ in items])
    for turned in (1, -1):
        said = {one.id: desks.pair_answer(1 if place == 0 else turned) for one, place in items}
        desks.answer_all(store, desks.add_person(store), said)
    percent = overview.figures(store)["between"]["pair"]["overall"]["percent"]
    assert (percent["value"], percent["low"], percent["high"]) == (0.5, 0.0, 1.0)


def test_exported_pairs_keep_the_dialogue_that_decides_their_half(tmp_path) -> None:
    cells = [{"question": context.text, "dialogue": f"{place:016x}"} for place, context in OF_GREETED]
    items = read_pairs(tmp_path / "a.jsonl", *cells)
    alone = pair_of(Context(("I cannot sleep.",)))
    store = desks.new_desk(tmp_path / "desk", [*items, alone])
    judged(store)
    export(store)
    found = pq.read_table(tmp_path / "desk" / "export" / "pairs.parquet").to_pylist()
    assert {row["prefID"]: row["dialogue"] for row in found} == {
        **{one.id: f"{place:016x}" for one, (place, _) in zip(items, OF_GREETED, strict=True)},
        alone.id: None,
    }


def judged(store: Store, name: str | None = None) -> None:
    """Somebody judges every item of a desk."""
    answers = {"pair": desks.pair_answer(), "scores": desks.scores_answer(5, 2)}
    answers["draft"] = desks.draft_answer("approve")
    desks.answer_all(store, desks.add_person(store, name=name), {one.id: answers[one.kind] for one in store.items()})


def test_exported_pairs_train_on_the_conversations(tmp_path) -> None:
    items = [pair_of(context, 1) for context in contexts_of(dialogue(1, 3))]
    store = desks.new_desk(tmp_path / "desk", [*items, item("draft", ODD, "I hear you.")])
    judged(store)
    export(store)
    path = tmp_path / "desk" / "export" / "pairs.parquet"
    assert {(row["ID"], row["question"]) for row in pq.read_table(path).to_pylist()} == {
        (one.speech_id, one.speech) for one in items
    }
    read = preferences.read(f"desk:{tmp_path / 'desk'}").table.to_pylist()
    assert {(row["form"], row["asked"]) for row in read} == {("speech", one.speech) for one in items}
    again = sources.read(str(path), sources.Request())
    assert {one.id for one in again} == {one.id for one in items}, "judged responses are shown first"


MIXED = [*(pair_of(context, 1) for context in contexts_of(dialogue(1, 3))), pair_of(ODD, 2)]
MIXED += [item("scores", ODD, "I hear you.", "Cheer up."), item("draft", Context(("I am lost.",)), "Where?")]


@pytest.mark.parametrize("tool", exchange.FORMATS)
def test_other_tools_show_conversations_and_give_back_the_same_items(tmp_path, tool) -> None:
    store = desks.new_desk(tmp_path / "desk", MIXED)
    judged(store, "Dr. Okafor")
    exchange.write(store, tool)
    directory = tmp_path / "desk" / f"export-{tool}"
    told = exchange.read(store, directory / "pair", tool)
    assert "4 records, 0 new items, 0 new judgements; 4 were known already, 0 are incomplete, 0 left out" in told
    other = desks.new_desk(tmp_path / "other")
    for kind in ("pair", "scores", "draft"):
        exchange.read(other, directory / kind, tool)
    found = {(one.kind, one.speech, one.speech_id) for one in other.items()}
    assert found == {(one.kind, one.speech, one.speech_id) for one in MIXED}
    texts = {"argilla": '"prompt": "I am lost."', "label-studio": '"speech": "I am lost."'}
    assert texts[tool] in "".join(path.read_text() for path in (directory / "draft").iterdir() if path.is_file())


def test_argilla_gets_a_chat_field(tmp_path) -> None:
    store = desks.new_desk(tmp_path / "desk", MIXED)
    exchange.write(store, "argilla")
    directory = tmp_path / "desk" / "export-argilla"
    kinds = {}
    for kind in ("pair", "scores", "draft"):
        settings = json.loads((directory / kind / ".argilla" / "settings.json").read_text())
        kinds[kind] = [field["settings"]["type"] for field in settings["fields"]]
    assert kinds == {"pair": ["chat", "text", "text"], "scores": ["chat", "text", "text"], "draft": ["text", "text"]}
    prompts = [record["fields"]["prompt"] for record in json.loads((directory / "pair" / "records.json").read_text())]
    assert ODD.messages in prompts
    assert [{"role": "user", "content": dialogue(1, 3).opening}] in prompts, "a field has one type in a dataset"


def test_label_studio_gets_paragraphs(tmp_path) -> None:
    store = desks.new_desk(tmp_path / "desk", MIXED)
    exchange.write(store, "label-studio")
    directory = tmp_path / "desk" / "export-label-studio"
    assert (
        '<Paragraphs name="speech" value="$speech" layout="dialogue"/>' in (directory / "pair/config.xml").read_text()
    )
    assert '<Text name="speech" value="$speech"/>' in (directory / "draft/config.xml").read_text()
    speeches = [task["data"]["speech"] for task in json.loads((directory / "pair" / "tasks.json").read_text())]
    assert [
        {"author": "Client" if n % 2 == 0 else "Therapist", "text": turn} for n, turn in enumerate(ODD.turns)
    ] in speeches


def test_chats_that_are_no_conversation_with_a_client_are_left_out(tmp_path) -> None:
    store = desks.new_desk(tmp_path / "desk")
    fields = {"response-1": "Rest.", "response-2": "Of what?"}
    chats = [ODD.messages, ODD.messages[:2], [{"role": "system", "content": "SECRET"}, *ODD.messages], ["I am lost."]]
    records = [{"id": str(n), "fields": {"prompt": chat, **fields}, "responses": []} for n, chat in enumerate(chats)]
    (tmp_path / "records.json").write_text(json.dumps(records))
    told = exchange.read(store, tmp_path / "records.json", "argilla")
    assert "4 records, 1 new items" in told
    assert "3 left out" in told
    assert [one.speech for one in store.items()] == [ODD.text]
    records[0]["fields"]["prompt"][2]["content"] = "Since July."
    (tmp_path / "records.json").write_text(json.dumps([records[0] | {"id": store.items()[0].id}, *records[1:]]))
    with pytest.raises(ValueError, match="a conversation in which message 1 is not the client's") as error:
        exchange.read(store, tmp_path / "records.json", "argilla")
    assert "1 a speech that is not the item's" in str(error.value)
    assert "SECRET" not in str(error.value)


def test_runs_evaluations_and_datasets_of_conversations_are_sources(tmp_path) -> None:
    texts = [context.text for context in (*contexts_of(dialogue(1, 3)), *contexts_of(dialogue(2, 3)))]
    rows = [{"speech": DANGER.text, "crisis": []}, {"speech": texts[2], "crisis": ["violence"]}]
    (tmp_path / "speeches.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = training_run(tmp_path / "run", dev=[*texts[:5], DANGER.text], speeches=str(tmp_path / "speeches.jsonl"))
    items = {one.speech: one for one in sources.read(str(run), sources.Request())}
    assert set(items) == {*texts[:5], DANGER.text}
    assert items[texts[2]].crisis == ("violence",)
    assert items[DANGER.text].crisis == (), "somebody has looked"
    found = sources.read("sample-conversations", sources.Request(count=40))
    assert len({one.id for one in found}) == 40
    assert {Context.of(one.speech).is_conversation for one in found} == {True, False}
    assert {one.facts.get("form") for one in found} == {None}


def test_pairs_at_a_later_turn_with_simulated_clients_are_about_that_turn(tmp_path) -> None:
    run = training_run(tmp_path / "run")
    settings = yaml.safe_load((run / "job.yaml").read_text())
    (run / "job.yaml").write_text(yaml.safe_dump(settings | {"simulate": {"turns": 2, "branch_turn": 2}}))
    train = sources.Request("pairs", split="train")
    with pytest.raises(ValueError, match=r"contexts.parquet does not exist, so what the pairs of iteration 2 answer"):
        sources.read(str(run), train)
    said = {text: Context.of(text).answered("Since when?", f"Since {text[-40:]}") for text in TRAIN}
    rows = [{"speech_id": speech_id(text), "speech": context.text} for text, context in said.items()]
    pq.write_table(pa.Table.from_pylist(rows, schema=CONTEXTS), run / "iteration-002" / "contexts.parquet")
    assert {one.speech for one in sources.read(str(run), train)} == {context.text for context in said.values()}
    assert {one.speech for one in sources.read(str(run), sources.Request())} == set(DEV), "held-out ones begin anew"
