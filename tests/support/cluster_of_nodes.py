"""A pool on a cluster of which one node dies and another is drained; prints the outcome as JSON.

Runs in its own process, because a process has one Ray.
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


def healthy(pool: ActorPool) -> int:
    return sum(record["state"] in ("idle", "busy") for record in pool.status())


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    second, third = (cluster.add_node(num_cpus=2) for _ in range(2))
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    actor = ray.remote(Worker).options(num_cpus=1, scheduling_strategy="SPREAD")
    logged = messages()
    pool = ActorPool("worker", lambda _: actor.remote(), 4, Deadlines(start_s=120, item_s=60))
    pool.wait_ready()
    items, nodes, moments = [], [], {}
    for count, (item, node) in enumerate(pool.stream(Worker.work, range(150)), start=1):
        items.append(item)
        nodes.append(node)
        if count == 20:
            moments["killed"] = time.monotonic()
            cluster.remove_node(second, allow_graceful=False)
        if "killed" in moments and "back" not in moments and healthy(pool) == 4 and second.node_id not in nodes[-8:]:
            moments["back"] = time.monotonic()
        if count == 90:
            moments["drained"] = count
            ray._private.worker.global_worker.gcs_client.drain_node(
                third.node_id, 2, "the machine is taken back", int(1000 * (time.time() + 600))
            )
    print(
        json.dumps(
            {
                "items": sorted(items) == list(range(150)),
                "used": len(set(nodes)),
                "late_on_second": second.node_id in nodes[-100:],
                "late_on_drained": third.node_id in nodes[-15:],
                "seconds": round(moments.get("back", float("inf")) - moments["killed"], 1),
                "logged": logged,
            }
        )
    )
    pool.close()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
