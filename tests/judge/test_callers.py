"""The schedule of a stream of calls, and questions as rows."""

import asyncio

import pytest
from support.judging import SCHEMA, call

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge import callers
from psyco_ray.judge.callers import Question, Schedule


def test_parts_are_given_to_the_stage_with_the_fewest_in_flight_and_only_while_it_has_room() -> None:
    async def go() -> None:
        schedule = Schedule(room=[2, 1])
        await schedule.add(0, ["a", "b", "c"])
        await schedule.add(1, ["x", "y"])
        first = [await schedule.take(ticket) for ticket in range(3)]
        assert sorted(first) == [(0, "a"), (0, "b"), (1, "x")]
        waiting = asyncio.create_task(schedule.take(3))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "no stage has room"
        await schedule.written(1)
        assert await waiting == (1, "y")
        assert await schedule.take(3) == (1, "y"), "a repeated ticket gets its part again"

    asyncio.run(go())


def test_a_ticket_waits_until_a_part_is_ready_or_the_stream_stops() -> None:
    async def go() -> None:
        schedule = Schedule(room=[4])
        taken, second = (asyncio.create_task(schedule.take(ticket)) for ticket in range(2))
        told = asyncio.create_task(schedule.stopped())
        await asyncio.sleep(0.05)
        await schedule.add(0, ["a"])
        assert await taken == (0, "a")
        reason = {"error": "InputError", "text": "no key"}
        await schedule.stop(reason)
        await schedule.stop({"error": "UnavailableError", "text": "later"})
        assert await second is None
        assert await told == reason
        assert await schedule.take(7) is None

    asyncio.run(go())


@pytest.mark.parametrize("changes", [{}, {"schema": None, "seed": 7, "top_p": 0.9, "temperature": 1.0}])
def test_a_question_is_the_same_call_after_its_way_as_a_row(changes) -> None:
    endpoint = Endpoint(model="judge")
    asked = Question("3f00", "empathy", call(3, **changes), {"order": ["b", "a"]})
    row = callers.question_row(2, "3f", 4, 9, asked)
    assert {key: row[key] for key in ("stage", "part", "place", "of")} == {
        "stage": 2,
        "part": "3f",
        "place": 4,
        "of": 9,
    }
    back = callers.question_of(row)
    assert back.call.key(endpoint) == asked.call.key(endpoint)
    assert (back.speech_id, back.what, back.about) == ("3f00", "empathy", {"order": ["b", "a"]})
    assert back.call.counted == asked.call.prompt_tokens() > (len(str(SCHEMA)) // 6 if asked.call.schema else 5)
