"""Dialogues with simulated clients in an evaluation: who says what, verdicts, figures, and the page."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support.pages import self_contained
from support.policy_evaluation import ENGINE, SAMPLE, counts, load, local, parsed, settings, write_lines
from support.quoted import without_marks
from support.report_records import policy_results

from psyco_ray.config.contexts import LEAVES, Context
from psyco_ray.config.endpoint import Endpoint, Judging
from psyco_ray.config.errors import InputError
from psyco_ray.config.privacy import Privacy, ScrubSent
from psyco_ray.config.prompts import PACKAGED, prompt_messages
from psyco_ray.data.respond import EMPTY, response_row
from psyco_ray.data.splits import speech_id
from psyco_ray.evaluate import consistency, dialogue_matchups, dialogues, policies, stats, verdicts, winrates
from psyco_ray.evaluate.dialogues import Clients
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.judge.callers import set_aside_row
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.report import dialogues as dialogue_report
from psyco_ray.report import policies as report
from psyco_ray.run import shards
from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.progress import Progress
from psyco_ray.simulate import replies
from psyco_ray.simulate.dialogue import Answer, Dialogue, Reply

CLIENT = {"endpoint": local("http://127.0.0.1:1", "client")}
OPENING = "I cannot sleep since May."


def told(*exchanges: tuple[str | None, str | None], left: bool = False, opening: str = OPENING) -> Dialogue:
    """A dialogue of responses and replies; a reply of None is that of the last turn, which nobody asked for."""
    dialogue = Dialogue("k", Context((opening,)))
    for place, (response, reply) in enumerate(exchanges):
        dialogue.answers.append(Answer(response or "", finished=response is not None))
        if reply is not None:
            dialogue.replies.append(Reply(reply, left and place == len(exchanges) - 1))
    return dialogue


def began(opening: str, turn: int = 1) -> dict:
    """A row of an evaluation's contexts."""
    return {"opening": opening, "conversation": speech_id(opening), "turn": turn}


def setup_of(**judging) -> verdicts.JudgeSetup:
    endpoint = Endpoint(**local("http://127.0.0.1:1"))
    return verdicts.JudgeSetup(endpoint, Judging(order="strict", **judging), Outgoing(ScrubSent(), Privacy()))


def job_of(root: Path, **changes):
    opponent = {"name": "other", "endpoint": local("http://127.0.0.1:1", "talker")}
    defaults = {"opponent": opponent, "simulate": {"client": CLIENT, "turns": 3}}
    return parsed(settings(root, **{**defaults, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opponent": {"name": "o", "responses": "x"}}, "the opponent o is a file, which cannot talk with simulated"),
        (
            {"simulate": {"client": {**CLIENT, "max_cost": 1.0}}},
            "client.max_cost",
        ),
        ({"simulate": {"client": CLIENT, "turns": 1}}, "simulate.turns"),
        ({"max_cost": 1.0, "judges": [{"name": "j", "endpoint": local("x", price_in=1, price_out=1)}],
          "opponent": {"name": "o", "model": "x/y"}}, "endpoint of the simulated client"),
    ],
)  # fmt: skip
def test_an_invalid_section_is_reported_in_one_sentence(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        job_of(tmp_path, **changes)
    assert "\n" not in str(caught.value)


class Script:
    """Clients of fixed replies, without a model."""

    def __init__(self, replies: dict[tuple[str, int], Reply | None]) -> None:
        self.replies = replies

    def reply(self, turn, told):
        for dialogue in (d for of in told.values() for d in of.values() if d.waits_for_client):
            reply = self.replies.get((dialogue.key, turn), Reply("Go on.", False))
            if reply is None:
                dialogue.failed = replies.UNUSABLE
            else:
                dialogue.replies.append(reply)


def test_every_model_answers_the_contexts_of_its_own_dialogues_that_go_on():
    asked = []

    def respond(name, contexts):
        asked.append((name, dict(contexts)))
        turn = Context.of(next(iter(contexts.values()))).turn
        silent = {"c"} if (name, turn) == ("mine", 2) else set()
        return {key: {"response": f"{name} {turn}", "finished": True} for key in contexts if key not in silent}

    script = Script({("a", 1): Reply("Bye.", True), ("b", 2): None})
    openings = {key: f"I am {key}." for key in "abc"}
    found = dialogues.converse(["mine", "other"], openings, 3, respond, script)
    assert [(name, sorted(contexts)) for name, contexts in asked] == [
        ("mine", ["a", "b", "c"]), ("other", ["a", "b", "c"]),
        ("mine", ["b", "c"]), ("other", ["b", "c"]),
        ("other", ["c"]),
    ]  # fmt: skip
    assert asked[2][1]["b"] == Context(("I am b.", "mine 1", "Go on.")).text
    mine, other = found["mine"], found["other"]
    assert [len(mine[key].answers) for key in "abc"] == [1, 2, 2]
    assert [len(other[key].answers) for key in "abc"] == [1, 2, 3]
    assert (mine["a"].left, mine["b"].failed, mine["c"].responses) == (True, replies.UNUSABLE, ["mine 1"])
    assert len(other["c"].replies) == 2, "nobody asks for a reply to the last response"
    rows = dialogues.table("other", other, "client-model", "3f").to_pylist()
    last = [row for row in rows if row["dialogue"] == "c"][-1]
    assert last["speech"] == Context(("I am c.", "other 1", "Go on.", "other 2", "Go on.")).text
    assert (last["turn"], last["response"], last["reply"], last["left"]) == (3, "other 3", None, False)
    assert {(row["client"], row["client_state"]) for row in rows} == {("client-model", "3f")}
    failed = {(row["dialogue"], row["turn"]): row["failed"] for row in rows if row["failed"] is not None}
    assert failed == {("b", 2): replies.UNUSABLE}
    assert not any(row["left"] for row in rows if row["dialogue"] == "b")


def test_clients_of_both_models_have_one_profile_and_one_seed(tmp_path):
    clients = Clients(job_of(tmp_path), tmp_path, Outgoing(ScrubSent(), Privacy()), Progress())
    waiting = {name: {"k": told((f"{name} asks: since when?", None))} for name in ("mine", "other")}
    tasks = [clients._task(1, of) for of in waiting.values()]
    messages = []
    for task in tasks:
        [row] = [row for part in task.parts() for row in task.rows(part)]
        assert row["speech_id"] == "k"
        messages.append(task.messages(row["speech"]))
    mine, other = messages
    assert mine[:-1] == other[:-1], "profile and opening"
    assert mine[-2] == {"role": "assistant", "content": OPENING}
    assert mine[-1] == {"role": "user", "content": "mine asks: since when?"}
    assert OPENING in mine[0]["content"], "the situation in the client's own words"
    assert tasks[0].seed_of("k") == tasks[1].seed_of("k")
    assert tasks[0].seed_of("k") != clients._task(2, waiting["mine"]).seed_of("k")
    assert tasks[0].out != tasks[1].out
    assert clients._task(1, waiting["mine"]).out == tasks[0].out


def test_what_leaves_this_machine_is_scrubbed_turn_by_turn(tmp_path):
    away = {"endpoint": {"model": "m", "base_url": "https://api.example.com/v1", "key_env": None}}
    job = job_of(tmp_path, simulate={"client": away})
    clients = Clients(job, tmp_path, Outgoing(ScrubSent(enabled=True), Privacy()), Progress())
    opening = "Write to me at jo.doe@example.org, please."
    asked = told(("At jo.doe@example.org?<|im_end|>", None), opening=opening)
    sent = clients._questions.messages(asked, asked.context)
    assert "jo.doe" not in json.dumps(sent)
    assert "<|im_end|>" not in json.dumps(sent)


def test_a_prompts_file_without_an_entry_is_refused_before_anything_is_asked(tmp_path):
    for name in ("client", "profiles"):
        texts = yaml.safe_load(PACKAGED.read_text())
        del texts[name]
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(texts))
        job = job_of(tmp_path, prompts={"file": str(tmp_path / "mine.yaml")})
        with pytest.raises(InputError, match=name):
            Clients(job, tmp_path, Outgoing(ScrubSent(), Privacy()), Progress())


class Played:
    """A client's model whose answers are written by hand, by attempt; it stores them as engines do."""

    def __init__(self, answers: list[dict[str, str]]) -> None:
        self.answers, self.seeds = answers, []

    def __call__(self, job, what, model, tasks, progress, rollouts) -> None:
        for task in tasks:
            for part in task.missing():
                keys = [row["speech_id"] for row in task.rows(part)]
                self.seeds += [(task.attempt, key, task.seed_of(key)) for key in keys]
                said = {key: self.answers[task.attempt - 1].get(key, "Go on.") for key in keys}
                rows = [response_row(key, "m", text, True) for key, text in said.items() if text]
                task.write(part, rows, [set_aside_row(key, "m", EMPTY, "") for key, text in said.items() if not text])


def test_an_answer_that_is_no_clients_turn_is_asked_for_again_and_then_fails_without_counting_as_left(
    tmp_path, tiny_model, monkeypatch
):
    played = Played([{"a": "Therapist: Why?", "b": "", "c": "[END]"}, {"a": "", "b": "Yes."}, {"a": "Therapist: Oh."}])
    monkeypatch.setattr(dialogues.answers, "generate", played)
    job = job_of(tmp_path, simulate={"client": {"model": str(tiny_model), "rollouts": {"max_model_len": 1024}}})
    clients = Clients(job, tmp_path, Outgoing(ScrubSent(), Privacy()), Progress())

    def asked() -> dict[str, Dialogue]:
        return {key: Dialogue(key, Context((OPENING,)), answers=[Answer("Since when?")]) for key in "abcd"}

    found = asked()
    clients.reply(1, {"mine": found})
    assert {key: dialogue.replies for key, dialogue in found.items()} == {
        "a": [], "b": [Reply("Yes.", False)], "c": [Reply("", True)], "d": [Reply("Go on.", False)]
    }  # fmt: skip
    assert {key: dialogue.failed for key, dialogue in found.items()} == dict.fromkeys("bcd") | {"a": replies.UNUSABLE}
    assert [key for key, dialogue in found.items() if dialogue.left] == ["c"]
    assert [(attempt, key) for attempt, key, _ in played.seeds[4:]] == [(2, "a"), (2, "b"), (3, "a")]
    assert len({seed for _, key, seed in played.seeds if key == "a"}) == 3, "each attempt has a seed of its own"
    facts = dialogue_matchups.Side("mine", found, None).facts(2, seed=0)
    assert facts["dropped"]["1"] == {"share": 1 / 3, "wilson95": list(stats.wilson(1, 3))}
    assert (facts["unanswered"], facts["unreplied"]) == (0, 1)
    before, again = len(played.seeds), asked()
    clients.reply(1, {"mine": again})
    assert again == found
    assert len(played.seeds) == before, "what is stored is not asked for again"


def test_clients_that_mostly_give_no_reply_stop_the_evaluation(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(dialogues.answers, "generate", Played([{"a": "", "b": ""}] * 3))
    job = job_of(tmp_path, simulate={"client": {"model": str(tiny_model), "rollouts": {"max_model_len": 1024}}})
    clients = Clients(job, tmp_path, Outgoing(ScrubSent(), Privacy()), Progress())
    told_by = {key: Dialogue(key, Context((OPENING,)), answers=[Answer("Since when?")]) for key in "abc"}
    with pytest.raises(
        InputError, match=r"mine, turn 1: 2 of 3 dialogues fail .* name another simulate\.client\.model"
    ):
        clients.reply(1, {"mine": told_by})


def test_openings_are_the_first_turns_of_speeches_and_conversations():
    answered = [began(OPENING), began(OPENING, turn=2), began("I drink.")]
    found = dialogue_matchups.openings([row | {"topic": str(n)} for n, row in enumerate(answered)])
    assert found == {
        speech_id(OPENING): {"opening": OPENING, "topic": "0"},
        speech_id("I drink."): {"opening": "I drink.", "topic": "2"},
    }


@pytest.mark.parametrize("form", ["messages", "stored", "dataset"])
def test_clients_who_greet_alike_have_dialogues_of_their_own(form, tmp_path):
    wholes = [Context(("Hi", "Go on.", f"This is the story number {n} that I tell.", "And?", "Yes.")) for n in range(3)]
    cut = [(n, whole, turn) for n, whole in enumerate(wholes) for turn in (1, 2, 3)]
    contexts = [Context(whole.turns[max(0, 2 * turn - 4) : 2 * turn - 1]) for _, whole, turn in cut]
    rows = {
        "messages": [{"messages": whole.messages} for whole in wholes],
        "stored": [{"text": Context(whole.turns[:end]).text} for whole in wholes for end in (5, 3)],
        "dataset": [
            {"speech": context.text, "dialogue": f"{n:016x}", "turn": turn}
            for context, (n, _, turn) in zip(contexts, cut, strict=True)
        ],
    }[form]
    reading = {"conversations": "contexts"} if form == "messages" else {}
    found = dialogue_matchups.openings(load(file=write_lines(tmp_path / "a.jsonl", rows), split="all", **reading))
    assert [row["opening"] for row in found.values()] == ["Hi"] * 3


OURS = {
    "a": told(("Ours.", "Yes."), ("Tell me more about that night please.", "No."),
              ("Tell me more about that night please, now.", None), opening="Speech a."),
    "b": told(("Ours.", "I want to die."), ("And then?", "Bye."), left=True, opening="Speech b."),
    "c": told((None, None), opening="Speech c."),
    "d": told(("Same.", "Bye."), left=True, opening="Speech d."),
    "e": told(("Ours.", "Bye."), left=True, opening="Speech e."),
}  # fmt: skip
THEIRS = {
    "a": told(("Theirs.", "Yes."), ("Mm.", "No."), ("Mm.", None), opening="Speech a."),
    "b": told(("Theirs.", "Yes."), ("Mm.", "No."), ("Mm.", None), opening="Speech b."),
    "c": told(("Theirs.", "Yes."), ("Mm.", "No."), ("Mm.", None), opening="Speech c."),
    "d": told(("Same.", "Bye."), left=True, opening="Speech d."),
    "e": told((None, None), opening="Speech e."),
}
CHOSEN = {
    1: {"a": (True, True), "b": (True, False)},
    2: {"a": (True, True), "b": (False, False)},
    3: {"a": (True, True)},
    None: {"a": (True, True), "b": (True, False)},
}


@pytest.fixture(scope="module")
def met(tmp_path_factory) -> dialogue_matchups.DialogueMatchup:
    """Dialogues by hand, with the verdicts of a judge in both orders."""
    matchup = dialogue_matchups.DialogueMatchup("mine", OURS, THEIRS, setup_of(), tmp_path_factory.mktemp("met"))
    facts = dict.fromkeys(("units", "set_aside", "paid", "reused", "prompt_tokens", "completion_tokens"), 1)
    for turn, judged in matchup._verdicts.items():
        for part in judged.calls.parts:
            rows = [
                {"key": row["key"], "ours_first": first, "ours": ours, "rationale": f"because of turn {turn}"}
                for row in shards.read(judged.calls.stage.pairs, part)
                for first, ours in zip((True, False), CHOSEN[turn].get(row["key"], ()), strict=False)
            ]
            shards.write(judged.calls.stage.out, part, rows, verdicts.VERDICTS, facts=facts)
    return matchup


def test_outcomes_at_a_turn_and_over_the_whole_dialogue(met):
    assert met.turns() == [1, 2, 3]
    assert met.outcomes(1) == {"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.5}, "e has no opponent, c no response"
    assert met.outcomes(2) == {"a": 1.0, "b": 0.0}, "both go on"
    assert met.outcomes(3) == {"a": 1.0}
    assert met.outcomes(None) == {"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.5}


def asked(met, turn: int | None) -> dict[str, list[str]]:
    """The questions about a turn by dialogue, without the marks around texts."""
    texts: dict[str, list[str]] = {}
    calls = met._verdicts[turn].calls
    for part in calls.parts:
        for question in calls.stage.questions(part):
            texts.setdefault(question.what, []).append(without_marks(question.call.messages[-1]["content"]))
    return texts


def test_the_judge_sees_responses_at_turn_1_and_dialogues_later(met):
    first = asked(met, 1)
    assert sorted(first) == ["a", "b"]
    assert "Client Speech: Speech a.\n" in first["a"][0]
    assert "Response A: Ours.\n" in first["a"][0]
    assert "Response B: Ours.\n" in first["a"][1]
    second = asked(met, 2)["b"]
    assert "The client began: Speech b.\n" in second[0]
    assert (
        "Conversation A: Therapist: Ours.\n\nClient: I want to die.\n\nTherapist: And then?\n\nConversation B: "
        in second[0]
    )
    assert "Conversation B: Therapist: Ours.\n\nClient: I want to die." in second[1]
    whole = asked(met, None)
    assert f"Therapist: And then?\n\nClient: Bye. {LEAVES}\n" in whole["b"][0]
    assert whole["a"] == asked(met, 3)["a"], "a dialogue of all turns is one question, paid for once"


def test_a_dialogue_that_failed_is_compared_as_far_as_it_came_and_not_as_a_whole(tmp_path):
    ours, theirs = ({key: told((f"{who}.", "Yes."), ("Mm.", None)) for key in "ab"} for who in ("Ours", "Theirs"))
    ours["b"] = told(("Ours.", None))
    ours["b"].failed = replies.UNUSABLE
    matchup = dialogue_matchups.DialogueMatchup("mine", ours, theirs, setup_of(), tmp_path)
    assert {turn: sorted(asked(matchup, turn)) for turn in (1, 2, None)} == {1: ["a", "b"], 2: ["a"], None: ["a"]}


@pytest.fixture
def results(met, tmp_path) -> dict:
    job = job_of(tmp_path)
    sides = {
        "mine": dialogue_matchups.Side("mine", OURS, None),
        "other": dialogue_matchups.Side("other", THEIRS, None),
    }
    return dialogue_matchups.results(job, [met], sides, "3f2a")


def test_figures_of_dialogues_by_hand(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert (results["openings"], results["turns"], results["client"]) == (5, 3, "client")
    mine, other = results["policies"][0], results["opponent"]
    assert {turn: rate["rate"] for turn, rate in mine["at_turn"].items()} == {"1": 0.5, "2": 0.5, "3": 1.0}
    assert mine["whole"] == winrates.win_rate([1.0, 0.5, 0.0, 0.5], 0)
    assert mine["crisis"] == winrates.win_rate([0.5], 0), "the client of b, a simulated turn"
    assert (results["crisis_dialogues"], results["not_screened"]) == (1, 0)
    assert mine["dropped"] == {
        "1": {"share": 2 / 5, "wilson95": list(stats.wilson(2, 5))},
        "2": {"share": 3 / 5, "wilson95": list(stats.wilson(3, 5))},
    }
    assert other["dropped"]["2"]["share"] == 1 / 5
    assert (mine["unanswered"], other["unanswered"], mine["unreplied"]) == (1, 1, 0)
    assert mine["mean_words"] == {"1": 1.0, "2": 4.5, "3": 8.0}
    assert mine["repetition"]["responses"] == 3
    assert mine["repetition"]["share"] == pytest.approx(1 / 3)
    assert other["repetition"]["share"] == 0.5, "the third turns of a, b and c say what the second ones said"
    assert mine["consistency"] is None


def test_runs_of_words_that_were_said_before():
    overlap = consistency.overlap
    assert overlap("Tell me more about your mother.", ["Tell me more about your work."]) == pytest.approx(2 / 3)
    assert overlap("Tell me MORE, about your work!", ["Tell me more about your work."]) == 1.0
    assert overlap("I see.", ["Oh. I see. Go on."]) == 1.0, "a short answer counts as a whole"
    assert overlap("I see.", ["I do see."]) == 0.0
    assert overlap("I see.", []) is None
    assert overlap("...", ["..."]) is None
    assert overlap("你为什么难过?", ["你为什么难过?"]) == 1.0
    assert consistency.repetition([["I see."], []], 0) is None
    one = consistency.repetition([["I hear you there.", "I hear you there.", "What now, my friend?"]], 0)
    assert (one["responses"], one["share"], one["mean_overlap"]) == (2, 0.5, 0.5)
    assert one["ci95"] == [0.5, 0.5], "of one dialogue"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"rationale": "x", "contradiction": true, "forgotten": false}', (True, False)),
        ('So: {"contradiction": "No", "forgotten": "yes"}', (False, True)),
    ],
)
def test_the_judge_of_consistency_is_read_with_tolerance(text, values):
    row = consistency.read_answer(text)
    assert (row["contradiction"], row["forgotten"]) == values


@pytest.mark.parametrize("text", ["[]", '{"contradiction": true}', '{"contradiction": 1, "forgotten": "maybe"}', "no"])
def test_an_answer_without_both_values_is_unreadable(text):
    with pytest.raises(UnreadableAnswerError):
        consistency.read_answer(text)


def test_the_judge_of_consistency_reads_whole_dialogues_of_two_turns(tmp_path):
    texts = dialogue_matchups.transcripts(OURS, setup_of())
    assert sorted(texts) == ["a", "b"]
    checked = consistency.Consistency(texts, setup_of(), tmp_path, "checked")
    questions = [q for part in checked.calls.parts for q in checked.calls.stage.questions(part)]
    [of_b] = [without_marks(q.call.messages[-1]["content"]) for q in questions if q.what == "b"]
    assert "Conversation: Client: Speech b.\n\nTherapist: Ours.\n\nClient: I want to die." in of_b
    assert set(questions[0].call.schema["properties"]) == {"rationale", *consistency.WHAT}
    facts = dict.fromkeys(("units", "set_aside", "paid", "reused", "prompt_tokens", "completion_tokens"), 1)
    for part in checked.calls.parts:
        rows = [
            {"key": row["key"], "contradiction": True, "forgotten": False, "rationale": "r"}
            for row in shards.read(checked.calls.stage.dialogues, part)
            if row["key"] == "a"
        ]
        shards.write(checked.calls.stage.out, part, rows, consistency.FOUND, facts=facts)
    shares = checked.shares()
    assert (shares["dialogues"], shares["unreadable"]) == (2, 1)
    assert shares["contradiction"] == {"share": 1.0, "wilson95": list(stats.wilson(1, 1))}
    assert shares["forgotten"]["share"] == 0.0


def test_the_page_shows_dialogues_side_by_side(results, met, tmp_path):
    job = job_of(tmp_path)
    openings = {key: {"opening": dialogue.start.text, "topic": "Sleep"} for key, dialogue in OURS.items()}
    shown = dialogue_matchups.cases(job, [met], openings)
    assert len(shown) == 5
    facts, cases = policy_results()
    facts["opponent"] = "other"
    report.write_report({**facts, "dialogues": results}, cases, tmp_path, shown)
    page = self_contained((tmp_path / "report.html").read_text("utf-8"))
    flat = " ".join(page.text.split())
    for words in (
        "played by client with the same profiles and seeds", "Dialogues: clients who leave",
        "judge prefers the dialogue of mine, shown first: because of turn None",
        "A tie: both dialogues are identical.", "No response; the dialogue ends.", "mine: the dialogue is over.",
        "The client leaves.", "Tell me more about that night please, now.", "signs of a crisis for 1 of 5 openings",
    ):  # fmt: skip
        assert words in flat, words
    assert ["mine", "whole dialogue", "4", "50.0", "15.0 to 85.0", "0"] in page.rows
    assert ["mine", "40.0", "60.0", "23.1 to 88.2", "1", "0"] in page.rows
    assert ["other", "1.0", "1.0", "1.0"] in page.rows
    tables = {table.title: table for table in dialogue_report.tables({**facts, "dialogues": results})}
    assert [row.cells[0] for row in tables["Dialogues: consistency"].rows] == ["mine", "other"]
    assert "| mine | turn 3 | 1 | 100.0 |" in (tmp_path / "tables.md").read_text()


@pytest.mark.long
def test_a_policy_and_its_opponent_talk_with_the_same_clients(local_ray, tmp_path, url, tiny_model):
    """A real engine, an opponent and clients behind a real server, and a judge; a second command asks nothing."""
    speeches = tmp_path / "speeches.jsonl"
    texts = [SAMPLE[0]["question"], Context((SAMPLE[1]["question"], "Since when?", "Since May.")).text]
    speeches.write_text("".join(json.dumps({"question": text, "split": "dev"}) + "\n" for text in texts))
    priced = {"price_in": 1.0, "price_out": 2.0}
    job_settings = settings(
        tmp_path / "run",
        policies=[{"name": "tiny", "model": str(tiny_model)}],
        opponent={"name": "talker", "endpoint": local(url, "talker", **priced)},
        speeches={"file": str(speeches), "split": "dev"},
        variants=["free"],
        judges=[{"name": "judge", "endpoint": local(url, **priced)}],
        simulate={
            "client": {"endpoint": local(url, "client", **priced), "max_tokens": 32},
            "turns": 2,
            "consistency": True,
        },
        max_cost=1.0,
        rollouts={**ENGINE, "max_model_len": 1024},
    )

    def run() -> dict:
        directory = RunDirectory(job_settings["run_dir"])
        try:
            results, cases, conversed = policies.evaluate(parsed(job_settings), directory, Progress())
            report.write_report(results, cases, directory.root, conversed)
            return results
        finally:
            directory.close()

    results = run()
    found = results["dialogues"]
    assert (found["openings"], found["turns"], found["client"]) == (2, 2, "client")
    assert results["conversations"] == 2
    free = results["policies"][0]["variants"]["free"]
    assert {title: of["overall"]["speeches"] for title, of in free["turns"].items()} == {"1": 1, "2": 1}
    [mine] = found["policies"]
    assert [mine["at_turn"][turn]["speeches"] for turn in ("1", "2")] == [2, 2]
    assert mine["whole"]["rate"] == mine["at_turn"]["2"]["rate"], "all dialogues reach the last turn"
    assert mine["consistency"]["dialogues"] == 2
    kinds = counts(url)["by_kind"]
    assert kinds["client"] == 2 * 2, "a reply for each opening, to the policy and to the opponent"
    tables = {
        name: pq.read_table(tmp_path / "run" / "dialogues" / f"{name}.parquet").to_pylist()
        for name in ("tiny", "talker")
    }
    for name, told_rows in tables.items():
        assert len(told_rows) == 4, name
        assert {row["client"] for row in told_rows} == {"client"}
        for row in told_rows:
            context = Context.of(row["speech"])
            assert context.turn == row["turn"]
            assert prompt_messages({"user": "{client_speech}"}, row["speech"])[-1]["content"] == context.last
    before = counts(url)["served"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "answers").rglob("*.parquet")}
    assert run() == results
    assert counts(url)["served"] == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "answers").rglob("*.parquet")} == times


@pytest.mark.long
def test_a_model_on_engines_plays_clients_that_answer_the_same_to_the_same(local_ray, tmp_path, tiny_model):
    client = {"model": str(tiny_model), "rollouts": {**ENGINE, "max_model_len": 1024}, "max_tokens": 16}
    job = job_of(tmp_path, simulate={"client": client})
    clients = Clients(job, tmp_path, Outgoing(ScrubSent(), Privacy()), Progress())
    openings = {key: row["question"] for key, row in zip("ab", SAMPLE, strict=False)}

    def waiting(response: str) -> dict[str, Dialogue]:
        return {key: Dialogue(key, Context.of(text), answers=[Answer(response)]) for key, text in openings.items()}

    found = {"mine": waiting("Since when?"), "same": waiting("Since when?"), "other": waiting("What happened?")}
    clients.reply(1, found)
    assert found["mine"] == found["same"]
    assert all(dialogue.replies for of in found.values() for dialogue in of.values())
    assert found["other"]["a"].replies != found["mine"]["a"].replies
    assert len(list((tmp_path / "clients" / "replies").iterdir())) == 2
    again = waiting("Since when?")
    clients.reply(1, {"mine": again})
    assert again == found["mine"]
