"""Prints the GPUs that Ray gives to colocated actors, on a cluster with two nominal GPUs.

Runs in its own process, because a process has one Ray.
"""

import json
import time

import ray

from psyco_ray.pool import placement
from support.colocated import job


class Actor:
    """Knows its GPU."""

    def gpu(self) -> str:
        [gpu] = ray.get_gpu_ids()
        return str(gpu)


def main() -> None:
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    shared = job(2)
    bundles = placement.shared_bundles(shared)
    options, reserved = placement.learner_options(shared.learners, 2, 60, bundles)
    assert reserved is None
    actor = ray.remote(Actor)

    def rollout(index: int):
        return actor.options(**placement.pool_options(shared.rollouts, bundles=bundles, index=index)).remote()

    def gpus(actors: list) -> list[str]:
        return ray.get([actor.gpu.remote() for actor in actors], timeout=120)

    learners = [actor.options(**options(rank)).remote() for rank in range(2)]
    rollouts = [rollout(index) for index in range(2)]
    scorer = actor.options(**placement.pool_options(shared.scorers)).remote()
    seen = {"learners": gpus(learners), "rollouts": gpus(rollouts), "scorer": gpus([scorer])[0]}
    ray.kill(rollouts[1])
    seen["later"] = gpus([rollout(1)])[0]
    ray.util.remove_placement_group(bundles)
    ray.kill(scorer)
    deadline = time.monotonic() + 30
    while (left := ray.available_resources().get("GPU", 0.0)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    print(json.dumps({**seen, "left": left}))


if __name__ == "__main__":
    main()
