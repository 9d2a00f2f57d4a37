"""The options of a rollout actor's vLLM engine, and what vLLM finds in its model.

Only a process that holds an engine may import this file, because it imports vLLM.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from vllm.config import ModelConfig
from vllm.engine.arg_utils import EngineArgs

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts

_BATCHED_TOKENS = 4096  # of a step, vLLM's default for a CPU


def engine_options(settings: Rollouts, shared: bool = False, recurrent: bool = False) -> dict[str, Any]:
    """Keyword arguments of vLLM's `LLM`.

    Args:
        settings: engine size, dtype and parallelism.
        shared: whether a learner rank computes on the same GPU while the engine sleeps.
        recurrent: whether the model has layers with a running state.
    """
    assert settings.kv_cache_gb is not None, "an engine that is about to load has the size of its cache"
    options: dict[str, Any] = {
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "enforce_eager": settings.enforce_eager,
        "tensor_parallel_size": settings.tensor_parallel,
        "kv_cache_memory_bytes": int(settings.kv_cache_gb * 2**30),
    }
    if settings.block_size or not settings.gpus:
        options["block_size"] = settings.block_size or 32
    if settings.gpus:
        # the cache size is fixed above; the utilization is only what vLLM expects to find free at start
        return options | {"gpu_memory_utilization": 0.01, "enable_sleep_mode": shared}
    # a seeded request whose prompt is prefilled in chunks makes vLLM rewind its random numbers, which fails on a CPU
    max_batched_tokens = max(_BATCHED_TOKENS, settings.max_model_len)
    options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max_batched_tokens}
    # vLLM caches a running state in chunks only
    return options | ({"enable_prefix_caching": False} if recurrent else {})


def model_config(model: Path, dtype: str, allow_code: bool) -> ModelConfig:
    """What vLLM finds in a model.

    Raises:
        InputError: vLLM's code of the model needs torchvision, which is missing or built for another PyTorch.
    """
    try:
        return EngineArgs(model=str(model), dtype=dtype, trust_remote_code=allow_code).create_model_config()
    except ValueError as error:
        if "failed to be inspected" in str(error):  # vLLM logs the cause in a process of its own
            _require_torchvision(model)
        raise


def _require_torchvision(model: Path) -> None:
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"vLLM cannot load {model}, because its code for models of images and text needs torchvision ({error}); "
            "install the torchvision that was built for this PyTorch (jobs/README.md, Installing by hand)"
        ) from error
