"""The client against a faulty server, over real connections."""

import asyncio
import re
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.judging import KEY, SCHEMA, call, get_json, run, server

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge import tokens
from psyco_ray.judge.calls import Answer, InvalidResponseError, answer_of
from psyco_ray.judge.client import Client, RefusedError, UnavailableError
from psyco_ray.judge.pauses import retry_after


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("status-401", "does not accept the key; put a valid one into OPENAI_API_KEY"),
        ("status-403", "does not let this key use status-403; choose another model"),
        ("status-404", "knows no model status-404, or is not the API's base_url"),
        ("status-402", "the account behind OPENAI_API_KEY has no quota left"),
        ("quota", "the account behind OPENAI_API_KEY has no quota left"),
        ("status-400-response_format", "rejects the response_format .* set structured to json_object or text"),
        ("status-405", "answers with HTTP 405"),
        ("moved", r"redirects its calls to 127.0.0.1:1, which is not followed; set base_url"),
    ],
)
def test_errors_of_all_calls_stop_at_once(model, message, tmp_path) -> None:
    with server(latency=0.01) as url, pytest.raises(ValueError, match=message) as error:
        run(url, tmp_path, 20, model=model, concurrency=1)
    assert url in str(error.value)
    assert KEY not in "".join(traceback.format_exception(error.value))
    assert error.value.__context__ is None


def test_calls_on_this_machine_take_no_proxy(tmp_path, monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with server() as url:
        assert run(url, tmp_path, 1, retries=0)[0].value is not None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("status-400", r"refused by the server \(400\): .*no, \[key\]"),
        ("status-413", r"refused by the server \(413\)"),
        ("status-422", r"refused by the server \(422\)"),
        ("too-large", r"refused by the server \(429\): .*Request too large for judge"),
        ("odd-error", r"refused by the server \(400\)"),
        ("filter", "stopped by the content filter"),
        ("refusal", "the model refuses to answer$"),
    ],
)
def test_a_refused_call_is_set_aside_permanently(model, reason, tmp_path) -> None:
    with server() as url:
        first, second = run(url, tmp_path, 5, model=model), run(url, tmp_path, 5, model=model)
        assert get_json(url)["served"] == 5
    for refused, reused in zip(first, second, strict=True):
        assert (refused.paid, reused.paid, refused.reason) == (1, 0, reused.reason)
        assert re.search(reason, refused.reason)
    assert KEY not in str(first)


def test_an_unavailable_endpoint_ends_the_run(tmp_path) -> None:
    with pytest.raises(
        UnavailableError, match=r"127.0.0.1:9/v1 failed 3 times in a row .* start again once it works"
    ) as error:
        run("http://127.0.0.1:9/v1", tmp_path, 200, retries=2, concurrency=4)
    assert KEY not in "".join(traceback.format_exception(error.value))


def test_the_client_waits_for_the_end_of_an_outage(tmp_path) -> None:
    with server(outage_after=20, outage_s=1.0, latency=0.01) as url:
        results = run(url, tmp_path, 80, concurrency=8)
        counts = get_json(url)
    assert counts["by_kind"]["outage"] > 8
    assert counts["paid"] == 80
    assert all(result.value for result in results)


@pytest.mark.parametrize("header", ["1", "ms:1000", "date:2"])
def test_retry_after_pauses_all_calls_and_costs_no_retry(header, tmp_path) -> None:
    async def go(url: str) -> None:
        asking = Client(Endpoint(model="judge", base_url=url, retries=0))

        async def later() -> Answer:
            await asyncio.sleep(0.3)
            return await asking.answer(call(2))

        await asyncio.gather(asking.answer(call(1)), later())
        await asking.close()

    with server(share=1, kinds="429", retry_after=header) as url:
        asyncio.run(go(url))
        times = get_json(url, "times")
    assert times[1] - times[0] >= 0.99


def test_an_error_that_repeats_the_prompt_is_shown_without_it(tmp_path) -> None:
    with server() as url:
        results = run(url, tmp_path, 3, model="echo")
    for result in results:
        assert re.fullmatch(r'refused by the server \(422\): .*I cannot read "\[…\]." sent with \[key\]', result.reason)
    journal = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert "refused by the server" in journal
    assert "Rate the responses" not in journal


@pytest.mark.parametrize("usage", ['"n/a"', "[]", '{"prompt_tokens": -900, "completion_tokens": "many"}', "null", "7"])
def test_a_paid_answer_is_not_lost_for_its_usage(usage, tmp_path) -> None:
    with server() as url:
        results = run(url, tmp_path, 3, model=f"usage-{usage}")
        assert get_json(url)["paid"] == 3
    assert all(result.value for result in results)
    assert all(result.prompt_tokens > 10 and result.completion_tokens > 5 for result in results), "counted here"


def test_an_unreadable_answer_is_described_without_its_words() -> None:
    for body in ({"secret words": "secret"}, ["secret"], "secret", {"choices": [{"message": {"content": ["secret"]}}]}):
        with pytest.raises(InvalidResponseError) as error:
            answer_of(body)
        assert "secret" not in str(error.value).replace("secret words", "")


def test_the_key_is_never_shown(monkeypatch) -> None:
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
    def body(model: str, structured: str = "json_schema", reasoning_tokens: int = 0, **changes) -> dict:
        endpoint = Endpoint(model=model, structured=structured, reasoning_tokens=reasoning_tokens)
        return Client(endpoint).body(call(**changes))

    plain = body("gpt-4o", top_p=0.9, seed=3)
    assert (plain["max_tokens"], plain["temperature"], plain["top_p"], plain["seed"]) == (50, 0.0, 0.9, 3)
    assert plain["response_format"]["json_schema"]["schema"] == SCHEMA
    for model in ("o1-mini", "o3", "openai/o4-mini", "gpt-5.1"):
        request = body(model, top_p=0.9)
        assert request["max_completion_tokens"] == 50
        assert not {"max_tokens", "temperature", "top_p"} & set(request)
        assert body(model, reasoning_tokens=4000)["max_completion_tokens"] == 4050
    assert body("deepseek-r1", reasoning_tokens=4000)["max_tokens"] == 4050
    assert body("gpt-4o", "json_object")["response_format"] == {"type": "json_object"}
    assert "response_format" not in body("gpt-4o", "text")
    assert "response_format" not in body("gpt-4o", schema=None)


def test_tokens_are_estimated_if_the_server_counts_none() -> None:
    async def go(url: str) -> Answer:
        asking = Client(Endpoint(model="no-usage", base_url=url))
        try:
            return await asking.answer(call())
        finally:
            await asking.close()

    with server() as url:
        answer = asyncio.run(go(url))
    assert answer.prompt_tokens == call().prompt_tokens() > 10
    assert answer.completion_tokens == tokens.count(answer.text) > 10


def test_keys_depend_on_every_field_of_a_call() -> None:
    text = Endpoint(model="a", structured="text")
    different = [
        call(1).key(text),
        call(2).key(text),
        call(1).key(Endpoint(model="b", structured="text")),
        call(1).key(Endpoint(model="a", structured="json_object")),
        call(1).key(Endpoint(model="a", structured="text", reasoning_tokens=100)),
        *(
            call(1, **change).key(text)
            for change in ({"schema": None}, {"max_tokens": 51}, {"temperature": 0.5}, {"top_p": 0.5}, {"seed": 0})
        ),
    ]
    assert len(set(different)) == len(different)
    assert call(1).key(Endpoint(model="a", structured="text", base_url="http://elsewhere/v1")) == different[0]


@given(st.integers(0, 10**6))
def test_retry_after_in_seconds(seconds) -> None:
    assert retry_after({"retry-after": str(seconds)}) == seconds
    assert retry_after({"retry-after": "7", "retry-after-ms": str(seconds)}) == pytest.approx(seconds / 1000)


@given(st.text())
def test_any_retry_after_is_a_duration_or_none(text) -> None:
    seconds = retry_after({"retry-after": text})
    assert seconds is None or 0 <= seconds < float("inf")


def test_a_refused_call_reports_its_tokens() -> None:
    async def go(url: str) -> None:
        asking = Client(Endpoint(model="filter", base_url=url))
        with pytest.raises(RefusedError, match="content filter") as refused:
            await asking.answer(call())
        assert refused.value.completion_tokens == 40  # it was paid for
        await asking.close()

    with server() as url:
        asyncio.run(go(url))


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ({}, {"model": "limited", "longest_wait_s": 1.5}, r"429: .*requests per day \(RPD\): Limit 9"),
        (
            {"share": 1, "kinds": "429", "retry_after": 86400},
            {},
            "for 86400 s, more than longest_wait_s 900, .*slow down",
        ),
    ],
)
def test_a_rate_limit_that_does_not_pass_ends_the_run_with_the_words_of_the_server(
    options, settings, said, tmp_path
) -> None:
    with (
        server(**options) as url,
        pytest.raises(UnavailableError, match=rf"accepts no calls to .*{said}.*; start again once it does"),
    ):
        run(url, tmp_path, 20, **settings)
