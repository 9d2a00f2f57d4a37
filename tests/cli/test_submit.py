"""Jobs submitted to a real cluster with token authentication, by psyco-ray and by Ray's own command."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import requests
import torch
from ray._private.runtime_env.packaging import create_package
from safetensors.torch import load_file
from support.paths import ROOT
from support.processes import kill_tree
from support.runs import JOB

from psyco_ray.cli import submit, upload
from psyco_ray.cli.main import main
from psyco_ray.config.job_file import load_as
from psyco_ray.config.training import Job
from psyco_ray.run.directory import RunDirectory

LENGTH = ("iterations=1", "dpo.optimizer.epochs=5")  # steps enough for `ray job stop` to come while they are taken


def refused(capsys, *arguments: str) -> str:
    assert main(["submit", *arguments]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("psyco-ray: ")
    assert "\n" not in message
    return message


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, with a job file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    (tmp_path / "job.yaml").write_text("run_dir: /shared/run\n")
    return tmp_path


def test_ctrl_c_ends_the_log_and_not_the_job(here, capsys, monkeypatch) -> None:
    monkeypatch.setattr(submit, "_send", lambda *_: (None, "raysubmit_1"))
    monkeypatch.setattr(submit, "_follow", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(["submit", "job.yaml", "--address", "http://127.0.0.1:1", "--follow"]) == 130
    assert capsys.readouterr().err.endswith("psyco-ray: job raysubmit_1 goes on; its log is shown no longer\n")


def test_invalid_submissions_are_refused_in_one_sentence(here, capsys, monkeypatch) -> None:
    nobody = ("--address", "http://127.0.0.1:1")
    assert "give --address" in refused(capsys, "job.yaml")
    assert "begins with http://" in refused(capsys, "job.yaml", "--address", "127.0.0.1:6379")
    assert "no Ray dashboard answers at http://127.0.0.1:1" in refused(capsys, "job.yaml", *nobody)
    assert "give run_dir=/" in refused(capsys, "job.yaml", *nobody, "run_dir=runs/mine")
    assert "seed: invalid value -1" in refused(capsys, "job.yaml", *nobody, "seed=-1")
    assert "is not set here" in refused(capsys, "job.yaml", *nobody, "--env", "NEVER_HEARD_OF")
    monkeypatch.setenv("MY_API_KEY", "sesame")
    monkeypatch.setenv("STORE", "postgres://me:sesame@db/one")
    secret_names = ("MY_API_KEY", "HF_TOKEN", "AWS_SECRET", "my_password", "OPENAI_API_KEY2", "PGPASS", "STORE")
    for name in (*secret_names, "HF_CREDENTIALS", "DATABASE_URL"):
        message = refused(capsys, "job.yaml", *nobody, "--env", name)
        assert f"{name} looks like a secret" in message
        assert "sesame" not in message
    secret = "s3://AKIA:sesame@bucket/run"
    message = refused(capsys, "job.yaml", *nobody, f"run_dir={secret}")
    assert "sesame" not in message
    assert "has a key in it" in message
    outside = here.parent / "outside.yaml"
    outside.write_text("run_dir: /shared/run\n")
    assert "which is uploaded" in refused(capsys, str(outside), *nobody)


def test_only_the_package_the_job_and_what_it_names_are_uploaded(here, capsys) -> None:
    subprocess.run(["git", "init", "-q", "."], check=True)
    (here / ".gitignore").write_text("data/\n")
    private = ("raw/notes.csv", "out/speeches.parquet", "id_rsa", ".netrc", "credentials.json", "secrets.yaml", ".env")
    private += ("psyco_ray/notes.csv", "runs/one/samples.parquet", "model/training_args.bin", "data/other.csv")
    private += (
        "desk/desk.db",
        "desk/desk.db-wal",
        "desk/desk.yaml",
        "desk/export/drafts.jsonl",
        "desk/export/record.json",
    )
    named = (
        "data/speeches.csv",
        "pairs/train.parquet",
        "pairs/sub/b.parquet",
        "desk/export/pairs.parquet",
        "model/config.json",
        "model/a.safetensors",
    )
    package = ("psyco_ray/__init__.py", "psyco_ray/data/sources.yaml", "psyco_ray/report/page.html")
    for name in (*private, *named, *package, "pairs/readme.md"):
        (here / name).parent.mkdir(exist_ok=True, parents=True)
        (here / name).write_text("something")
    keys = ["data.speeches=data/speeches.csv", "data.pairs=pairs", "scorers.reward_model=model", "prompts.file=default"]
    parts = "{pairs: sample}, {pairs: 'hub:a/b/c'}, {pairs: /shared/x.csv}, {pairs: 'desk:/shared/desk'}"
    keys.append(f"mixture=[{parts}, {{pairs: 'desk:desk'}}]")
    job = load_as(Job, "job.yaml", keys)
    found = upload.files_of(job, Path("job.yaml"), here)
    assert {str(path) for path in found} == {*named, *package, "job.yaml"}
    with upload.staged(found, here) as staging:
        create_package(str(staging), here.parent / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(here.parent / "package.zip") as package_file:
        files = {name for name in package_file.namelist() if not name.endswith("/")}
        assert files == {*named, *package, "job.yaml"}
        assert package_file.read("data/speeches.csv") == b"something"
    assert not staging.exists()
    assert main(["submit", "job.yaml", "--address", "http://127.0.0.1:1", *keys]) == 2
    told = capsys.readouterr()
    assert "data/speeches.csv (0.0 MiB), which git ignores: data.speeches names it" in told.out + told.err
    assert "pairs/train.parquet (0.0 MiB): data.pairs names it" in told.out + told.err


def test_every_file_that_the_package_needs_is_uploaded() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["psyco_ray"]
    assert {Path(pattern).suffix for pattern in needed} <= upload.PACKAGE_ENDINGS


def test_an_upload_above_rays_limit_is_refused_and_its_largest_files_named(here, capsys) -> None:
    for name, size in {"pairs.jsonl": 80, "speeches.csv": 30, "unnamed.csv": 500}.items():
        with (here / name).open("wb") as file:
            file.truncate(size * 2**20)
    nobody = ("job.yaml", "--address", "http://127.0.0.1:1", "data.pairs=pairs.jsonl")
    message = refused(capsys, *nobody, "data.speeches=speeches.csv")
    assert "is 110 MiB, above Ray's limit of 100" in message
    assert "pairs.jsonl (80.0 MiB, data.pairs), speeches.csv (30.0 MiB, data.speeches)" in message
    assert main(["submit", *nobody]) == 2
    assert "no Ray dashboard" in capsys.readouterr().err


def test_inputs_that_cannot_be_uploaded_are_named_before_anything_is_sent(here, capsys) -> None:
    nobody = ("job.yaml", "--address", "http://127.0.0.1:1")
    (here.parent / "beside.csv").write_text("question\n")
    for key in ("data.speeches", "data.pairs", "prompts.file"):
        assert f"{key} ../beside.csv lies outside" in refused(capsys, *nobody, f"{key}=../beside.csv")
    mixture = "reward.mixture=[{pairs: ../beside.csv}]"
    assert "reward.mixture.0.pairs ../beside.csv lies outside" in refused(capsys, *nobody, mixture)
    assert "data.pairs nowhere.csv does not exist in" in refused(capsys, *nobody, "data.pairs=nowhere.csv")
    (here / "desk").mkdir()
    assert "desk desk has no export yet; run psyco-ray desk export desk" in refused(
        capsys, *nobody, "data.pairs=desk:desk"
    )
    elsewhere = ("data.pairs=/shared/pairs.csv", "scorers.reward_model=owner/name@v1")
    assert "no Ray dashboard answers" in refused(capsys, *nobody, *elsewhere)


def test_a_submitted_driver_keeps_nothing_in_its_working_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}}))
    with pytest.raises(ValueError, match="submitted job's temporary directory"):
        RunDirectory("runs/mine")
    RunDirectory(str(tmp_path / "runs")).close()


@dataclass
class Head:
    address: str
    environment: dict[str, str]
    directory: Path  # from which one submits: a checkout with job.yaml
    metrics: str  # where Prometheus would ask

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
        )

    def job(self, name: str) -> dict:
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return requests.get(f"{self.address}/api/jobs/{name}", headers=token, timeout=30).json()

    def logs(self, name: str) -> str:
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return requests.get(f"{self.address}/api/jobs/{name}/logs", headers=token, timeout=30).json()["logs"]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(there: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def head(tmp_path_factory, tiny_model, tiny_reward_model) -> Iterator[Head]:
    """A head node with two CPUs and a token, and a copy of the checkout to submit from."""
    directory = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "psyco_ray", directory / "psyco_ray", ignore=shutil.ignore_patterns("__pycache__"))
    job = JOB.format(run_dir="/set/when/submitted", model=tiny_model, reward_model=tiny_reward_model)
    (directory / "job.yaml").write_text(job)
    temporary = tempfile.mkdtemp(prefix="psy", dir="/tmp")  # short, for the sockets in it
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names += ("metrics-export-port", "ray-client-server-port", "node-manager-port", "object-manager-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    # workers of a lower priority than those of tests beside this one would wait for minutes
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_worker_niceness"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={temporary}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", *(f"--{name}={port}" for name, port in ports.items())]
    log = Path(temporary) / "head.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=temporary)
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    token = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{address}/api/jobs/", headers=token, timeout=5).status_code == 200
        return False

    try:
        wait_for(answers, 180, log.read_text)
        yield Head(address, environment, directory, f"http://127.0.0.1:{ports['metrics-export-port']}/metrics")
    finally:
        left = kill_tree(process.pid)  # asked to end, the head takes half a minute
        shutil.rmtree(temporary, ignore_errors=True)
    assert not left, "a process of the head was left behind"


@contextlib.contextmanager
def scraped(url: str) -> Iterator[set[str]]:
    """The names of psyco_ray's metrics at the endpoint during the context."""
    seen: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            with contextlib.suppress(requests.RequestException):
                seen.update(re.findall(r"^ray_psyco_ray_(\w+)\{", requests.get(url, timeout=5).text, re.MULTILINE))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


@pytest.fixture(scope="module")
def submitted(head, tmp_path_factory) -> tuple[Path, set[str]]:
    """A run submitted with Ray's own command, and the metrics it exported."""
    run = tmp_path_factory.mktemp("plain") / "run"
    line = ["ray", "job", "submit", "--working-dir", ".", "--", "psyco-ray", "iterate", "job.yaml", f"run_dir={run}"]
    with scraped(head.metrics) as seen:
        done = head.run(*line, *LENGTH, RAY_API_SERVER_ADDRESS=head.address)
    assert done.returncode == 0, done.stdout[-5000:]
    return run, seen


@pytest.fixture(scope="module")
def plain(submitted) -> Path:
    return submitted[0]


@pytest.mark.slow
def test_a_run_exports_metrics_to_prometheus(submitted) -> None:
    live = {"rollout_tokens_per_s", "groups_per_s", "learner_tokens_per_s", "queue_depth", "idle_share", "reward"}
    assert live <= submitted[1]


def stamps(run: Path) -> dict[Path, int]:
    """Modification times of all files except model cards, which are written again with the report."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "README.md"}


@pytest.mark.slow
def test_a_submitted_run_writes_a_report_and_resuming_repeats_nothing(head, plain) -> None:
    assert "held-out client speeches" in (plain / "report.html").read_text()
    assert json.loads((plain / "summary.json").read_text())["iterations"] == 1
    before = stamps(plain / "iteration-001")
    ours = ("psyco-ray", "submit", "job.yaml", "--address", head.address, "--follow", "--resume", "--env", "SEEN")
    done = head.run(*ours, f"run_dir={plain}", *LENGTH, SEEN="yes", UNSEEN="no")
    assert done.returncode == 0, done.stdout[-5000:]
    assert "all iterations are done already" in done.stdout
    assert stamps(plain / "iteration-001") == before
    name = done.stdout.split("submitted as ")[1].split(";")[0]
    found = head.job(name)
    assert found["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "600", "SEEN": "yes"}
    assert found["driver_info"], "the driver attached to the cluster it runs on"
    assert found["entrypoint"].startswith("python -m psyco_ray.cli iterate job.yaml")
    assert head.environment["RAY_AUTH_TOKEN"] not in done.stdout + head.logs(name)


@pytest.mark.slow
def test_a_wrong_token_and_a_failed_job_are_one_sentence(head) -> None:
    ours = ("psyco-ray", "submit", "job.yaml", "--address", head.address, "--follow")
    for environment in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        done = head.run(*ours, "run_dir=/tmp/never", **environment)
        assert done.returncode == 2
        assert done.stdout.strip() == (
            f"psyco-ray: the cluster at {head.address} rejects the token; "
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
        )
    done = head.run(*ours, "run_dir=/proc/never")
    assert done.returncode == 1
    assert "psyco-ray: /proc/never cannot be written" in done.stdout
    assert done.stdout.strip().splitlines()[-1].endswith("failed with exit code 2; see its log")


@pytest.mark.long
def test_a_stopped_job_resumes_to_the_same_result(head, plain, tmp_path) -> None:
    run = tmp_path / "run"
    ours = ["psyco-ray", "submit", "job.yaml", "--address", head.address, f"run_dir={run}", *LENGTH]
    done = head.run(*ours)
    assert done.returncode == 0, done.stdout
    name = done.stdout.split("submitted as ")[1].split(";")[0]
    wait_for(lambda: "train step 2/" in head.logs(name), 300, lambda: head.logs(name))
    began = time.monotonic()
    stopped = head.run("ray", "job", "stop", name, RAY_API_SERVER_ADDRESS=head.address)
    print(f"stopped after {time.monotonic() - began:.1f} s")
    assert stopped.returncode == 0, stopped.stdout
    assert head.job(name)["status"] == "STOPPED"
    assert head.logs(name).strip().endswith("stopped; the same command with --resume continues from here")
    assert (run / "iteration-001" / "training" / "progress.json").exists()
    assert not (run / "iteration-001" / "train.json").exists(), "it came too late to show anything"
    before = stamps(run / "iteration-001" / "samples")
    done = head.run(*ours, "--resume", "--follow")
    assert done.returncode == 0, done.stdout[-5000:]
    assert " steps are done" in done.stdout
    assert stamps(run / "iteration-001" / "samples") == before, "nothing is sampled twice"
    ours_, theirs = (pq.read_table(r / "iteration-001" / "pairs.parquet") for r in (run, plain))
    assert ours_.equals(theirs)
    state = "iteration-001/state/state-00000.safetensors"
    ours_, theirs = load_file(run / state), load_file(plain / state)
    assert all(torch.equal(ours_[key], value) for key, value in theirs.items())
