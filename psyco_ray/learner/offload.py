"""Moves the states of a DeepSpeed engine between GPU and host, while a colocated rollout actor uses the GPU.

Works around two gaps of DeepSpeed 0.19.8: for ZeRO-1 and ZeRO-2 it loses the links between parameters and moments; for
ZeRO-3 it moves master weights and moments only with its own FusedAdam. DeepSpeed's own checkpoints are no alternative:
they go through the disk and bind the number of ranks.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as States


def training_states_to_host(engine: Any, optimizer: torch.optim.Optimizer, zero_stage: int) -> None:
    """Move everything but the weights in the compute dtype to the host: float32 weights, moments and gradients.

    Args:
        engine: DeepSpeed's engine, between two optimizer steps.
        optimizer: the AdamW that the engine was given.
        zero_stage: 1, 2 or 3.
    """
    assert zero_stage, "ZeRO-0 has no offload"
    moved = {States.lp_grads, States.contiguous_grad_buffer}
    if zero_stage == 3:
        _move(_zero3_states(engine, optimizer), torch.device("cpu"))
    else:
        moved |= {States.optim_states, States.hp_params}
    _offload(engine, moved)


def weights_to_host(engine: Any) -> None:
    """Move the weights in the compute dtype to the host, after the training states."""
    _offload(engine, {States.lp_params})


def to_device(engine: Any, optimizer: torch.optim.Optimizer, zero_stage: int) -> None:
    """Move everything back to the engine's device."""
    zero = engine.optimizer
    engine.reload_states()
    if zero_stage == 3:
        _move(_zero3_states(engine, optimizer), engine.device)
    elif zero._hp_optimizer_states_linked:
        link(zero)


def link(zero: Any) -> None:
    """Link parameters with their moments again, in a ZeRO-1 or ZeRO-2 optimizer."""
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


def _offload(engine: Any, states: set[States]) -> None:
    # pinned memory copies faster, but takes long to pin and is lost to all other processes
    engine.offload_states(include=states, pin_memory=False)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.ipc_collect()  # memory that engines have mapped and returned
        torch.cuda.empty_cache()  # freed memory is still this process's until then


def _zero3_states(engine: Any, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return a rank's master weights and moments."""
    moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return [*engine.optimizer.fp32_partitioned_groups_flat, *moments]


def _move(tensors: list[torch.Tensor], device: torch.device) -> None:
    for tensor in tensors:
        tensor.data = tensor.data.to(device)
