"""Signals, as terminals, `timeout`, batch systems and Kubernetes send them."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from support import processes
from support.commands import here
from support.paths import SUPPORT, TESTS

from psyco_ray.run import preemption

JOBS = TESTS.parent / "jobs"
HINT = "psyco-ray: stopped; the same command with --resume continues from here"


@pytest.fixture
def command(tmp_path) -> list[str]:
    """A small training run; see `stopped_run.py`."""
    job = tmp_path / "job.yaml"
    job.write_text(f"run_dir: {tmp_path / 'run'}\n")
    return [sys.executable, str(SUPPORT / "stopped_run.py"), str(job)]


def start(command: list[str], log: Path) -> subprocess.Popen:
    """The command as the leader of a group, once a step is going on."""
    with log.open("w") as stderr:
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True)
    assert run.stdout.readline() == "ready\n", log.read_text()
    return run


def test_a_signal_to_the_group_leaves_ray_alive_until_the_checkpoint_is_written(command, tmp_path) -> None:
    log = tmp_path / "log"
    run = start(command, log)
    of_ray = psutil.Process(run.pid).children(recursive=True)
    assert "raylet" in [process.name() for process in of_ray]
    assert all(os.getpgid(process.pid) != run.pid for process in of_ray)
    for _ in range(2):  # `timeout` signals the command, then its group; that is one request
        os.killpg(run.pid, signal.SIGTERM)
        time.sleep(0.1)
    assert run.wait(30) == 75, log.read_text()
    assert log.read_text().splitlines()[-1] == HINT
    assert (tmp_path / "run" / "checkpoint").exists()
    assert processes.all_ended([process.pid for process in of_ray], 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_every_signal_stops_a_run(command, tmp_path, number) -> None:
    run = start([*command, "no-ray"], tmp_path / "log")
    os.killpg(run.pid, number)
    assert run.wait(20) == 75
    assert run.stdout.read() == "saving\n"
    assert (tmp_path / "log").read_text().splitlines() == [HINT]
    assert (tmp_path / "run" / "checkpoint").exists()


def test_a_run_whose_terminal_is_closed_stops(command, tmp_path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], [*command, "no-ray"])
    assert os.read(terminal, 100).strip() == b"ready"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    assert (tmp_path / "run" / "checkpoint").exists()


def test_a_second_signal_ends_at_once(tmp_path) -> None:
    code = "import time; from psyco_ray.run import preemption as p\nwith p.stop_on_signals(), p.deferred():\n"
    run = start([sys.executable, "-c", f"{code}    print('ready', flush=True)\n    time.sleep(60)"], tmp_path / "log")
    run.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert run.poll() is None, "deferred work goes on"
    run.send_signal(signal.SIGTERM)
    assert run.wait(5) == -signal.SIGTERM


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with preemption.stop_on_signals():
            signal.raise_signal(signal.SIGHUP)
            assert not preemption.requested()
        with pytest.raises(preemption.Preempted), preemption.stop_on_signals():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("work", "arguments", "hint"),
    [
        ("data.collect.collect", ["data", "collect", "data-laptop.yaml"], "; answers are kept and the same command"),
        ("evaluate.policies.evaluate", ["evaluate-policy", "evaluate-policy-laptop.yaml"], "; answers are kept"),
        ("evaluate.reward_models.evaluate", ["evaluate-reward", "evaluate-reward-laptop.yaml"], "; answers are kept"),
        ("cli.plan.command.plan", ["plan", "demo.yaml"], "\n"),
    ],
)
def test_every_command_ends_like_a_run(work, arguments, hint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(f"psyco_ray.{work}", lambda *_: signal.raise_signal(signal.SIGINT))
    *command, job = arguments
    found = here(*command, JOBS / job, f"run_dir={tmp_path / 'run'}")
    assert found.returncode == 75
    assert found.stderr.startswith(f"psyco-ray: stopped{hint}")


def met_in_c_code(*_: object) -> None:
    """As Python does where C code returns a result although a signal handler has raised."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except preemption.Preempted as stop:
        raise SystemError("<cyfunction CoreWorker.wait> returned a result with an exception set") from stop


@pytest.mark.parametrize(
    ("work", "command", "hint"),
    [
        ("evaluate.policies.evaluate", ["evaluate-policy", "evaluate-policy-laptop.yaml"], "; answers are kept"),
        ("cli.plan.command.plan", ["plan", "demo.yaml"], "\n"),
    ],
)
def test_a_signal_in_c_code_is_a_stop(work, command, hint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(f"psyco_ray.{work}", met_in_c_code)
    found = here(command[0], JOBS / command[1], f"run_dir={tmp_path / 'run'}")
    assert found.returncode == 75
    assert found.stderr.startswith(f"psyco-ray: stopped{hint}")


def test_an_error_of_the_stop_itself_is_no_stop() -> None:
    def stopped() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"), preemption.stop_on_signals(), preemption.unmasked():
        stopped()


def test_a_signal_that_ends_ray_too_is_a_stop(tmp_path, monkeypatch) -> None:
    def evaluate(*_: object) -> None:
        with preemption.deferred():
            signal.raise_signal(signal.SIGTERM)
            raise ray.exceptions.ActorUnavailableError("Worker exits: the process receives a SIGTERM", None)

    monkeypatch.setattr("psyco_ray.evaluate.policies.evaluate", evaluate)
    found = here("evaluate-policy", JOBS / "evaluate-policy-laptop.yaml", f"run_dir={tmp_path / 'run'}")
    assert found.returncode == 75
    assert found.stderr.startswith("psyco-ray: stopped, and Ray with it; answers are kept")
