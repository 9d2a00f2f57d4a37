"""A pool over the nodes of a cluster: one node dies, another is drained. Prints what came of it as JSON.

It runs in a process of its own, for a process has one Ray.
"""

import json
import time

import ray
from ray.cluster_utils import Cluster

from psyco_ray.config.training import Deadlines
from psyco_ray.pool.actor_pool import ActorPool
from support.logs import messages


class Worker:
    def ready(self) -> None: ...

    def work(self, item: int):
        time.sleep(0.3)
        yield item, ray.get_runtime_context().get_node_id()


def fit(pool: ActorPool) -> int:
    return sum(member["state"] in ("idle", "busy") for member in pool.status())


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    second, third = (cluster.add_node(num_cpus=2) for _ in range(2))
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    actor = ray.remote(Worker).options(num_cpus=1, scheduling_strategy="SPREAD")
    said = messages()
    pool = ActorPool("worker", lambda _: actor.remote(), 4, Deadlines(start_s=120, item_s=60))
    pool.wait_ready()
    found, places, moments = [], [], {}
    for count, (item, node) in enumerate(pool.stream(Worker.work, range(150)), start=1):
        found.append(item)
        places.append(node)
        if count == 20:
            moments["killed"] = time.monotonic()
            cluster.remove_node(second, allow_graceful=False)
        if "killed" in moments and "back" not in moments and fit(pool) == 4 and second.node_id not in places[-8:]:
            moments["back"] = time.monotonic()
        if count == 90:
            moments["drained"] = count
            ray._private.worker.global_worker.gcs_client.drain_node(
                third.node_id, 2, "the machine is taken back", int(1000 * (time.time() + 600))
            )
    late = places[-15:]
    print(
        json.dumps(
            {
                "items": sorted(found) == list(range(150)),
                "used": len(set(places)),
                "late_on_second": second.node_id in places[-100:],
                "late_on_drained": third.node_id in late,
                "seconds": round(moments.get("back", float("inf")) - moments["killed"], 1),
                "said": said,
            }
        )
    )
    pool.close()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
