"""Resource plans: what fits on the nodes and what the table shows."""

import pytest

from psyco_ray.config.resources import Learners, Rollouts
from psyco_ray.config.training import Job
from psyco_ray.pool import fit
from psyco_ray.pool.fit import Node, Role


def test_plan_fits_nodes_and_names_what_does_not() -> None:
    roles = [Role("learner", 2, 1, 1), Role("rollout", 3, 1, 0)]
    fit.check("x", roles, [Node("a", 3, 1), Node("b", 2, 1)])
    with pytest.raises(ValueError, match=r"needs 5 CPUs and 2 GPUs, 1 node\(s\) have 8 CPUs and 1 GPUs, and learner 2"):
        fit.check("iterate", roles, [Node("a", 8, 1)])
    with pytest.raises(ValueError, match="rollout 3 of 3"):
        fit.check("iterate", roles, [Node("a", 4, 2)])
    with pytest.raises(ValueError, match="learner 1 of 1"):
        fit.check("iterate", [Role("learner", 1, 4, 0)], [Node("a", 2, 0), Node("b", 3, 0)])


def test_plan_of_a_job_lists_every_role() -> None:
    job = Job(rollouts=Rollouts(actors=3, gpus=1), learners=Learners(actors=2, gpus=1))
    table = fit.describe({"iterate": fit.iterate_phase(job)}, [Node("n", 4, 8)])
    assert "rollout                 3" in table
    assert table.splitlines()[-1] == "cluster: n: 4 CPUs, 8 GPUs"
