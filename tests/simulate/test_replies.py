"""Tasks of replies: what is stored, asked and read back."""

import itertools
from pathlib import Path

import pytest

from psyco_ray.config.contexts import Context
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.config.privacy import Privacy, ScrubSent
from psyco_ray.config.simulate import Client
from psyco_ray.data.respond import EMPTY, ApiStage, response_row
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.judge.callers import set_aside_row
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.simulate import replies
from psyco_ray.simulate.clients import ATTEMPTS, Questions, reply_seed
from psyco_ray.simulate.dialogue import Answer, Dialogue, Reply

ENDPOINT = Endpoint(model="m", base_url="https://api.example.com/v1", key_env=None)
CLIENT = Client(endpoint=ENDPOINT, max_tokens=50)
TERMS = Outgoing(ScrubSent(enabled=True), Privacy())
ASKED = {
    "3f:0": [{"role": "user", "content": "What brings you here?"}],
    "3f:1": [{"role": "user", "content": 'Quoted: "yes" {x}\n\nNew line'}],
}


def task(root: Path, turn: int = 1, seed: int = 0, attempt: int = 1) -> replies.ReplyTask:
    return replies.write_task(Questions.of(CLIENT, "default", seed, TERMS), turn, ASKED, ["m"], root, attempt)


def test_questions_of_an_api_have_the_messages_and_seeds(tmp_path: Path) -> None:
    written = task(tmp_path, turn=2)
    questions = [question for part in written.parts() for question in ApiStage(ENDPOINT, written).questions(part)]
    assert {question.speech_id: [*question.call.messages] for question in questions} == ASKED
    assert {question.speech_id: question.call.seed for question in questions} == {
        key: reply_seed(0, key, 2) for key in ASKED
    }
    assert {question.call.max_tokens for question in questions} == {50}


def test_what_decides_the_replies_decides_the_directory(tmp_path: Path) -> None:
    assert task(tmp_path).out == task(tmp_path).out
    assert len({task(tmp_path, *of).out for of in itertools.product((1, 2), (0, 1), (1, 2, 3))}) == 12


def test_only_a_client_who_says_so_leaves_and_answers_that_are_no_turn_may_be_asked_again(tmp_path: Path) -> None:
    written = task(tmp_path)
    [part] = written.parts()
    written.write(
        part,
        [
            response_row("3f:0", "m", "Client: Hello. And", False),
            response_row("3f:3", "m", "[END]", True),
            response_row("3f:4", "m", "Therapist: Why?", True),
        ],
        [
            set_aside_row("3f:1", "m", EMPTY, ""),
            set_aside_row("3f:2", "m", "refused", None),
        ],
    )
    done, failed = replies.read(written)
    assert done == {"3f:0": Reply("Hello.", False), "3f:3": Reply("", True)}
    assert failed == {"3f:1": replies.UNUSABLE, "3f:2": "refused", "3f:4": replies.UNUSABLE}


def test_an_api_is_told_that_an_answer_is_no_clients_turn_and_asked_again(tmp_path: Path) -> None:
    stage = replies.calls(Questions.of(CLIENT, "default", 0, TERMS), task(tmp_path), tmp_path / "journal", "a").stage
    assert stage.attempts == ATTEMPTS
    [question, *_] = [question for part in stage.task.parts() for question in stage.questions(part)]
    assert stage.check(question, "<think>so</think>Client: Yes.") == "Client: Yes."
    for text in ("Therapist: Why?", " ", "<think>so</think>"):
        with pytest.raises(UnreadableAnswerError):
            stage.check(question, text)


def test_few_dialogues_without_a_reply_are_a_warning_and_most_an_error(caplog: pytest.LogCaptureFixture) -> None:
    replies.check("client-1", 200, {})
    assert not caplog.text
    replies.check("client-1", 200, {f"{number}": replies.UNUSABLE for number in range(100)})
    assert "client-1: 100 of 200 dialogues fail" in caplog.text
    with pytest.raises(InputError, match=r"3 of 4 dialogues fail .* because refused$"):
        replies.check("client-1", 4, {"a": "refused", "b": replies.UNUSABLE, "c": "refused"})
    with pytest.raises(InputError, match=r"3 of 4 dialogues fail .* name another simulate\.client\.model"):
        replies.check("client-1", 4, dict.fromkeys("abc", replies.UNUSABLE))


def test_texts_are_scrubbed_and_data_on_their_way_to_an_api() -> None:
    dialogue = Dialogue("3f", Context.of("Lost."), answers=[Answer("Write to anna.b@example.org.<|im_end|>")])
    sent = Questions.of(CLIENT, "default", 0, TERMS).messages(dialogue, dialogue.context)
    assert sent[-1]["content"].startswith("Write to ")
    assert "example.org" not in sent[-1]["content"]
    assert "<|im_end|>" not in sent[-1]["content"]
