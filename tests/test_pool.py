import os
import signal
import threading
import time

import pytest
import ray

from psyco_ray.pool import ActorPool


class Worker:
    def __init__(self, index: int, slow: float) -> None:
        self.index, self.slow = index, slow

    def ready(self) -> int:
        return self.index

    def pid(self) -> int:
        return os.getpid()

    def thrice(self, item: int):
        for part in range(3):
            time.sleep(self.slow)
            yield item, part, self.index

    def once(self, item: tuple[int, int, int]):
        yield item[:2]

    def refuse(self, item: int):
        yield item
        raise ValueError(f"item {item} does not do")

    def hang(self, item: int):
        yield item
        time.sleep(60)


def make_pool(size: int = 2, slow: tuple[float, ...] = (0.0, 0.0, 0.0), item_s: float = 30) -> ActorPool:
    actor = ray.remote(Worker)
    pool = ActorPool("worker", lambda i: actor.options(num_cpus=0).remote(i, slow[i]), size, start_s=60, item_s=item_s)
    pool.wait_ready()
    return pool


@pytest.fixture
def pool(local_ray):
    pool = make_pool()
    yield pool
    pool.close()


def test_every_item_is_answered_once(pool) -> None:
    found = list(pool.stream("thrice", range(20)))
    assert sorted(f[:2] for f in found) == [(item, part) for item in range(20) for part in range(3)]
    assert {f[2] for f in found} == {0, 1}


def test_streams_can_be_chained_and_share_one_member(local_ray) -> None:
    pool = make_pool(size=1)
    try:
        found = list(pool.stream("once", pool.stream("thrice", iter(range(10)))))
        assert sorted(found) == [(item, part) for item in range(10) for part in range(3)]
    finally:
        pool.close()


def test_results_come_before_the_last_item_is_given(pool) -> None:
    given: list[int] = []
    release = threading.Event()

    def items():
        for item in range(3):
            given.append(item)
            yield item
        assert release.wait(30)
        yield 99

    stream = pool.stream("thrice", items())
    first = [next(stream) for _ in range(9)]
    assert {f[0] for f in first} == {0, 1, 2}
    release.set()
    assert {f[0] for f in stream} == {99}


def test_a_slow_member_does_not_decide_the_time(local_ray) -> None:
    pool = make_pool(size=3, slow=(0.5, 0.01, 0.01))
    try:
        found = list(pool.stream("thrice", range(40)))
        by_member = {index: sum(f[2] == index for f in found) // 3 for index in range(3)}
        assert sum(by_member.values()) == 40
        assert by_member[0] <= 4 < 15 <= min(by_member[1], by_member[2])
    finally:
        pool.close()


def test_an_items_error_reaches_the_caller_and_the_pool_goes_on(pool) -> None:
    with pytest.raises(ValueError, match="item 7 does not do"):
        list(pool.stream("refuse", [7]))
    assert len(list(pool.stream("thrice", range(4)))) == 12


def test_an_error_in_the_items_reaches_the_caller(pool) -> None:
    def items():
        yield 1
        raise KeyError("the source broke")

    with pytest.raises(KeyError, match="the source broke"):
        list(pool.stream("thrice", items()))


def test_a_death_is_named(pool) -> None:
    pids = pool.call_all("pid", deadline_s=30)
    stream = pool.stream("hang", [1, 2])
    next(stream)
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker actor 0 died"):
        list(stream)


def test_a_member_that_falls_silent_is_named(local_ray) -> None:
    pool = make_pool(item_s=1.5)
    try:
        with pytest.raises(TimeoutError, match=r"worker actor \d gave no result for \d s"):
            list(pool.stream("hang", [1]))
    finally:
        pool.close()


def test_a_member_that_does_not_get_ready_is_named(local_ray) -> None:
    actor = ray.remote(Worker)
    pool = ActorPool("worker", lambda i: actor.options(resources={"moon": 1}).remote(i, 0), 1, start_s=1, item_s=1)
    try:
        with pytest.raises(TimeoutError, match=r"worker actors \[0\] were not ready within 1 s"):
            pool.wait_ready()
    finally:
        pool.close()
