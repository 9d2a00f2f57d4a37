"""Files that change after they were read, and files that cannot be read: told before Ray starts."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from support import commands
from support.files import write_content
from support.logs import messages
from support.raw_speeches import speech

from psyco_ray.cli.main import main
from psyco_ray.config.data import DataJob
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Data
from psyco_ray.data import mixture, speech_file
from psyco_ray.data.dataset import Dataset
from psyco_ray.run import shards
from psyco_ray.run.changes import Changes

REFUSE = Changes(accept=False)


def write_job(directory: Path, **source) -> Path:
    settings = {"run_dir": str(directory / "run"), "sources": [{"name": "clinic", **source}]}
    return write_content(directory / "job.yaml", yaml.safe_dump(settings))


def write_speeches(directory: Path, *numbers: int) -> Path:
    return write_content(directory / "notes.csv", "\n".join(["text", *(f'"{speech(n)}"' for n in numbers)]))


def collected(directory: Path) -> set[str]:
    speeches = directory / "run" / "collect" / "speeches"
    return {row["speech"] for part in shards.list_shards(speeches) for row in shards.read(speeches, part)}


def test_a_changed_source_is_collected_again_unless_paid_stages_depend_on_it(tmp_path, local_ray) -> None:
    logged = messages()
    job = write_job(tmp_path, path=str(write_speeches(tmp_path, 1, 2)))
    assert commands.here("data", "collect", job).returncode == 0
    assert commands.here("data", "topics", job).returncode == 0
    assert collected(tmp_path) == {speech(1), speech(2)}
    assert commands.here("data", "collect", job).returncode == 0
    assert logged[-1] == "collect: done before, 2 speeches"

    file = write_speeches(tmp_path, 1, 3, 4)
    refused = commands.here("data", "topics", job)
    assert refused.returncode == 2
    assert f"{file} has changed since collect read it; run `psyco-ray data collect` first" in refused.stderr
    assert commands.here("data", "collect", job).returncode == 0
    assert f"source clinic: {file} has changed since collect read it; the stages are made again" in logged
    assert collected(tmp_path) == {speech(1), speech(3), speech(4)}
    assert not (tmp_path / "run" / "topics").exists(), "its topics cost nothing and are of other speeches"

    (tmp_path / "run" / "respond").mkdir()
    (tmp_path / "run" / "respond" / "0.parquet").write_bytes(b"paid")
    file = write_speeches(tmp_path, 5)
    refused = commands.here("data", "collect", job)
    assert refused.returncode == 2
    assert f"{file} has changed since collect read it, and respond in {tmp_path / 'run'} depend on it" in refused.stderr
    assert collected(tmp_path) == {speech(1), speech(3), speech(4)}
    file.unlink()
    assert commands.here("data", "collect", job).returncode == 0, "a file that is gone has not changed"


@pytest.mark.parametrize(
    ("content", "source", "message"),
    [
        ("id,words\n1,a\n", {}, "has no column {columns}; it has id, words; name the right one in {text}"),
        ("who,text\nclient,a\n", {"where": {"speaker": "client"}}, "has no column speaker; it has who, text"),
        (
            "speaker,text\nclient,a\ntherapist,b\n",
            {},
            "the column speaker names who speaks (client, therapist); say which rows are the client's with {where}: "
            "{{speaker: client}}",
        ),
        (
            "speaker,text\nclient,a\ntherapist,b\n",
            {"where": {"speaker": "patient"}},
            "no row is chosen by {where}; speaker is client, therapist",
        ),
        ("text\na\n", {"strip": ["("]}, "strip '(' is not a regular expression"),
        ("text\na\n", {"strip": ["x*"]}, "strip 'x*' also matches an empty text"),
        ("text\na\n", {"encoding": "utf-7000"}, "encoding 'utf-7000' is unknown"),
        ("text\na\n", {"dialogue": "id"}, "dialogue needs where"),
    ],
)
def test_input_errors_come_before_ray(tmp_path, capsys, content, source, message) -> None:
    file = write_content(tmp_path / "notes.csv", content)
    settings = [f"data.{key}={json.dumps(value)}" for key, value in {**source, "speeches": str(file)}.items()]
    collect = {"columns": "text or speech or question or client", "text": "the source's text"}
    training = {"columns": "question or speech or text", "text": "data.speech_column"}
    for arguments, names in (
        (
            ["data", "collect", write_job(tmp_path, path=str(file), **source)],
            {**collect, "where": "the source's where"},
        ),
        (["train-reward", "-", f"run_dir={tmp_path / 'reward'}", *settings], {**training, "where": "data.where"}),
    ):
        arguments = [str(write_content(tmp_path / "training.yaml", "{}")) if a == "-" else str(a) for a in arguments]
        started = AssertionError("Ray starts")
        with patch("ray.init", side_effect=started):
            assert main(arguments) == 2
        assert message.format(**names) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "key"), [("train-reward", "data.pairs"), ("demo", "data.pairs"), ("train-dpo", "data.pairs")]
)
def test_errors_of_pair_files_come_before_ray(tmp_path, capsys, command, key) -> None:
    file = write_content(tmp_path / "pairs.csv", "prompt,better,worse\na,b,c\n")
    job = write_content(tmp_path / "job.yaml", "{scorers: {reward_model: x/y}}")
    with patch("ray.init", side_effect=AssertionError("Ray starts")):
        assert main([command, str(job), f"run_dir={tmp_path / 'run'}", f"{key}={file}"]) == 2
    assert f"pairs file {file} has the columns prompt, better, worse; accepted are" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["", "#train"])
def test_pairs_that_changed_after_a_run_read_them_are_refused(tmp_path, part) -> None:
    rows = [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(40)]
    content = json.dumps({"train": rows, "other": rows} if part else rows)
    file = write_content(tmp_path / "pairs.json", content)
    data = Data(pairs=f"{file}{part}")
    parts = mixture.mix((), data, seed=0).parts
    mixture.check((), data, parts, REFUSE)
    write_content(file, content.replace('"b"', '"c"'))
    mixture.check((), data, [], REFUSE)
    with pytest.raises(
        InputError, match=r"pairs\.json(#train)? has changed since this run read it; put the old one back"
    ):
        mixture.check((), data, parts, REFUSE)
    file.unlink()
    mixture.check((), data, parts, REFUSE)


def test_speeches_that_changed_after_a_run_read_them_are_refused(tmp_path) -> None:
    file = write_speeches(tmp_path, 1, 2)
    data = Data(speeches=str(file))
    record = {"digest": speech_file.open_file(data).file.digest()}
    speech_file.check(data, record, REFUSE)
    write_speeches(tmp_path, 1, 3)
    with pytest.raises(InputError, match=r"notes\.csv has changed since this run read it; put the old one back"):
        speech_file.check(data, record, REFUSE)
    speech_file.check(data, {"leaks": {}}, REFUSE)  # of a run of an earlier version
    file.unlink()
    speech_file.check(data, record, REFUSE)


def test_settings_of_an_earlier_version_may_lack_empty_keys(tmp_path) -> None:
    source = {"name": "clinic", "path": str(write_speeches(tmp_path, 1))}
    run_dir = str(tmp_path / "run")

    def begin(**more) -> None:
        dataset = Dataset(DataJob(run_dir=run_dir, sources=[{**source, **more}]))
        try:
            dataset.begin("collect", "sources")
        finally:
            dataset.close()

    begin()
    settings = tmp_path / "run" / "collect" / "settings.json"
    written = json.loads(settings.read_text())
    for key in ("where", "dialogue", "strip", "encoding"):
        del written["sources"][0][key]
    settings.write_text(json.dumps(written))
    begin()
    with pytest.raises(InputError, match="holds collect made with sources"):
        begin(where={"speaker": "client"})
