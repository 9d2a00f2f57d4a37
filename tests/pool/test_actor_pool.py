import itertools
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import ray

from psyco_ray.pool.actor_pool import ActorPool


class Worker:
    def __init__(self, index: int, slow: float) -> None:
        self.index, self.slow, self.version = index, slow, 0

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

    def in_parts(self, item: tuple[int, ...]):
        for part in item:
            if part == 13:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.slow)
            yield part, self.version

    def slow_once(self, item: int):
        time.sleep(self.slow)
        yield item

    def break_down(self, item: int):
        raise RuntimeError(f"engine fault at {item}")
        yield

    def load(self, version: int) -> int:
        self.version = version
        return version

    def load_file(self, path: str) -> int:
        return os.stat(path).st_size

    def refuse_to_load(self, version: int) -> int:
        raise ValueError("the weights that arrived are others")


def make_pool(
    size: int = 2, slow: tuple[float, ...] = (0.0, 0.0, 0.0), item_s: float = 30, start_s: float = 60, **options
) -> ActorPool:
    actor = ray.remote(Worker)
    options.setdefault("num_cpus", 0)
    pool = ActorPool(
        "worker", lambda i: actor.options(**options).remote(i, slow[i]), size, start_s=start_s, item_s=item_s
    )
    pool.wait_ready()
    return pool


@pytest.fixture
def pool(local_ray) -> Iterator[ActorPool]:
    pool = make_pool()
    yield pool
    pool.close()


def thrice(pool: ActorPool, items) -> Iterator[tuple[int, int, int]]:
    return pool.stream("thrice", items, identity=lambda found: found[1])


def pids(pool: ActorPool) -> list[int]:
    return ray.get([actor.pid.remote() for actor in pool.actors])


def test_every_item_is_answered_once(pool) -> None:
    found = list(thrice(pool, range(20)))
    assert sorted(f[:2] for f in found) == [(item, part) for item in range(20) for part in range(3)]
    assert {f[2] for f in found} == {0, 1}


def test_when_members_worked_is_told(local_ray) -> None:
    told: list[tuple[float, float]] = []
    actor = ray.remote(Worker).options(num_cpus=0)
    pool = ActorPool(
        "worker",
        lambda i: actor.remote(i, 0.1),
        1,
        start_s=60,
        item_s=30,
        worked=lambda began, ended: told.append((began, ended)),
    )
    pool.wait_ready()
    began = time.monotonic()
    assert len(list(thrice(pool, range(2)))) == 6
    ended = time.monotonic()
    pool.close()
    assert 0.55 < sum(last - first for first, last in told) <= ended - began
    assert all(began <= first <= last <= ended for first, last in told)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(told)), "no moment is told twice"


def test_streams_can_be_chained_and_share_one_member(local_ray) -> None:
    pool = make_pool(size=1)
    try:
        found = list(pool.stream("once", thrice(pool, iter(range(10)))))
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

    stream = thrice(pool, items())
    first = [next(stream) for _ in range(9)]
    assert {f[0] for f in first} == {0, 1, 2}
    release.set()
    assert {f[0] for f in stream} == {99}


def test_a_slow_member_does_not_decide_the_time(local_ray) -> None:
    pool = make_pool(size=3, slow=(0.5, 0.01, 0.01))
    try:
        found = list(thrice(pool, range(40)))
        by_member = {index: sum(f[2] == index for f in found) // 3 for index in range(3)}
        assert sum(f[2] >= 0 for f in found) == 120
        assert by_member[0] <= 4 < 15 <= min(by_member[1], by_member[2])
    finally:
        pool.close()


def test_the_last_item_of_a_slow_member_is_done_by_another_as_well(local_ray) -> None:
    pool = make_pool(size=2, slow=(30.0, 0.1))
    try:
        began = time.monotonic()
        assert sorted(pool.stream("slow_once", range(10))) == list(range(10))
        assert time.monotonic() - began < 15, "nobody waits for the slow one"
        # who is still busy with what is done already is not waited for, and loads before its next item
        assert pool.bring("load", 3, version=3, check=lambda _: None, deadline_s=10) == [3]
        assert {found[1] for found in pool.stream("in_parts", [(i,) for i in range(4)])} == {3}
    finally:
        pool.close()


def test_an_items_error_reaches_the_caller_and_the_pool_goes_on(pool) -> None:
    with pytest.raises(ValueError, match="item 7 does not do"):
        list(pool.stream("refuse", [7]))
    assert len(list(thrice(pool, range(4)))) == 12


def test_an_error_in_the_items_reaches_the_caller(pool) -> None:
    def items():
        yield 1
        raise KeyError("the source broke")

    with pytest.raises(KeyError, match="the source broke"):
        list(thrice(pool, items()))
    assert len(list(thrice(pool, range(4)))) == 12


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_who_dies_or_hangs_is_replaced_and_its_item_done_again(local_ray, how) -> None:
    pool = make_pool(slow=(0.1, 0.1), item_s=3)
    try:
        victim = pids(pool)[0]
        stream = thrice(pool, range(12))
        found = [next(stream) for _ in range(4)]
        began = time.monotonic()
        os.kill(victim, how)
        found += stream
        print(f"{how.name}: {time.monotonic() - began:.1f} s until all was done")
        assert sorted(f[:2] for f in found) == [(item, part) for item in range(12) for part in range(3)]
        deadline = time.monotonic() + 30
        while not all(member["state"] == "idle" for member in pool.status()):
            assert time.monotonic() < deadline, pool.status()
            time.sleep(0.1)
        assert [member["restarts"] for member in pool.status()] == [1, 0]
        assert victim not in pids(pool)
        assert not psutil.pid_exists(victim) or psutil.Process(victim).status() == psutil.STATUS_ZOMBIE
    finally:
        pool.close()


def test_a_replacement_is_prepared_before_its_first_item(pool) -> None:
    pool.bring("load", 5, version=5, check=lambda found: None if found == 5 else "other", deadline_s=20)
    for victim in pids(pool):
        os.kill(victim, signal.SIGKILL)
    assert {version for _, version in pool.stream("in_parts", [(i,) for i in range(6)])} == {5}
    assert {member["version"] for member in pool.status() if member["state"] == "idle"} == {5}


def test_where_nobody_takes_a_preparation_the_reason_is_raised(pool) -> None:
    with pytest.raises(RuntimeError, match="no worker actor took version 2: ValueError: the weights that arrived are"):
        pool.bring("refuse_to_load", 2, version=2, check=lambda _: None, deadline_s=20)
    pool.bring("load", 2, version=2, check=lambda _: None, deadline_s=20)
    assert {version for _, version in pool.stream("in_parts", [(1,)])} == {2}


def test_work_ends_where_newcomers_cannot_take_what_the_others_had(local_ray, tmp_path) -> None:
    held = tmp_path / "weights"
    held.touch()
    pool = make_pool(size=1, slow=(0.05,))
    try:
        pool.bring("load_file", str(held), version=1, check=lambda _: None, deadline_s=20)
        stream = pool.stream("slow_once", range(400))
        next(stream)
        held.unlink()
        for victim in pids(pool):
            os.kill(victim, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="no worker actor took version 1: FileNotFoundError"):
            list(stream)
        pool.bring("load", 2, version=2, check=lambda _: None, deadline_s=20)
        assert list(pool.stream("slow_once", [7])) == [7], "others may be brought"
    finally:
        pool.close()


def test_an_item_that_kills_is_taken_apart_and_only_the_part_that_kills_is_lost(pool) -> None:
    lost: list[tuple[tuple[int, ...], str]] = []
    items = [tuple(range(start, start + 4)) for start in range(0, 24, 4)]  # 13 among them
    found = pool.stream(
        "in_parts",
        items,
        what="reading",
        identity=lambda result: result[0],
        split=lambda item: [(part,) for part in item],
        lost=lambda item, reason: lost.append((item, reason)),
    )
    assert sorted(part for part, _ in found) == [part for part in range(24) if part != 13]
    [(item, reason)] = lost
    assert item == (13,)
    assert "died at reading" in reason


def test_without_a_place_for_it_a_lost_item_is_an_error(pool) -> None:
    with pytest.raises(RuntimeError, match=r"work: worker actors gave an item up, worker actor .* engine fault at 5"):
        list(pool.stream("break_down", [5]))


def test_a_pool_where_nothing_succeeds_gives_up(pool) -> None:
    with pytest.raises(RuntimeError, match=r"items failed one after another; worker actor .* engine fault"):
        list(pool.stream("break_down", range(40), lost=lambda *_: None))


def test_members_join_and_leave_while_it_works(local_ray) -> None:
    pool = make_pool(size=1, slow=(0.15, 0.15, 0.15))
    try:
        stream = thrice(pool, range(36))
        found = [next(stream) for _ in range(6)]
        pool.resize(3)
        while {f[2] for f in found} != {0, 1, 2}:
            found.append(next(stream))
        pool.resize(1)
        found += stream
        assert sorted(f[:2] for f in found) == [(item, part) for item in range(36) for part in range(3)]
        assert {f[2] for f in found[-12:]} == {0}, "who leaves gets no more items"
        assert [member["member"] for member in pool.status()] == [0]
        assert pool.status()[0]["restarts"] == 0
    finally:
        pool.close()


def test_members_that_find_no_room_do_not_hold_the_others_up(local_ray) -> None:
    actor = ray.remote(Worker)
    pool = ActorPool(
        "worker",
        lambda i: actor.options(num_cpus=0, resources={"moon": 1} if i else {}).remote(i, 0.0),
        1,
        start_s=6,
        item_s=30,
    )
    try:
        pool.wait_ready()
        pool.resize(2)
        assert len(list(thrice(pool, range(6)))) == 18
        time.sleep(7)
        status = {member["member"]: member for member in pool.status()}
        assert status[1]["state"] in ("absent", "starting")
        assert status[1]["restarts"] >= 1, "it is tried again, with growing pauses"
        assert len(list(thrice(pool, range(6)))) == 18
    finally:
        pool.close()


def test_a_member_that_does_not_get_ready_is_named(local_ray) -> None:
    actor = ray.remote(Worker)
    pool = ActorPool("worker", lambda i: actor.options(resources={"moon": 1}).remote(i, 0), 1, start_s=1, item_s=1)
    try:
        with pytest.raises(TimeoutError, match="worker actor 0 was not ready within 1 s"):
            pool.wait_ready()
    finally:
        pool.close()


def test_a_closed_pool_leaves_no_process(local_ray) -> None:
    pool = make_pool()
    [*workers] = pids(pool)
    waiting: queue.SimpleQueue = queue.SimpleQueue()

    def read() -> None:
        try:
            waiting.put(list(pool.stream("hang", [1, 2])))
        except RuntimeError as error:
            waiting.put(error)

    threading.Thread(target=read, daemon=True).start()
    time.sleep(1)
    pool.close()
    assert "was closed" in str(waiting.get(timeout=10))
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in workers):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.1)
