"""The batch API."""

import pytest
from support.judging import batched, get_json, kill_when, run, server, spawn

from psyco_ray.judge import batch_api, client


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
