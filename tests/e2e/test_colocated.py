"""Rollout actors and learner ranks on the same GPUs: the placement in Ray, and a suspended pool.

The GPUs are nominal resources of Ray; `tests/gpu` computes on real ones.
"""

import json
import subprocess
import sys
import time

import pytest
import ray
from support.logs import messages
from support.paths import SUPPORT

from psyco_ray.config.training import Deadlines
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.pool.states import State

SCRIPT = SUPPORT / "colocated_actors.py"


@pytest.mark.slow
def test_the_rollout_and_the_rank_of_a_pair_see_the_same_gpu() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["rollouts"] == seen["learners"], "bundle by bundle"
    assert sorted(seen["rollouts"]) == ["0", "1"]
    assert seen["scorer"] in seen["rollouts"]
    assert seen["later"] == seen["rollouts"][1]
    assert seen["left"] == 2.0, "all GPUs are free again"


class Sleeper:
    """Sleeps as a rollout actor does, or fails to."""

    def __init__(self, index: int) -> None:
        self.index, self.slept = index, 0

    def ready(self) -> None: ...

    def sleep(self, fault: str) -> None:
        if fault == "hang" and self.index == 1:
            time.sleep(60)
        if fault == "raise" and self.index == 1:
            raise RuntimeError("no sleep")
        self.slept += 1

    def work(self, item: int):
        yield item, self.index, self.slept

    def load(self, version: int) -> int:
        return version


@pytest.fixture
def sleepers(local_ray):
    logged = messages()
    actor = ray.remote(Sleeper).options(num_cpus=0)
    deadlines = Deadlines(start_s=60, item_s=30)
    pool = ActorPool[Sleeper]("sleeper", actor.remote, 2, deadlines, suspended=True)
    yield pool, logged
    pool.close()


def states(pool: ActorPool) -> list[str]:
    return [record["state"] for record in pool.status()]


def test_a_suspended_pool_creates_no_actor_and_dispatches_nothing(sleepers) -> None:
    pool, logged = sleepers
    time.sleep(0.5)
    assert states(pool) == ["absent"] * 2
    pool.resume()
    pool.wait_ready()
    assert len(pool.idle) == 2
    pool.suspend(Sleeper.sleep, "", deadline_s=20)
    stream = pool.stream(Sleeper.work, range(4))
    time.sleep(0.3)
    assert states(pool) == ["idle"] * 2
    ray.kill(pool.actors[1])
    pool.resume()
    assert sorted(item for item, _, _ in stream) == [0, 1, 2, 3]
    assert pool.broadcast(Sleeper.load, 3, version=3, check=lambda _: None, deadline_s=30)
    assert not [text for text in logged if "did not finish" in text]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("hang", "did not finish sleep within 2 s"), ("raise", "failed in sleep, RuntimeError: no sleep")],
)
def test_an_actor_that_does_not_free_its_gpu_is_killed_and_replaced_after_resume(
    sleepers, fault: str, message: str
) -> None:
    pool, logged = sleepers
    pool.resume()
    pool.wait_ready()
    began = time.monotonic()
    pool.suspend(Sleeper.sleep, fault, deadline_s=2)
    assert time.monotonic() - began < 10
    assert any(message in text for text in logged), logged
    time.sleep(0.5)
    assert len(pool.idle) == 1, "it is not replaced while the learner has the GPU"
    pool.resume()
    pool.wait_ready()
    assert len(pool.idle) == 2
    assert State(pool.status()[1]["state"]) is State.IDLE
    assert pool.status()[1]["restarts"] == 1
