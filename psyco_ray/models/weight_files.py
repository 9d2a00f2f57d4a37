"""A model's tensors under the names, and in the pieces, of its base's weight files.

transformers fuses, splits and renames tensors when it loads some families: experts into one tensor, the text part of an
image model into a model of its own. vLLM reads the files' names alone, and a checkpoint has to replace its base.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from psyco_ray.config.errors import InputError
from psyco_ray.models import loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Tensors = Iterable[tuple[str, torch.Tensor]]

HEAD = "score."
"""Prefix of a reward model's head, which its base may lack."""

_LAYER = re.compile(r".*?\.\d+\.")

_log = logging.getLogger(__name__)


def persistent_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and persistent buffers, such as the routing bias of experts, a tied one once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        buffers = (item for item in module._buffers.items() if item[0] not in module._non_persistent_buffers_set)
        for name, tensor in itertools.chain(module._parameters.items(), buffers):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{path}.{name}" if path else name, tensor


def without_data(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield stand-ins for tensors: their dtypes and, also where ZeRO-3 has emptied them, their whole shapes."""
    import torch

    for name, tensor in tensors:
        yield name, torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device="meta")


class WeightFiles:
    """How a loaded model is written: the names of its base's files, and what they hold beside the model.

    Example:
        >>> files = WeightFiles(model, base)
        >>> [name for name, _ in files.converted(persistent_tensors(model))]
    """

    def __init__(self, model: PreTrainedModel, base: Path) -> None:
        """Compare the model with the base's files; no weights are read.

        Args:
            model: loaded from `base`, before adapters are added to it.
            base: a directory with safetensors.

        Raises:
            InputError: the base is quantised, or its files lack a tensor of the model that is no reward head, or hold
                it in another shape.
        """
        if getattr(model.config, "quantization_config", None):
            raise InputError(f"{base} is quantised, which cannot be trained; give the model that it was made of")
        self.model, self.base = model, base
        self._file_of = _tensor_files(base)
        shapes = _shapes(base, self._file_of)
        self._converts = self._keep_used_conversions()
        stand_ins = list(without_data(persistent_tensors(model)))
        written = {name: tuple(tensor.shape) for name, tensor in self.converted(stand_ins)}
        wrong = [name for name, shape in written.items() if shapes.get(name) != shape and not name.startswith(HEAD)]
        if wrong:
            raise InputError(
                f"the weight files of {base} lack {len(wrong)} tensors of {type(model).__name__}, or hold them in "
                f"another shape, such as {wrong[0]}; give a complete model directory of this family"
            )
        owned = {name for name, _ in stand_ins}
        tied = ((name, stand_ins[0][1]) for name in model.state_dict() if name not in owned)
        self._untouched = sorted(self._file_of.keys() - written.keys() - {name for name, _ in self.converted(tied)})
        if self._untouched and not self.has_head:
            _log.info(
                f"{len(self._untouched)} tensors in the weight files of {base} are no part of {type(model).__name__}, "
                f"such as {self._untouched[0]}: they are not trained, and checkpoints have them as they are"
            )

    @property
    def has_head(self) -> bool:
        """Whether the model is a reward model."""
        return "SequenceClassification" in type(self.model).__name__

    def converted(self, tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors of the model as the files have them; those of a layer are converted together.

        Args:
            tensors: names in the model and whole tensors, in the model's order, or a part of them.
        """
        from transformers.core_model_loading import revert_weight_conversion

        if not self._converts:
            for name, tensor in tensors:
                yield self._in_files(name), tensor
            return
        for _, group in itertools.groupby(tensors, key=lambda item: layer_of(item[0])):
            for name, tensor in revert_weight_conversion(self.model, dict(group)).items():
                yield self._in_files(name), tensor.contiguous()

    def untouched(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what the base's files hold beside a policy, from the files: predictors of later tokens, image parts."""
        from safetensors import safe_open

        names = [] if self.has_head else self._untouched
        for file, group in itertools.groupby(sorted(names, key=self._file_of.__getitem__), self._file_of.__getitem__):
            with safe_open(self.base / file, "pt") as opened:
                for name in group:
                    yield name, opened.get_tensor(name)

    def _in_files(self, name: str) -> str:
        """Add or remove the prefix of the family's body, which files may lack (GPT-2) or have (Llama 4)."""
        prefix = f"{self.model.base_model_prefix}."
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in self._file_of:
                return candidate
        return name

    def _keep_used_conversions(self) -> bool:
        """Keep those of the model's conversions that its files need; returns whether there are any.

        Under ZeRO-3 transformers keeps all that it knows, and would revert renamings that never took place.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        conversions = getattr(self.model, "_weight_conversions", None)
        if conversions is None:
            conversions = get_model_conversion_mapping(self.model)
        converters = [conversion for conversion in conversions if isinstance(conversion, WeightConverter)]
        renamings = [conversion for conversion in conversions if not isinstance(conversion, WeightConverter)]
        own, prefix = set(self.model.state_dict()), f"{self.model.base_model_prefix}."
        used: set[int] = set()
        for name in self._file_of:
            key, matched = name, set()
            for conversion in renamings:
                key, pattern = conversion.rename_source_key(key)
                matched |= {id(conversion)} if pattern is not None else set()
            for conversion in converters:
                key, pattern = conversion.rename_source_key(key)
                if pattern is not None:
                    matched.add(id(conversion))
                    break
            if own & {key, key.removeprefix(prefix), prefix + key}:
                used |= matched
        kept = [conversion for conversion in conversions if id(conversion) in used]
        self.model._weight_conversions = kept
        return bool(kept)


def layer_of(name: str) -> str:
    """The path of the layer that has a tensor; outside of layers the tensor itself."""
    found = _LAYER.match(name)
    return found.group() if found else name


def _tensor_files(base: Path) -> dict[str, str]:
    """The file of each tensor, of the files that transformers loads.

    Raises:
        InputError: the index of the files is damaged.
    """
    from safetensors import safe_open

    index = base / "model.safetensors.index.json"
    if index.is_file():
        named = loading.read_json(index).get("weight_map")
        if not isinstance(named, dict):
            raise InputError(f"{index} has no weight_map; copy the model again")
        return named
    single = base / "model.safetensors"
    names: dict[str, str] = {}
    for file in [single] if single.is_file() else sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names |= dict.fromkeys(opened.keys(), file.name)
    return names


def _shapes(base: Path, file_of: dict[str, str]) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(set(file_of.values())):
        try:
            with safe_open(base / file, "pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{base / file} cannot be read: {error}; copy the model again") from None
    return shapes
