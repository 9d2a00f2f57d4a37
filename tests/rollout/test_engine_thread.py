"""Requests that share an engine."""

import itertools
import threading
import time
from collections.abc import Sequence

import pytest

from psyco_ray.rollout import engine_thread
from psyco_ray.rollout.engine_thread import EngineThread
from psyco_ray.run.types import Group, Prompt, Response


class StepEngine:
    """An engine whose prompts take as many steps as their first token says; all steps are made in one thread."""

    version = 0

    def __init__(self) -> None:
        self.open: dict[int, list[tuple[Prompt, int]]] = {}
        self.most = self.steps = 0
        self.threads: set[int] = set()
        self.go = threading.Event()
        self.numbers = itertools.count()

    def add(self, prompts: Sequence[Prompt], **_: object) -> int:
        number = next(self.numbers)
        self.open[number] = [(prompt, self.steps + prompt.token_ids[0]) for prompt in prompts]
        return number

    def step(self) -> list[tuple[int, Group]]:
        time.sleep(0.001)
        if not self.go.is_set():
            return []
        self.threads.add(threading.get_ident())
        self.steps += 1
        self.most = max(self.most, len(self.open))
        if self.steps == 666:
            raise RuntimeError("CUDA error")
        complete = [
            (number, Group(prompt, (Response("yes", (1,), True),), 0))
            for number, left in self.open.items()
            for prompt, end in left
            if end == self.steps
        ]
        self.open = {number: [one for one in left if one[1] > self.steps] for number, left in self.open.items()}
        self.open = {number: left for number, left in self.open.items() if left}
        return complete

    def abort(self, number: int) -> None:
        self.open.pop(number, None)


def request(*steps: int) -> list[Prompt]:
    return [Prompt(f"speech-{n}-{count}", (count,), 0) for n, count in enumerate(steps)]


def sample_all(thread: EngineThread, requests: list[list[Prompt]]) -> list[list[str] | Exception]:
    found: list[list[str] | Exception] = [[] for _ in requests]

    def read(index: int) -> None:
        try:
            found[index] = [group.prompt.speech_id for [(group, _)] in thread.sample(requests[index])]
        except RuntimeError as error:
            found[index] = error

    readers = [threading.Thread(target=read, args=(index,)) for index in range(len(requests))]
    for reader in readers:
        reader.start()
    while len(thread.engine.open) < len(requests):
        assert all(reader.is_alive() for reader in readers)
        thread.call(time.sleep, 0.001)
    thread.engine.go.set()
    for reader in readers:
        reader.join(10)
    return found


def test_requests_share_the_steps_and_each_gets_its_own_groups() -> None:
    thread = EngineThread(StepEngine)
    requests = [request(9, 3), request(5), request(7, 1, 2)]
    found = sample_all(thread, requests)
    assert list(map(sorted, found)) == [sorted(prompt.speech_id for prompt in each) for each in requests]
    assert thread.engine.most == 3
    assert thread.engine.steps <= 10, "a step is one of all requests"
    assert len(thread.engine.threads) == 1


def test_an_error_of_the_engine_reaches_every_request() -> None:
    thread = EngineThread(StepEngine)
    thread.engine.steps = 660
    found = sample_all(thread, [request(50), request(60)])
    assert [str(error) for error in found] == ["CUDA error"] * 2


def test_what_an_abandoned_request_has_left_is_forgotten() -> None:
    thread = EngineThread(StepEngine)
    thread.engine.go.set()
    groups = thread.sample(request(1, 10_000))
    next(groups)
    groups.close()
    assert thread.engine.open == {}
    steps = thread.engine.steps
    time.sleep(0.05)
    assert thread.engine.steps == steps, "nothing is sampled for it"


def test_seconds_of_groups_add_up_to_the_engines_time() -> None:
    thread = EngineThread(StepEngine)
    thread.engine.go.set()
    began = time.perf_counter()
    both: list[float] = []
    readers = [
        threading.Thread(target=lambda: both.extend(seconds for [(_, seconds)] in thread.sample(request(20, 40, 60))))
        for _ in range(2)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(10)
    assert len(both) == 6
    assert 0.5 * (time.perf_counter() - began) < sum(both) <= time.perf_counter() - began


def test_an_invalid_request_leaves_the_others_alone() -> None:
    class Small(StepEngine):
        def add(self, prompts: Sequence[Prompt], **more: object) -> int:
            if len(prompts) > 2:
                raise ValueError("the KV cache is too small")
            return super().add(prompts, **more)

    thread = EngineThread(Small)
    thread.engine.go.set()
    groups = thread.sample(request(5, 6))
    [first] = next(groups)
    with pytest.raises(ValueError, match="the KV cache is too small"):
        list(thread.sample(request(1, 2, 3)))
    assert [first[0].prompt.speech_id, *(group.prompt.speech_id for [(group, _)] in groups)] == [
        "speech-0-5",
        "speech-1-6",
    ]


def test_groups_travel_together_unless_the_next_one_takes_long(monkeypatch) -> None:
    thread = EngineThread(StepEngine)
    thread.engine.go.set()
    assert [len(groups) for groups in thread.sample(request(*range(1, 11)), 4)] == [4, 4, 2]
    monkeypatch.setattr(engine_thread, "HELD_S", 0.05)
    groups = thread.sample(request(1, 2, 10_000), 8)
    assert [group.prompt.speech_id for group, _ in next(groups)] == ["speech-0-1", "speech-1-2"]
    groups.close()
