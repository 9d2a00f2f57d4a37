"""The flags of lexicon, classifier and judge in the columns of the collected speeches."""

import json
from pathlib import Path

from psyco_ray.config import job_file
from psyco_ray.config.data import DataJob
from psyco_ray.data import crisis_flags
from psyco_ray.data.crisis_flags import columns, flag
from psyco_ray.data.dataset import Dataset
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED, COLLECTED_DIALOGUES, CRISIS_SIGNS

JUDGED = "crisis.judge={model: m}"
CLASSIFIED = "crisis.classifier={model: /m, labels: {bad: violence}}"
NONE = dict.fromkeys(("self-harm", "violence", "abuse", "eating disorder"), 0)
SPEECHES = [
    {"speech_id": "0a", "language": "en", **columns({"lexicon": [flag("self-harm", "lexicon", 0, 4)]})},
    {"speech_id": "0b", "language": "en", **columns({"lexicon": []})},
    {"speech_id": "0c", "language": "ja", **columns({})},
    {"speech_id": "0d", "language": "it", **columns({})},
]


def dataset_of(root: Path, *keys: str) -> Dataset:
    job = job_file.load_as(DataJob, None, [f"run_dir={root}", "sources=[{name: a, path: a.csv}]", *keys])
    return Dataset(job)


def write_stage(root: Path, stage: str, flags: dict[str, list[dict]], done: bool = True) -> None:
    rows = [{"speech_id": key, "flags": of_speech} for key, of_speech in flags.items()]
    shards.write(root / stage, "0", rows, CRISIS_SIGNS)
    if done:
        (root / f"{stage}.json").write_text(json.dumps({"stage": stage}))


def merged(root: Path, *keys: str) -> dict[str, dict]:
    dataset = dataset_of(root, *keys)
    try:
        crisis_flags.merge(dataset)
    finally:
        dataset.close()
    return {row["speech_id"]: row for row in shards.read(root / "collect" / "speeches", "0")}


def test_a_merge_keeps_the_dialogues_of_contexts(tmp_path) -> None:
    directory = tmp_path / "collect" / "speeches"
    rows = [row | {"dialogue": "0e", "turn": turn} for turn, row in enumerate(SPEECHES, 1)]
    shards.write(directory, "0", rows, COLLECTED_DIALOGUES)
    write_stage(tmp_path, "crisis", {"0b": [flag("abuse", "judge")]})
    found = merged(tmp_path, JUDGED)
    assert {key: (row["dialogue"], row["turn"]) for key, row in found.items()} == {
        row["speech_id"]: (row["dialogue"], row["turn"]) for row in rows
    }
    assert found["0b"]["crisis"] == ["abuse"]


def test_flags_of_all_stages_are_merged_and_a_stage_can_be_taken_back(tmp_path) -> None:
    shards.write(tmp_path / "collect" / "speeches", "0", SPEECHES, COLLECTED)
    before = (tmp_path / "collect" / "speeches" / "0.parquet").read_bytes()
    judged = {"0a": [flag("abuse", "judge"), flag("self-harm", "judge")], "0b": [], "0c": [flag("abuse", "judge")]}
    write_stage(tmp_path, "crisis", judged)
    write_stage(tmp_path, "classify", {"0c": [], "0b": [flag("violence", "classifier", 2, 7)]})
    rows = merged(tmp_path, JUDGED, CLASSIFIED)
    assert {key: row["crisis"] for key, row in rows.items()} == {
        "0a": ["self-harm", "abuse"],
        "0b": ["violence"],
        "0c": ["abuse"],
        "0d": None,
    }
    assert {key: row["screened_by"] for key, row in rows.items()} == {
        "0a": ["lexicon", "judge"],
        "0b": ["lexicon", "classifier", "judge"],
        "0c": ["classifier", "judge"],
        "0d": [],
    }
    assert rows["0b"]["crisis_flags"] == [{"kind": "violence", "start": 2, "end": 7, "by": "classifier"}]
    assert rows["0a"]["crisis_flags"][0] == {"kind": "self-harm", "start": 0, "end": 4, "by": "lexicon"}
    assert rows["0d"]["crisis_flags"] is None
    once = (tmp_path / "collect" / "speeches" / "0.parquet").read_bytes()
    assert merged(tmp_path, JUDGED, CLASSIFIED) == rows
    assert (tmp_path / "collect" / "speeches" / "0.parquet").read_bytes() == once
    assert merged(tmp_path, JUDGED)["0b"]["screened_by"] == ["lexicon", "judge"]
    merged(tmp_path)
    assert (tmp_path / "collect" / "speeches" / "0.parquet").read_bytes() == before


def test_an_unfinished_stage_is_not_merged(tmp_path) -> None:
    shards.write(tmp_path / "collect" / "speeches", "0", SPEECHES, COLLECTED)
    write_stage(tmp_path, "crisis", {"0c": []}, done=False)
    assert merged(tmp_path, JUDGED)["0c"]["crisis"] is None


def test_a_table_of_an_earlier_version_was_read_by_the_lexicon(tmp_path) -> None:
    earlier = COLLECTED.remove(COLLECTED.get_field_index("screened_by"))
    earlier = earlier.remove(earlier.get_field_index("crisis_flags"))
    rows = [{"speech_id": "0a", "crisis": ["abuse"]}, {"speech_id": "0b", "crisis": None}]
    shards.write(tmp_path / "collect" / "speeches", "0", rows, earlier)
    write_stage(tmp_path, "crisis", {"0a": [], "0b": []})
    found = merged(tmp_path, JUDGED)
    assert found["0a"]["crisis_flags"] == [{"kind": "abuse", "start": None, "end": None, "by": "lexicon"}]
    assert found["0a"]["screened_by"] == ["lexicon", "judge"]
    assert (found["0b"]["crisis"], found["0b"]["screened_by"]) == ([], ["judge"])
    counted = crisis_flags.count(rows)
    assert counted is not None
    assert (counted["kinds"]["abuse"], counted["not_screened"]) == (1, {"und": 1})


def test_counts_say_who_read_and_who_alone_flagged(tmp_path) -> None:
    flags = {"lexicon": [flag("self-harm", "lexicon", 0, 4)] * 2, "judge": [flag("abuse", "judge")]}
    rows = [
        {"language": "en", **columns(flags)},
        {"language": "ja", **columns({"judge": [flag("abuse", "judge")]})},
        {"language": "en", **columns({"lexicon": [], "judge": []})},
        {"language": "it", **columns({})},
        {"language": "it", **columns({})},
    ]
    assert crisis_flags.count(rows) == {
        "kinds": NONE | {"self-harm": 1, "abuse": 2},
        "flagged": 2,
        "stages": {
            "lexicon": {"read": 2, "flagged": 1, "alone": 0, "kinds": NONE | {"self-harm": 1}},
            "judge": {"read": 3, "flagged": 2, "alone": 1, "kinds": NONE | {"abuse": 2}},
        },
        "not_screened": {"it": 2},
    }
    assert crisis_flags.count([]) is None
