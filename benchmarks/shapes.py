"""Llamas of known shapes: FLOPs of a pass over pairs, and checkpoints with random weights.

The FLOPs of a forward pass are those of its matrix products, over all pairs:
    2 * matrix parameters of the layers * tokens (the prompt once, and both responses)
  + 2 * hidden * vocabulary * response tokens (the output layer; prompt tokens skip it)
  + 4 * layers * heads * head size * attended token pairs (causal; a response does not attend to the other).
The embedding lookup, recomputation, padding and masked products are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psyco_ray.models import loading

# Random logits have a standard deviation of 0.02 * sqrt(hidden), about 1.1. With one 2.3 times as high, 64 tokens of
# 128,256 are drawn once in about 150 tokens.
ENDS, END_SCALE = 64, 2.3

LLAMAS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 50048,  # more than the tokenizer has, as in 3b and 8b
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
    """Loads a model's transformers configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(loading.resolve(model))


def layer_parameters(shape: Any) -> int:
    """Matrix parameters of one Llama layer."""
    queries, keys = (shape.head_dim * heads for heads in (shape.num_attention_heads, shape.num_key_value_heads))
    return shape.hidden_size * (2 * queries + 2 * keys + 3 * shape.intermediate_size)


def forward_flops(shape: Any, pairs: Sequence[tuple[int, ...]]) -> int:
    """FLOPs of a forward pass over pairs.

    Args:
        shape: the model's configuration.
        pairs: tokens of the prompt and of each response."""
    flops = 0
    for prompt, *responses in pairs:
        attended = prompt * (prompt + 1) // 2 + sum(r * prompt + r * (r + 1) // 2 for r in responses)
        flops += 2 * shape.num_hidden_layers * layer_parameters(shape) * (prompt + sum(responses))
        flops += 2 * shape.hidden_size * shape.vocab_size * sum(responses)
        flops += 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * attended
    return flops


def training_flops(shape: Any, pairs: Sequence[tuple[int, ...]]) -> int:
    """FLOPs of a forward and a backward pass; the backward pass takes twice those of the forward pass."""
    return 3 * forward_flops(shape, pairs)


def write(name: str, target: str) -> None:
    """Writes a Llama with random weights, equal on devices of the same kind, and SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = loading.load_tokenizer(loading.resolve("smollm2-135m"))
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = LlamaConfig(**LLAMAS[name], max_position_embeddings=8192, **tokens)
    with torch.device("meta"):
        model = LlamaForCausalLM(shape).to(torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    state = {}
    ends = range(shape.vocab_size - ENDS, shape.vocab_size)  # no text of the tokenizer has them
    for key, parameter in model.named_parameters():
        tensor = torch.ones(parameter.shape, dtype=torch.bfloat16, device=device)
        state[key] = (tensor if "norm" in key else tensor.normal_(0, 0.02, generator=generator)).cpu()
        if key == ("model.embed_tokens.weight" if shape.tie_word_embeddings else "lm_head.weight"):
            state[key][ends.start :] *= END_SCALE
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
    model.save_pretrained(target, state_dict=state)
    tokenizer.save_pretrained(target)


def write_reward_model(model: str, target: str) -> None:
    """Writes a reward model over a policy, with a random head."""
    from pathlib import Path

    from psyco_ray.models import reward_model, saving

    tokenizer = loading.load_tokenizer(Path(model))
    ranking = reward_model.new_model(Path(model), tokenizer, "bfloat16", seed=3)
    saving.save_loaded(Path(target), ranking, tokenizer, Path(model))
