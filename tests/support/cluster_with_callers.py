"""Where a stream of calls runs on a cluster of which one node may call APIs; prints the nodes as JSON.

Runs in its own process, because a process has one Ray.
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge.pipeline import AnswerStream, StreamedStage
from psyco_ray.pool import placement
from psyco_ray.run import storage
from psyco_ray.run.progress import Progress


class Silent:
    """A stage whose parts have no questions, so that nothing is sent."""

    endpoint, attempts, schema = Endpoint(model="judge", key_env=None, callers=2), 1, pa.schema([("row", pa.string())])

    def __init__(self, out: Path) -> None:
        self.out = out

    def questions(self, part: str):
        return iter(())


def main(directory: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    named = {role: cluster.add_node(num_cpus=0, labels={"psyco-ray/role": role}) for role in ("rollout", "caller")}
    names = {node.node_id: role for role, node in named.items()} | {cluster.head_node.node_id: "head"}
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    parts = ["00", "01", "02", "03"]
    stream = AnswerStream([StreamedStage("calls", Silent(directory / "out"), parts)], directory / "journal", None)
    stream.ready(0, parts)
    stream.run(Progress())
    actors = [actor for actor in ray._private.state.actors().values() if "Caller" in actor["ActorClassName"]]
    seen = {"callers": [names[actor["Address"]["NodeID"]] for actor in actors]}
    here = placement.caller_options(storage.cache_dir() / "copy" / "journal")
    seen["cached"] = [names[node] for node in here["label_selector"].values()]
    print(json.dumps(seen))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
