"""A run on three labelled nodes, of which the rollout node is lost and replaced; prints the actors' nodes as JSON.

Runs in its own process, because a process has one Ray.
"""

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from psyco_ray.cli.main import main as psyco_ray


def where(names: dict[str, str]) -> dict[str, list[str]]:
    """The names of the nodes of all running actors, by class."""
    nodes: dict[str, list[str]] = {}
    for actor in ray._private.state.actors().values():
        if actor["State"] == "ALIVE":
            nodes.setdefault(actor["ActorClassName"], []).append(names.get(actor["Address"]["NodeID"], "another"))
    return nodes


def main(job: str, run: Path) -> None:
    labels = {role: {"psyco-ray/role": role} for role in ("learner", "rollout", "scorer")}
    head = {"num_cpus": 2, "include_dashboard": False, "labels": labels["learner"]}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    first, scorer = (cluster.add_node(num_cpus=2, labels=labels[role]) for role in ("rollout", "scorer"))
    names = {cluster.head_node.node_id: "learner", first.node_id: "first", scorer.node_id: "scorer"}
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = psyco_ray(["plan", job, "--cluster", "--address", cluster.address])
    ray.shutdown()
    seen: dict[str, Any] = {"plan": output.getvalue(), "plan_code": code}

    driver = subprocess.Popen([sys.executable, "-m", "psyco_ray.cli", "iterate", job, "--address", cluster.address])
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)

    def wait_until(condition: Callable[[], bool]) -> dict[str, list[str]]:
        while not condition():
            assert driver.poll() is None, "the run is going on"
            time.sleep(0.02)
        return where(names)

    seen["before"] = wait_until(lambda: any(run.glob("iteration-001/samples/*.scores.parquet")))
    cluster.remove_node(first, allow_graceful=False)
    seen["without"] = wait_until(lambda: "RolloutActor" not in where(names))
    time.sleep(5)
    seen["still_without"] = where(names)
    second = cluster.add_node(num_cpus=2, labels=labels["rollout"])
    names[second.node_id] = "second"
    seen["after"] = wait_until(lambda: len(where(names).get("RolloutActor", [])) == 2)
    seen["code"] = driver.wait()
    print(json.dumps(seen))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
