"""Placement on a cluster: selectors without labels, and a run on labelled nodes."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray
from support.paths import SUPPORT
from support.runs import JOB

from psyco_ray.config.resources import Learners, Rollouts
from psyco_ray.pool import placement
from psyco_ray.pool.fit import Node
from psyco_ray.run import storage

SCRIPT = SUPPORT / "cluster_with_roles.py"


def test_without_labels_actors_may_go_anywhere(local_ray, tmp_path) -> None:
    assert placement.label_selector("rollout") == {}
    assert "label_selector" not in placement.pool_options(Rollouts())
    assert placement.caller_options(tmp_path / "journal") == {}


def test_a_rank_whose_memory_an_engine_maps_has_fixed_segments() -> None:
    settings = Learners(gpus=0.4)
    assert placement.actor_environment(settings)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    options, _ = placement.learner_options(settings, 1, 1.0, bundles=SimpleNamespace())
    variables = options(0)["runtime_env"]["env_vars"]
    assert "PYTORCH_ALLOC_CONF" not in variables
    assert variables["TORCHDYNAMO_DISABLE"] == "1"


def test_callers_go_to_the_nodes_labelled_for_them(local_ray, tmp_path, monkeypatch) -> None:
    nodes = [Node("head", 0, 0, "caller"), Node("first", 2, 0, "rollout")]
    monkeypatch.setattr(placement, "cluster_nodes", lambda: nodes)
    assert placement.caller_options(tmp_path / "journal") == {"label_selector": {"psyco-ray/role": "caller"}}
    here = {"label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}
    assert placement.caller_options(storage.cache_dir() / "copy" / "journal") == here, "beside the working copy"


@pytest.mark.long
def test_calls_are_made_where_the_keys_are(tmp_path) -> None:
    command = [sys.executable, SUPPORT / "cluster_with_callers.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen == {"callers": ["caller", "caller"], "cached": ["head"]}


@pytest.mark.long
def test_a_run_follows_the_plan_and_survives_the_loss_of_its_rollout_node(
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
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["plan_code"] == 0
    lines = [line.split(maxsplit=2) for line in seen["plan"].splitlines() if " on " in line]
    plan = {role: where for phase_, role, where in lines if phase_ == "iterate"}
    assert {role: (where[0], where.split()[-1]) for role, where in plan.items()} == {
        "rollout": ("2", "(rollout)"),
        "scorer": ("1", "(scorer)"),
        "learner": ("2", "(learner)"),
    }
    expected = {"RolloutActor": ["first"] * 2, "ScorerActor": ["scorer"], "LearnerWorker": ["learner"] * 2}
    assert {name: seen["before"][name] for name in expected} == expected
    for moment in ("without", "still_without"):
        assert "RolloutActor" not in seen[moment], "other nodes have room but not the label"
    assert seen["after"]["RolloutActor"] == ["second"] * 2
    assert seen["code"] == 0, done.stderr[-3000:]
    assert json.loads((run / "summary.json").read_text())["iterations"] == 1
