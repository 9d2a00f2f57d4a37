"""Which GPUs colocated actors get from Ray, on a cluster that says it has two. Prints them.

It runs in a process of its own, for a process has one Ray.
"""

import json
import time

import ray

from psyco_ray.pool import placement
from support.colocated import job


class Actor:
    """Tells which GPU it has."""

    def gpu(self) -> str:
        [found] = ray.get_gpu_ids()
        return str(found)


def main() -> None:
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    wanted = job(2)
    rooms = placement.shared_rooms(wanted)
    options, own = placement.learner_options(wanted.learners, 2, 60, rooms)
    assert own is None
    actor = ray.remote(Actor)

    def rollout(index: int):
        return actor.options(**placement.pool_options(wanted.rollouts, rooms=rooms, index=index)).remote()

    def gpus(actors: list) -> list[str]:
        return ray.get([one.gpu.remote() for one in actors], timeout=120)

    learners = [actor.options(**options(rank)).remote() for rank in range(2)]
    rollouts = [rollout(index) for index in range(2)]
    scorer = actor.options(**placement.pool_options(wanted.scorers)).remote()
    found = {"learners": gpus(learners), "rollouts": gpus(rollouts), "scorer": gpus([scorer])[0]}
    ray.kill(rollouts[1])
    found["later"] = gpus([rollout(1)])[0]
    ray.util.remove_placement_group(rooms)
    ray.kill(scorer)
    until = time.monotonic() + 30
    while (left := ray.available_resources().get("GPU", 0.0)) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    print(json.dumps({**found, "left": left}))


if __name__ == "__main__":
    main()
