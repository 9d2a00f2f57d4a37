"""The resource plan: which actors fit on which nodes, with and without labels, colocated or not."""

import re

import pytest
from support.colocated import job as colocated_job
from support.paths import JOBS

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Learners, Rollouts, Scorers
from psyco_ray.config.training import Job
from psyco_ray.pool import fit
from psyco_ray.pool.fit import Node, Role


def iterate_roles(rollouts: int = 2, scorers: int = 2, learners: int = 2) -> list[Role]:
    job = Job(rollouts=Rollouts(actors=rollouts), scorers=Scorers(actors=scorers), learners=Learners(actors=learners))
    return fit.iterate_phase(job)


def placed(roles: list[Role], *nodes: Node) -> dict[str, str]:
    """The names of the actors' nodes, joined, by role."""
    return {
        role: "".join(node.name for node in of_role) for role, of_role in fit.place_actors("it", roles, nodes).items()
    }


def test_a_misfit_names_the_actor_and_the_resources() -> None:
    roles = [Role("learner", 2, 1, 1), Role("rollout", 3, 1, 0)]
    fit.check("x", roles, [Node("a", 3, 1), Node("b", 2, 1)])
    with pytest.raises(InputError, match=r"needs 5 CPUs and 2 GPUs, 1 node\(s\) have 8 CPUs and 1 GPUs, and learner 2"):
        fit.check("iterate", roles, [Node("a", 8, 1)])
    with pytest.raises(InputError, match="rollout 3 of 3"):
        fit.check("iterate", roles, [Node("a", 4, 2)])
    with pytest.raises(InputError, match="learner 1 of 1"):
        fit.check("iterate", [Role("learner", 1, 4, 0)], [Node("a", 2, 0), Node("b", 3, 0)])


def test_the_table_lists_every_role() -> None:
    job = Job(rollouts=Rollouts(actors=3, gpus=1), learners=Learners(actors=2, gpus=1))
    table = fit.describe({"iterate": fit.iterate_phase(job)}, [Node("n", 4, 8)])
    assert "rollout                 3" in table
    assert table.splitlines()[-1] == "cluster: n: 4 CPUs, 8 GPUs"


def test_actors_go_to_nodes_of_their_label() -> None:
    nodes = [
        Node("l", 2, 0, "learner"),
        Node("r", 2, 0, "rollout"),
        Node("R", 2, 0, "rollout"),
        Node("s", 3, 0, "scorer"),
    ]
    assert placed(iterate_roles(), *nodes) == {"rollout": "rR", "scorer": "ss", "learner": "ll", "ray data": "r"}
    with pytest.raises(InputError, match=r"rollout 5 of 5 .* no room on nodes labelled psyco-ray/role=rollout; lower"):
        placed(iterate_roles(rollouts=5), *nodes)


def test_a_role_whose_label_no_node_has_goes_to_nodes_without_a_role() -> None:
    nodes = [Node("l", 9, 0, "learner"), Node("h", 3, 0), Node("o", 3, 0, "other")]
    assert placed(iterate_roles(), *nodes) == {"rollout": "ho", "scorer": "ho", "learner": "ll", "ray data": "l"}
    with pytest.raises(InputError, match="on nodes without a role, because none is labelled psyco-ray/role=scorer"):
        placed(iterate_roles(scorers=5), *nodes)
    lines = fit.describe_placement("iterate", iterate_roles(), nodes).splitlines()
    assert lines[0].split(maxsplit=2)[2] == "1 on h, 1 on o (other) (no node is labelled psyco-ray/role=rollout)"
    assert lines[2].split(maxsplit=2)[2] == "2 on l (learner)"


def test_without_labels_ranks_share_a_node_that_holds_all_of_them() -> None:
    nodes = [Node("a", 2, 0), Node("b", 2, 0), Node("c", 4, 0)]
    learners = [role for role in iterate_roles(learners=4) if role.name == "learner"]
    assert placed(learners, *nodes) == {"learner": "cccc"}
    assert placed(iterate_roles(learners=5)[2:3], *nodes) == {"learner": "aabbc"}
    assert "labelled" not in fit.describe_placement("iterate", iterate_roles(learners=1), nodes)


def test_a_colocated_pair_takes_one_gpu_and_the_scorer_its_rest() -> None:
    pair, pairs = fit.iterate_phase(colocated_job(1)), fit.iterate_phase(colocated_job(2))
    assert placed(pair, Node("a", 4, 1)) == {"rollout+learner": "a", "scorer": "a", "ray data": "a"}
    assert placed(pairs, Node("a", 4, 1), Node("b", 4, 2))["rollout+learner"] == "bb", "ranks stay together"
    assert placed(pairs, Node("a", 4, 1), Node("b", 4, 1))["rollout+learner"] == "ab"
    with pytest.raises(InputError, match=r"scorer 1 of 1 .* finds no room"):
        placed(fit.iterate_phase(colocated_job(2, scorer=0.2)), Node("a", 8, 2))
    with pytest.raises(InputError, match=r"rollout\+learner 2 of 2 .*0.9 GPUs each\) finds no room"):
        placed(pairs, Node("a", 8, 1))


@pytest.mark.parametrize(("name", "gpus"), [("psyco-llama3-3b", 1), ("psyco-llama3-8b", 5)])
def test_the_command_for_few_gpus_in_a_job_file_fits_the_resources_it_names(name: str, gpus: int) -> None:
    path = JOBS / f"{name}.yaml"
    comment = path.read_text().replace("\\\n#", " ")
    [command] = [line for line in comment.splitlines() if "rollouts.actors=" in line]
    overrides = command[command.index("rollouts.actors=") :].split()
    job = job_file.load_as(Job, path, overrides)
    cpus = int(re.search(rf"`psyco-ray plan`: {gpus} GPUs? and (\d+) CPUs", comment)[1])
    nodes = [Node("n", cpus, gpus)]
    fit.check("iterate", fit.iterate_phase(job), nodes)
    fit.check("train-reward", fit.reward_phase(job), nodes)
    with pytest.raises(InputError, match="cannot hold"):
        fit.check("iterate", fit.iterate_phase(job), [Node("n", cpus - 1, gpus)])


def test_a_fraction_of_a_gpu_is_taken_from_one_gpu() -> None:
    assert fit.take_gpus([1.0, 1.0], 1) == [0.0, 1.0]
    assert fit.take_gpus([0.5, 0.5], 1) is None
    assert fit.take_gpus([0.5, 1.0], 0.5) == [0.0, 1.0], "from the GPU with the least free share"
    assert fit.take_gpus([1.0, 1.0, 1.0], 2.5) == [0.0, 0.0, 0.5]
    assert fit.take_gpus([], 0) == []
