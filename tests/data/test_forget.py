"""A client is removed from everything that runs have left."""

import html
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.raw_speeches import speech

from psyco_ray.cli.main import main
from psyco_ray.data.splits import speech_id
from psyco_ray.data.traces import Traces
from psyco_ray.judge.calls import Answer
from psyco_ray.judge.journal import Journal
from psyco_ray.run import manifests, shards
from psyco_ray.run.schemas import COLLECTED, COMPARISONS, RESPONSES

GONE, STAYS = speech(1), speech(2)
REPLY = "It sounds as if these nights are long. What goes through your mind then?"


def collected(text: str) -> dict:
    return {"speech_id": speech_id(text), "speech": text, "split": "train", "source": "clinic", "source_row": 1}


def response(text: str, reply: str) -> dict:
    return {"speech_id": speech_id(text), "model": "kind", "response": reply, "finished": True}


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Path:
    """What a dataset and an evaluation leave, about two clients."""
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "run"
    shards.write(root / "collect" / "speeches", "0", [collected(GONE), collected(STAYS)], COLLECTED)
    shards.write(root / "respond", "0", [response(GONE, REPLY), response(STAYS, "I hear you.")], RESPONSES)
    asked = json.dumps([{"role": "user", "content": GONE}])
    pairs = [
        {"pair_id": "ab" * 8, "asked": asked, "chosen": REPLY},
        {"pair_id": "cd" * 8, "asked": STAYS, "chosen": "x"},
    ]
    (root / "pairs").mkdir()
    pq.write_table(pa.Table.from_pylist(pairs, schema=COMPARISONS), root / "pairs" / "train.parquet")
    choices = pa.table({"pair": ["ab" * 8, "cd" * 8], "right": [True, False]})
    (root / "ranks").mkdir()
    pq.write_table(choices, root / "ranks" / "0.parquet")
    journal = Journal(root / "journal", "writer")
    for text in (GONE, STAYS):
        journal.add(speech_id(text), speech_id(text) * 4, Answer("an answer", True, 9, 9))
    journal.close()
    (root / "batches").mkdir()
    (root / "batches" / "state.json").write_text(json.dumps({"provider_files": {"file-1": True, "file-2": False}}))
    (root / "evaluation.json").write_text(
        json.dumps({"examples": [{"speech": GONE, "answer": REPLY}, {"speech": STAYS}]})
    )
    page = "<!doctype html><html><body>{}</body></html>"
    shown = "".join(f"<p>{html.escape(text)}</p><p>{html.escape(REPLY)}</p>" for text in (GONE, STAYS))
    (root / "report.html").write_text(page.format(shown))
    (root / "annotation.csv").write_text(f'item,speech\n1,"{GONE}"\n2,"{STAYS}"\n')
    (root / ".collecting").mkdir()
    (root / ".collecting" / "cleaned.arrow").write_bytes(GONE.encode())
    (root / "job.yaml").write_text(f"sources: [{{name: clinic, path: '{tmp_path}/notes*.csv'}}]\n")
    (tmp_path / "notes-1.csv").write_text(f'text\n"{GONE}"\n')
    (tmp_path / "cache" / "runs").mkdir(parents=True)
    (tmp_path / "cache" / "runs" / "copy.json").write_text(json.dumps({"said": GONE}))
    return root


def holding(root: Path, *texts: str) -> list[str]:
    """The files with one of the texts, in any form: Parquet files row by row, others by their bytes."""
    traces = Traces({speech_id(GONE)})
    for text in texts:
        traces.add_text(text)
    found = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        rows = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else []
        content = path.read_bytes().decode("utf-8", "ignore")
        if traces.within([list(row.values()) for row in rows]) or (
            path.suffix != ".parquet" and traces.within(content)
        ):
            found.append(path.relative_to(root).as_posix())
    return found


def test_nothing_of_a_client_is_left(dataset, tmp_path, capsys) -> None:
    assert len(holding(dataset, GONE)) >= 8
    (tmp_path / "words.txt").write_text(f"  {GONE}\n")
    assert main(["forget", str(dataset), "--text-file", str(tmp_path / "words.txt")]) == 0
    assert holding(dataset, GONE, REPLY) == []
    assert holding(tmp_path / "cache", GONE) == []
    told = capsys.readouterr().out
    assert "notes-1.csv; remove the client there, too" in told
    assert "file file-2 at the provider of a batch: NOT deleted" in told
    assert "file file-1 at the provider of a batch: deleted" in told
    [line] = (dataset / "forgotten.jsonl").read_text().splitlines()
    assert json.loads(line)["rows"] == 5
    assert GONE[:20] not in line
    assert speech_id(GONE) not in line


def test_the_others_stay(dataset) -> None:
    assert main(["forget", str(dataset), "--speech-id", speech_id(GONE)]) == 0
    assert [row["speech"] for row in shards.read(dataset / "collect" / "speeches", "0")] == [STAYS]
    assert [row["response"] for row in shards.read(dataset / "respond", "0")] == ["I hear you."]
    assert pq.read_table(dataset / "pairs" / "train.parquet")["pair_id"].to_pylist() == ["cd" * 8]
    assert pq.read_schema(dataset / "pairs" / "train.parquet").equals(COMPARISONS)
    assert pq.read_table(dataset / "ranks" / "0.parquet")["pair"].to_pylist() == ["cd" * 8], "an answer about the pair"
    assert Journal(dataset / "journal", "other").load(speech_id(STAYS)[:2])
    assert html.escape(STAYS) in (dataset / "report.html").read_text()
    assert (dataset / "report.html").read_text().count("<p>") == 4
    assert json.loads((dataset / "evaluation.json").read_text()) == {"examples": [{"speech": STAYS}]}


def test_weights_that_saw_the_client_are_named(dataset, capsys) -> None:
    for iteration, text in ((1, STAYS), (2, GONE), (3, STAYS)):
        directory = dataset / f"iteration-{iteration:03d}"
        (directory / "checkpoint").mkdir(parents=True)
        (directory / "checkpoint" / "README.md").write_text(f"learned from {text}")
        manifests.seal(directory / "checkpoint")
        pq.write_table(pa.table({"speech_id": [speech_id(text)], "chosen": [REPLY]}), directory / "pairs.parquet")
    assert main(["forget", str(dataset), "--speech-id", speech_id(GONE)]) == 0
    told = capsys.readouterr().out
    assert "weights that saw the client: iteration-002/checkpoint, iteration-003/checkpoint; weights do not" in told
    manifests.check(dataset / "iteration-002" / "checkpoint", digests=True)


def test_a_client_that_no_run_holds_and_bad_arguments_are_one_sentence(dataset, tmp_path, capsys) -> None:
    for arguments, message in (
        (["--speech-id", "0" * 16], "none of the directories holds anything of this client"),
        (["--speech-id", "xyz"], "takes the 16 hex digits"),
        ([], "nobody is named; give --speech-id ID, or --text-file"),
        (["--text-file", str(tmp_path / "none.txt")], "none.txt cannot be read"),
    ):
        assert main(["forget", str(dataset), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["forget", str(tmp_path / "nowhere"), "--speech-id", "0" * 16]) == 2
    assert "is not a directory" in capsys.readouterr().err
    assert len(holding(dataset, GONE)) >= 7
