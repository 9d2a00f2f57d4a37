"""The batch API."""

import json

import httpx
import openai
import pytest
from support.judging import batched, get_json, kill_when, run, server, spawn

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge import batch_api, client
from psyco_ray.judge.batch_state import BatchState
from psyco_ray.judge.client import Client, RefusedError
from psyco_ray.judge.journal import Journal


def test_a_server_without_a_batch_api_is_an_input_error(tmp_path, monkeypatch) -> None:
    async def refused(*_: object) -> None:
        raise client.RefusedError("refused by the server (400): no such purpose")

    monkeypatch.setattr(client.Client, "retried", refused)
    with pytest.raises(ValueError, match=r"the batch API of judge: refused by the server \(400\).* set via to calls"):
        batched("http://127.0.0.1:1/v1", tmp_path, 3)


def test_batches_fill_the_journal_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(batch_api, "MAX_REQUESTS", 8)
    with server(lose_batch=True, batch_s=0.2) as url:
        first, second = batched(url, tmp_path), batched(url, tmp_path)
        third = batched(url, tmp_path, 33)
        counts = get_json(url)
        results = run(url, tmp_path / "journal", 33)
    assert (first.sent, first.answered, first.failed) == (30, 30, 0)
    assert (second.sent, second.answered) == (0, 0)
    assert (third.sent, third.answered) == (3, 3)
    assert (counts["batches"], counts["batch_requests"], counts["paid_twice"]) == (5, 33, 0)
    assert all(result.value and not result.paid for result in results)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["batch.json"]


@pytest.mark.parametrize("refuse_creation", [False, True])
def test_a_limit_of_queued_requests_sends_the_rest_later(tmp_path, monkeypatch, refuse_creation) -> None:
    monkeypatch.setattr(batch_api, "MAX_REQUESTS", 8)
    faults = {"refuse_creation": True} if refuse_creation else {}
    with server(batch_s=0.1, enqueued=11, **faults) as url:
        outcome, counts = batched(url, tmp_path), get_json(url)
    assert (outcome.sent, outcome.answered, outcome.failed) == (30, 30, 0)
    assert (counts["batch_requests"], counts["paid_twice"]) == (30, 0)
    assert counts["failed_batches"] < 8, "no more are sent than fit"


def test_a_batch_above_the_limit_by_itself_is_halved(tmp_path) -> None:
    with server(batch_s=0.05, enqueued=9) as url:
        outcome, counts = batched(url, tmp_path), get_json(url)
    assert (outcome.sent, outcome.answered, outcome.failed) == (30, 30, 0)
    assert (counts["batch_requests"], counts["paid_twice"]) == (30, 0)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["batch.json"]


def test_files_are_limited_by_size_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(batch_api, "MAX_BYTES", 2000)
    with server() as url:
        assert batched(url, tmp_path, 10).answered == 10
        assert get_json(url)["batches"] > 3


def test_calls_that_failed_in_a_batch_are_sent_again(tmp_path) -> None:
    with server(share=0.4, kinds="500") as url:
        first, second = batched(url, tmp_path), batched(url, tmp_path)
        assert get_json(url)["paid_twice"] == 0
    assert first.failed > 5
    assert first.notes == ["overloaded"]
    assert first.answered + first.failed == 30
    assert (second.sent, second.answered, second.failed) == (first.failed, first.failed, 0)


def test_calls_refused_in_a_batch_are_not_sent_again(tmp_path) -> None:
    with server() as url:
        first, second = (batched(url, tmp_path, model="status-422") for _ in range(2))
        third = batched(url, tmp_path, model="status-418")
        results = run(url, tmp_path / "journal", 30, model="status-422")
    assert (first.sent, first.refused, second.sent) == (30, 30, 0)
    assert all(result.reason == "refused by the server (422): no, [key]" and not result.paid for result in results)
    assert (third.failed, third.notes) == (30, ["no, [key]"])


def test_a_batch_survives_the_process_that_sent_it(tmp_path) -> None:
    with server(batch_s=1.0) as url:
        kill_when(spawn("batched", url, tmp_path), lambda: get_json(url)["batches"] == 1)
        outcome = batched(url, tmp_path)
        counts = get_json(url)
    assert (outcome.sent, outcome.answered) == (0, 30)
    assert (counts["batches"], counts["paid"], counts["paid_twice"]) == (1, 30, 0)


def test_no_file_stays_at_the_provider(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(batch_api, "MAX_REQUESTS", 8)
    with server(share=0.4, kinds="500", batch_s=0.1, enqueued=7) as url:
        batched(url, tmp_path)
        counts = get_json(url)
    assert counts["files_made"] > 8
    assert counts["files"] == 0
    files = json.loads((tmp_path / "batch.json").read_text())["provider_files"]
    assert len(files) == counts["files_made"]
    assert all(files.values())


def test_a_file_that_the_provider_keeps_is_named(tmp_path, caplog, monkeypatch) -> None:
    async def kept(client: Client, file_id: str) -> None:
        raise RefusedError("refused by the server (400): it is kept")

    monkeypatch.setattr(batch_api, "_delete", kept)
    with server() as url:
        assert batched(url, tmp_path, 3).answered == 3
    assert "the provider keeps file file-1 with questions or answers of a batch" in caplog.text
    assert json.loads((tmp_path / "batch.json").read_text())["provider_files"] == {"file-1": False, "file-2": False}


def test_a_command_killed_before_the_files_are_deleted_deletes_them(tmp_path, monkeypatch) -> None:
    async def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with server() as url:
        with monkeypatch.context() as patch:
            patch.setattr(batch_api, "_delete", killed)
            with pytest.raises(KeyboardInterrupt):
                batched(url, tmp_path, 3)
        assert get_json(url)["files"] == 2
        assert batched(url, tmp_path, 3).sent == 0
        counts = get_json(url)
    assert (counts["files"], counts["paid"]) == (0, 3)


def test_damaged_lines_of_an_answer_file_lose_no_other_answer(tmp_path) -> None:
    with server(garble=True) as url:
        outcome = batched(url, tmp_path)
        results = run(url, tmp_path / "journal", 30)
    assert (outcome.answered, outcome.failed) == (28, 2)
    assert sum(result.paid for result in results) == 2
    assert all(result.value for result in results)


def test_errors_in_a_batch_do_not_repeat_the_prompt(tmp_path) -> None:
    with server() as url:
        assert batched(url, tmp_path, 3, model="echo").refused == 3
        results = run(url, tmp_path / "journal", 3, model="echo")
    assert all("[…]" in result.reason and "Rate the" not in result.reason for result in results)


def test_a_message_about_a_whole_batch_does_not_repeat_a_prompt(tmp_path) -> None:
    words = "I have not slept since my mother moved in"
    state = BatchState(tmp_path / "state.json")
    body = {"custom_id": "key", "body": {"messages": [{"role": "user", "content": f"Speech: {words}."}]}}
    state.add([("key", "speech", json.dumps(body).encode() + b"\n")])
    asked = Client(Endpoint(model="m", base_url="http://127.0.0.1:1/v1", key_env=None))
    exchange = batch_api._Exchange(asked, state, Journal(tmp_path, "writer"), batch_api.BatchOutcome())
    said = exchange._said(state.sent[0], f"line 1: '{words}' is no message")
    assert said == "line 1: '[…]' is no message"
    assert exchange._said(state.sent[0], None) == "no reason given"


def test_errors_of_an_upload_do_not_repeat_a_prompt(tmp_path, monkeypatch) -> None:
    words = "Rate the responses to speech 1, please."

    def create(*_: object, **__: object) -> None:
        request = httpx.Request("POST", "http://127.0.0.1:1/v1/files")
        raise openai.BadRequestError(
            f"line 2: {words!r} is no", response=httpx.Response(400, request=request), body=None
        )

    monkeypatch.setattr("openai.resources.files.AsyncFiles.create", create)
    with pytest.raises(ValueError, match=r"the batch API of judge: .*line 2: '\[…\]\.' is no") as caught:
        batched("http://127.0.0.1:1/v1", tmp_path, 3)
    assert "please" not in str(caught.value)


def test_a_refusal_of_a_model_in_a_batch_is_not_quoted(tmp_path) -> None:
    with server() as url:
        assert batched(url, tmp_path, 3, model="refusal").refused == 3
        results = run(url, tmp_path / "journal", 3, model="refusal")
    assert {result.reason for result in results} == {"the model refuses to answer"}
