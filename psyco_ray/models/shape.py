"""The sizes of a language model that determine its memory and its operations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError


@dataclass(frozen=True)
class ModelShape:
    """A decoder of attention and gated feed-forward layers, as Llama's."""

    name: str
    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    intermediate: int  # of a feed-forward layer
    heads: int  # of queries
    kv_heads: int
    head_size: int
    tied: bool  # the output layer is the embedding

    @property
    def kv_token_values(self) -> int:
        """Keys and values of a token in a KV cache."""
        return 2 * self.layers * self.kv_heads * self.head_size


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3.1-8b", 8_030_261_248, 32, 4096, 128_256, 14_336, 32, 8, 128, False),
        ModelShape("llama-3.2-3b", 3_212_749_824, 28, 3072, 128_256, 8192, 24, 8, 128, True),
        ModelShape("smollm2-135m", 134_515_008, 30, 576, 49_152, 1536, 9, 3, 64, True),
    )
}


def shape_of(model: str) -> ModelShape:
    """The shape of a model by its name, or by the ``config.json`` of its directory.

    Raises:
        InputError: the name is unknown, or config.json is invalid.
    """
    name = model.rsplit("/", 1)[-1].lower().removeprefix("meta-").removesuffix("-instruct")
    if name in SHAPES:
        return SHAPES[name]
    if not (Path(model) / "config.json").is_file():
        raise InputError(
            f"the size of model {model!r} is not known; give one of {', '.join(SHAPES)} or a directory with config.json"
        )
    import torch

    from psyco_ray.models import loading

    config = loading.load_config(Path(model))
    with torch.device("meta"):  # counted without their memory
        parameters = loading.causal_class(config).from_config(config, trust_remote_code=False).num_parameters()
    return shape_in(config.get_text_config(), model, parameters)


def shape_in(text: Any, name: str, parameters: int) -> ModelShape:
    """The shape that a text configuration of transformers describes."""
    heads = getattr(text, "num_attention_heads", None) or 1  # some have no attention
    return ModelShape(
        name=name,
        parameters=parameters,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )


def value_bytes(dtype: str) -> int:
    """Bytes of a value of a compute dtype: float32, or one of 16 bits."""
    return 4 if dtype == "float32" else 2
