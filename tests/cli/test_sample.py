"""`psyco-ray sample` answers a speech with a trained policy."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from psyco_ray.cli.main import main

SPEECH = "Since my father died I cannot talk to anyone about how lost I feel."
DRAFT = "DRAFT for a professional to review; not for direct use with clients."


@pytest.fixture
def run_dir(tmp_path, tiny_model) -> Path:
    """A finished run whose best checkpoint is the tiny model; it was moved since."""
    run = tmp_path / "run"
    shutil.copytree(tiny_model, run / "iteration-002" / "checkpoint")
    (run / "job.yaml").write_text("prompts: {respond: respond-small}\nsampling: {max_tokens: 12}\n")
    (run / "versions.json").write_text("{}")
    (run / "summary.json").write_text(json.dumps({"best": {"iteration": 2, "steps": 8, "by": "reward"}}))
    return run


@pytest.fixture(autouse=True)
def own_environment():
    with patch.dict(os.environ):
        yield


def refused(capsys, *arguments: str) -> str:
    assert main(["sample", *arguments]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert SPEECH not in message
    return message


def test_what_cannot_be_answered_is_refused_in_one_sentence(run_dir, capsys, monkeypatch, tmp_path) -> None:
    assert "checkpoint runs/nowhere does not exist" in refused(capsys, "runs/nowhere", SPEECH)
    assert "has no config.json" in refused(capsys, str(tmp_path), SPEECH)
    assert "the speech is empty" in refused(capsys, str(run_dir), " ")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "the speech is empty" in refused(capsys, str(run_dir), "-")
    assert "--max-tokens needs 1 or more" in refused(capsys, str(run_dir), SPEECH, "--max-tokens", "0")
    message = refused(capsys, str(run_dir), SPEECH, "--max-tokens", "1000")
    assert "holds 1024; lower --max-tokens" in message
    (run_dir / "summary.json").write_text("{")
    assert "summary.json is damaged" in refused(capsys, str(run_dir), SPEECH)
    (run_dir / "summary.json").unlink()
    assert "has no summary.json yet; name one of its checkpoints" in refused(capsys, str(run_dir), SPEECH)


COMMANDS = """
import json, sys
from psyco_ray.cli.main import main
for arguments in json.loads(sys.argv[1]):
    print("code", main(["sample", *arguments]), flush=True)
"""


@pytest.mark.slow
def test_a_speech_is_answered_and_nothing_of_it_is_kept(run_dir, tmp_path) -> None:
    before = sorted(tmp_path.rglob("*"))
    asked = [str(run_dir), "-"], [str(run_dir / "iteration-002" / "checkpoint"), SPEECH]
    asked += ([str(run_dir), SPEECH, "--temperature", "2", "--seed", "7"],)
    command = [sys.executable, "-c", COMMANDS, json.dumps(asked)]  # one process, since it imports vLLM
    done = subprocess.run(
        command, input=f"{SPEECH}\n", capture_output=True, text=True, timeout=400, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "father" not in done.stderr
    said, of_checkpoint, other, nothing = done.stdout.split("code 0\n")
    assert not nothing
    assert said.startswith(f"{DRAFT}\n\n")
    assert said.rstrip().endswith("[cut after 12 tokens]"), "the run's own number"
    assert of_checkpoint == said, "the run's own prompt"
    assert other.splitlines()[0] == DRAFT
    assert other != said
    assert sorted(tmp_path.rglob("*")) == before
