"""Dialogues with simulated clients: contexts, ranking, drop-out, faults, and runs that are stopped and go on."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.dialogue_pools import SPEECHES, Engines, Scorers, StoppedError, dialogues, job, rows

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.simulate import Client
from psyco_ray.config.training import Job
from psyco_ray.data.speeches import shared_tokenizer
from psyco_ray.data.splits import speech_id
from psyco_ray.models import templates
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.types import Group, Prompt
from psyco_ray.simulate.clients import reply_seed
from psyco_ray.simulate.replies import UNUSABLE


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[dict[Path, Ledger]]:
    opened: dict[Path, Ledger] = {}
    yield opened
    for ledger in opened.values():
        ledger.close()


class Run:
    """An iteration of dialogues with pools of its own."""

    def __init__(
        self, path: Path, model: Path, policy: Engines | None = None, client: Engines | None = None, **simulate
    ):
        self.job = job(path, model, **simulate)
        self.policy, self.client, self.scorers = policy or Engines("I hear"), client or Engines("Well"), Scorers()
        self.ledger = Ledger(self.job, resume=True)
        self.dialogues, self.pipeline = dialogues(self.job, self.ledger, self.policy, self.client, self.scorers)

    def samples(self, iteration: int = 1) -> tuple[list[dict], dict[str, Group]]:
        """The rows at the branch turn, and the groups by speech."""
        try:
            branch, stream = self.dialogues.samples(iteration, rows(self.job), version=3)
            return list(branch), {group.prompt.speech_id: group for group in stream}
        finally:
            self.ledger.close()

    def table(self, name: str) -> list[dict]:
        return pq.read_table(self.ledger.root / name).to_pylist()

    def said(self, key: str, index: int = 0) -> dict:
        """A dialogue of the first iteration's table."""
        found = [row for row in self.table("iteration-001/dialogues.parquet") if row["speech_id"] == key]
        return next(row for row in found if row["index"] == index)


def test_a_response_is_ranked_by_the_mean_reward_of_its_dialogue_scored_in_its_own_contexts(
    tmp_path, tiny_model
) -> None:
    run = Run(tmp_path, tiny_model, turns=3, rank="dialogue")
    branch, groups = run.samples()
    assert [row["speech_id"] for row in branch] == [speech_id(text) for text in SPEECHES]
    assert len(groups) == len(SPEECHES)
    prompt = load_prompt(run.job.prompts)
    for text in SPEECHES:
        group = groups[speech_id(text)]
        for index, response in enumerate(group.responses):
            row = run.said(speech_id(text), index)
            assert row["responses"][0] == response.text
            assert (len(row["responses"]), len(row["replies"])) == (3, 2)
            context, rewards = Context.of(text), []
            for turn, answer in enumerate(row["responses"]):
                messages = [message["content"] for message in prompt_messages(prompt, context.text)]
                rewards.append(run.scorers.seen[("reward", *messages, answer)])
                if turn < 2:
                    context = context.answered(answer, row["replies"][turn])
            assert rewards == pytest.approx(row["reward"])
            assert group.scores["reward"][index] == sum(rewards) / 3
    assert len({tuple(run.said(key, n)["replies"]) for key in groups for n in range(3)}) == 18, "dialogues differ"


def test_the_last_reward_ranks_where_the_job_says_so(tmp_path, tiny_model) -> None:
    run = Run(tmp_path, tiny_model, turns=2, rank="dialogue", reduce="last")
    _, groups = run.samples()
    for key, group in groups.items():
        assert list(group.scores["reward"]) == [run.said(key, n)["reward"][1] for n in range(3)]


def test_responses_of_a_later_turn_answer_the_context_that_the_policy_and_the_client_made(tmp_path, tiny_model) -> None:
    run = Run(tmp_path, tiny_model, turns=2, branch_turn=2)
    branch, groups = run.samples()
    tokenizer, prompt = shared_tokenizer(run.job.model, ()), load_prompt(run.job.prompts)
    assert len(branch) == len(SPEECHES)
    for row in branch:
        context = Context.of(row["speech"])
        assert context.turn == 2
        assert context.opening in SPEECHES
        assert context.therapist_turns[0].startswith("I hear")
        assert context.last.startswith("Well")
        ids = templates.conversation_ids(tokenizer, prompt_messages(prompt, row["speech"]))
        assert row["prompt_ids"] == ids == list(groups[row["speech_id"]].prompt.token_ids)
        assert len(groups[row["speech_id"]].responses) == 3
    stored = {row["speech_id"]: row["speech"] for row in run.table("iteration-001/contexts.parquet")}
    assert stored == {row["speech_id"]: row["speech"] for row in branch}
    facts = run.dialogues.facts()["dialogues"]
    assert [(turn["turn"], turn["dialogues"], turn["left"]) for turn in facts["turns"]] == [(1, 6, 0), (2, 18, 0)]
    assert facts["turns"][0]["reward"] is None, "nothing ranks the turns before the branch"
    assert facts["turns"][1]["reward"] == pytest.approx(
        sum(sum(group.scores["reward"]) for group in groups.values()) / 18
    )
    assert facts["client"] == str(tiny_model)
    assert len(facts["client_digest"]) >= 16


def leaving(prompt: Prompt, number: int) -> str:
    """A client who leaves after a third of the responses."""
    return "I have to go. [END]" if prompt.seed % 3 == 0 else f"Client: I see {prompt.seed}."


def test_a_dialogue_that_its_client_ends_has_the_turns_before(tmp_path, tiny_model) -> None:
    run = Run(tmp_path, tiny_model, client=Engines("", leaving), turns=3, rank="dialogue")
    _, groups = run.samples()
    left = {}
    for key, group in groups.items():
        for index in range(3):
            row = run.said(key, index)
            turns = len(row["responses"])
            assert row["left"] == (turns < 3)
            assert len(row["replies"]) == min(turns, 2)
            if turns == 3 or not any(len(run.said(key, n)["responses"]) > turns for n in range(3)):
                assert group.scores["reward"][index] == pytest.approx(sum(row["reward"]) / turns)
            left[turns] = left.get(turns, 0) + 1
    assert set(left) == {1, 2, 3}, "of each kind"
    turns = run.dialogues.facts()["dialogues"]["turns"]
    assert [turn["left"] for turn in turns] == [left[1], left[2], 0]
    assert [turn["dialogues"] for turn in turns] == [18, 18 - left[1], left[3]]


class FallingScores(Scorers):
    """Every later turn is worth less; the response that ends its dialogue a bit less than the others of its turn."""

    def _score(self, model: str, said: Sequence[str]) -> float:
        return -float(len(said)) - 0.25 * ("goodbye" in said[-1])


@pytest.mark.parametrize("reduce", ["mean", "last"])
def test_a_response_that_makes_its_client_leave_is_not_preferred_because_later_turns_have_lower_rewards(
    tmp_path, tiny_model, reduce: str
) -> None:
    policy = Engines("", lambda prompt, number: "So goodbye." if number == 1 else f"I hear {prompt.seed} {number}.")
    goodbye = {f"{speech_id(text)}:1" for text in SPEECHES}
    client = Engines("", lambda prompt, _: "[END]" if prompt.speech_id in goodbye else "I see.")
    run = Run(tmp_path, tiny_model, policy, client, turns=3, rank="dialogue", reduce=reduce)
    run.scorers = FallingScores()
    run.dialogues, _ = dialogues(run.job, run.ledger, policy, client, run.scorers)
    _, groups = run.samples()
    assert len(groups) == len(SPEECHES)
    for key, group in groups.items():
        assert [len(run.said(key, index)["responses"]) for index in range(3)] == [3, 1, 3]
        stays, leaves, stays_too = group.scores["reward"]
        assert stays == stays_too
        assert -0.25 <= leaves - stays < 0, "as far below as its own turn is"


def test_a_client_who_leaves_before_the_branch_is_answered_where_it_last_spoke(tmp_path, tiny_model) -> None:
    gone = speech_id(SPEECHES[0])
    client = Engines("", lambda prompt, _: "[END]" if prompt.speech_id == gone else "I see.")
    run = Run(tmp_path, tiny_model, client=client, turns=2, branch_turn=2)
    branch, groups = run.samples()
    turns = {row["speech_id"]: Context.of(row["speech"]).turn for row in branch}
    assert turns == {key: 1 if key == gone else 2 for key in groups}
    assert run.dialogues.facts()["dialogues"]["turns"][0]["left"] == 1


class Attempts(Engines):
    """Clients who say a text for each attempt at a reply, by the stage that asks."""

    def __init__(self, say: dict[str, list[str]]) -> None:
        super().__init__("Well")
        self.attempts, self.stages = say, []

    def stream(self, method: object, items: Iterator, name: str, **others: object) -> Iterator:
        self.stages.append(name)
        attempt = int(name.rpartition("-attempt-")[2]) if "-attempt-" in name else 1
        self._say = lambda prompt, _: self.attempts.get(prompt.speech_id, ["I see."] * 3)[attempt - 1]
        yield from super().stream(method, items, name=name, **others)


def test_a_reply_that_is_no_clients_turn_is_asked_for_again_and_then_the_dialogue_fails(tmp_path, tiny_model) -> None:
    again, never = f"{speech_id(SPEECHES[0])}:0", f"{speech_id(SPEECHES[1])}:2"
    client = Attempts({again: ["Therapist: Why?", "", "At last."], never: ["", "You: Go on.", "Therapist: Oh."]})
    run = Run(tmp_path, tiny_model, client=client, turns=2, rank="dialogue")
    _, groups = run.samples()
    assert groups.keys() == {speech_id(text) for text in SPEECHES} - {speech_id(SPEECHES[1])}
    assert run.said(*_parts(again))["replies"] == ["At last."]
    lost = run.said(*_parts(never))
    assert (lost["left"], lost["failed"], lost["replies"]) == (False, UNUSABLE, [])
    record = run.ledger.record("iteration-001/client-1")
    assert (record["replies"], record["left"], record["failed"]) == (17, 0, {never: UNUSABLE})
    [first, _] = run.dialogues.facts()["dialogues"]["turns"]
    assert (first["left"], first["failed"]) == (0, 1)
    stages = [f"iteration-001/client-1{end}" for end in ("", "-attempt-2", "-attempt-3")]
    assert client.stages == stages
    asked = [prompt for prompt in client.asked if prompt.speech_id == never]
    assert [prompt.seed % 2**31 for prompt in asked] == [reply_seed(0, never, 1, attempt) for attempt in (1, 2, 3)]
    resumed = Run(tmp_path, tiny_model, turns=2, rank="dialogue")
    assert resumed.samples()[1] == groups
    assert not resumed.client.asked


def _parts(key: str) -> tuple[str, int]:
    speech, _, index = key.partition(":")
    return speech, int(index)


def test_clients_that_mostly_say_nothing_end_the_run_with_a_sentence(tmp_path, tiny_model) -> None:
    run = Run(tmp_path, tiny_model, client=Engines("", lambda *_: "Therapist: Go on."), turns=2, rank="dialogue")
    with pytest.raises(InputError, match=r"iteration-001/client-1: 18 of 18 dialogues fail .*simulate\.client\.model"):
        run.samples()


def test_a_changed_client_makes_new_dialogues(tmp_path, tiny_model) -> None:
    model = tmp_path / "client"
    shutil.copytree(tiny_model, model)
    client = Client(model=str(model), prompt="client-few-shot", max_tokens=24, rollouts={"max_model_len": 1024})
    first = Run(tmp_path, tiny_model, turns=2, rank="dialogue")
    settings = first.job.model_copy(update={"simulate": first.job.simulate.model_copy(update={"client": client})})
    first.ledger.close()

    def replies_of(engines: Engines) -> set[str]:
        with contextlib.closing(Ledger(settings, resume=True)) as ledger:
            made, _ = dialogues(settings, ledger, Engines("I hear"), engines)
            _, groups = made.samples(1, rows(settings), 3)
            assert len(list(groups)) == len(SPEECHES)
            table = pq.read_table(ledger.root / "iteration-001/dialogues.parquet").to_pylist()
            [digest] = {row["client_digest"] for row in table}
            assert ledger.record("iteration-001/client-1")["client_digest"] == digest
            return {row["replies"][0] for row in table}

    shutil.rmtree(first.ledger.root)
    before = replies_of(Engines("Well"))
    assert replies_of(never := Engines("Nobody")) == before
    assert not never.asked
    (model / "revision.txt").write_text("2")
    assert {reply.split()[0] for reply in replies_of(Engines("Changed"))} == {"Changed"}


def test_an_empty_response_ends_its_dialogue(tmp_path, tiny_model) -> None:
    policy = Engines("", lambda prompt, number: " " if number == 1 else f"I hear {number}.")
    run = Run(tmp_path, tiny_model, policy=policy, turns=2, rank="dialogue")
    _, groups = run.samples()
    for key in groups:
        assert [len(run.said(key, n)["responses"]) for n in range(3)] == [2, 1, 2]


@pytest.mark.parametrize("who", ["client", "policy"])
def test_a_speech_whose_dialogue_fails_is_set_aside_and_the_others_go_on(tmp_path, tiny_model, who: str) -> None:
    bad = f"{speech_id(SPEECHES[2])}:1"
    pools = {who: Engines(who, dies=lambda prompt: prompt.speech_id == bad)}
    run = Run(tmp_path, tiny_model, turns=2, rank="dialogue", **pools)
    _, groups = run.samples()
    assert groups.keys() == {speech_id(text) for text in SPEECHES} - {speech_id(SPEECHES[2])}
    assert run.dialogues.facts()["dialogues"]["given_up"] == {bad: "the actor died of it twice"}
    stage = "client-1" if who == "client" else "turn-2"
    assert run.ledger.quarantined(f"iteration-001/{stage}") == {bad: "the actor died of it twice"}
    again = Run(tmp_path, tiny_model, turns=2, rank="dialogue")
    assert again.samples()[1] == groups, "a resumed run does not ask again"
    assert not again.client.asked
    assert not again.policy.asked


@pytest.mark.parametrize("branch_turn", [1, 2])
def test_a_run_that_is_stopped_between_any_two_items_goes_on_to_the_same_bytes(
    tmp_path, tiny_model, branch_turn
) -> None:
    simulate = {"turns": 3, "branch_turn": branch_turn, "rank": "dialogue"}
    whole = Run(tmp_path / "whole", tiny_model, **simulate)
    rows_of_whole, groups = whole.samples()
    asked = len(whole.policy.asked) + len(whole.client.asked)
    stops = done = 0
    while True:
        assert stops < 60
        parts = [Engines("I hear", items=1 + stops % 2), Engines("Well", items=1)]
        run = Run(tmp_path / "parts", tiny_model, *parts, **simulate)
        try:
            rows_of_parts, found = run.samples()
        except StoppedError:
            stops += 1
        else:
            break
        finally:
            done += len(run.policy.asked) + len(run.client.asked)
    assert stops > 5
    assert done == asked, "nothing that is stored is asked for again"
    assert (rows_of_parts, found) == (rows_of_whole, groups)
    files = {path.relative_to(whole.ledger.root) for path in whole.ledger.root.rglob("*.parquet")}
    assert len(files) > 20
    assert files == {path.relative_to(run.ledger.root) for path in run.ledger.root.rglob("*.parquet")}
    for file in files:
        assert (whole.ledger.root / file).read_bytes() == (run.ledger.root / file).read_bytes(), file


def test_seeds_depend_on_job_speech_turn_and_response(tmp_path, tiny_model) -> None:
    run = Run(tmp_path, tiny_model, turns=3, rank="dialogue")
    run.samples()
    replies = {(prompt.speech_id, prompt.seed % 2**31) for prompt in run.client.asked}
    keys = [f"{speech_id(text)}:{index}" for text in SPEECHES for index in range(3)]
    assert replies == {(key, reply_seed(0, key, turn)) for key in keys for turn in (1, 2)}
    seeds = [prompt.seed for prompt in run.policy.asked]
    assert len(set(seeds)) == len(seeds) == 6 + 18 + 18


def test_held_out_dialogues_have_equal_seeds_in_every_iteration_and_all_scores(tmp_path, tiny_model) -> None:
    settings = job(tmp_path, tiny_model, turns=2)
    ledger, policy, client = Ledger(settings, False), Engines("I hear"), Engines("Well")
    made, pipeline = dialogues(settings, ledger, policy, client)
    for iteration in (0, 1):
        first = {group.prompt.speech_id: group for group in pipeline.answers(iteration, rows(settings), iteration)}
        found = made.heldout(iteration, rows(settings), first, iteration)
        assert [[*answer.scores][:2] for dialogue in found for answer in dialogue.answers] == [
            ["reward", "heldout"]
        ] * 12
        assert [dialogue.answers[0].text for dialogue in found] == [
            first[row["speech_id"]].responses[0].text for row in rows(settings)
        ]
    ledger.close()
    assert sorted(prompt.seed for prompt in client.asked[:6]) == sorted(prompt.seed for prompt in client.asked[6:])
    later = [prompt for prompt in policy.asked if ":" in prompt.speech_id]
    assert sorted(prompt.seed for prompt in later[:6]) == sorted(prompt.seed for prompt in later[6:])
    table = pq.read_table(ledger.root / "iteration-001/dev-dialogues.parquet").to_pylist()
    assert {row["policy_version"] for row in table} == {1}
    assert {row["client"] for row in table} == {str(tiny_model)}
    record = ledger.record("iteration-001/dev-client-1")
    assert (record["client"], record["turn"], record["replies"], record["left"]) == (str(tiny_model), 1, 6, 0)
    files = [*(ledger.root / "iteration-001/dev-client-1").glob("*.samples.parquet")]
    assert {row["policy_version"] for file in files for row in pq.read_table(file).to_pylist()} == {0}


def test_a_dialogue_beyond_the_context_length_loses_its_oldest_exchanges(tmp_path, tiny_model) -> None:
    words = " ".join(["and so on"] * 20)
    policy = Engines("", lambda prompt, number: f"I hear {number} {words}.")
    client = Engines("", lambda prompt, number: f"Well {prompt.seed} {words}.")
    settings = job(tmp_path, tiny_model, turns=4, rank="dialogue")
    settings = settings.model_copy(update={"rollouts": settings.rollouts.model_copy(update={"max_model_len": 250})})
    ledger = Ledger(settings, False)
    made, _ = dialogues(settings, ledger, policy, client)
    _, groups = made.samples(1, rows(settings), 0)
    assert len(list(groups)) == 6
    ledger.close()
    lengths = {len(prompt.token_ids) for prompt in policy.asked}
    assert max(lengths) <= 250 - 32
    shown = shared_tokenizer(settings.model, ()).decode(list(policy.asked[-1].token_ids))
    assert "since the move" not in shown
    assert shown.count("Well") in (1, 2)


def squeezed(path: Path, model: Path, who: str, length: int) -> Job:
    """A job in which the prompts of who speaks may have this length."""
    settings = job(path, model, turns=2, rank="dialogue")
    if who == "policy":
        return settings.model_copy(update={"rollouts": settings.rollouts.model_copy(update={"max_model_len": length})})
    client = settings.simulate.client
    rollouts = client.rollouts.model_copy(update={"max_model_len": length})
    client = client.model_copy(update={"rollouts": rollouts})
    return settings.model_copy(update={"simulate": settings.simulate.model_copy(update={"client": client})})


@pytest.mark.parametrize("who", ["client", "policy"])
def test_a_stage_in_which_most_dialogues_have_no_room_ends_with_the_way_out(tmp_path, tiny_model, who: str) -> None:
    words = " ".join(["and so on"] * 60)
    client = Engines("", lambda prompt, _: f"Well {prompt.seed} {words}.")
    settings = squeezed(tmp_path, tiny_model, who, length=150)
    stage, key = {
        "client": ("client-1", "simulate.client.rollouts.max_model_len"),
        "policy": ("turn-2", "rollouts.max_model_len"),
    }[who]
    with contextlib.closing(Ledger(settings, False)) as ledger:
        made, _ = dialogues(settings, ledger, Engines("I hear"), client)
        _, groups = made.samples(1, rows(settings), 0)
        with pytest.raises(InputError, match=f"iteration-001/{stage}: 18 of 18 dialogues .* raise {key}"):
            list(groups)


def test_few_dialogues_without_room_are_given_up_with_a_warning(tmp_path, tiny_model, caplog) -> None:
    long = speech_id(SPEECHES[0])
    words = " ".join(["and so on"] * 60)
    client = Engines("", lambda prompt, _: words if prompt.speech_id.startswith(long) else "I see.")
    settings = squeezed(tmp_path, tiny_model, "policy", length=150)
    with contextlib.closing(Ledger(settings, False)) as ledger:
        made, _ = dialogues(settings, ledger, Engines("I hear"), client)
        _, groups = made.samples(1, rows(settings), 0)
        assert {group.prompt.speech_id for group in groups} == {speech_id(text) for text in SPEECHES[1:]}
    assert "iteration-001/turn-2: 3 of 18 dialogues are given up" in caplog.text
    assert made.facts()["dialogues"]["given_up"].keys() == {f"{long}:{index}" for index in range(3)}
