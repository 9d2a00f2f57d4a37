"""The command line: exit codes, messages, and options that all commands share."""

import argparse
import importlib.metadata
import json
import logging
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pydantic
import pytest
from ray.exceptions import RayTaskError
from support import commands, families

from psyco_ray.cli import train
from psyco_ray.cli.main import build_parser, main
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.judge.client import UnavailableError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def write_job(tmp_path: Path, text: str = "") -> str:
    path = tmp_path / "job.yaml"
    path.write_text(f"run_dir: {tmp_path / 'run'}\n{text}")
    return str(path)


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    captured = capsys.readouterr().err.strip()
    assert captured.startswith("psyco-ray: ")
    assert "\n" not in captured
    return captured


def test_plan_prints_a_table(tmp_path, capsys) -> None:
    job = write_job(tmp_path, "rollouts: {cpus: 0.1}\nscorers: {cpus: 0.1}\nlearners: {cpus: 0.1}\n")
    assert main(["plan", job, "rollouts.actors=2"]) == 0
    assert "rollout                 2" in capsys.readouterr().out


def test_plan_refuses_a_cluster_that_is_too_small(tmp_path, capsys) -> None:
    message = refused(capsys, "plan", write_job(tmp_path), "learners.gpus=1", "learners.actors=8")
    assert "the cluster cannot hold iterate" in message
    assert "8 GPUs" in message


def test_plan_tries_the_chat_template_of_a_model_in_the_hubs_cache(tmp_path, capsys, monkeypatch) -> None:
    from huggingface_hub import constants

    refusing = families.new_tokenizer(template="{{ raise_exception('only tools may speak') }}")
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--owner--strict"
    refusing.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    job = write_job(tmp_path, "rollouts: {cpus: 0.1}\nscorers: {cpus: 0.1}\nlearners: {cpus: 0.1}\n")
    assert "only tools may speak" in refused(capsys, "plan", job, "model=owner/strict")
    assert main(["plan", job, "model=owner/elsewhere"]) == 0, "a plan downloads no model"


def test_options_may_precede_and_follow_overrides(tmp_path, capsys) -> None:
    job = write_job(tmp_path)
    for arguments in (["seed=1", "--resume", "iterations=0"], ["--resume", "seed=1", "iterations=0"]):
        assert "iterations: invalid value 0" in refused(capsys, "iterate", job, *arguments)
    with pytest.raises(SystemExit) as caught:
        main(["iterate", job, "--resum"])
    assert caught.value.code == 2


def test_words_on_the_command_line_are_not_repeated(tmp_path, capsys) -> None:
    words = "My husband left me in May"
    for arguments in (["status", "runs/demo", "since", "he", "died"], ["status", "x", f"--since={words}"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        message = capsys.readouterr().err
        assert "unknown argument " in message
        assert not {"since", "died", "husband"} & set(message.split())
    assert "unknown argument --since" in message
    for arguments in (
        ["forget", str(tmp_path), "--text-file", words],
        ["forget", str(tmp_path), "--text-file", f"{words} " * 20],
        ["forget", words, "--speech-id", "0" * 16],
        ["data", "check", words],
        ["data", "check", f"{words} " * 20],
        ["data", "check", "a.csv", "--where", words],
        ["iterate", write_job(tmp_path), words],
        ["iterate", words],
        ["iterate", f"{words} " * 20],
        ["sample", words, "runs/demo"],
        ["sample", f"{words} " * 20, "runs/demo"],
    ):
        assert "husband" not in refused(capsys, *arguments)
    assert "none.txt cannot be read" in refused(capsys, "forget", str(tmp_path), "--text-file", "my own none.txt")


def test_iterate_needs_a_reward_model(tmp_path, capsys) -> None:
    assert "scorers.reward_model is not set" in refused(capsys, "iterate", write_job(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_process_names_an_unknown_key_and_exits_2(tmp_path) -> None:
    done = commands.run("iterate", write_job(tmp_path, "sampling: {temprature: 1}"))
    assert done.returncode == 2
    assert done.stderr.strip().endswith("unknown key sampling.temprature; did you mean sampling.temperature?")
    assert done.stdout == ""


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_refused_at_once(tmp_path, capsys, monkeypatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        job = write_job(tmp_path, "scorers: {reward_model: a/b}\n")
        message = refused(capsys, "iterate", job, "--address", address)
        assert f"no Ray cluster answers at {address} (" in message
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert "check --address and RAY_ADDRESS" in refused(capsys, "iterate", job, "--resume")


def test_a_run_stopped_by_its_judge_exits_75(tmp_path, capsys, monkeypatch) -> None:
    def away(*_: object) -> None:
        raise UnavailableError("judge: no answer for 600 s")

    monkeypatch.setattr("psyco_ray.run.ray_session.connect", lambda _: None)
    monkeypatch.setattr(train, "_iterate", away)
    monkeypatch.setattr("psyco_ray.training.inputs.check", lambda *_: None)
    assert main(["iterate", write_job(tmp_path, "scorers: {reward_model: a/b}\n")]) == 75
    message = capsys.readouterr().err.strip()
    assert message == "psyco-ray: judge: no answer for 600 s; the same command with --resume continues from here"


def test_an_input_error_in_an_actor_is_one_sentence(local_ray, tmp_path, tiny_model, tiny_reward_model) -> None:
    """The model directory is found broken only when an actor loads it."""
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_reward_model, broken)
    (broken / "chat_template.jinja").unlink()
    (broken / "manifest.json").unlink()  # a model without a manifest is not checked earlier
    job = write_job(
        tmp_path,
        f"model: {tiny_model}\nspeeches_per_iteration: 4\ndata: {{dev_share: 0.2}}\n"
        "rollouts: {cpus: 0.1, max_model_len: 512, kv_cache_gb: 0.1}\nsampling: {max_tokens: 8}\n"
        f"scorers: {{cpus: 0.1, reward_model: {broken}}}\nlearners: {{cpus: 0.1}}\n",
    )
    done = commands.here("iterate", job)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"psyco-ray: the tokenizer of {broken} has no chat template")


def planted(monkeypatch, error: BaseException) -> None:
    """Let the command `status` fail with an error."""

    def fail(_: object) -> str:
        raise error

    monkeypatch.setattr("psyco_ray.cli.status.describe", fail)


def invalid_json() -> Exception:
    try:
        json.loads("{")
    except json.JSONDecodeError as error:
        return error


def invalid_settings() -> Exception:
    try:
        Job(seed=-1)
    except pydantic.ValidationError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        invalid_json(),
        invalid_settings(),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "a bug"),
        pa.ArrowInvalid("a bug"),
        OSError("a bug"),
        AssertionError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_is_no_invalid_input(tmp_path, monkeypatch, error) -> None:
    planted(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["status", str(tmp_path)])


def test_a_bug_shows_its_traceback_and_exits_1(tmp_path) -> None:
    code = (
        "import sys\nfrom psyco_ray.cli import main, status\n"
        "def fail(run):\n    raise ValueError('a bug')\n"
        "status.describe = fail\nsys.exit(main.main(['status', 'runs']))\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback")
    assert process.stderr.endswith("ValueError: a bug\n")


def test_invalid_input_from_an_actor_is_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    remote = RayTaskError("sample", "a remote traceback", InputError("the model is damaged; copy it again"))
    planted(monkeypatch, RayTaskError("call", "another", remote.as_instanceof_cause()).as_instanceof_cause())
    assert refused(capsys, "status", str(tmp_path)) == "psyco-ray: the model is damaged; copy it again"


def test_version(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"psyco-ray {importlib.metadata.version('psyco-ray')}\n"


def commands_of(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser and those of all its commands."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(below for group in groups for sub in group.choices.values() for below in commands_of(sub))]


def test_every_help_shows_an_example_that_parses() -> None:
    parser = build_parser()
    for command in commands_of(parser):
        title, example = command.epilog.split("\n", 1)
        assert title == "example:"
        name, *arguments = shlex.split(example)
        assert name == "psyco-ray"
        assert f"psyco-ray {shlex.join(arguments)}".startswith(command.prog)
        options, rest = parser.parse_known_args(arguments)
        assert callable(options.run)
        assert all("=" in override for override in rest)


@pytest.mark.parametrize(("flags", "levels"), [([], "IW"), (["-v"], "DIW"), (["-q"], "W"), (["--quiet"], "W")])
def test_verbosity_is_an_option_of_every_command(tmp_path, monkeypatch, capsys, flags, levels) -> None:
    def report(_: object) -> str:
        log = logging.getLogger("psyco_ray.cli")
        log.debug("D")
        log.info("I")
        log.warning("W")
        return ""

    monkeypatch.setattr("psyco_ray.cli.status.describe", report)
    assert main(["status", str(tmp_path), *flags]) == 0
    logged = capsys.readouterr().err.splitlines()
    assert [line.split()[-1] for line in logged] == list(levels)
    with pytest.raises(SystemExit):
        main(["status", str(tmp_path), "-v", "-q"])
