"""Damaged and wrong files of a user: one sentence that names the file, and exit code 2."""

import json
from pathlib import Path

import pytest

from psyco_ray.cli.main import main

STATUS = {"state": "going on", "written": "today", "stage": "", "version": 1, "pools": {}, "wanted": {}}
RECORDS = {
    "pairs": {"seconds": 1.0, "mean_tokens": 3.0, "busy": {"rollout": 1, "scorer": 1}},
    "evaluate": {"seconds": 1.0, "busy": {"rollout": 1, "scorer": 1}},
    "train": {"seconds": 1.0},
    "sync": {"export_s": 1.0, "load_s": 1.0},
}


def refused(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("psyco-ray: ")
    assert "\n" not in message
    return message


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_iteration(run: Path) -> None:
    for stage, facts in RECORDS.items():
        write(run / "iteration-001" / f"{stage}.json", json.dumps(facts))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "a: [", "a:\n\t- b", "a: !!python/object:os.system x"])
def test_a_job_that_is_no_yaml(tmp_path, capsys, content) -> None:
    job = write(tmp_path / "job.yaml", content)
    assert f"job file {job} cannot be read as YAML" in refused(capsys, "plan", job)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("1: 2", "keys should be strings"),
        ("sampling: null", "sampling: invalid value None"),
        ("data: [1]", "data: invalid value [1]"),
        ("mixture: [{pairs: x, count: many}]", "mixture.0.count: invalid value 'many'"),
        ("run_dir: 2020-01-01", "run_dir: invalid value datetime.date"),
    ],
)
def test_a_job_of_wrong_types(tmp_path, capsys, content, sentence) -> None:
    assert sentence in refused(capsys, "plan", write(tmp_path / "job.yaml", content))


@pytest.mark.parametrize("content", ["{", "[]", "null", b"\xff", json.dumps(STATUS)])
def test_a_damaged_status(tmp_path, capsys, content) -> None:
    write(tmp_path / "status.json", content)
    for arguments in (["status", tmp_path], ["scale", tmp_path, "rollouts=2"]):
        assert f"status.json in {tmp_path} is damaged" in refused(capsys, *arguments)


@pytest.mark.parametrize("content", ["{", "[]", "null", b"\xff"])
def test_a_damaged_record_of_a_finished_run(tmp_path, capsys, content) -> None:
    write_iteration(tmp_path)
    write(tmp_path / "iteration-001" / "train.json", content)
    message = refused(capsys, "plan", "--gpus", "8", "--run", tmp_path)
    assert f"{tmp_path}/iteration-001/train.json is damaged" in message


@pytest.mark.parametrize("content", ["[", "- 1", "", "seed: -1", b"\xff"])
def test_a_damaged_job_of_a_finished_run(tmp_path, capsys, content) -> None:
    write_iteration(tmp_path)
    write(tmp_path / "job.yaml", content)
    assert f"job.yaml in {tmp_path}" in refused(capsys, "plan", "--gpus", "8", "--run", tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "unheard of"}'])
def test_a_model_with_a_damaged_configuration(tmp_path, capsys, content) -> None:
    config = write(tmp_path / "config.json", content)
    message = refused(capsys, "plan", "--gpus", "8", "--model", tmp_path)
    assert str(config) in message
    assert "give a complete model directory" in message


def test_a_model_with_a_damaged_tokenizer(tmp_path, capsys) -> None:
    write(tmp_path / "config.json", '{"model_type": "llama"}')
    write(tmp_path / "weights.safetensors", "")
    write(tmp_path / "tokenizer.json", "{")
    write(tmp_path / "tokenizer_config.json", '{"tokenizer_class": "TokenizersBackend"}')
    assert f"the tokenizer of {tmp_path} cannot be loaded" in refused(capsys, "sample", tmp_path, "hello")


@pytest.mark.parametrize("content", ["{", "[]", "null", b"\xff"])
def test_a_damaged_record_of_a_compared_run(tmp_path, capsys, content) -> None:
    record = write(tmp_path / "iteration-000" / "evaluate.json", content)
    assert str(record) in refused(capsys, "compare", tmp_path, "--out", tmp_path / "out")


@pytest.mark.parametrize("command", [["evaluate-experts", "score"], ["data", "agreement"]])
@pytest.mark.parametrize("content", ["{", "[]", "null", "{}", b"\xff"])
def test_a_damaged_key_of_the_experts(tmp_path, capsys, command, content) -> None:
    key = write(tmp_path / "key.json", content)
    assert str(key) in refused(capsys, *command, tmp_path)


def test_damaged_files_of_a_dataset(tmp_path, capsys) -> None:
    source = write(tmp_path / "raw.csv", "text\nhello\n")
    job = write(tmp_path / "job.yaml", f"run_dir: {tmp_path}/run\nsources: [{{name: raw, path: {source}}}]\n")
    for split in ("train", "dev", "test"):
        pairs = write(tmp_path / "run" / "pairs" / f"{split}.parquet", "PAR1")
    assert f"pairs file {pairs.with_name('train.parquet')}" in refused(capsys, "data", "export-annotation", job)
    pairs.parent.rename(tmp_path / "elsewhere")
    part = write(tmp_path / "run" / "topics" / "00.parquet", "x")
    assert f"{part} is damaged" in refused(capsys, "data", "report", job)
    record = write(tmp_path / "run" / "collect.json", "{")
    assert f"{record} is damaged" in refused(capsys, "data", "report", job)
