"""Trackers: W&B offline files and TensorBoard files of a run in two sessions."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.paths import ROOT
from support.trackers import tensorboard_scalars, tensorboard_text, wandb_sessions

from psyco_ray.config.training import Job, TelemetryConfig
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.types import StepResult

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def steps(first: int, count: int, total: int = 100):
    for step in range(first - 1, first - 1 + count):
        yield StepResult(step, total, 1 / (step + 1), 1e-6, None if step % 2 else 0.5, {"accuracy": 0.75}, 400, 2.0)


def session(job: Job, resume: bool, first: int, count: int, dies: bool = False, results: dict | None = None) -> None:
    """Logs steps of a policy and of two reward models, as a driver does that resumes at a step."""
    ledger = Ledger(job, resume)
    try:
        with Telemetry(job, ledger) as telemetry:
            for group in ("reward-a", "reward-b", "policy"):
                list(telemetry.steps(steps(first, count), f"{group}: train", group, first - 1))
            telemetry.track_figures("reward-a", first + count - 1, {"dev_accuracy": 0.7})
            telemetry.summarise(results or {})
            ledger.write_json("iteration-001/train.json", {"steps": []})
            if dies:
                raise RuntimeError("the driver dies")
    except RuntimeError:
        assert dies
    finally:
        ledger.close()


def job_in(tmp_path: Path, **telemetry) -> Job:
    return Job(run_dir=str(tmp_path / "my run"), seed=3, telemetry=TelemetryConfig(**telemetry))


def test_two_sessions_are_one_wandb_run_with_figures_by_optimizer_step(tmp_path) -> None:
    job = job_in(tmp_path, wandb_project="psyco")
    session(job, False, first=1, count=6, dies=True)
    resumed = job.model_copy(update={"iterations": 20})  # may change
    session(resumed, True, first=5, count=4, results={"best": {"iteration": 2, "by": "judge"}, "rows": [1], "x": None})
    first, second = wandb_sessions(tmp_path / "my run")
    assert first.id == second.id == json.loads((tmp_path / "my run/telemetry.json").read_text())["wandb_id"]
    assert (first.project, first.name) == ("psyco", "my run")
    assert (first.exit_code, second.exit_code) == (1, 0), "a driver that died did not finish the run"
    for group in ("reward-a", "reward-b", "policy"):
        assert first.steps(group, "loss") == [1, 2, 3, 4, 5, 6]
        assert second.steps(group, "loss") == [5, 6, 7, 8], "repeated steps keep their numbers"
        assert second.step_metrics[f"{group}/*"] == f"{group}/step", "not W&B's own step, which never goes back"
    row = first.rows[0]
    figures = {name.removeprefix("reward-a/") for name in row if name.startswith("reward-a/")}
    assert figures == {"step", "loss", "lr", "grad_norm", "accuracy", "tokens_per_s"}
    assert (row["reward-a/loss"], row["reward-a/tokens_per_s"]) == (1.0, 200.0)
    assert "reward-a/grad_norm" not in first.rows[1]
    assert second.steps("reward-a", "dev_accuracy") == [8]
    assert first.config["seed"] == 3
    assert (first.config["iterations"], second.config["iterations"]) == (16, 20)
    assert first.config["dpo"]["beta"] == 0.1
    assert second.summary["best.iteration"] == 2
    assert second.summary["best.by"] == "judge"
    assert not {"rows", "x"} & second.summary.keys()


def test_a_run_that_starts_anew_in_a_directory_without_results_is_another_wandb_run(tmp_path) -> None:
    job = job_in(tmp_path, wandb_project="psyco", tensorboard=True)
    ids = []
    for _ in range(2):
        ledger = Ledger(job, resume=False)
        Telemetry(job, ledger).close(failed=True)
        ids.append(ledger.record("telemetry")["wandb_id"])
        ledger.close()
    assert ids[0] != ids[1]
    assert [found.id for found in wandb_sessions(tmp_path / "my run")] == ids


def test_sessions_are_read_when_their_files_are_whole(tmp_path) -> None:
    session(job_in(tmp_path, wandb_project="psyco"), False, first=1, count=6)
    wandb_sessions(tmp_path / "my run")
    [file] = (tmp_path / "my run").glob("wandb/offline-run-*/*.wandb")
    whole = file.read_bytes()
    for end in (0, 7, 60, len(whole) - 3):
        file.write_bytes(whole[:end])
        with pytest.raises(AssertionError, match="W&B has not written the end of a session"):
            wandb_sessions(tmp_path / "my run", within_s=0)
    timer = threading.Timer(0.5, file.write_bytes, [whole])
    timer.start()
    [found] = wandb_sessions(tmp_path / "my run")
    timer.join()
    assert (found.exit_code, found.steps("policy", "loss")) == (0, [1, 2, 3, 4, 5, 6])


def test_no_key_leaves_the_machine_with_the_figures(tmp_path, capsys) -> None:
    session(job_in(tmp_path, wandb_project="psyco", tensorboard=True), False, first=1, count=2)
    print("words of a client")  # the console is not recorded
    assert wandb_sessions(tmp_path / "my run")
    written = [path for path in (tmp_path / "my run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert any("tfevents" in path.name for path in written)
    for path in written:
        content = path.read_bytes()
        assert KEY.encode() not in content, path
        assert b"words of a client" not in content, path


@pytest.mark.parametrize("own", [False, True])
def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path, own) -> None:
    directory = tmp_path / "boards" if own else tmp_path / "my run" / "tensorboard"
    job = job_in(tmp_path, tensorboard=str(directory) if own else True)
    session(job, False, first=1, count=6, dies=True)
    time.sleep(1.1)  # TensorBoard orders files by the second
    session(job, True, first=5, count=4, results={"best": {"iteration": 2}})
    for group in ("reward-a", "reward-b", "policy"):
        shown = tensorboard_scalars(directory / group)
        assert {"loss", "lr", "grad_norm", "accuracy", "tokens_per_s"} <= shown.keys()
        assert [step for step, _ in shown["loss"]] == list(range(1, 9))
        assert [value for _, value in shown["loss"]] == pytest.approx([1 / step for step in range(1, 9)])
        assert [step for step, _ in shown["grad_norm"]] == [1, 3, 5, 7]
    assert [step for step, _ in tensorboard_scalars(directory / "reward-a")["dev_accuracy"]] == [8]
    assert "seed: 3" in tensorboard_text(directory, "job")
    assert '"best.iteration": 2' in tensorboard_text(directory, "summary")


def test_iterations_are_tracked_once(tmp_path, local_ray) -> None:
    job = job_in(tmp_path, wandb_project="psyco", tensorboard=True)
    for resume, last in ((False, 2), (True, 3)):
        ledger = Ledger(job, resume)
        with Telemetry(job, ledger) as telemetry:
            time.sleep(1.1)
            for iteration in range(1, last + 1):  # a resumed driver goes through all of them
                telemetry.log_iteration(iteration, {"dev_reward": float(iteration)})
        ledger.close()
    shown = tensorboard_scalars(tmp_path / "my run" / "tensorboard" / "iterations")
    assert shown["dev_reward"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    first, second = wandb_sessions(tmp_path / "my run")
    assert first.steps("iterations", "dev_reward") == [1, 2]
    assert second.steps("iterations", "dev_reward") == [3]


def test_a_tracker_that_cannot_start_is_one_sentence(tmp_path, monkeypatch) -> None:
    ledger = Ledger(job_in(tmp_path), False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"telemetry\.tensorboard: .*file.* cannot be written"):
        Telemetry(job_in(tmp_path, tensorboard=str(tmp_path / "file" / "below")), ledger)
    for name in [name for name in sys.modules if name.split(".")[:3] == ["torch", "utils", "tensorboard"]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match=r"needs the package tensorboard .*pip install tensorboard"):
        Telemetry(job_in(tmp_path, tensorboard=True), ledger)
    ledger.close()


def test_wandb_without_a_valid_key_is_one_sentence(tmp_path) -> None:
    code = (
        "from psyco_ray.config.training import Job\nfrom psyco_ray.run.ledger import Ledger\n"
        "from psyco_ray.run.telemetry import Telemetry\n"
        f"job = Job(run_dir={str(tmp_path / 'run')!r}, telemetry={{'wandb_project': 'psyco'}})\n"
        "try:\n    Telemetry(job, Ledger(job, False))\nexcept ValueError as error:\n    print('refused:', error)"
    )
    environment = os.environ | {"WANDB_MODE": "online", "WANDB_API_KEY": "short", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("refused:")]
    assert line.startswith("refused: telemetry.wandb_project: W&B cannot start: ")
    assert "API key" in line
    assert line.endswith("run `wandb login`, or set WANDB_MODE=offline")
