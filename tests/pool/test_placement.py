"""Where actors go: the plan for nodes with and without roles, and what a cluster of labelled nodes makes of it."""

import json
import subprocess
import sys

import pytest
from support.paths import SUPPORT
from support.runs import JOB

from psyco_ray.cli.main import main
from psyco_ray.config.resources import Learners, Rollouts, Scorers
from psyco_ray.config.training import Job
from psyco_ray.pool import fit, placement
from psyco_ray.pool.fit import Node, Role

SCRIPT = SUPPORT / "cluster_with_roles.py"


def phase(**counts: int) -> list[Role]:
    job = Job(
        rollouts=Rollouts(actors=counts.get("rollouts", 2)),
        scorers=Scorers(actors=counts.get("scorers", 2)),
        learners=Learners(actors=counts.get("learners", 2)),
    )
    return fit.iterate_phase(job)


def planned(roles: list[Role], nodes: list[Node]) -> dict[str, str]:
    return {name: "".join(node.name for node in found) for name, found in fit.places("it", roles, nodes).items()}


def test_actors_go_to_nodes_of_their_role() -> None:
    nodes = [
        Node("l", 2, 0, "learner"),
        Node("r", 2, 0, "rollout"),
        Node("R", 2, 0, "rollout"),
        Node("s", 3, 0, "scorer"),
    ]
    assert planned(phase(), nodes) == {"rollout": "rR", "scorer": "ss", "learner": "ll", "ray data": "r"}
    with pytest.raises(ValueError, match=r"rollout 5 of 5 .* no room on nodes labelled psyco-ray/role=rollout; lower"):
        planned(phase(rollouts=5), nodes)


def test_a_role_that_no_node_has_goes_to_nodes_of_none() -> None:
    nodes = [Node("l", 9, 0, "learner"), Node("h", 3, 0), Node("o", 3, 0, "other")]
    assert planned(phase(), nodes) == {"rollout": "ho", "scorer": "ho", "learner": "ll", "ray data": "l"}
    with pytest.raises(ValueError, match="on nodes without a role, for none is labelled psyco-ray/role=scorer"):
        planned(phase(scorers=5), nodes)
    told = fit.describe_places("iterate", phase(), nodes).splitlines()
    assert told[0].split(maxsplit=2)[2] == "1 on h, 1 on o (other) (no node is labelled psyco-ray/role=rollout)"
    assert told[2].split(maxsplit=2)[2] == "2 on l (learner)"


def test_without_roles_ranks_share_a_node_where_one_holds_all() -> None:
    nodes = [Node("a", 2, 0), Node("b", 2, 0), Node("c", 4, 0)]
    learners = [role for role in phase(learners=4) if role.name == "learner"]
    assert planned(learners, nodes) == {"learner": "cccc"}
    assert planned(phase(learners=5)[2:3], nodes) == {"learner": "aabbc"}
    assert "labelled" not in fit.describe_places("iterate", phase(learners=1), nodes)


def test_planning_for_a_cluster_needs_one(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    (tmp_path / "job.yaml").write_text("seed: 1\n")
    assert main(["plan", str(tmp_path / "job.yaml"), "--cluster"]) == 2
    assert "give --address or set RAY_ADDRESS" in capsys.readouterr().err


def test_without_labels_actors_may_go_anywhere(local_ray) -> None:
    assert placement.selector("rollout") == {}
    assert "label_selector" not in placement.pool_options(Rollouts())


@pytest.mark.long
def test_a_run_on_nodes_with_roles_goes_where_the_plan_says_and_outlives_its_rollout_node(
    tmp_path, tiny_model, tiny_reward_model
) -> None:
    run = tmp_path / "run"
    text = JOB.format(run_dir=run, model=tiny_model, reward_model=tiny_reward_model)
    text = text.replace("iterations: 2", "iterations: 1").replace("rollouts: {", "rollouts: {actors: 2, ")
    text = text.replace("learners: {actors: 1", "learners: {actors: 2")
    (tmp_path / "job.yaml").write_text(text)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "job.yaml"), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["plan_code"] == 0
    lines = [line.split(maxsplit=2) for line in found["plan"].splitlines() if " on " in line]
    plan = {role: where for phase_, role, where in lines if phase_ == "iterate"}
    assert {role: (where[0], where.split()[-1]) for role, where in plan.items()} == {
        "rollout": ("2", "(rollout)"),
        "scorer": ("1", "(scorer)"),
        "learner": ("2", "(learner)"),
    }
    expected = {"RolloutActor": ["first"] * 2, "ScorerActor": ["scorer"], "LearnerWorker": ["learner"] * 2}
    assert {name: found["before"][name] for name in expected} == expected
    for moment in ("without", "still_without"):
        assert "RolloutActor" not in found[moment], "other nodes have room, and are not of this role"
    assert found["after"]["RolloutActor"] == ["second"] * 2
    assert found["code"] == 0, done.stderr[-3000:]
    assert json.loads((run / "summary.json").read_text())["iterations"] == 1
