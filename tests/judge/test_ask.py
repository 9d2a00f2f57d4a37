"""Questions with checks and repeats, and reading JSON in answers."""

import asyncio
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.judging import call, check, get_json, kill_when, run, server, spawn

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge.ask import Asker, UnreadableAnswerError, parse_json
from psyco_ray.judge.journal import Journal
from psyco_ray.run import reasoning


@pytest.mark.parametrize("kind", ["429", "500", "cut", "html", "hang", "malformed", "truncated", "range"])
def test_a_transient_fault_loses_no_answer(kind, tmp_path) -> None:
    with server(share=0.4, kinds=kind, retry_after="ms:20") as url:
        results = run(url, tmp_path, 40, timeout_s=0.5 if kind == "hang" else 60)
        counts = get_json(url)
        again = run(url, tmp_path, 40)
        assert get_json(url) == counts
    faults = counts["by_kind"][kind]
    assert faults > 5
    assert counts["served"] == 40 + faults
    assert all(result.reason is None and result.value for result in results)
    assert [result.value for result in results] == [result.value for result in again]
    in_text = kind in ("malformed", "truncated", "range")
    assert sum(result.paid for result in results) == (40 + faults if in_text else 40)
    assert sum(result.reused for result in again) == (40 + faults if in_text else 40)
    assert sum(result.paid for result in again) == 0


def test_unreadable_answers_are_set_aside_with_a_reason(tmp_path) -> None:
    with server(latency=0.01) as url:
        empty, plain = run(url, tmp_path, model="empty"), run(url, tmp_path, structured="text")
        assert get_json(url)["served"] == 6
    assert (empty[0].value, empty[0].reason, empty[0].text, empty[0].paid) == (None, "the answer holds no JSON", "", 3)
    assert plain[0].reason == "the answer holds no JSON"
    assert plain[0].text.startswith("I hear you.")


def test_an_answer_cut_before_its_text_is_not_complained_about(tmp_path) -> None:
    with server() as url:
        [spent] = run(url, tmp_path, model="o1-thinks")
        assert (spent.value, spent.text, spent.finished, spent.paid) == (None, "", False, 1)
        assert "all 50 tokens were used before it began" in spent.reason
        [given_room] = run(url, tmp_path, model="o1-thinks", reasoning_tokens=200)
        assert (given_room.reason, given_room.paid) == (None, 1)
        assert get_json(url)["served"] == 2


def test_a_repeated_question_tells_the_model_what_was_wrong(tmp_path) -> None:
    async def go() -> None:
        asker = Asker(Endpoint(model="judge", base_url=url), Journal(tmp_path, "a"), None)
        seen: list[str] = []

        def never(text: str) -> None:
            seen.append(text)
            raise UnreadableAnswerError("rating 3 is missing")

        result = await asker.shard("ab").ask("ab12", call(), never, 2)
        assert (result.paid, result.reason, len(set(seen))) == (2, "rating 3 is missing", 2)
        assert result.prompt_tokens > 2 * len(call().messages[0]["content"]) // 4
        await asker.close()

    with server() as url:
        asyncio.run(go())


def test_a_bug_in_a_check_is_not_an_unreadable_answer(tmp_path) -> None:
    async def go() -> None:
        asker = Asker(Endpoint(model="judge", base_url=url), Journal(tmp_path, "a"), None)
        with pytest.raises(ValueError, match="invalid literal"):
            await asker.shard("ab").ask("ab12", call(), int, 3)
        await asker.close()

    with server() as url:
        asyncio.run(go())


def test_no_call_is_sent_after_a_stop(tmp_path) -> None:
    async def go() -> None:
        asker = Asker(Endpoint(model="status-401", base_url=url, concurrency=2), Journal(tmp_path, "a"), None)
        shard = asker.shard("ab")
        asking = (shard.ask("ab12", call(number), check, 3) for number in range(50))
        errors = await asyncio.gather(*asking, return_exceptions=True)
        assert {str(error) for error in errors} == {str(errors[0])}
        assert "does not accept the key" in str(errors[0])
        await asker.close()

    with server(latency=0.01) as url:
        asyncio.run(go())
        assert get_json(url)["served"] == 2


def test_a_killed_run_pays_again_at_most_the_calls_in_flight(tmp_path) -> None:
    with server(latency=0.05) as url:
        kill_when(spawn("asks", url, tmp_path), lambda: get_json(url)["served"] >= 150)
        before = get_json(url)["served"]
        results = run(url, tmp_path, 400, concurrency=16)
        counts = get_json(url)
    assert before < 400
    assert counts["paid_twice"] <= 16
    assert counts["max_in_flight"] <= 32  # 16 of each process; the killed one's may linger in the server
    assert sum(result.paid for result in results) <= 400 - (before - 16)
    assert counts["distinct"] == 400
    assert all(result.value for result in results)


def test_calls_in_flight_are_limited(tmp_path) -> None:
    with server(latency=0.03) as url:
        run(url, tmp_path, 60, concurrency=7)
        assert get_json(url)["max_in_flight"] == 7


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


def has_no_tag(value) -> bool:
    """Whether a value quotes no tag of reasoning, which may cut an answer that has text around its JSON."""
    text = json.dumps(value, ensure_ascii=False)
    return not reasoning.split(text)[0] and not reasoning.is_open(text)


OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), VALUES, min_size=1, max_size=4).filter(
    has_no_tag
)


@given(
    OBJECTS, st.sampled_from(["{}", "```json\n{}\n```", "Here you are: {} I hope it helps [1].", "<think>{{</think>{}"])
)
def test_json_is_read_from_surrounding_text(value, around) -> None:
    before, after = around.replace("{{", "\0").split("{}")
    assert parse_json(before.replace("\0", "{") + json.dumps(value, indent=1) + after) == value


@given(OBJECTS, st.data())
def test_incomplete_json_is_rejected(value, data) -> None:
    text = json.dumps(value)
    for before in ("", "As [1] says: "):
        with pytest.raises(UnreadableAnswerError, match="ends before its JSON does"):
            parse_json(before + text[: data.draw(st.integers(1, len(text) - 1))])


@given(st.text())
def test_any_text_is_json_or_unreadable(text) -> None:
    with contextlib.suppress(UnreadableAnswerError):
        json.dumps(parse_json(text), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "answer",
    [
        'Draft: {"better": "A", "rationale": "warm and long"} But B fits.</think>{"better": "B"}',
        '<think>{"better": "A", "rationale": "warm and long"}</think>\n\n```json\n{"better": "B"}\n```',
        '<thinking>{"better": "A"}</thinking>{"better": "B"}',
        '<reasoning>{"better": "A"}</reasoning> My choice: {"better": "B"}.',
        '<think>one</think> {"better": "A"} <think>two</think> {"better": "B"}',
        '{"better": "B"} I repeat: {"better": "B"}',
        '{"better": "B"} as [1] and {placeholder} say',
    ],
)
def test_the_answer_is_what_follows_the_reasoning(answer) -> None:
    assert parse_json(answer) == {"better": "B"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"better": "A"} No: {"better": "B"}', "several JSON values that differ"),
        ('{"better": "B", "rationale": "the longer one"} Or {better: "A"}', "several JSON values that differ"),
        ('<think>x</think>[{"better": "A"}] and [{"better": "B"}]', "several JSON values that differ"),
        ('{"better": "A", "better": "B"}', "several values of a key, 'better'"),
        ('<think>{"better": "A"}', "reasoning does not end"),
        ('So: <thinking>{"better": "A"}', "reasoning does not end"),
        ('<think>a</think> <think>{"better": "A"}', "reasoning does not end"),
        ('<think>{"better": "A"}</think>', "holds no JSON"),
    ],
)
def test_an_answer_that_may_mean_two_things_is_unreadable(answer, reason) -> None:
    with pytest.raises(UnreadableAnswerError, match=reason):
        parse_json(answer)


def test_a_tag_that_an_answer_quotes_does_not_cut_it() -> None:
    answer = {"rationale": "A writes </think> and <think>", "better": "B"}
    for text in (json.dumps(answer), f"```json\n{json.dumps(answer, indent=1)}\n```"):
        assert parse_json(text) == answer


def test_drafts_are_passed_over_and_a_second_verdict_is_asked_about(tmp_path) -> None:
    with server() as url:
        drafts = run(url, tmp_path, 20, model="drafts")
        assert [(result.reason, result.paid) for result in drafts] == [(None, 1)] * 20
        assert len({tuple(result.value) for result in drafts}) > 10
        wavers = run(url, tmp_path, 20, model="wavers", concurrency=8)
        assert {(result.reason, result.paid) for result in wavers} == {(None, 2)}
        sent = get_json(url)["distinct"]
    assert sent == 20 + 2 * 20


def test_small_faults_of_json_are_repaired() -> None:
    assert parse_json('{"a": 1, "b": [1, 2,],}') == {"a": 1, "b": [1, 2]}
    assert parse_json("{'a': \"it's\", b: 2}") == {"a": "it's", "b": 2}
    assert parse_json('{"a": "two\nlines"}') == {"a": "two\nlines"}
    with pytest.raises(UnreadableAnswerError, match="no file can hold"):
        parse_json('{"a": "\\ud83d"}')
