import itertools
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import ray
from support.processes import alive, all_ended

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Deadlines
from psyco_ray.pool.actor_pool import ActorPool


class Worker:
    notes = ("the worker's model is computed slowly",)

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

    def twice(self, item: int) -> list[tuple[int, int]]:
        if item == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if item < 0:
            raise ValueError("the item is invalid")
        return [(item, part) for part in range(2)]

    def reject(self, error: type[Exception]):
        yield 1
        raise error("the item is invalid")

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

    def load_slowly(self, version: int) -> int:
        time.sleep(self.slow)
        return version

    def load_file(self, path: str) -> int:
        return os.stat(path).st_size

    def proof(self) -> tuple[int, int]:
        return self.index, self.version

    def refuse_to_load(self, version: int) -> int:
        raise ValueError("the weights that arrived are others")


def make_pool(
    size: int = 2, slow: tuple[float, ...] = (0.0, 0.0, 0.0), item_s: float = 30, start_s: float = 60, **options
) -> ActorPool:
    actor = ray.remote(Worker)
    options.setdefault("num_cpus", 0)
    deadlines = Deadlines(start_s=start_s, item_s=item_s)
    pool = ActorPool[Worker]("worker", lambda i: actor.options(**options).remote(i, slow[i]), size, deadlines)
    pool.wait_ready()
    return pool


@pytest.fixture
def pool(local_ray) -> Iterator[ActorPool]:
    pool = make_pool()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def unharmed(local_ray) -> Iterator[ActorPool]:
    """A pool for tests that end no actor and load nothing."""
    pool = make_pool()
    yield pool
    pool.close()


def thrice(pool: ActorPool, items) -> Iterator[tuple[int, int, int]]:
    return pool.stream(Worker.thrice, items, identity=lambda result: result[1])


def pids(pool: ActorPool) -> list[int]:
    return ray.get([actor.pid.remote() for actor in pool.actors])


def test_every_result_comes_once(unharmed) -> None:
    results = list(thrice(unharmed, range(20)))
    assert sorted(r[:2] for r in results) == [(item, part) for item in range(20) for part in range(3)]
    assert {r[2] for r in results} == {0, 1}


def test_results_of_a_list_come_together_by_one_call(pool) -> None:
    given_up: list[int] = []
    results = pool.stream(
        Worker.twice,
        [*range(10, 20)],
        identity=lambda result: result[1],
        on_failed=lambda item, _: given_up.append(item),
        in_flight=2,
    )
    assert sorted(results) == [(item, part) for item in range(10, 20) if item != 13 for part in range(2)]
    assert given_up == [13]
    with pytest.raises(ValueError, match="the item is invalid"):
        list(pool.stream(Worker.twice, [-1]))


def test_what_actors_say_about_their_models_is_logged_once(pool, caplog) -> None:
    told = [record.getMessage() for record in caplog.get_records("setup")]
    assert told.count("the worker's model is computed slowly") == 1


def test_on_busy_gets_each_interval_of_work(local_ray) -> None:
    busy: list[tuple[float, float]] = []
    actor = ray.remote(Worker).options(num_cpus=0)
    pool = ActorPool(
        "worker",
        lambda i: actor.remote(i, 0.1),
        1,
        Deadlines(start_s=60, item_s=30),
        on_busy=lambda began, ended: busy.append((began, ended)),
    )
    pool.wait_ready()
    began = time.monotonic()
    assert len(list(thrice(pool, range(2)))) == 6
    ended = time.monotonic()
    pool.close()
    assert 0.55 < sum(last - first for first, last in busy) <= ended - began
    assert all(began <= first <= last <= ended for first, last in busy)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(busy)), "intervals do not overlap"


def test_chained_streams_share_one_actor(local_ray) -> None:
    pool = make_pool(size=1)
    try:
        results = list(pool.stream(Worker.once, thrice(pool, iter(range(10)))))
        assert sorted(results) == [(item, part) for item in range(10) for part in range(3)]
    finally:
        pool.close()


def test_results_come_before_the_last_item_is_read(unharmed) -> None:
    release = threading.Event()

    def items():
        yield from range(3)
        assert release.wait(30)
        yield 99

    stream = thrice(unharmed, items())
    first = [next(stream) for _ in range(9)]
    assert {r[0] for r in first} == {0, 1, 2}
    release.set()
    assert {r[0] for r in stream} == {99}


def test_a_slow_actor_gets_fewer_items(local_ray) -> None:
    pool = make_pool(size=3, slow=(0.5, 0.01, 0.01))
    try:
        results = list(thrice(pool, range(40)))
        by_actor = {index: sum(r[2] == index for r in results) // 3 for index in range(3)}
        assert sum(r[2] >= 0 for r in results) == 120
        assert by_actor[0] <= 4 < 15 <= min(by_actor[1], by_actor[2])
    finally:
        pool.close()


def test_an_idle_actor_repeats_the_last_item_of_a_slow_one(local_ray) -> None:
    pool = make_pool(size=2, slow=(30.0, 0.1))
    try:
        began = time.monotonic()
        assert sorted(pool.stream(Worker.slow_once, range(10))) == list(range(10))
        assert time.monotonic() - began < 15, "the stream does not wait for the slow actor"
        # broadcast does not wait for the slow actor, whose result is no longer needed; it updates before its next item
        assert pool.broadcast(Worker.load, 3, version=3, check=lambda _: None, deadline_s=10) == [3]
        assert {version for _, version in pool.stream(Worker.in_parts, [(i,) for i in range(4)])} == {3}
    finally:
        pool.close()


@pytest.mark.parametrize("error", [InputError, ValueError, AssertionError])
def test_an_error_of_the_item_is_raised_as_it_is_and_the_actor_stays(unharmed, error) -> None:
    before = pids(unharmed)
    with pytest.raises(error, match="the item is invalid") as raised:
        list(unharmed.stream(Worker.reject, [error]))
    assert type(raised.value.cause) is error
    assert pids(unharmed) == before
    assert len(list(thrice(unharmed, range(4)))) == 12


def test_an_error_in_the_items_reaches_the_caller(unharmed) -> None:
    def items():
        yield 1
        raise KeyError("the source broke")

    with pytest.raises(KeyError, match="the source broke"):
        list(thrice(unharmed, items()))
    assert len(list(thrice(unharmed, range(4)))) == 12


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_hung_actor_is_replaced_and_its_item_done_again(local_ray, signal_) -> None:
    pool = make_pool(slow=(0.1, 0.1), item_s=3)
    try:
        victim = pids(pool)[0]
        stream = thrice(pool, range(12))
        results = [next(stream) for _ in range(4)]
        began = time.monotonic()
        os.kill(victim, signal_)
        results += stream
        print(f"{signal_.name}: {time.monotonic() - began:.1f} s until all was done")
        assert sorted(r[:2] for r in results) == [(item, part) for item in range(12) for part in range(3)]
        deadline = time.monotonic() + 30
        while not all(record["state"] == "idle" for record in pool.status()):
            assert time.monotonic() < deadline, pool.status()
            time.sleep(0.1)
        assert [record["restarts"] for record in pool.status()] == [1, 0]
        assert victim not in pids(pool)
        assert not alive(victim)
    finally:
        pool.close()


def test_a_replacement_is_updated_before_its_first_item(pool) -> None:
    pool.broadcast(Worker.load, 5, version=5, check=lambda version: None if version == 5 else "other", deadline_s=20)
    for victim in pids(pool):
        os.kill(victim, signal.SIGKILL)
    assert {version for _, version in pool.stream(Worker.in_parts, [(i,) for i in range(6)])} == {5}
    assert {record["version"] for record in pool.status() if record["state"] == "idle"} == {5}


def test_an_update_that_no_actor_applies_raises_the_reason(pool) -> None:
    with pytest.raises(RuntimeError, match="no worker actor took version 2: ValueError: the weights that arrived are"):
        pool.broadcast(Worker.refuse_to_load, 2, version=2, check=lambda _: None, deadline_s=20)
    pool.broadcast(Worker.load, 2, version=2, check=lambda _: None, deadline_s=20)
    assert {version for _, version in pool.stream(Worker.in_parts, [(1,)])} == {2}


def test_a_stream_ends_if_no_replacement_can_apply_the_update(local_ray, tmp_path) -> None:
    held = tmp_path / "weights"
    held.touch()
    pool = make_pool(size=1, slow=(0.05,))
    try:
        pool.broadcast(Worker.load_file, str(held), version=1, check=lambda _: None, deadline_s=20)
        stream = pool.stream(Worker.slow_once, range(400))
        next(stream)
        held.unlink()
        for victim in pids(pool):
            os.kill(victim, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="no worker actor took version 1: FileNotFoundError"):
            list(stream)
        pool.broadcast(Worker.load, 2, version=2, check=lambda _: None, deadline_s=20)
        assert list(pool.stream(Worker.slow_once, [7])) == [7], "the pool works again after another update"
    finally:
        pool.close()


def load_with_proof(pool: ActorPool, version: int) -> None:
    pool.broadcast(Worker.load, version, version=version, check=lambda _: None, deadline_s=20, proof=Worker.proof)


def read_in_thread(stream: Iterator) -> queue.SimpleQueue:
    """The stream's results as they come, at last its error or None."""
    found: queue.SimpleQueue = queue.SimpleQueue()

    def read() -> None:
        try:
            for result in stream:
                found.put(result)
            found.put(None)
        except RuntimeError as error:
            found.put(error)

    threading.Thread(target=read, daemon=True).start()
    return found


def test_results_are_held_until_the_proof_of_their_actor_is_accepted(pool) -> None:
    load_with_proof(pool, 4)
    found = read_in_thread(pool.stream(Worker.in_parts, [(i,) for i in range(6)]))
    with pytest.raises(queue.Empty):
        found.get(timeout=1)
    assert [record["state"] for record in pool.status()] == ["busy", "busy"], "they work meanwhile"
    assert sorted(pool.verify(lambda _: None)) == [(0, 4), (1, 4)]
    results = [found.get(timeout=10) for _ in range(7)]
    assert sorted(results[:6]) == [(i, 4) for i in range(6)]
    assert results[6] is None
    victim = pids(pool)[0]
    os.kill(victim, signal.SIGKILL)
    later = list(pool.stream(Worker.in_parts, [(i,) for i in range(6)]))
    assert sorted(later) == [(i, 4) for i in range(6)], "an actor that joins later proves itself by the same check"


def test_an_actor_without_a_proof_is_replaced_and_its_items_are_not_blamed(pool) -> None:
    load_with_proof(pool, 4)
    before, given_up = pids(pool), []
    stream = pool.stream(
        Worker.in_parts, [(i,) for i in range(6)], on_failed=lambda *failed: given_up.append(failed), in_flight=2
    )
    found = read_in_thread(stream)
    refused = 0

    def check(proof: tuple[int, int]) -> str | None:
        nonlocal refused
        if proof[0] == 1 and refused < 3:
            refused += 1
            return "it computes with other weights"
        return None

    pool.verify(check)
    results = [found.get(timeout=30) for _ in range(7)]
    assert sorted(results[:6]) == [(i, 4) for i in range(6)]
    assert results[6] is None
    assert not given_up
    assert pids(pool)[0] == before[0]
    deadline = time.monotonic() + 30
    while pool.status()[1]["restarts"] < 3:
        assert time.monotonic() < deadline, pool.status()
        time.sleep(0.1)


def test_no_result_comes_where_no_actor_proves_that_it_has_the_update(pool) -> None:
    load_with_proof(pool, 4)
    found = read_in_thread(pool.stream(Worker.in_parts, [(i,) for i in range(6)]))
    with pytest.raises(RuntimeError, match="no worker actor took version 4: it computes with others") as raised:
        pool.verify(lambda _: "it computes with others")
    assert found.get(timeout=10) is raised.value
    with pytest.raises(RuntimeError, match="it computes with others"):
        list(pool.stream(Worker.in_parts, [(7,)]))
    pool.broadcast(Worker.load, 5, version=5, check=lambda _: None, deadline_s=20)
    assert list(pool.stream(Worker.in_parts, [(7,)])) == [(7, 5)], "the pool works again after another update"


def test_streams_end_where_proofs_cannot_be_checked(pool) -> None:
    load_with_proof(pool, 4)
    found = read_in_thread(pool.stream(Worker.in_parts, [(i,) for i in range(6)]))
    lost = RuntimeError("the learner is lost")
    pool.cannot_verify(lost)
    assert found.get(timeout=10) is lost
    with pytest.raises(RuntimeError, match="the learner is lost"):
        list(pool.stream(Worker.in_parts, [(7,)]))
    pool.broadcast(Worker.load, 5, version=5, check=lambda _: None, deadline_s=20)
    assert list(pool.stream(Worker.in_parts, [(7,)])) == [(7, 5)]


def test_only_the_poisoned_part_of_an_item_is_given_up(pool) -> None:
    failed: list[tuple[tuple[int, ...], str]] = []
    items = [tuple(range(start, start + 4)) for start in range(0, 24, 4)]  # 13 among them
    results = pool.stream(
        Worker.in_parts,
        items,
        name="reading",
        identity=lambda result: result[0],
        split=lambda item: [(part,) for part in item],
        on_failed=lambda item, reason: failed.append((item, reason)),
    )
    assert sorted(part for part, _ in results) == [part for part in range(24) if part != 13]
    [(item, reason)] = failed
    assert item == (13,)
    assert "died at reading" in reason


def test_a_given_up_item_is_an_error_without_on_failed(pool) -> None:
    with pytest.raises(RuntimeError, match=r"work: worker actors gave an item up, worker actor .* engine fault at 5"):
        list(pool.stream(Worker.break_down, [5]))


def test_a_pool_where_nothing_succeeds_gives_up(pool) -> None:
    with pytest.raises(RuntimeError, match=r"items failed one after another; worker actor .* engine fault"):
        list(pool.stream(Worker.break_down, range(40), on_failed=lambda *_: None))


@pytest.mark.long
def test_actors_join_and_leave_during_a_stream(local_ray) -> None:
    pool = make_pool(size=1, slow=(0.15, 0.15, 0.15))
    try:
        stream = thrice(pool, range(36))
        results = [next(stream) for _ in range(6)]
        pool.resize(3)
        while {r[2] for r in results} != {0, 1, 2}:
            results.append(next(stream))
        pool.resize(1)
        results += stream
        assert sorted(r[:2] for r in results) == [(item, part) for item in range(36) for part in range(3)]
        assert {r[2] for r in results[-12:]} == {0}, "a retiring actor gets no more items"
        assert [record["member"] for record in pool.status()] == [0]
        assert pool.status()[0]["restarts"] == 0
    finally:
        pool.close()


def test_an_actor_that_cannot_be_placed_does_not_block_the_others(local_ray) -> None:
    actor = ray.remote(Worker)
    pool = ActorPool(
        "worker",
        lambda i: actor.options(num_cpus=0, resources={"moon": 1} if i else {}).remote(i, 0.0),
        1,
        Deadlines(start_s=6, item_s=30),
    )
    try:
        pool.wait_ready()
        pool.resize(2)
        assert len(list(thrice(pool, range(6)))) == 18
        time.sleep(7)
        status = {record["member"]: record for record in pool.status()}
        assert status[1]["state"] in ("absent", "starting")
        assert status[1]["restarts"] >= 1, "its start is retried"
        assert len(list(thrice(pool, range(6)))) == 18
    finally:
        pool.close()


def test_wait_ready_names_the_actor_that_misses_its_deadline(local_ray) -> None:
    actor = ray.remote(Worker)
    pool = ActorPool(
        "worker", lambda i: actor.options(resources={"moon": 1}).remote(i, 0), 1, Deadlines(start_s=1, item_s=1)
    )
    try:
        with pytest.raises(TimeoutError, match="worker actor 0 was not ready within 1 s"):
            pool.wait_ready()
    finally:
        pool.close()


def test_a_closed_pool_leaves_no_process(local_ray) -> None:
    pool = make_pool()
    [*workers] = pids(pool)
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def read() -> None:
        try:
            outcome.put(list(pool.stream(Worker.hang, [1, 2])))
        except RuntimeError as error:
            outcome.put(error)

    threading.Thread(target=read, daemon=True).start()
    time.sleep(1)
    pool.close()
    assert "was closed" in str(outcome.get(timeout=10))
    assert all_ended(workers, within_s=10), "a worker is still there"


def test_the_reply_to_an_outdated_update_does_not_count_for_the_new_one(local_ray) -> None:
    pool = make_pool(size=1, slow=(0.0, 1.0))
    try:
        assert pool.broadcast(Worker.load_slowly, 1, version=1, check=lambda _: None, deadline_s=20) == [1]
        pool.resize(2)
        deadline = time.monotonic() + 30
        while [record["state"] for record in pool.status()] != ["idle", "preparing"]:
            assert time.monotonic() < deadline, pool.status()
            time.sleep(0.05)
        assert pool.broadcast(Worker.load_slowly, 2, version=2, check=lambda _: None, deadline_s=20) == [2, 2]
    finally:
        pool.close()
