"""Rollouts and learner ranks on the same GPUs: where they are put, whose turn it is, what a pool does meanwhile.

The GPUs are numbers that Ray gives out; what really computes on one is in `tests/gpu`.
"""

import json
import re
import subprocess
import sys
import time

import pytest
import ray
from support.colocated import job
from support.logs import messages
from support.paths import JOBS, SUPPORT

from psyco_ray.config import job_file
from psyco_ray.config.training import Deadlines, Job
from psyco_ray.pool import fit
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.pool.fit import Node
from psyco_ray.pool.slot import State

SCRIPT = SUPPORT / "colocated_actors.py"


def places(wanted: Job, *nodes: Node) -> dict[str, str]:
    found = fit.places("it", fit.iterate_phase(wanted), nodes)
    return {name: "".join(node.name for node in where) for name, where in found.items()}


def test_a_pair_takes_one_gpu_and_the_scorer_what_it_leaves() -> None:
    assert places(job(1), Node("a", 4, 1)) == {"rollout+learner": "a", "scorer": "a", "ray data": "a"}
    assert places(job(2), Node("a", 4, 1), Node("b", 4, 2))["rollout+learner"] == "bb", "ranks stay together"
    assert places(job(2), Node("a", 4, 1), Node("b", 4, 1))["rollout+learner"] == "ab"
    with pytest.raises(ValueError, match=r"scorer 1 of 1 .* finds no room"):
        places(job(2, scorer=0.2), Node("a", 8, 2))
    with pytest.raises(ValueError, match=r"rollout\+learner 2 of 2 .*0.9 GPUs each\) finds no room"):
        places(job(2), Node("a", 8, 1))


@pytest.mark.parametrize(("name", "gpus"), [("psyco-llama3-3b", 1), ("psyco-llama3-8b", 4)])
def test_the_commands_in_job_files_fit_the_gpus_that_they_name(name: str, gpus: int) -> None:
    path = JOBS / f"{name}.yaml"
    comment = path.read_text().replace("\\\n#", " ")
    [command] = [line for line in comment.splitlines() if "colocated=true" in line]
    given = command[command.index("colocated=true") :].split()
    wanted = job_file.load_as(Job, path, given)
    cpus = int(re.search(rf"`psyco-ray plan`: {gpus} GPUs? and (\d+) CPUs", comment)[1])
    nodes = [Node("one", cpus, gpus)]
    fit.check("iterate", fit.iterate_phase(wanted), nodes)
    fit.check("train-reward", fit.reward_phase(wanted), nodes)
    with pytest.raises(ValueError, match="cannot hold"):
        fit.check("iterate", fit.iterate_phase(wanted), [Node("one", cpus - 1, gpus)])


def test_parts_of_a_gpu_are_parts_of_one() -> None:
    assert fit._without([1.0, 1.0], 1) == [0.0, 1.0]
    assert fit._without([0.5, 0.5], 1) is None
    assert fit._without([0.5, 1.0], 0.5) == [0.0, 1.0], "what is begun is used up first"
    assert fit._without([1.0, 1.0, 1.0], 2.5) == [0.0, 0.0, 0.5]
    assert fit._without([], 0) == []


@pytest.mark.slow
def test_rollout_and_rank_of_a_pair_see_the_same_gpu() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rollouts"] == found["learners"], "and so do a rank and a rollout that came later"
    assert sorted(found["rollouts"]) == ["0", "1"]
    assert found["scorer"] in found["rollouts"]
    assert found["later"] == found["rollouts"][1]
    assert found["left"] == 2.0, "everything was given back"


class Sleeper:
    """Stands for a rollout actor in how it sleeps."""

    def __init__(self, index: int) -> None:
        self.index, self.slept = index, 0

    def ready(self) -> None: ...

    def sleep(self, how: str) -> None:
        if how == "forever" and self.index == 1:
            time.sleep(60)
        if how == "badly" and self.index == 1:
            raise RuntimeError("no sleep")
        self.slept += 1

    def work(self, item: int):
        yield item, self.index, self.slept

    def load(self, version: int) -> int:
        return version


@pytest.fixture
def sleepers(local_ray):
    said = messages()
    actor = ray.remote(Sleeper).options(num_cpus=0)
    deadlines = Deadlines(start_s=60, item_s=30)
    pool = ActorPool[Sleeper]("sleeper", actor.remote, 2, deadlines, suspended=True)
    yield pool, said
    pool.close()


def states(pool: ActorPool) -> list[str]:
    return [member["state"] for member in pool.status()]


def test_a_resting_pool_creates_nobody_and_hands_nothing_out(sleepers) -> None:
    pool, said = sleepers
    time.sleep(0.5)
    assert states(pool) == ["absent"] * 2
    pool.resume()
    pool.wait_ready()
    assert len(pool.idle) == 2
    pool.suspend(Sleeper.sleep, "well", deadline_s=20)
    stream = pool.stream(Sleeper.work, range(4))
    time.sleep(0.3)
    assert states(pool) == ["idle"] * 2
    ray.kill(pool.actors[1])
    pool.resume()
    assert sorted(item for item, _, _ in stream) == [0, 1, 2, 3]
    assert pool.broadcast(Sleeper.load, 3, version=3, check=lambda _: None, deadline_s=30)
    assert not [text for text in said if "did not finish" in text]


@pytest.mark.parametrize(("how", "told"), [("forever", "did not finish sleep within 2 s"), ("badly", "no sleep")])
def test_who_does_not_leave_its_gpu_is_ended_and_replaced_afterwards(sleepers, how: str, told: str) -> None:
    pool, said = sleepers
    pool.resume()
    pool.wait_ready()
    began = time.monotonic()
    pool.suspend(Sleeper.sleep, how, deadline_s=2)
    assert time.monotonic() - began < 10
    assert any(told in text for text in said), said
    time.sleep(0.5)
    assert len(pool.idle) == 1, "nobody takes its place while the GPU is another's"
    pool.resume()
    pool.wait_ready()
    assert len(pool.idle) == 2
    assert State(pool.status()[1]["state"]) is State.IDLE
    assert pool.status()[1]["restarts"] == 1
