"""A DeepSpeed engine's memory on its way to the host and back, while somebody else needs the GPU.

DeepSpeed 0.19.8 moves the states of ZeRO 1 and 2 whatever the optimizer is, but forgets that it linked parameters with
moments. Of ZeRO 3 it moves master weights and moments only for its own FusedAdam, so that is done here.
"""

from __future__ import annotations

import gc
from typing import Any

import torch


def to_host(engine: Any, optimizer: torch.optim.Optimizer, stage: int) -> None:
    """Move everything to the host; `engine` has done a whole number of steps.

    Args:
        engine: DeepSpeed's engine, ZeRO 1, 2 or 3.
        optimizer: the AdamW that the engine was given.
        stage: of ZeRO.
    """
    assert stage, "stage 0 has nothing that could be moved"
    # memory that is locked would be copied faster, but takes long to lock and is then lost to everybody else
    if stage == 3:
        engine.offload_states(include=_others(), pin_memory=False)
        _move(_held(engine, optimizer), torch.device("cpu"))
    else:
        engine.offload_states(pin_memory=False)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def to_device(engine: Any, optimizer: torch.optim.Optimizer, stage: int) -> None:
    """Bring back what `to_host` moved."""
    zero = engine.optimizer
    engine.reload_states()
    if stage == 3:
        _move(_held(engine, optimizer), engine.device)
    elif zero._hp_optimizer_states_linked:
        link(zero)


def link(zero: Any) -> None:
    """Link parameters with their moments anew, in an optimizer of ZeRO 1 or 2."""
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


def _others() -> list[Any]:
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as States

    return [States.lp_params, States.lp_grads, States.contiguous_grad_buffer]


def _held(engine: Any, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Master weights and moments of a rank of ZeRO 3."""
    moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return [*engine.optimizer.fp32_partitioned_groups_flat, *moments]


def _move(tensors: list[torch.Tensor], device: torch.device) -> None:
    for tensor in tensors:
        tensor.data = tensor.data.to(device)
