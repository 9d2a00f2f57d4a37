"""Llamas of known shapes: what a pass over pairs computes, and directories with random weights.

Operations of a forward pass are those of matrix products, over all pairs:
    2 * matrix parameters of the layers * tokens (a prompt once, then both responses)
  + 2 * hidden * vocabulary * response tokens (the output layer, which no prompt token passes)
  + 4 * layers * heads * head size * pairs of a token and one that it sees (itself and what is before it, not the other
    response).
The embedding is looked up and not counted, nor are recomputation, what fills rows up, and what is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psyco_ray.models import loading

LLAMAS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 50048,  # more than the tokenizer has, as those of 3b and 8b
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "3b": {
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}


def of(model: str) -> Any:
    """A model's transformers configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(loading.resolve(model))


def layer_parameters(shape: Any) -> int:
    """Parameters of the matrices of one layer of a Llama, by its configuration."""
    queries, keys = (shape.head_dim * heads for heads in (shape.num_attention_heads, shape.num_key_value_heads))
    return shape.hidden_size * (2 * queries + 2 * keys + 3 * shape.intermediate_size)


def forward_flops(shape: Any, pairs: Sequence[tuple[int, ...]]) -> int:
    """Operations of a forward pass over pairs, by the tokens of their prompts and responses."""
    found = 0
    for prompt, *responses in pairs:
        seen = prompt * (prompt + 1) // 2 + sum(r * prompt + r * (r + 1) // 2 for r in responses)
        found += 2 * shape.num_hidden_layers * layer_parameters(shape) * (prompt + sum(responses))
        found += 2 * shape.hidden_size * shape.vocab_size * sum(responses)
        found += 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * seen
    return found


def training_flops(shape: Any, pairs: Sequence[tuple[int, ...]]) -> int:
    """Operations of a forward and a backward pass, which takes twice as many."""
    return 3 * forward_flops(shape, pairs)


def write(name: str, target: str) -> None:
    """Write a Llama of that shape with random weights, the same on every device of a kind, and SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = loading.load_tokenizer(loading.resolve("smollm2-135m"))
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = LlamaConfig(**LLAMAS[name], max_position_embeddings=8192, **tokens)
    with torch.device("meta"):
        sizes = {key: tensor.shape for key, tensor in LlamaForCausalLM(shape).state_dict().items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    state = {}
    for key, size in sizes.items():
        if key == "lm_head.weight" and shape.tie_word_embeddings:
            continue
        tensor = torch.ones(size, dtype=torch.bfloat16, device=device)
        state[key] = (tensor if "norm" in key else tensor.normal_(0, 0.02, generator=generator)).cpu()
    loading.save(target, state, shape, tokenizer)
