"""`psyco-ray config` prints every key; `psyco-ray init` writes a job of them."""

import re
import subprocess
import sys
from itertools import pairwise

import pytest
from support.paths import JOBS

from psyco_ray.cli.config import _KINDS, keys_of, type_name
from psyco_ray.cli.main import main
from psyco_ray.config import job_file
from psyco_ray.config.data import DataJob
from psyco_ray.config.training import Job


@pytest.mark.parametrize("kind", _KINDS)
def test_every_key_has_an_explanation(kind: str) -> None:
    for key in keys_of(_KINDS[kind]):
        assert re.fullmatch(r"\S.*[.)]", key.text, re.DOTALL), f"{key.path}: {key.text!r}"


def test_the_defaults_are_those_of_a_job() -> None:
    job = job_file.flatten(Job().model_dump(mode="json"))
    keys = {key.path: key.default for key in keys_of(Job)}
    assert job.keys() <= keys.keys()
    overrides = [f"{path}={keys[path]}" for path in job]
    assert job_file.load_as(Job, None, overrides) == Job()
    assert keys["reward.optimizer.learning_rate"] == "9.0e-06"
    assert keys["dpo.optimizer.learning_rate"] == "5.0e-07"


def test_defaults_that_follow_the_device_are_printed_for_both(capsys) -> None:
    assert main(["config", "rollouts"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "rollouts.max_num_seqs = 128 (on GPUs 256)  [integer >= 1]",
        "rollouts.kv_cache_gb = 1.0 (on GPUs null)  [number > 0 or null]",
        "rollouts.enforce_eager = true (on GPUs false)",
        "rollouts.speeches_per_item = 16 (on GPUs 32)",
        "rollouts.feed = items (on GPUs continuous)",
        "rollouts.max_model_len = 2048  [",
    ):
        assert line in printed
    on_gpus = Job.model_validate({role: {"gpus": 1} for role in ("rollouts", "scorers", "learners")})
    assert (on_gpus.rollouts.max_num_seqs, on_gpus.rollouts.kv_cache_gb, on_gpus.rollouts.enforce_eager) == (
        256,
        None,
        False,
    )
    assert (on_gpus.scorers.row_tokens, on_gpus.learners.micro_batch_tokens) == (8192, 8192)
    assert on_gpus.reward.learners == Job().reward.learners
    with pytest.raises(ValueError, match=r"rollouts.kv_cache_gb null is for engines on GPUs"):
        job_file.load_as(Job, None, ["rollouts.kv_cache_gb=null"])


def test_types_are_in_words_with_their_bounds() -> None:
    types = {key.path: key.type for key in keys_of(Job)} | {key.path: key.type for key in keys_of(DataJob)}
    assert types["data.dev_share"] == "number > 0, < 1"
    assert types["checkpoints.keep_last"] == "integer >= 1 or null"
    assert types["dpo.optimizer.betas"] == "list of 2 x number"
    assert types["reward.half"] == "a | b or null"
    assert types["pair.weights"] == "map to number >= 0"
    assert types["sources"] == "list of section (at least 1)"
    assert type_name(bool) == "true or false"


def test_a_section_is_printed_alone(capsys) -> None:
    assert main(["config", "sampling"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# sampling: Sampling of responses from the policy (paper §4.2).\n")
    assert "sampling.responses = 8  [integer >= 2]\n    Responses per speech, n;" in printed
    assert "dpo" not in printed
    assert main(["config", "--job", "data", "sources"]) == 0
    assert "sources[].name (required)  [text]" in capsys.readouterr().out
    assert main(["config", "smpling"]) == 2
    assert "a training job has no key smpling; did you mean sampling?" in capsys.readouterr().err


def test_the_starter_job_is_the_demo_for_ones_own_speeches(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    place = tmp_path / "a study: mine"
    assert main(["init", str(place)]) == 0
    path = place / "job.yaml"
    demo = job_file.load_as(Job, JOBS / "demo.yaml")
    data = demo.data.model_copy(update={"speeches": str(place / "speeches.csv")})
    text = path.read_text()
    assert (
        job_file.load_as(Job, path).model_dump()
        == demo.model_copy(update={"run_dir": str(place / "run"), "data": data}).model_dump()
    )
    lines = text.splitlines()
    for above, line in pairwise(lines):
        assert line.lstrip().startswith("#") or not line or above.lstrip().startswith("#"), line
    assert max(map(len, lines)) <= 120
    assert main(["plan", str(path)]) == 0
    assert "every phase fits" in capsys.readouterr().out
    assert main(["init", str(place)]) == 2
    assert f"{path} exists and is not overwritten" in capsys.readouterr().err
    assert path.read_text() == text


def test_a_reader_may_stop_before_the_end() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "psyco_ray.cli", "config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 0
