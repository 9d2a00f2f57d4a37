"""A client is removed from everything that runs have left."""

import contextlib
import csv
import gzip
import html
import json
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import expert_files
from support.logs import messages
from support.raw_speeches import speech

from psyco_ray.cli.main import main
from psyco_ray.data import forget_seen, forget_tables
from psyco_ray.data.forget_seen import seen
from psyco_ray.data.splits import speech_id
from psyco_ray.data.traces import Traces
from psyco_ray.evaluate import annotation
from psyco_ray.judge.batch_state import BatchState
from psyco_ray.judge.calls import Answer
from psyco_ray.judge.journal import Journal, spent
from psyco_ray.run import manifests, shards, storage
from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.remote import RemoteDirectory
from psyco_ray.run.schemas import COLLECTED, COMPARISONS, DIALOGUES, RESPONSES

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
    (root / "batches" / "state.json").write_text(
        json.dumps({"next": 0, "batches": [], "provider_files": {"file-1": True, "file-2": False}})
    )
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


def test_sources_in_any_format_and_place_are_named_and_the_runs_own_files_are_not(dataset, tmp_path, capsys) -> None:
    text = f'text\n"{GONE}"\n'
    (tmp_path / "old.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "wide.csv").write_bytes(text.encode("utf-16"))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("one.csv", text)
        archive.writestr("two.csv", "text\nother\n")
    (tmp_path / "paid").mkdir()
    (tmp_path / "paid" / "a.jsonl").write_text(json.dumps({"speech_id": speech_id(GONE)}) + "\n")
    (tmp_path / "others.csv").write_text(f'text\n"{STAYS}"\n')
    named = ["old.csv.gz", "wide.csv", "all.zip#one.csv", "paid", "others.csv", "run"]
    (dataset / "job.yaml").write_text(json.dumps({"named": [str(tmp_path / name) for name in named]}))
    (dataset / "final").mkdir()
    (dataset / "final" / "trained_pairs.json").write_text(json.dumps({"pairs": 0, "digests": []}))
    assert main(["forget", str(dataset), "--speech-id", speech_id(GONE)]) == 0
    told = capsys.readouterr().out
    [sources] = [line for line in told.splitlines() if "files of its job that hold the client" in line]
    found = sources.partition("client: ")[2].partition(";")[0].split(", ")
    assert found == [str(tmp_path / name) for name in (*named[:3], "paid/a.jsonl")]
    assert "weights that saw the client: final" in told


def test_a_run_that_names_its_own_directory_alone_has_no_sources(dataset, tmp_path, capsys) -> None:
    (dataset / "job.yaml").write_text(f"run_dir: {dataset}\n")
    (dataset / "final").mkdir()
    (dataset / "final" / "trained_pairs.json").write_text(json.dumps({"pairs": 0, "digests": []}))
    assert main(["forget", str(dataset), "--speech-id", speech_id(GONE)]) == 0
    told = capsys.readouterr().out
    assert "remove the client there" not in told
    assert "weights that saw" not in told


def test_a_batch_in_progress_goes_on_without_the_client(dataset) -> None:
    state = BatchState(dataset / "batches" / "state.json")
    state.add([(key, speech_id(text), request(key, text)) for key, text in (("k1", GONE), ("k2", STAYS))])
    assert main(["forget", str(dataset), "--speech-id", speech_id(GONE)]) == 0
    [sent] = BatchState(dataset / "batches" / "state.json").sent
    assert state.speeches(sent) == {"k2": speech_id(STAYS)}
    assert state.path(sent, "requests").read_bytes() == request("k2", STAYS)


def request(key: str, text: str) -> bytes:
    """A line of a batch's file."""
    messages = [{"role": "user", "content": f"Speech:\n{text}\n"}]
    return json.dumps({"custom_id": key, "body": {"messages": messages}}).encode() + b"\n"


def test_a_damaged_table_is_one_sentence(dataset, capsys) -> None:
    (dataset / "broken.parquet").write_bytes(b"PAR1")
    assert main(["forget", str(dataset), "--speech-id", speech_id(GONE)]) == 2
    assert "broken.parquet is damaged" in capsys.readouterr().err


def test_unfinished_files_of_other_commands_stay_in_the_cache(dataset, tmp_path) -> None:
    download = tmp_path / "cache" / "fetched" / ".model.partial-1"
    download.mkdir(parents=True)
    assert main(["forget", str(dataset), "--speech-id", speech_id(GONE)]) == 0
    assert download.is_dir()
    assert not (dataset / ".collecting").exists()


def test_exports_keep_nothing_that_models_said_to_the_client(dataset, tmp_path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "expert-1.csv").write_text(f'item,speech,response\n1,"{GONE}","{REPLY}"\n2,"{STAYS}","I hear you."\n')
    assert main(["forget", str(export), str(dataset), "--speech-id", speech_id(GONE)]) == 0
    assert holding(export, GONE, REPLY) == []
    assert STAYS in (export / "expert-1.csv").read_text()


def test_items_of_experts_go_from_the_key_and_the_sheets(dataset, tmp_path) -> None:
    export = dataset / "annotation"
    pairs = [
        {"prefID": f"{speech_id(text)}-1", "ID": speech_id(text), "question": text, "chosen": REPLY, "rejected": "No."}
        for text in (GONE, STAYS, speech(3))
    ]
    annotation.export(pairs, export, count=3)
    filled = [row | {"overall preference": "B"} for row in expert_files.read(export / "expert-1.csv")]
    with open(export / "expert-1.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, filled[0], delimiter=";")  # as a spreadsheet saves it
        writer.writeheader()
        writer.writerows(filled)
    items = json.loads((export / "key.json").read_text())["items"]
    [gone] = [item for item, entry in items.items() if entry["ID"] == speech_id(GONE)]
    assert main(["forget", str(dataset), "--speech-id", speech_id(GONE)]) == 0
    left = json.loads((export / "key.json").read_text())["items"]
    assert left == {item: entry for item, entry in items.items() if item != gone}
    for name in ("expert-1.csv", "expert-2.csv"):
        assert {row["item"] for row in expert_files.read(export / name)} == set(left)
    scored = annotation.score(export)
    assert scored["items"] == 2
    assert scored["experts"]["expert-1"]["filled"] == 2


def test_tables_are_read_in_parts(dataset, tmp_path) -> None:
    text = pa.array([f"{n:>08}" * 60 for n in range(2000)])
    with pq.ParquetWriter(dataset / "large.parquet", pa.schema([("speech", pa.string())])) as writer:
        for _ in range(60):  # of 1 MB
            writer.write_table(pa.table({"speech": text}))
        writer.write_table(pa.table({"speech": [STAYS, GONE]}))
    shutil.copy(dataset / "large.parquet", tmp_path / "source.parquet")
    pq.write_table(pq.read_table(dataset / "large.parquet"), dataset / "one-group.parquet")
    (dataset / "job.yaml").write_text(f"sources: [{tmp_path}/source.parquet]\n")
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert main(["forget", str(dataset), "--speech-id", speech_id(GONE)]) == 0
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 16e6
    for name in ("large", "one-group"):
        table = pq.read_table(dataset / f"{name}.parquet")
        assert table.num_rows == 60 * 2000 + 1
        assert table["speech"][-1].as_py() == STAYS


def test_large_texts_are_searched_in_parts_that_overlap(tmp_path, monkeypatch) -> None:
    traces = Traces()
    traces.add_text(GONE)
    monkeypatch.setattr(forget_seen, "_CHUNK", 2**20)
    for begin in (0, 2**20 - 50, 2 * 2**20 - 5):
        path = tmp_path / "notes.txt"
        path.write_text(". " * (begin // 2) + json.dumps(GONE) + ". " * 2**20)
        assert forget_seen.holds(path, traces)
    path.write_text(". " * 2**21 + STAYS)
    assert not forget_seen.holds(path, traces)


@pytest.mark.parametrize("priced", [True, False])
def test_lines_that_another_machine_keeps_do_not_come_back(place, monkeypatch, tmp_path, priced) -> None:
    gone, stays, late = (f"ab{number}".ljust(16, "0") for number in range(3))  # of one file

    def work(cache: str, *ids: str, uploaded: bool = True) -> RunDirectory:
        monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / cache))
        with contextlib.ExitStack() as held:
            run = held.enter_context(contextlib.closing(RunDirectory(place, may_be_remote=True)))
            if uploaded:
                held.enter_context(run.mirrored("judge"))
            journal = held.enter_context(contextlib.closing(Journal(run.root / "judge" / "journal", "writer")))
            for key in ids:
                journal.add(key, key * 4, Answer("an answer", True, 9, 9), 0.25 if priced else None)
        return run

    work("there", gone, stays)
    work("there", late, uploaded=False)  # paid for, and the machine died before it was sent
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "here"))
    assert main(["forget", place, "--speech-id", gone]) == 0
    again = work("there")
    remote = RemoteDirectory(place).read("judge/journal/ab/writer.jsonl")
    assert remote == (again.root / "judge" / "journal" / "ab" / "writer.jsonl").read_bytes()
    assert gone.encode() not in remote
    answers = Journal(again.root / "judge" / "journal", "other").load("ab")
    assert set(answers) == {stays * 4, late * 4}, "nothing else is lost"
    assert spent(again.root / "judge" / "journal") == (0.75 if priced else 0)


def test_words_that_are_too_few_are_told(dataset, tmp_path) -> None:
    (tmp_path / "few.txt").write_text("I am sad.")
    logged = messages()
    assert main(["forget", str(dataset), "--text-file", str(tmp_path / "few.txt")]) == 2
    assert any("few.txt has fewer than 20 letters" in line for line in logged)


def test_what_was_spent_on_a_client_stays_in_the_budget(dataset) -> None:
    journal = Journal(dataset / "journal", "other")
    for text in (GONE, STAYS):
        journal.add(speech_id(text), speech_id(text) * 4, Answer("an answer", True, 9, 9), 0.25)
    journal.close()
    assert main(["forget", str(dataset), "--speech-id", speech_id(GONE)]) == 0
    assert holding(dataset, GONE) == []
    assert spent(dataset / "journal") == 0.5
    assert Journal(dataset / "journal", "next").load(speech_id(GONE)[:2]) == {}


def test_weights_of_a_remote_run_are_named(place, tmp_path) -> None:
    root = tmp_path / "mirror"
    (root / "iteration-001").mkdir(parents=True)
    pq.write_table(pa.table({"speech_id": [speech_id(GONE)]}), root / "iteration-001" / "pairs.parquet")
    with storage.atomic_dir(storage.join(place, "iteration-001/checkpoint")) as staging:
        (staging / "config.json").write_text("{}")
    assert seen(root, Traces({speech_id(GONE)}), place).trained == ["iteration-001/checkpoint"]


def test_nested_columns_are_searched_without_reading_every_row(tmp_path) -> None:
    rows = [
        {"kinds": ["abuse"], "flags": [{"kind": "abuse", "start": 1}], "turns": None},
        {"kinds": [], "flags": None, "turns": [{"role": "user", "content": GONE}]},
        {
            "kinds": None,
            "flags": [],
            "turns": [{"role": "user", "content": STAYS}, {"role": "assistant", "content": GONE}],
        },
        {"kinds": ["violence"], "flags": [], "turns": []},
    ]
    table = pa.concat_tables([pa.Table.from_pylist(rows), pa.Table.from_pylist(rows).slice(1)])
    traces = Traces()
    traces.add_text(GONE)
    likely = [forget_tables._likely(table[name], traces).tolist() for name in ("kinds", "flags", "turns")]
    assert likely == [[False] * 7, [False] * 7, [False, True, True, False, True, True, False]]
    assert forget_tables.about(table, traces)[0].tolist() == [True, False, False, True, False, False, True]


def test_what_a_dialogue_holds_of_a_client_goes_and_its_responses_are_looked_for_elsewhere(tmp_path) -> None:
    said = "What is it like to lie awake when all others in the house are asleep?"
    row = {
        "speech_id": "3f2a",
        "index": 0,
        "speech": "I lie awake every night.",
        "responses": ["Oh.", said],
        "left": False,
    }
    path = tmp_path / "dialogues.parquet"
    rows = [
        row | {"replies": ["Yes."]},
        row | {"speech_id": "77aa", "speech": "Nobody calls me any more.", "responses": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=DIALOGUES), path)
    traces, elsewhere = Traces({"3f2a"}), Traces()
    forget_tables.learn(path, traces)
    assert forget_tables.remove(path, traces, elsewhere) == 1
    assert [left["speech_id"] for left in pq.read_table(path).to_pylist()] == ["77aa"]
    assert "[forgotten]" in elsewhere.masked(f"Therapist: {said}")
