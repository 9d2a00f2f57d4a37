"""Classifiers of texts: labels, probabilities, texts that are longer than the model's context."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.classifiers import LABELS, write_classifier
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from psyco_ray.config.errors import InputError
from psyco_ray.models import text_classifier
from psyco_ray.models.text_classifier import TextClassifier, read_labels

TEXTS = ["I sleep badly.", "Nobody would miss me, and I know how I would do it.", "Ich schlafe schlecht – immer."]


def change_config(path: Path, **values) -> Path:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return path


def expected(path: Path, text: str, function: str) -> list[float]:
    """The probabilities of a text alone, by transformers' own forward."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
    return (logits.sigmoid() if function == "sigmoid" else logits.softmax(-1)).tolist()


@pytest.mark.parametrize(
    ("problem_type", "labels", "function"),
    [
        ("single_label_classification", LABELS, "softmax"),
        ("multi_label_classification", LABELS, "sigmoid"),
        (None, LABELS, "softmax"),
        (None, ("risk",), "sigmoid"),
    ],
)
def test_the_problem_type_decides_how_outputs_become_probabilities(tmp_path, problem_type, labels, function) -> None:
    path = write_classifier(tmp_path / "model", problem_type, labels)
    assert read_labels(path) == text_classifier.Labels(labels, function)
    # texts of several lengths in one batch
    for text, windows in zip(TEXTS, TextClassifier(path, "float32").classify(TEXTS), strict=True):
        [window] = windows
        assert (window.start, window.end) == (0, len(text))
        assert window.probabilities == pytest.approx(expected(path, text, function), abs=1e-5)


def test_a_model_gets_only_the_inputs_that_it_takes(tmp_path) -> None:
    path = tmp_path / "model"
    config = DistilBertConfig(vocab_size=320, dim=16, hidden_dim=16, n_heads=2, n_layers=1, num_labels=2)
    DistilBertForSequenceClassification(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(write_classifier(tmp_path / "bert")).save_pretrained(path)
    model = TextClassifier(path, "float32")
    assert model.labels == text_classifier.Labels(("LABEL_0", "LABEL_1"), "softmax")
    assert [len(windows) for windows in model.classify(["I sleep badly.", "Night after night. " * 40])] == [1, 2]


def test_a_long_text_is_read_window_by_window(tmp_path) -> None:
    path = write_classifier(tmp_path / "model", positions=64)
    model = TextClassifier(path, "float32")
    text = "Ich weiß nicht mehr weiter. " * 9 + "And this is the end."
    [windows] = model.classify([text])
    assert len(windows) > 4
    assert (windows[0].start, windows[-1].end) == (0, len(text))
    for before, after in itertools.pairwise(windows):
        assert before.start < after.start < before.end < after.end, "neighbours overlap, and none is skipped"
    for window in (windows[0], windows[-1]):
        alone = expected(path, text[window.start : window.end], "softmax")
        assert window.probabilities == pytest.approx(alone, abs=1e-5)
    assert len(model.classify(["a" * 62])[0]) == 1, "62 bytes and two special tokens fill the context"
    assert len(model.classify(["a" * 63])[0]) == 2


def test_control_tokens_in_a_text_are_text(tmp_path) -> None:
    path = write_classifier(tmp_path / "model")
    text = "I am lost.</s>"
    [[window]] = TextClassifier(path, "float32").classify([text])
    assert (window.start, window.end) == (0, len(text))
    assert window.probabilities != pytest.approx(expected(path, text, "softmax"), abs=1e-4), "not the model's end"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "is no classifier: its config.json names BertForMaskedLM"),
        ({"problem_type": "regression"}, "has the problem_type regression"),
    ],
)
def test_a_model_without_labels_is_refused(tmp_path, change, message) -> None:
    path = change_config(write_classifier(tmp_path / "model"), **change)
    with pytest.raises(InputError, match=message):
        read_labels(path)


def test_a_model_without_its_head_is_refused_instead_of_made_random(tmp_path) -> None:
    path = write_classifier(tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    weights.pop("classifier.weight")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has no weights for classifier\.weight, which would be random"):
        TextClassifier(path, "float32")


def test_code_of_a_model_runs_only_where_it_is_allowed(tmp_path) -> None:
    path = write_classifier(tmp_path / "model")
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnForSequenceClassification"}
    change_config(path, model_type="own", auto_map=own)
    (path / "own.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnForSequenceClassification(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(InputError, match="is loaded by code of its own, which is not run; set allow_code"):
        TextClassifier(path, "float32")
    [[window]] = TextClassifier(path, "float32", allow_code=True).classify(TEXTS[:1])
    assert sum(window.probabilities) == pytest.approx(1)
