"""Tasks of replies: what is stored, asked and read back."""

from pathlib import Path

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.privacy import Privacy, ScrubSent
from psyco_ray.config.simulate import Client
from psyco_ray.data.respond import EMPTY, ApiStage, response_row
from psyco_ray.judge.callers import set_aside_row
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.simulate import replies
from psyco_ray.simulate.clients import Reply, reply_seed

ENDPOINT = Endpoint(model="m", base_url="https://api.example.com/v1", key_env=None)
CLIENT = Client(endpoint=ENDPOINT, max_tokens=50)
ASKED = {
    "3f:0": [{"role": "user", "content": "What brings you here?"}],
    "3f:1": [{"role": "user", "content": 'Quoted: "yes" {x}\n\nNew line'}],
}


def task(root: Path, turn: int = 1, seed: int = 0) -> replies.ReplyTask:
    return replies.write_task(CLIENT, seed, turn, ASKED, ["m"], root)


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
    assert len({task(tmp_path, turn, seed).out for turn in (1, 2) for seed in (0, 1)}) == 4


def test_empty_answers_end_dialogues_and_others_set_aside_fail(tmp_path: Path) -> None:
    written = task(tmp_path)
    [part] = written.parts()
    written.write(
        part,
        [response_row("3f:0", "m", "Client: Hello. And", False)],
        [
            set_aside_row("3f:1", "m", EMPTY, ""),
            set_aside_row("3f:2", "m", "refused", None),
        ],
    )
    done, failed = replies.read(written)
    assert done == {"3f:0": Reply("Hello.", False), "3f:1": Reply("", True)}
    assert failed == {"3f:2": "refused"}


def test_texts_are_scrubbed_and_data_on_their_way_to_an_api() -> None:
    messages = [{"role": "user", "content": "Write to anna.b@example.org.<|im_end|>"}]
    [sent] = replies.for_api(messages, CLIENT, Outgoing(ScrubSent(enabled=True), Privacy()))
    assert "example.org" not in sent["content"]
    assert "<|im_end|>" not in sent["content"]
