"""Tiny random models of many families, as transformers defines them.

A family has two to four layers, windows and chunks of a few tokens, and random norms, biases and persistent buffers, so
that whatever is lost, cut or carried over changes its log-probabilities.

Example:
    >>> path = families.write("glm4-moe", tmp_path / "glm4-moe")
    >>> model = families.load(path)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

VOCABULARY = 320
PAD, BOS, EOS, OPEN, END = range(5)
"""Ids of `<pad>`, `<s>`, `</s>`, and of the tokens with which the chat template opens and ends a turn."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # peaked enough that log-probabilities tell models apart
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


@dataclass(frozen=True)
class Family:
    """A family's `model_type`, what is special about it, and its settings beside `SMALL`."""

    model_type: str
    traits: str
    settings: dict[str, Any] = field(default_factory=dict)
    kind: str = "causal"  # or "multimodal", whose text part trains, or "encoder", which only scores
    in_vllm: dict[str, Any] = field(default_factory=dict)  # settings under which vLLM computes what transformers does
    why: str = ""  # they are needed
    dtype: str = "float32"  # in vLLM


SLIDING = {"sliding_window": 6}
HEADS = {"head_dim": 32}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA = {**SLIDING, **HEADS, "query_pre_attn_scalar": 32, "final_logit_softcapping": 5.0}
HALF_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
QWEN_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
}
LATENT = {
    "num_key_value_heads": 2,
    "kv_lora_rank": 512,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
MULTIPLIERS = {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.2}
DELTA = {
    **HEADS,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA_HEADS = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 8}
GPT = {"n_embd": 64, "n_inner": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
QWEN_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}}
IMAGES = {"image_token_id": 300, "video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303}
GEMMA_IMAGES = {"boi_token_index": 300, "eoi_token_index": 301, "image_token_index": 302, "mm_tokens_per_image": 4}


def _nested(text: dict[str, Any], vision: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"text_config": {**SMALL, "vocab_size": VOCABULARY, **text}, "vision_config": vision, **settings}


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "dense, tied head", {"tie_word_embeddings": True}),
    "qwen2": Family("qwen2", "dense, biased projections"),
    "qwen3": Family("qwen3", "dense, normed heads", {**HEADS, "tie_word_embeddings": True}),
    "mistral": Family("mistral", "sliding attention", {**SLIDING, **HEADS}),
    "ministral": Family("ministral", "sliding and full attention", {**SLIDING, **HEADS, **HALF_SLIDING}),
    "phi": Family("phi", "biased head, parallel blocks"),
    "phi3": Family("phi3", "fused projections"),
    "olmo2": Family("olmo2", "norms after blocks", {"num_key_value_heads": 2}),
    "olmo3": Family("olmo3", "sliding and full attention", {**SLIDING, **HALF_SLIDING, "num_key_value_heads": 2}),
    "smollm3": Family("smollm3", "layers without positions", {"no_rope_layers": [1, 0]}),
    "glm4": Family("glm4", "norms around blocks", HEADS),
    "stablelm": Family("stablelm", "partly rotated heads", {"hidden_dropout": 0.0}),
    "starcoder2": Family("starcoder2", "dropout of 0.1", {"sliding_window": None, "use_bias": True}),
    "nemotron": Family("nemotron", "squared ReLU", HEADS),
    "exaone4": Family("exaone4", "sliding and full attention", {**SLIDING, **HALF_SLIDING}),
    "gpt2": Family("gpt2", "learned positions", {**GPT, "tie_word_embeddings": True}),
    "gpt-neox": Family("gpt_neox", "parallel blocks", {"hidden_dropout": 0.0, "num_key_value_heads": 2}),
    "opt": Family("opt", "learned positions", {"ffn_dim": 64, "word_embed_proj_dim": 64, "dropout": 0.0}),
    "gemma": Family("gemma", "scaled embeddings", HEADS),
    "gemma2": Family("gemma2", "soft caps, sliding attention", {**GEMMA, "attn_logit_softcapping": 5.0}),
    "gemma3": Family("gemma3_text", "two rotations, sliding attention", {**GEMMA, **HALF_SLIDING}),
    "gemma4": Family(
        "gemma4_text",
        "layer scalars, per-layer embeddings",
        {
            **GEMMA,
            **HALF_SLIDING,
            "global_head_dim": 64,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
        },
    ),
    "granite": Family("granite", "logit multipliers", {**MULTIPLIERS, "residual_multiplier": 0.5}),
    "cohere": Family("cohere", "logit multiplier, tied head", {"logit_scale": 0.3}),
    "cohere2": Family(
        "cohere2",
        "logit multiplier, sliding attention",
        {"logit_scale": 0.3, **SLIDING, **HALF_SLIDING},
        in_vllm={"sliding_window": 64},
        why="within its window, which vLLM has a token wider",
    ),
    "mixtral": Family("mixtral", "experts", EXPERTS),
    "qwen2-moe": Family("qwen2_moe", "experts", QWEN_EXPERTS),
    "qwen3-moe": Family(
        "qwen3_moe", "experts", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, **HEADS}
    ),
    "olmoe": Family("olmoe", "experts", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}),
    "granite-moe": Family("granitemoe", "experts, logit multipliers", {**EXPERTS, **MULTIPLIERS}),
    "glm4-moe": Family("glm4_moe", "experts, routing bias", {**ROUTED, **HEADS}),
    "deepseek-v3": Family(
        "deepseek_v3",
        "experts, routing bias, latent attention",
        {**ROUTED, **LATENT, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    ),
    "ernie4.5-moe": Family(
        "ernie4_5_moe", "experts, routing bias", {"moe_intermediate_size": 32, "moe_k": 2, "moe_num_experts": 4}
    ),
    "gpt-oss": Family("gpt_oss", "experts, attention sinks", {**EXPERTS, **SLIDING, **HEADS}),
    "llama4": Family(
        "llama4_text",
        "experts, chunked attention",
        {
            **HEADS,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 8,
            "no_rope_layers": [1, 0],
        },
        in_vllm={"attention_chunk_size": 32},
        why="with chunks of whole blocks of the cache",
    ),
    "qwen3-next": Family(
        "qwen3_next",
        "linear attention, experts",
        {**QWEN_EXPERTS, **DELTA},
        in_vllm={"linear_key_head_dim": 128, "linear_value_head_dim": 128},
        why="in bfloat16, the only one of the CPU build's linear attention",
        dtype="bfloat16",
    ),
    "qwen3.5": Family("qwen3_5_text", "linear attention", DELTA),
    "lfm2": Family(
        "lfm2", "convolutions", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    ),
    "jamba": Family(
        "jamba",
        "Mamba, experts",
        {
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_dt_rank": 4,
        },
    ),
    "bamba": Family("bamba", "Mamba 2", {**MAMBA_HEADS, "attn_layer_indices": [1]}),
    "granite-hybrid": Family(
        "granitemoehybrid",
        "Mamba 2, experts, logit multipliers",
        {
            **EXPERTS,
            **MULTIPLIERS,
            **MAMBA_HEADS,
            "shared_intermediate_size": 32,
            "layer_types": ["mamba", "attention"],
        },
    ),
    "falcon-h1": Family(
        "falcon_h1",
        "Mamba 2 beside attention, logit multiplier",
        {**MAMBA_HEADS, "mamba_d_ssm": 128, "lm_head_multiplier": 0.5, **HEADS},
    ),
    "nemotron-h": Family(
        "nemotron_h",
        "Mamba 2",
        {
            **HEADS,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "ssm_state_size": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "n_groups": 1,
            "chunk_size": 8,
            "use_mamba_kernels": False,
        },
        in_vllm={"time_step_min": 1e-9},
        why="without time_step_min, by which vLLM does not bound its time steps",
    ),
    "recurrent-gemma": Family(
        "recurrent_gemma",
        "recurrent layers, soft cap",
        {
            "lru_width": 64,
            "attention_window_size": 6,
            "block_types": ["recurrent", "attention"],
            "logits_soft_cap": 5.0,
        },
    ),
    "olmo-hybrid": Family(
        "olmo_hybrid",
        "linear attention",
        {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 2},
    ),
    "mamba": Family("mamba", "Mamba alone", {"state_size": 8, "time_step_rank": 4}),
    "mamba2": Family(
        "mamba2",
        "Mamba 2 alone",
        {
            "num_heads": 4,
            "head_dim": 32,
            "state_size": 16,
            "n_groups": 1,
            "chunk_size": 8,
            "intermediate_size": 128,
        },
    ),
    "gemma3-images": Family(
        "gemma3",
        "images, sliding attention",
        _nested({**GEMMA, **HALF_SLIDING}, {**VISION, "image_size": 16, "patch_size": 4}, **GEMMA_IMAGES),
        kind="multimodal",
    ),
    "gemma4-images": Family(
        "gemma4",
        "images, layer scalars, soft cap",
        _nested(
            {
                **GEMMA,
                **HALF_SLIDING,
                "global_head_dim": 64,
                "vocab_size_per_layer_input": VOCABULARY,
                "hidden_size_per_layer_input": 16,
            },
            {**VISION, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64},
            image_token_id=300,
            boi_token_id=301,
            eoi_token_id=302,
            video_token_id=303,
            audio_token_id=304,
        ),
        kind="multimodal",
    ),
    "qwen2.5-vl": Family(
        "qwen2_5_vl",
        "images",
        _nested(QWEN_SECTIONS, {**QWEN_VISION, "fullatt_block_indexes": [0]}, **IMAGES),
        kind="multimodal",
    ),
    "qwen3.5-images": Family(
        "qwen3_5",
        "images, linear attention",
        _nested(DELTA, {**QWEN_VISION, "num_position_embeddings": 16}, **IMAGES),
        kind="multimodal",
    ),
    "mistral3": Family(
        "mistral3",
        "images",
        _nested(
            {"model_type": "mistral", **HEADS, "sliding_window": None},
            {"model_type": "pixtral", **VISION, "image_size": 16, "patch_size": 4},
            image_token_index=300,
            tie_word_embeddings=False,
        ),
        kind="multimodal",
    ),
    "bert": Family("bert", "encoder", NO_DROPOUT, kind="encoder"),
    "roberta": Family("roberta", "encoder", {**NO_DROPOUT, "type_vocab_size": 1}, kind="encoder"),
    "deberta-v3": Family(
        "deberta-v2",
        "encoder, relative positions",
        {
            **NO_DROPOUT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "position_buckets": 16,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
        kind="encoder",
    ),
    "modernbert": Family(
        "modernbert",
        "encoder, local attention",
        {"local_attention": 8, "cls_token_id": BOS, "sep_token_id": EOS},
        kind="encoder",
    ),
}
CAUSAL = [name for name, family in FAMILIES.items() if family.kind != "encoder"]
ENCODERS = [name for name, family in FAMILIES.items() if family.kind == "encoder"]


TORCHVISION = "vLLM's code of it needs torchvision, which the environment without GPUs leaves out"
NOT_IN_VLLM = {
    "gemma2": "the CPU build has no soft cap of attention",
    "ernie4.5-moe": "the CPU build routes without the routing bias where experts have no groups",
    "qwen3.5": TORCHVISION,
    "lfm2": "the CPU build rotates queries wrongly that are laid out by head",
    "jamba": "the CPU build has no selective scan",
    "bamba": "vLLM has no model of its own for it",
    "recurrent-gemma": "vLLM has no model of its own for it",
    "olmo-hybrid": "its linear attention needs Triton, which the CPU build has not",
    "mamba": "the CPU build has no selective scan",
    "gemma3-images": TORCHVISION,
    "gemma4-images": TORCHVISION,
    "qwen2.5-vl": TORCHVISION,
    "qwen3.5-images": TORCHVISION,
    "mistral3": TORCHVISION,
}
"""Families that vLLM's CPU build does not run, or computes otherwise than transformers, and why."""


def available(name: str) -> bool:
    """Whether this transformers has a family."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return FAMILIES[name].model_type in CONFIG_MAPPING


def build(name: str, in_vllm: bool = False) -> tuple[Any, str]:
    """Return a family's configuration and its kind: causal, multimodal or encoder; skips the test without the family.

    Older releases of transformers lack some families. `in_vllm` adds the settings that vLLM needs.
    """
    from transformers import AutoConfig

    family = FAMILIES[name]
    if not available(name):
        pytest.skip(f"this transformers has no {family.model_type}")
    flat = {} if family.kind == "multimodal" else {**SMALL, "vocab_size": VOCABULARY}
    labels = {"num_labels": 1} if family.kind == "encoder" else {}
    settings = {**flat, **labels, **family.settings, **(family.in_vllm if in_vllm else {})}
    return AutoConfig.for_model(family.model_type, **settings), family.kind


def auto_class(kind: str) -> Any:
    """Return transformers' class that loads a kind of model."""
    import transformers

    return {
        "causal": transformers.AutoModelForCausalLM,
        "multimodal": transformers.AutoModelForImageTextToText,
        "encoder": transformers.AutoModelForSequenceClassification,
    }[kind]


def new_model(name: str, seed: int = 0, in_vllm: bool = False) -> Any:
    """Return a random model of a family, in float32 and in eval mode."""
    config, kind = build(name, in_vllm)
    torch.manual_seed(seed)
    model = auto_class(kind).from_config(config, dtype=torch.float32).eval()
    saved, buffers = set(model.state_dict()), dict(model.named_buffers())
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *buffers.items()]:
            if key in saved and tensor.is_floating_point() and (tensor.ndim <= 1 or key in buffers):
                tensor.add_(torch.randn(tensor.shape) * 0.2)  # norms, biases, routing bias and scalars start equal
    return model


def load(path: Path, kind: str = "causal") -> Any:
    """Load a model as transformers does, in float32, eager and in eval mode: the oracle of the tests."""
    return auto_class(kind).from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def logprob(model: Any, prompt: list[int], response: list[int]) -> float:
    """Return the log-probability of a response alone, in nats, by transformers' own forward."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum().item()


@functools.cache
def _backend() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*specials, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer.to_str()


def new_tokenizer(eos: str = "<|im_end|>", template: str | None = TEMPLATE) -> Any:
    """Return a tokenizer of bytes and five special tokens, with a chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()), bos_token="<s>", eos_token=eos, pad_token="<pad>"
    )
    tokenizer.chat_template = template
    return tokenizer


def write(
    name: str,
    path: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    change: Callable[[Any], None] | None = None,
    in_vllm: bool = False,
) -> Path:
    """Write a family's model directory with weights, generation config and tokenizer; returns it.

    Args:
        name: of the family.
        path: the directory.
        dtype: of the weights.
        seed: of the weights.
        change: called with the model before it is written.
        in_vllm: whether with the settings that vLLM needs.
    """
    model = new_model(name, seed, in_vllm).to(dtype)
    if change is not None:
        change(model)
    model.save_pretrained(path)
    encoder = FAMILIES[name].kind == "encoder"
    tokenizer = new_tokenizer("</s>", None) if encoder else new_tokenizer()
    if encoder:
        tokenizer.cls_token, tokenizer.sep_token = "<s>", "</s>"
    tokenizer.save_pretrained(path)
    return path
