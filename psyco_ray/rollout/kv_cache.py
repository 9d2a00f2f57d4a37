"""The KV cache of an engine on GPUs, where the job names no size.

vLLM would measure what its working memory takes, but expects a GPU of its own. Here a scorer and a learner rank may be
on the same GPU, so the working memory is calculated.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts
from psyco_ray.models.shape import ModelShape, shape_in, value_bytes

SPARE_SHARE = 0.1  # of an engine's part of a GPU, left for what is not calculated
_BATCHED_TOKENS = 16384  # of a prefill step, vLLM's default on a GPU
_LOGPROB_ROWS = 1024  # of prompts, whose logits vLLM has in memory at a time
GRAPH_BYTES = 1.0e9  # CUDA graphs of all batch sizes; they stay while an engine sleeps


_log = logging.getLogger(__name__)


def sized(settings: Rollouts, model: Path, text_config: Any, shared: bool) -> Rollouts:
    """Settings of an engine that is about to load, with the size of its cache.

    Args:
        settings: of the engine.
        model: directory of its weights, whose files hold 16-bit values.
        text_config: of the model, from transformers.
        shared: as in `cache_bytes`.

    Raises:
        InputError: the cache would not hold one sequence.
    """
    if settings.kv_cache_gb is not None:
        return settings
    import torch

    files = [file for suffix in ("safetensors", "bin") for file in model.glob(f"*.{suffix}")]
    shape = shape_in(text_config, str(model), sum(file.stat().st_size for file in files) // 2)
    free, total = torch.cuda.mem_get_info()
    size = cache_bytes(shape, settings, free, total, shared)
    tokens = size / token_bytes(shape, settings)
    _log.info(
        f"KV cache of {size / 1e9:.1f} GB for {tokens:.0f} tokens; {free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
    )
    return settings.model_copy(update={"kv_cache_gb": size / 2**30})


def weight_bytes(shape: ModelShape, settings: Rollouts) -> float:
    """Bytes of the weights on each GPU of an engine."""
    return shape.parameters * value_bytes(settings.dtype) / settings.tensor_parallel


def graph_bytes(settings: Rollouts) -> float:
    """Bytes of the CUDA graphs on each GPU of an engine."""
    return 0.0 if settings.enforce_eager else GRAPH_BYTES


def working_bytes(shape: ModelShape, settings: Rollouts) -> float:
    """Bytes on each GPU of an engine beside weights, cache and graphs: activations of a prefill step, and logits."""
    value = value_bytes(settings.dtype)
    tokens = max(_BATCHED_TOKENS, settings.max_model_len)
    layer = 3 * shape.intermediate / settings.tensor_parallel + 6 * shape.hidden
    # logits in the compute dtype, in float32, and their log-softmax
    logits = max(settings.max_num_seqs, _LOGPROB_ROWS) * shape.vocabulary * (value + 8)
    return tokens * layer * value + logits


def token_bytes(shape: ModelShape, settings: Rollouts) -> float:
    """Bytes of a token in the cache, on each GPU of an engine."""
    return shape.kv_token_values * value_bytes(settings.dtype) / min(settings.tensor_parallel, shape.kv_heads)


def cache_bytes(shape: ModelShape, settings: Rollouts, free: float, total: float, shared: bool = False) -> float:
    """Bytes of the cache on each GPU of an engine.

    Args:
        shape: of the model.
        settings: of the engine; `kv_cache_gb` is returned if it is set.
        free: bytes of the GPU that are free before the engine loads.
        total: bytes of the GPU.
        shared: whether a learner rank leaves the GPU to the engine, which then takes more than its share of it.

    Raises:
        InputError: the cache would not hold one sequence.
    """
    if settings.kv_cache_gb is not None:
        return settings.kv_cache_gb * 2**30
    part = total * (1.0 if shared else min(1.0, settings.gpus))
    own = min(free, part)
    taken = weight_bytes(shape, settings) + working_bytes(shape, settings) + graph_bytes(settings)
    cache = own - SPARE_SHARE * part - taken
    if cache < settings.max_model_len * token_bytes(shape, settings):
        raise InputError(
            f"an engine has {own / 1e9:.1f} GB of a GPU, its weights and working memory take {taken / 1e9:.1f} and "
            f"leave no room for a KV cache of {settings.max_model_len} tokens; give it more of the GPU (rollouts.gpus) "
            "or more GPUs (rollouts.tensor_parallel)"
        )
    return math.floor(cache / 2**20) * 2**20
