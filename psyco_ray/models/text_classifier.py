"""Sequence classifiers with named labels: probabilities of each label, for texts of any length."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError, require_finite
from psyco_ray.models import loading
from psyco_ray.models.control_tokens import plain_pair
from psyco_ray.models.padding import Inputs, logits_of
from psyco_ray.models.reward_model import max_positions

_OVERLAP = 4  # a window shares a quarter of its tokens with the next one, so that no phrase is cut in both
_NO_LIMIT = 10**6  # tokens from which a tokenizer's limit stands for none
_FUNCTIONS = {"multi_label_classification": "sigmoid", "single_label_classification": "softmax"}


@dataclass(frozen=True)
class Labels:
    """The labels of a classifier.

    Attributes:
        names: in the order of its outputs.
        function: sigmoid, of each output alone, or softmax over all of them.
    """

    names: tuple[str, ...]
    function: str


@dataclass(frozen=True)
class Window:
    """A part of a text that the model reads at once.

    Attributes:
        start: offset of its first character.
        end: offset behind its last character.
        probabilities: by label, from 0 to 1.
    """

    start: int
    end: int
    probabilities: tuple[float, ...]


def read_labels(path: Path) -> Labels:
    """The labels of a model directory, and how its outputs become probabilities. Nothing but config.json is read.

    `problem_type` decides: sigmoid for `multi_label_classification`, softmax for `single_label_classification`. Without
    one it is softmax, as in transformers' pipeline, or sigmoid for a single label.

    Raises:
        InputError: the model is no classifier of texts.
    """
    config = loading.read_json(path / "config.json")
    architectures = config.get("architectures") or ["no architecture"]
    if not any("SequenceClassification" in name for name in architectures):
        raise InputError(
            f"{path} is no classifier: its config.json names {architectures[0]}; give a model for sequence "
            "classification"
        )
    named = config.get("id2label") or {number: f"LABEL_{number}" for number in range(config.get("num_labels", 2))}
    names = tuple(str(named[key]) for key in sorted(named, key=int))
    kind = config.get("problem_type")
    if kind is None:
        kind = "single_label_classification" if len(names) > 1 else "multi_label_classification"
    if kind not in _FUNCTIONS:
        raise InputError(f"{path} has the problem_type {kind}; give a model whose outputs are labels")
    return Labels(names, _FUNCTIONS[kind])


class TextClassifier:
    """A frozen classifier.

    Example:
        >>> model = TextClassifier(Path("/models/suicidality"), "float32")
        >>> [[window]] = model.classify(["I cannot go on."])
        >>> dict(zip(model.labels.names, window.probabilities, strict=True))
        {'neutral': 0.03, 'suicidal': 0.97}
    """

    def __init__(
        self, path: Path, dtype: str, gpus: float = 0.0, row_tokens: int = 2048, allow_code: bool = False
    ) -> None:
        """Load the model.

        Args:
            path: its directory.
            dtype: of its weights.
            gpus: 0: it computes on the CPU. More than one: its layers are spread over them.
            row_tokens: tokens of one forward pass.
            allow_code: whether the model's own code may run.

        Raises:
            InputError: the model cannot be loaded, lacks weights, or has no fast tokenizer.
        """
        import torch

        self.labels = read_labels(path)
        self._name, self._row_tokens = str(path), row_tokens
        self._device = torch.device("cuda" if gpus else "cpu")
        model = _load(path, dtype, "auto" if gpus > 1 else None, allow_code).eval()
        self._model = model if gpus > 1 else model.to(self._device)
        self._pad = model.config.get_text_config().pad_token_id
        self._tokenizer = loading.load_any_tokenizer(path, allow_code)
        if not self._tokenizer.is_fast:
            raise InputError(
                f"{path} has no fast tokenizer, which tells where tokens are in a text; add tokenizer.json"
            )
        accepted = inspect.signature(model.forward).parameters  # a tokenizer may give more than its model takes
        self._inputs = [name for name in self._tokenizer.model_input_names if name in accepted]
        limits = (max_positions(model), self._tokenizer.model_max_length)
        self._tokens = min((limit for limit in limits if limit and limit < _NO_LIMIT), default=None)

    def classify(self, texts: Sequence[str]) -> list[list[Window]]:
        """Classify texts; one that is longer than the model's context is read in overlapping windows.

        The probabilities depend on the other texts as far as batches differ in their rounding; the same texts give the
        same ones.

        Raises:
            NonFiniteError: an output is not finite.
        """
        import torch

        places: list[tuple[int, int, int]] = []  # text, start and end of each window
        inputs: list[Inputs] = []
        for index, text in enumerate(texts):
            for start, end, window in self._windows(text):
                places.append((index, start, end))
                inputs.append(window)
        with torch.inference_mode():
            logits = torch.tensor(logits_of(self._model, inputs, self._pad, self._row_tokens, self._device))
        require_finite(
            logits.flatten().tolist(),
            f"an output of {self._name}",
            "its weights are damaged, or too large for the dtype; copy the model again, or choose float32",
        )
        values = logits.sigmoid() if self.labels.function == "sigmoid" else logits.softmax(-1)
        windows: list[list[Window]] = [[] for _ in texts]
        for (index, start, end), row in zip(places, values.tolist(), strict=True):
            windows[index].append(Window(start, end, tuple(row)))
        return windows

    def _windows(self, text: str) -> list[tuple[int, int, Inputs]]:
        """The start, end and inputs of each window of a text."""
        # [SEP] in a client's words is text
        tokenizer, words, _ = plain_pair(self._tokenizer, text, "")
        whole = tokenizer(words)
        if self._tokens is None or len(whole["input_ids"]) <= self._tokens:
            return [(0, len(text), {name: whole[name] for name in self._inputs})]
        room = self._tokens - self._tokenizer.num_special_tokens_to_add()
        encoded = tokenizer(
            words,
            truncation=True,
            max_length=self._tokens,
            stride=room // _OVERLAP,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        windows = []
        for number, offsets in enumerate(encoded["offset_mapping"]):
            read = [(start, end) for start, end in offsets if end > start]  # special tokens have no characters
            inputs = {name: encoded[name][number] for name in self._inputs}
            # a marker that could only be broken makes the text longer
            first, last = (min(place, len(text)) for place in (read[0][0], read[-1][1]))
            windows.append((first, last, inputs))
        return windows


def _load(path: Path, dtype: str, device_map: str | None, allow_code: bool) -> Any:
    """Load a classifier from safetensors.

    Raises:
        InputError: it cannot be loaded, or its head or another weight is missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=allow_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        if not allow_code and "auto_map" in loading.read_json(path / "config.json"):
            raise InputError(
                f"the model in {path} is loaded by code of its own, which is not run; set allow_code if you trust it, "
                "or choose a model that transformers supports itself"
            ) from None
        raise InputError(f"{path} cannot be loaded: {str(error).splitlines()[0]}; copy the model again") from None
    if missing := sorted(loaded["missing_keys"]):
        raise InputError(f"{path} has no weights for {missing[0]}, which would be random; copy the model again")
    return model
