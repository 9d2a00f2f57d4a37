"""A whole run on three nodes that carry roles, whose rollout node goes away and comes back. Prints what was where.

It runs in a process of its own, for a process has one Ray.
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
    """The nodes, by name, of the actors of each class that run."""
    found: dict[str, list[str]] = {}
    for actor in ray._private.state.actors().values():
        if actor["State"] == "ALIVE":
            found.setdefault(actor["ActorClassName"], []).append(names.get(actor["Address"]["NodeID"], "another"))
    return found


def main(job: str, run: Path) -> None:
    labels = {role: {"psyco-ray/role": role} for role in ("learner", "rollout", "scorer")}
    head = {"num_cpus": 2, "include_dashboard": False, "labels": labels["learner"]}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    first, scorer = (cluster.add_node(num_cpus=2, labels=labels[role]) for role in ("rollout", "scorer"))
    names = {cluster.head_node.node_id: "learner", first.node_id: "first", scorer.node_id: "scorer"}
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        code = psyco_ray(["plan", job, "--cluster", "--address", cluster.address])
    ray.shutdown()
    found: dict[str, Any] = {"plan": told.getvalue(), "plan_code": code}

    driver = subprocess.Popen([sys.executable, "-m", "psyco_ray.cli", "iterate", job, "--address", cluster.address])
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)

    def until(there: Callable[[], bool]) -> dict[str, list[str]]:
        while not there():
            assert driver.poll() is None, "it ended too early"
            time.sleep(0.02)
        return where(names)

    found["before"] = until(lambda: any(run.glob("iteration-001/samples/*.scores.parquet")))
    cluster.remove_node(first, allow_graceful=False)
    found["without"] = until(lambda: "RolloutActor" not in where(names))
    time.sleep(5)
    found["still_without"] = where(names)
    second = cluster.add_node(num_cpus=2, labels=labels["rollout"])
    names[second.node_id] = "second"
    found["after"] = until(lambda: len(where(names).get("RolloutActor", [])) == 2)
    found["code"] = driver.wait()
    print(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
