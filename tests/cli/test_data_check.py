"""The command `data check`."""

import csv
import subprocess
import sys

import pytest
import yaml
from support.dialogue_files import annomi, dialogue, esconv
from support.files import write_content
from support.raw_speeches import speech

from psyco_ray.cli.main import main
from psyco_ray.config import job_file
from psyco_ray.config.data import DataJob
from psyco_ray.config.training import Job


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "my notes.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["who", "speaker", "story"])
        writer.writerows(
            [["1", who, f"{speech(n)} Mail me: a{n}@b.org"] for n in range(40) for who in ("Client", "Dr")]
        )
    return path


def test_lines_say_what_a_job_would_read_and_show_no_words(notes, capsys) -> None:
    assert main(["data", "check", str(notes)]) == 0
    text = capsys.readouterr().out
    for line in (
        f"{notes}: CSV, utf-8, 80 rows",
        "read as: speeches in the column story; a guess by the length of its texts",
        "speakers: speaker is Client (40), Dr (40)",
        "client: rows with speaker Client",
        "duplicates: 0 of all rows repeat the text of another",
        "of all rows:\n  40 speeches\n  left out: 40 outside where",
        "100.0 % have 100 to 1,000 (min_chars, max_chars)",
        "personal data: any 100.0 %, EMAIL 100.0 %",
        "\n  X",
    ):
        assert line in text
    words = {word for n in range(40) for word in speech(n).split() if len(word) > 8}
    assert not [word for word in words if word in text]


def test_names_of_people_and_remarks_on_speakers_are_counted(tmp_path, capsys) -> None:
    speakers = ["Client", "Therapist 1", "Anna", "Client (says he tried to hang himself)"]
    rows = [[who, f"{speech(n)}"] for n in range(40) for who in speakers]
    with (path := tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["speaker", "How are you today?", "text"], *([who, "", text] for who, text in rows)]
        )
    assert main(["data", "check", str(path)]) == 0
    text = capsys.readouterr().out
    assert "speakers: speaker is Client (40), Therapist 1 (40), 2 other values (80)\n" in text
    assert "columns: speaker (" in text
    assert "; (a text of 18 characters) (" in text
    assert not [word for word in ("Anna", "hang", "today") if word in text]


def test_lines_for_a_job_read_the_same_speeches(notes, capsys) -> None:
    main(["data", "check", str(notes)])
    sources, overrides = capsys.readouterr().out.splitlines()[-2:]
    job = job_file.parse(DataJob, yaml.safe_load(sources), "test")
    assert job.sources[0].path == str(notes)
    assert job.sources[0].text == "story"
    assert job.sources[0].where == {"speaker": ["Client"]}
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {overrides.strip()}"], capture_output=True, text=True, check=True
    )
    data = job_file.load_as(Job, None, shown.stdout.splitlines()).data
    assert (data.speeches, data.speech_column, data.where) == (str(notes), "story", {"speaker": ["Client"]})


def test_options_choose_column_rows_and_encoding(tmp_path, capsys) -> None:
    row = "最近我总是失眠，觉得没有人理解我，工作压力很大,A,晚上常常一个人哭，不知道该怎么办才好"
    path = str(write_content(tmp_path / "a.csv", f"one,speaker,two\n{row}\n".encode("gb18030")))
    assert main(["data", "check", path]) == 2
    assert "encoding" in capsys.readouterr().err
    arguments = ["data", "check", path, "--encoding", "gb18030", "--column", "two", "--where", "speaker=A"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "read as: speeches in the column two\n" in text
    assert "languages: zh 100.0 %" in text
    assert text.endswith("data.speech_column=two 'data.where={speaker: [A]}' data.encoding=gb18030\n")


def test_conversations_are_counted_and_read_as_the_options_say(tmp_path, capsys) -> None:
    path = str(annomi(tmp_path / "annomi.csv", {str(n): dialogue(n, 3) for n in range(5)}))
    options = ["--where", "interlocutor=client", "--dialogue", "transcript_id", "--conversations", "contexts"]
    assert main(["data", "check", path, "--column", "utterance_text", *options]) == 0
    text = capsys.readouterr().out
    assert "\n  5 conversations with 15 contexts\n" in text
    assert "; all that the client says in a row counts\n" in text
    source, overrides = text.splitlines()[-2:]
    job = job_file.parse(DataJob, yaml.safe_load(source), "test")
    assert (job.sources[0].dialogue, job.sources[0].conversations) == ("transcript_id", "contexts")
    assert "data.conversations=contexts" in overrides
    assert main(["data", "check", str(esconv(tmp_path / "a.json", [dialogue(1, 2)]))]) == 0
    assert "1 conversations with 2 contexts; conversations contexts reads them\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "speaker"], "--where 'speaker' is not of the form COLUMN=VALUE"),
        (["--where", "speaker=A", "--what", "pairs"], "--conversations and --dialogue are for speeches"),
        (["--encoding", "klingon"], "klingon"),
        (["--column", "none"], "has no column none"),
        (["--what", "pairs"], "accepted are"),
    ],
)
def test_wrong_options_and_files_end_with_one_sentence(notes, capsys, options: list[str], message: str) -> None:
    assert main(["data", "check", str(notes), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_neither_ray_nor_a_model_library_is_loaded(notes) -> None:
    code = (
        "import sys; from psyco_ray.cli.main import main; main(['data', 'check', sys.argv[1], '-q'])\n"
        "sys.exit(', '.join({'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, notes], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "", done.stderr
