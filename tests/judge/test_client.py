"""The judge's client against a server that misbehaves, over real connections."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.judging import KEY, SCHEMA, call, check, run, server, speech, told
from support.paths import TESTS

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge import batch_api, client, rate_limit
from psyco_ray.judge.ask import Asker, UnreadableAnswerError, parse_json
from psyco_ray.judge.client import Answer, Client, RefusedError, UnavailableError, retry_after
from psyco_ray.judge.journal import Journal
from psyco_ray.judge.rate_limit import BudgetExceededError, BudgetMeter, Limiter


@pytest.fixture(autouse=True)
def _key_and_short_pauses(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.02)


@pytest.mark.parametrize("kind", ["429", "500", "cut", "html", "hang", "malformed", "truncated", "range"])
def test_a_fault_that_passes_costs_no_answer(kind, tmp_path) -> None:
    with server(share=0.4, kinds=kind, retry_after="ms:20") as url:
        asked = run(url, tmp_path, 40, timeout_s=0.5 if kind == "hang" else 60)
        counts = told(url)
        again = run(url, tmp_path, 40)
        assert told(url) == counts
    faults = counts["by_kind"][kind]
    assert faults > 5
    assert counts["served"] == 40 + faults
    assert all(found.reason is None and found.value for found in asked)
    assert [found.value for found in asked] == [found.value for found in again]
    in_text = kind in ("malformed", "truncated", "range")
    assert sum(found.paid for found in asked) == (40 + faults if in_text else 40)
    assert sum(found.reused for found in again) == (40 + faults if in_text else 40)
    assert sum(found.paid for found in again) == 0


def test_what_stays_bad_is_set_aside_with_its_reason(tmp_path) -> None:
    with server(latency=0.01) as url:
        empty, plain = run(url, tmp_path, model="empty"), run(url, tmp_path, structured="text")
        assert told(url)["served"] == 6
    assert (empty[0].value, empty[0].reason, empty[0].text, empty[0].paid) == (None, "the answer holds no JSON", "", 3)
    assert plain[0].reason == "the answer holds no JSON"
    assert plain[0].text.startswith("I hear you.")


def test_the_model_is_told_what_was_wrong(tmp_path) -> None:
    async def go() -> None:
        asker = Asker(Endpoint(model="judge", base_url=url), Journal(tmp_path, "a"), None)
        seen: list[str] = []

        def never(text: str) -> None:
            seen.append(text)
            raise UnreadableAnswerError("rating 3 is missing")

        found = await asker.shard("ab").ask("ab12", call(), never, 2)
        assert (found.paid, found.reason, len(set(seen))) == (2, "rating 3 is missing", 2)
        assert found.prompt_tokens > 2 * len(call().messages[0]["content"]) // 4
        await asker.close()

    with server() as url:
        asyncio.run(go())


def test_a_bug_in_a_check_is_not_taken_for_a_bad_answer(tmp_path) -> None:
    async def go() -> None:
        asker = Asker(Endpoint(model="judge", base_url=url), Journal(tmp_path, "a"), None)
        with pytest.raises(ValueError, match="invalid literal"):
            await asker.shard("ab").ask("ab12", call(), int, 3)
        await asker.close()

    with server() as url:
        asyncio.run(go())


@pytest.mark.parametrize(
    ("model", "told_to_user"),
    [
        ("status-401", "does not accept the key; put a valid one into OPENAI_API_KEY"),
        ("status-403", "does not let this key use status-403; choose another model"),
        ("status-404", "knows no model status-404, or is not the API's base_url"),
        ("status-402", "the account behind OPENAI_API_KEY has no quota left"),
        ("quota", "the account behind OPENAI_API_KEY has no quota left"),
        ("status-400-response_format", "rejects the response_format .* set structured to json_object or text"),
        ("status-405", "answers with HTTP 405"),
    ],
)
def test_what_no_call_can_pass_stops_at_once(model, told_to_user, tmp_path) -> None:
    with server(latency=0.01) as url, pytest.raises(ValueError, match=told_to_user) as error:
        run(url, tmp_path, 20, model=model, concurrency=1)
    assert url in str(error.value)
    assert KEY not in "".join(traceback.format_exception(error.value))
    assert error.value.__context__ is None


def test_after_a_stop_nothing_more_is_sent(tmp_path) -> None:
    async def go() -> None:
        asker = Asker(Endpoint(model="status-401", base_url=url, concurrency=2), Journal(tmp_path, "a"), None)
        shard = asker.shard("ab")
        asking = (shard.ask("ab12", call(number), check, 3) for number in range(50))
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert {str(error) for error in found} == {str(found[0])}
        assert "does not accept the key" in str(found[0])
        await asker.close()

    with server(latency=0.01) as url:
        asyncio.run(go())
        assert told(url)["served"] == 2


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("status-400", r"refused by the server \(400\): .*no, \[key\]"),
        ("status-413", r"refused by the server \(413\)"),
        ("status-422", r"refused by the server \(422\)"),
        ("filter", "stopped by the content filter"),
        ("refusal", "the model refuses: I would rather not"),
    ],
)
def test_a_refused_call_is_set_aside_for_good(model, reason, tmp_path) -> None:
    with server() as url:
        first, second = run(url, tmp_path, 5, model=model), run(url, tmp_path, 5, model=model)
        assert told(url)["served"] == 5
    for found, reused in zip(first, second, strict=True):
        assert (found.paid, reused.paid, found.reason) == (1, 0, reused.reason)
        assert re.search(reason, found.reason)
    assert KEY not in str(first)


def test_an_endpoint_that_stays_down_ends_the_run(tmp_path) -> None:
    with pytest.raises(
        UnavailableError, match=r"127.0.0.1:9/v1 failed 3 times in a row .* start again once it works"
    ) as error:
        run("http://127.0.0.1:9/v1", tmp_path, 200, retries=2, concurrency=4)
    assert KEY not in "".join(traceback.format_exception(error.value))


def test_an_outage_is_waited_out(tmp_path) -> None:
    with server(outage_after=20, outage_s=1.0, latency=0.01) as url:
        asked = run(url, tmp_path, 80, concurrency=8)
        counts = told(url)
    assert counts["by_kind"]["outage"] > 8
    assert counts["paid"] == 80
    assert all(found.value for found in asked)


@pytest.mark.parametrize("header", ["1", "ms:1000", "date:2"])
def test_retry_after_stops_all_calls_and_costs_no_retry(header, tmp_path) -> None:
    async def go(url: str) -> None:
        asking = Client(Endpoint(model="judge", base_url=url, retries=0))

        async def later() -> Answer:
            await asyncio.sleep(0.3)
            return await asking.answer(call(2))

        await asyncio.gather(asking.answer(call(1)), later())
        await asking.close()

    with server(share=1, kinds="429", retry_after=header) as url:
        asyncio.run(go(url))
        times = told(url, "times")
    assert times[1] - times[0] >= 0.99


def test_the_key_is_shown_nowhere(monkeypatch) -> None:
    asking = Client(Endpoint(model="judge"))
    assert KEY not in repr(asking) + str(asking) + repr(asking.api)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\u00e9")
    with pytest.raises(ValueError, match="OPENAI_API_KEY holds characters that no key has") as error:
        Client(Endpoint(model="judge"))
    assert KEY not in str(error.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match=r"variable OPENAI_API_KEY with the key for .* is not set"):
        Client(Endpoint(model="judge"))
    Client(Endpoint(model="judge", key_env=None))


def test_requests_fit_the_model_and_the_server() -> None:
    def body(model: str, structured: str = "json_schema", **changes) -> dict:
        return Client(Endpoint(model=model, structured=structured)).body(call(**changes))

    plain = body("gpt-4o", top_p=0.9, seed=3)
    assert (plain["max_tokens"], plain["temperature"], plain["top_p"], plain["seed"]) == (50, 0.0, 0.9, 3)
    assert plain["response_format"]["json_schema"]["schema"] == SCHEMA
    for model in ("o1-mini", "o3", "openai/o4-mini", "gpt-5.1"):
        found = body(model, top_p=0.9)
        assert found["max_completion_tokens"] == 50
        assert not {"max_tokens", "temperature", "top_p"} & set(found)
    assert body("gpt-4o", "json_object")["response_format"] == {"type": "json_object"}
    assert "response_format" not in body("gpt-4o", "text")
    assert "response_format" not in body("gpt-4o", schema=None)


def test_tokens_are_estimated_where_the_server_counts_none() -> None:
    async def go(url: str) -> Answer:
        asking = Client(Endpoint(model="no-usage", base_url=url))
        try:
            return await asking.answer(call())
        finally:
            await asking.close()

    with server() as url:
        found = asyncio.run(go(url))
    assert found.prompt_tokens == call().prompt_tokens() > 10
    assert found.completion_tokens == len(found.text) // 3 + 1


def test_keys_depend_on_all_that_is_asked() -> None:
    different = [
        call(1).key("a", "text"),
        call(2).key("a", "text"),
        call(1).key("b", "text"),
        call(1).key("a", "json_object"),
        *(
            call(1, **change).key("a", "text")
            for change in ({"schema": None}, {"max_tokens": 51}, {"temperature": 0.5}, {"top_p": 0.5}, {"seed": 0})
        ),
    ]
    assert len(set(different)) == len(different)
    assert call(1).key("a", "text") == different[0]


@given(st.integers(0, 10**6))
def test_retry_after_in_seconds(seconds) -> None:
    assert retry_after({"retry-after": str(seconds)}) == seconds
    assert retry_after({"retry-after": "7", "retry-after-ms": str(seconds)}) == pytest.approx(seconds / 1000)


@given(st.text())
def test_any_retry_after_is_a_time_or_none(text) -> None:
    found = retry_after({"retry-after": text})
    assert found is None or 0 <= found < float("inf")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), VALUES, min_size=1, max_size=4)


@given(
    OBJECTS, st.sampled_from(["{}", "```json\n{}\n```", "Here you are: {} I hope it helps [1].", "<think>{{</think>{}"])
)
def test_json_is_found_whatever_is_around_it(value, around) -> None:
    before, after = around.replace("{{", "\0").split("{}")
    assert parse_json(before.replace("\0", "{") + json.dumps(value, indent=1) + after) == value


@given(OBJECTS, st.data())
def test_json_that_ends_early_is_not_completed(value, data) -> None:
    text = json.dumps(value)
    for before in ("", "As [1] says: "):
        with pytest.raises(UnreadableAnswerError, match="ends before its JSON does"):
            parse_json(before + text[: data.draw(st.integers(1, len(text) - 1))])


@given(st.text())
def test_any_text_is_json_or_refused(text) -> None:
    with contextlib.suppress(UnreadableAnswerError):
        json.dumps(parse_json(text), ensure_ascii=False).encode()


def test_small_faults_are_mended() -> None:
    assert parse_json('{"a": 1, "b": [1, 2,],}') == {"a": 1, "b": [1, 2]}
    assert parse_json("{'a': \"it's\", b: 2}") == {"a": "it's", "b": 2}
    assert parse_json('{"a": "two\nlines"}') == {"a": "two\nlines"}
    with pytest.raises(UnreadableAnswerError, match="no file can hold"):
        parse_json('{"a": "\\ud83d"}')


ANSWERS = st.builds(Answer, st.text(), st.booleans(), st.integers(0), st.integers(0), st.none() | st.text())
ENTRIES = st.dictionaries(st.integers(0, 2**16 - 1), st.tuples(ANSWERS, st.booleans()), max_size=20)


@given(ENTRIES)
def test_the_journal_gives_each_part_its_own_answers(tmp_path_factory, entries) -> None:
    root = tmp_path_factory.mktemp("journal")
    writers = [Journal(root, "a"), Journal(root, "b")]
    for number, (answer, second) in entries.items():
        writers[second].add(f"{number:04x}{'0' * 12}", f"key{number}", answer)
    for part in [f"{number:04x}"[:digits] for number in entries for digits in (1, 2, 3, 4)]:
        expected = {f"key{n}": answer for n, (answer, _) in entries.items() if f"{n:04x}".startswith(part)}
        assert Journal(root, "c").load(part) == expected
    for writer in writers:
        writer.close()


def test_a_cut_or_damaged_line_costs_only_itself(tmp_path, caplog) -> None:
    def add(name: str) -> None:
        journal = Journal(tmp_path, "a")
        journal.add("ab00", name, Answer("text", True, 1, 2))
        journal.close()

    path = tmp_path / "ab" / "a.jsonl"
    add("one")
    path.write_bytes(path.read_bytes() * 2)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 7)  # as a crash of the machine may leave it
    assert set(Journal(tmp_path, "b").load("ab")) == {"one"}
    assert not caplog.records
    add("two")
    assert set(Journal(tmp_path, "b").load("ab")) == {"one", "two"}
    assert "a.jsonl: line 2 is damaged" in caplog.text
    caplog.clear()
    path.write_bytes(b"\0\0\0\n" + path.read_bytes())
    assert set(Journal(tmp_path, "b").load("a")) == {"one", "two"}
    assert "a.jsonl: line 1 is damaged" in caplog.text


def test_a_journal_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"journal .*/file cannot be written: Not a directory"):
        Journal(tmp_path / "file", "a").add("ab00", "key", Answer("", True, 0, 0))


def spawn(function: str, *given: object) -> subprocess.Popen:
    line = f"import sys, test_client; test_client.{function}(*sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS / 'judge'}", "OPENAI_API_KEY": KEY}
    return subprocess.Popen([sys.executable, "-c", line, *map(str, given)], env=environment)


def asks(url: str, root: str) -> None:
    run(url, Path(root), 400, concurrency=16)


def kill_when(process: subprocess.Popen, reached) -> None:
    while not reached():
        assert process.poll() is None, "the process ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_run_pays_again_at_most_what_was_in_flight(tmp_path) -> None:
    with server(latency=0.05) as url:
        kill_when(spawn("asks", url, tmp_path), lambda: told(url)["served"] >= 150)
        before = told(url)["served"]
        asked = run(url, tmp_path, 400, concurrency=16)
        counts = told(url)
    assert before < 400
    assert counts["paid_twice"] <= 16
    assert counts["max_in_flight"] <= 32  # 16 of each process; the killed one's may linger in the server
    assert sum(found.paid for found in asked) <= 400 - (before - 16)
    assert counts["distinct"] == 400
    assert all(found.value for found in asked)


def test_no_more_calls_are_in_flight_than_allowed(tmp_path) -> None:
    with server(latency=0.03) as url:
        run(url, tmp_path, 60, concurrency=7)
        assert told(url)["max_in_flight"] == 7


def test_the_budget_is_not_overspent(tmp_path) -> None:
    meter = BudgetMeter(None, None, 100.0, 1000.0, 2.0)  # an answer's 40 tokens cost 4 cents
    with server(latency=0.02) as url:
        with pytest.raises(BudgetExceededError, match="max_cost is reached; raise it to go on"):
            run(url, tmp_path, 200, Limiter(meter), concurrency=16)
        paid = told(url)["paid"]
    spent = meter.spent()
    assert spent["calls"] == paid
    assert 2.0 - call().tokens() * 1e-3 < spent["cost"] <= 2.0


def test_calls_a_minute_are_held_over_two_seconds_too(tmp_path) -> None:
    with server() as url:
        run(url, tmp_path, 90, Limiter(BudgetMeter(1200, None, None, None, None)))
        times = told(url, "times")
    assert all(sum(start <= t < start + 2 for t in times) <= 66 for start in times)  # 20 a second, one burst of 20
    assert 3.3 < times[-1] - times[0] < 7


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.integers(60, 6000), st.integers(1, 3), st.lists(st.tuples(st.floats(0, 20), st.integers(1, 3000)), max_size=40)
)
def test_no_minute_gets_more_than_its_share(limit, callers, wishes) -> None:
    clock, granted = Clock(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rate_limit, "monotonic", clock)
        meter = BudgetMeter(limit, limit * 100, 1.0, 1.0, None)
        for pause, wished in wishes:
            for _ in range(callers):
                lease = meter.lease(wished, wished * 100)
                granted.append((clock.now, lease.granted))
                assert lease.granted == wished or lease.wait_s > 0
            clock.now += pause
    for start, _ in granted:
        assert sum(n for t, n in granted if start <= t < start + 60) <= limit * 1.05


def test_many_calls_share_a_question_to_the_meter(tmp_path) -> None:
    class Counted(BudgetMeter):
        leases = 0

        def lease(self, requests: int, tokens: int) -> rate_limit.BudgetLease:
            self.leases += 1
            return super().lease(requests, tokens)

    limited, free = Counted(None, None, 1.0, 1.0, 100.0), Counted(None, None, 1.0, 1.0, None)
    with server(latency=0.02) as url:
        for meter in (limited, free):
            run(url, tmp_path / f"{meter is free}", 400, Limiter(meter), concurrency=64)
            assert meter.spent()["calls"] == 400
    assert limited.leases < 100
    assert free.leases == 1


def test_callers_share_a_meter_that_is_an_actor(local_ray) -> None:
    import ray

    meter = ray.remote(BudgetMeter).options(num_cpus=0).remote(600, None, 1.0, 1.0, 1.0)

    async def one(limiter: Limiter) -> None:
        await limiter.admit(100)
        limiter.report(10, 20)

    async def go() -> float:
        limiters = [Limiter(meter), Limiter(meter)]
        await one(limiters[0])
        began = time.monotonic()
        await asyncio.gather(*(one(limiters[n % 2]) for n in range(30)))
        for limiter in limiters:
            await limiter.close()
        return time.monotonic() - began

    assert asyncio.run(go()) > 1.9  # a burst of 10, then 10 a second
    assert ray.get(meter.spent.remote()) == pytest.approx(
        {"calls": 31, "prompt_tokens": 310, "completion_tokens": 620, "cost": 930e-6}
    )


def test_a_failing_meter_fails_its_calls() -> None:
    class Gone(BudgetMeter):
        def lease(self, requests: int, tokens: int) -> rate_limit.BudgetLease:
            raise RuntimeError("the meter is gone")

    async def go() -> None:
        limiter = Limiter(Gone(None, None, None, None, None))
        found = await asyncio.gather(*(limiter.admit(1) for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in found] == ["the meter is gone"] * 3

    asyncio.run(go())


def batched(url: str, root: str, count: int = 30, model: str = "judge") -> batch_api.Outcome:
    endpoint, journal = Endpoint(model=model, base_url=url), Journal(Path(root) / "journal", str(time.monotonic_ns()))
    calls = [(speech(n), call(n)) for n in range(count)]
    found = asyncio.run(batch_api.run_batch(endpoint, [*calls, calls[0]], journal, Path(root) / "batch.json", 0.05))
    journal.close()
    return found


def test_a_server_without_a_batch_api_is_one_sentence(tmp_path, monkeypatch) -> None:
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
        counts = told(url)
        asked = run(url, tmp_path / "journal", 33)
    assert (first.sent, first.answered, first.failed) == (30, 30, 0)
    assert (second.sent, second.answered) == (0, 0)
    assert (third.sent, third.answered) == (3, 3)
    assert (counts["batches"], counts["batch_requests"], counts["paid_twice"]) == (5, 33, 0)
    assert all(found.value and not found.paid for found in asked)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["batch.json"]


def test_small_files_are_made_by_size_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(batch_api, "MAX_BYTES", 2000)
    with server() as url:
        assert batched(url, tmp_path, 10).answered == 10
        assert told(url)["batches"] > 3


def test_what_a_batch_leaves_out_is_sent_again(tmp_path) -> None:
    with server(share=0.4, kinds="500") as url:
        first, second = batched(url, tmp_path), batched(url, tmp_path)
        assert told(url)["paid_twice"] == 0
    assert first.failed > 5
    assert first.notes == ["overloaded"]
    assert first.answered + first.failed == 30
    assert (second.sent, second.answered, second.failed) == (first.failed, first.failed, 0)


def test_what_is_refused_in_a_batch_is_not_sent_again(tmp_path) -> None:
    with server() as url:
        first, second = (batched(url, tmp_path, model="status-422") for _ in range(2))
        third = batched(url, tmp_path, model="status-418")
        asked = run(url, tmp_path / "journal", 30, model="status-422")
    assert (first.sent, first.refused, second.sent) == (30, 30, 0)
    assert all(found.reason == "refused by the server (422): no, [key]" and not found.paid for found in asked)
    assert (third.failed, third.notes) == (30, ["no, [key]"])


def test_a_batch_outlives_the_process_that_sent_it(tmp_path) -> None:
    with server(batch_s=1.0) as url:
        kill_when(spawn("batched", url, tmp_path), lambda: told(url)["batches"] == 1)
        found = batched(url, tmp_path)
        counts = told(url)
    assert (found.sent, found.answered) == (0, 30)
    assert (counts["batches"], counts["paid"], counts["paid_twice"]) == (1, 30, 0)


def test_the_client_raises_what_a_call_is_refused_for() -> None:
    async def go(url: str) -> None:
        asking = Client(Endpoint(model="filter", base_url=url))
        with pytest.raises(RefusedError, match="content filter") as refused:
            await asking.answer(call())
        assert refused.value.completion_tokens == 40  # it was paid for
        await asking.close()

    with server() as url:
        asyncio.run(go(url))
