"""A run as it is seen and steered from outside, without its actors."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.logs import messages

from psyco_ray.cli.main import main
from psyco_ray.config.resources import Autoscale, Rollouts, Scorers
from psyco_ray.run.directory import RunDirectory
from psyco_ray.training import control
from psyco_ray.training.control import Control


class Pool:
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def resize(self, size: int) -> None:
        self.sizes.append(size)

    def status(self) -> list[dict[str, Any]]:
        one = {"member": 0, "state": "busy", "seconds": 3.0, "node": "n1", "pid": 7, "version": 2}
        return [{**one, "items": 5, "restarts": 1, "busy_s": 30.0, "there_s": 40.0, "idle_share": 0.25}]


def seen(pools: Any = None) -> dict[str, Any]:
    return {"stage": "iteration 3: sample and score", "done": 5, "total": 64, "version": 2}


@pytest.fixture
def going_on(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "_EVERY_S", 0.05)
    directory = RunDirectory(str(tmp_path / "run"))
    pools = {"rollouts": Pool(), "scorers": Pool()}
    bounds = Autoscale(min=2, max=6)
    settings = {"rollouts": Rollouts(cpus=1, gpus=2, autoscale=bounds), "scorers": Scorers()}
    said = messages()
    made = Control(directory, pools, settings, seen)
    yield made, pools, tmp_path / "run", said
    made.close()
    directory.close()


def wait_for(path: Path, text: str) -> str:
    deadline = time.monotonic() + 10
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, path.read_text() if path.exists() else f"no {path}"
        time.sleep(0.02)
    return path.read_text()


def test_status_says_what_goes_on(going_on, capsys) -> None:
    _, _, run, _ = going_on
    wait_for(run / "status.json", "going on")
    assert main(["status", str(run)]) == 0
    told = capsys.readouterr().out
    assert "stage: iteration 3: sample and score, 5 of 64; policy version 2" in told
    assert "  0  busy            3 s  version 2, 5 items, idle 25 %, replaced 1 times, n1" in told


def test_scale_is_obeyed_and_remembered(going_on, capsys) -> None:
    made, pools, run, said = going_on
    wait_for(run / "status.json", "going on")
    assert main(["scale", str(run), "rollouts=6"]) == 0
    wait_for(run / "status.json", '"rollouts": 6')
    assert main(["scale", str(run), "learners=4"]) == 0
    wait_for(run / "status.json", '"learners": 4')
    assert pools["rollouts"].sizes[0] == 6
    assert pools["scorers"].sizes == []
    assert made.requested == {"rollouts": 6, "learners": 4}
    assert said[0] == "requested: 6 rollouts"


def test_simulated_clients_are_scaled_where_the_run_has_them(going_on, tmp_path) -> None:
    made, _, run, said = going_on
    assert main(["scale", str(run), "clients=2", "scorers=3"]) == 0
    wait_for(run / "status.json", '"scorers": 3')
    assert made.requested == {"scorers": 3}
    assert "this run has no clients of its own" in said
    directory, pool = RunDirectory(str(tmp_path / "other")), Pool()
    other = Control(directory, {"clients": pool}, {"clients": Rollouts()}, seen)
    other.scale({"clients": 2})
    other.close()
    directory.close()
    assert pool.sizes == [2]


@pytest.mark.parametrize("wish", ["rollouts", "rollouts=0", "rollouts=x", "judges=3", "=3"])
def test_wishes_that_cannot_be_read_are_refused(wish, tmp_path, capsys) -> None:
    assert main(["scale", str(tmp_path), wish]) == 2
    assert f"{wish!r} is not of the form ROLE=NUMBER" in capsys.readouterr().err


def test_a_directory_without_a_run_and_a_dead_driver_are_named(tmp_path, capsys) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no status.json" in capsys.readouterr().err
    told = {"state": "going on", "written": time.time() - 100, "wanted": {}, "pools": {}, **seen()}
    (tmp_path / "status.json").write_text(json.dumps(told))
    assert main(["status", str(tmp_path)]) == 0
    assert "its driver last reported 100 s ago; continue with --resume" in capsys.readouterr().out
    assert main(["scale", str(tmp_path), "rollouts=2"]) == 2
    assert f"no run is in progress in {tmp_path}" in capsys.readouterr().err


def test_pools_with_bounds_grow_while_they_work(going_on, monkeypatch) -> None:
    made, pools, _, _ = going_on
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles, **_: asked.append(bundles))
    monkeypatch.setattr("psyco_ray.pool.placement.label_selector", lambda _: {})
    with made.autoscaling():
        assert pools["rollouts"].sizes == [6]
    assert pools["rollouts"].sizes == [6, 2]
    assert pools["scorers"].sizes == [], "it has no bounds"
    assert asked == [[{"CPU": 1, "GPU": 2}] * 6, []]


def test_what_cannot_be_read_or_written_is_told_once(going_on) -> None:
    _, _, run, said = going_on
    wait_for(run / "status.json", "going on")
    (run / "scale.json").write_text("{")
    deadline = time.monotonic() + 10
    while not said:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    assert len(said) == 1
    assert f"scale.json in {run}" in said[0]


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match=r"autoscale.min 4 is above autoscale.max 2"):
        Autoscale(min=4, max=2)


def test_what_shares_gpus_keeps_its_number(tmp_path) -> None:
    directory, said = RunDirectory(str(tmp_path / "run")), messages()
    pools = {"rollouts": Pool(), "scorers": Pool()}
    settings = {"rollouts": Rollouts(), "scorers": Scorers()}
    made = Control(directory, pools, settings, seen, fixed=("rollouts", "learners"))
    try:
        made.scale({"rollouts": 4, "scorers": 3, "learners": 2})
        made.scale({"learners": 3})
    finally:
        made.close()
        directory.close()
    assert (pools["rollouts"].sizes, pools["scorers"].sizes, made.requested) == ([], [3], {"scorers": 3})
    assert said[0] == "the number of rollouts, learners is fixed, because they share GPUs"


def test_commands_do_not_import_ray_before_its_token_is_set() -> None:
    code = "import sys, psyco_ray.cli.main; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
