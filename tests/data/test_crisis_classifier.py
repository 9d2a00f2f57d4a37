"""A classifier that reads the collected speeches: its model and labels, and what it writes."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.classifiers import LABELS, write_classifier

from psyco_ray.config import job_file
from psyco_ray.config.contexts import Context
from psyco_ray.config.data import CrisisClassifier, DataJob
from psyco_ray.config.errors import InputError
from psyco_ray.data import crisis_classifier
from psyco_ray.data.crisis_classifier import ClassifierActor
from psyco_ray.models.text_classifier import TextClassifier
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED

KINDS = {"suicidal": "self-harm", "hostile": "violence"}
SPEECHES = [
    {"speech_id": f"0{n}", "speech": text}
    for n, text in enumerate(["I sleep badly.", "Nobody would miss me.", "よく眠れません。", "I am so angry. " * 12])
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier") / "tiny-classifier", positions=64)


def settings(model: object, **more) -> CrisisClassifier:
    return CrisisClassifier(model=str(model), **{"labels": KINDS, **more})


def classified(root: Path, chosen: CrisisClassifier, speeches: list[dict] = SPEECHES) -> list[dict]:
    shards.write(root / "collect" / "speeches", "0", speeches, COLLECTED)
    actor = ClassifierActor(chosen, "tiny-classifier", root)
    actor.ready()
    assert list(actor.classify("0")) == ["0"]
    return shards.read(root / "classify", "0")


def test_a_label_from_the_threshold_flags_its_window(tmp_path, model) -> None:
    texts = [row["speech"] for row in SPEECHES]
    windows = TextClassifier(model, "float32").classify(texts)
    highest = sorted(max(window.probabilities[1] for window in of_text) for of_text in windows)
    threshold = (highest[1] + highest[2]) / 2
    rows = classified(tmp_path, settings(model, threshold=threshold))
    assert [row["speech_id"] for row in rows] == [row["speech_id"] for row in SPEECHES]
    for row, of_text in zip(rows, windows, strict=True):
        expected = [
            {"kind": kind, "start": window.start, "end": window.end, "by": "classifier"}
            for index, kind in ((1, "self-harm"), (2, "violence"))
            for window in of_text
            if window.probabilities[index] >= threshold
        ]
        assert row["flags"] == expected
        scores = {one["label"]: one["score"] for one in row["scores"]}
        for label, score in scores.items():
            index = LABELS.index(label)
            assert score == pytest.approx(max(window.probabilities[index] for window in of_text), abs=1e-6)
        assert row["model"] == "tiny-classifier"
    assert sum(any(one["kind"] == "self-harm" for one in row["flags"]) for row in rows) == 2
    assert len(windows[3]) > 1, "the last speech is longer than the model's context"


def test_two_labels_of_one_kind_flag_a_window_once(tmp_path, model) -> None:
    rows = classified(tmp_path, settings(model, labels=dict.fromkeys(LABELS, "abuse"), threshold=0.01))
    assert [len(row["flags"]) for row in rows[:3]] == [1, 1, 1]


def test_each_of_the_clients_turns_is_read_and_flagged_where_it_is_in_the_transcript(tmp_path, model) -> None:
    context = Context(("I sleep badly.", "Do you want to die?", "Nobody would miss me.", "I hear you.", "Hm."))
    rows = [{"speech_id": "0a", "speech": context.text}, {"speech_id": "0b", "speech": "I sleep badly."}]
    chosen = settings(model, labels=dict.fromkeys(LABELS, "abuse"), threshold=0.01)
    flagged, alone = classified(tmp_path, chosen, rows)
    said = [context.transcript[one["start"] : one["end"]] for one in flagged["flags"]]
    assert said == [*context.client_turns]
    highest = {one["label"]: one["score"] for one in flagged["scores"]}
    assert all(highest[one["label"]] >= one["score"] - 1e-6 for one in alone["scores"]), "of any turn"


def test_a_part_has_the_same_bytes_in_every_run(tmp_path, model) -> None:
    digests = set()
    for name in "ab":
        classified(tmp_path / name, settings(model, row_tokens=40))
        digests.add(hashlib.sha256((tmp_path / name / "classify" / "0.parquet").read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"suicide": "self-harm"}}, "names 'suicide', which .* does not have; its labels are neutral, suic"),
        (
            {"model": "somewhere/else"},
            "else is no directory here; of a hub id pin crisis.classifier.revision, the 40 h",
        ),
        ({"model": "somewhere/else@main"}, "pin crisis.classifier.revision"),
        ({"model": "somewhere/else", "revision": "v1", "allow_code": True}, "pin crisis.classifier.revision"),
        ({"model": "/no/such/directory"}, "'/no/such/directory' is neither a directory, nor a hub id"),
    ],
)
def test_a_model_that_cannot_be_used_is_named_before_ray_starts(model, change, message) -> None:
    with pytest.raises(InputError, match=message):
        crisis_classifier.check(settings(**{"model": model, **change}))


def test_weights_as_pickles_are_refused(tmp_path) -> None:
    path = write_classifier(tmp_path / "model")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    for allow_code in (False, True):
        with pytest.raises(InputError, match=r"has no \*\.safetensors weights; convert"):
            crisis_classifier.check(settings(path, allow_code=allow_code))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("labels={suicidal: sadness}", "crisis.classifier.labels.suicidal"),
        ("labels={}", "crisis.classifier.labels"),
        ("threshold=1", "crisis.classifier.threshold"),
    ],
)
def test_settings_of_a_classifier_are_checked(given, message) -> None:
    keys = ["sources=[{name: a, path: a.csv}]", "crisis.classifier={model: m, labels: {suicidal: self-harm}}"]
    with pytest.raises(InputError, match=message):
        job_file.load_as(DataJob, None, [*keys, f"crisis.classifier.{given}"])


def test_cards_and_tables_name_a_model_without_its_place(model) -> None:
    assert crisis_classifier.name_of(settings(model)) == "tiny-classifier"
    assert crisis_classifier.name_of(settings("owner/name")) == "owner/name"
    assert crisis_classifier.name_of(settings("s3://bucket/models/tiny/?region=x")) == "tiny"
