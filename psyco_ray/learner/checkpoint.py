"""What training goes on from, bit by bit: float32 weights and, where wanted, Adam's moments.

Everything is stored whole, so that any number of ranks can go on. Ranks walk through the parameters together; rank 0
writes, in files of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from psyco_ray.learner import offload
from psyco_ray.run import storage

MOMENTS = ("exp_avg", "exp_avg_sq")
_FILE_BYTES = 2**31


class LearnerCheckpoint:
    """The trainable float32 weights and moments of a DeepSpeed engine over a torch AdamW."""

    def __init__(self, model: Any, engine: Any, optimizer: torch.optim.Optimizer, stage: int) -> None:
        """Say whose.

        Args:
            model: the module whose parameter names are used.
            engine: DeepSpeed's engine.
            optimizer: the AdamW that the engine was given.
            stage: of ZeRO.
        """
        self._model, self._engine, self._optimizer, self._stage = model, engine, optimizer, stage
        self._away = False  # from the device
        self._linked = False

    def stepped(self) -> None:
        """The optimizer has taken a step.

        After the first one DeepSpeed links parameters with their moments, but so early that only those of the first of
        our groups are there; that is done again.
        """
        if self._stage in (1, 2) and not self._linked:
            self._link()

    def write(self, target: str, moments: bool, rank: int) -> None:
        """Write a state directory, complete or not at all; every rank takes part.

        Args:
            target: the directory, a path or a URI.
            moments: whether Adam's moments come with the weights.
            rank: of this process; 0 writes.

        Raises:
            InputError: it cannot be written.
        """
        if rank:
            for _ in self._tensors(moments):
                pass
            return
        from safetensors.torch import save_file

        held: dict[str, torch.Tensor] = {}
        with storage.atomic_dir(target) as staging:
            for name, tensor in self._tensors(moments):
                held[name] = tensor.detach().to("cpu", torch.float32, copy=True)
                if sum(t.nbytes for t in held.values()) > _FILE_BYTES:
                    save_file(held, _next_file(staging))
                    held = {}
            save_file(held, _next_file(staging))

    def restore(self, target: str) -> None:
        """Go on from a state directory; without moments in it, as a new optimizer would.

        Raises:
            InputError: it is not there or damaged.
        """
        from safetensors import safe_open

        path = storage.fetch(target, digests=True)
        files = [safe_open(file, "pt") for file in sorted(path.glob("*.safetensors"))]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping
        moments = any(name.endswith(f".{MOMENTS[0]}") for name in where)
        self.reset_moments()
        if moments:
            self._fill_moments(where["step"].get_tensor("step").item())
        with torch.no_grad():
            for name, parameter in self._trainable():
                self._set_weight(parameter, where[name].get_tensor(name))
                for key in MOMENTS if moments else ():
                    self._set_moment(parameter, key, where[name].get_tensor(f"{name}.{key}"))

    def reset_moments(self) -> None:
        """Forget Adam's moments and step count, as a new optimizer over the same weights would."""
        for state in self._optimizer.state.values():
            for value in state.values():
                value.zero_()

    def to_host(self) -> None:
        """Move weights, gradients and optimizer to the host and free the device."""
        if not self._away:
            offload.to_host(self._engine, self._optimizer, self._stage)
            self._away = True

    def to_device(self) -> None:
        """Bring back what is on the host."""
        if self._away:
            offload.to_device(self._engine, self._optimizer, self._stage)
            self._away = False

    def _trainable(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, parameter) for name, parameter in self._model.named_parameters() if parameter.requires_grad)

    def _tensors(self, moments: bool) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._trainable():
            master = safe_get_full_fp32_param(parameter)  # None at stage 0
            yield name, parameter if master is None else master
            for key in MOMENTS if moments else ():
                if self._stage:
                    yield f"{name}.{key}", safe_get_full_optimizer_state(parameter, key)
                else:
                    yield f"{name}.{key}", self._optimizer.state[parameter][key]
        if moments:
            yield "step", next(iter(self._optimizer.state.values()))["step"]

    def _flat(self) -> list[torch.Tensor]:
        """The tensors that the AdamW keeps moments of on this rank."""
        if self._stage == 3:
            return self._engine.optimizer.fp32_partitioned_groups_flat
        return [tensor for group in self._optimizer.param_groups for tensor in group["params"]]

    def _fill_moments(self, step: float) -> None:
        """Make room for moments before the first step of this process makes it."""
        for flat in self._flat():
            empty = {key: torch.zeros_like(flat, dtype=torch.float32) for key in MOMENTS}
            self._optimizer.state[flat] = {"step": torch.tensor(step, device=flat.device), **empty}
        if self._stage in (1, 2):
            self._link()

    def _link(self) -> None:
        offload.link(self._engine.optimizer)
        self._linked = True

    def _set_weight(self, parameter: torch.Tensor, value: torch.Tensor) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        value = value.to(parameter.device)
        if self._stage == 3:
            safe_set_local_fp32_param(parameter, self._share(parameter, value))
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
            return
        if self._stage:
            safe_set_full_fp32_param(parameter, value)
        parameter.copy_(value)

    def _set_moment(self, parameter: torch.Tensor, key: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(parameter.device)
        if self._stage == 3:
            safe_set_local_optimizer_state(parameter, self._share(parameter, value), key)
        elif self._stage:
            safe_set_full_optimizer_state(parameter, value, key)
        else:
            self._optimizer.state[parameter][key].copy_(value)

    def _share(self, parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """This rank's part of a parameter that ZeRO-3 cuts, filled up to equal parts."""
        from deepspeed import comm

        size = -(-value.numel() // comm.get_world_size())
        start = size * comm.get_rank()
        mine = value.flatten()[start : start + size]
        return torch.nn.functional.pad(mine, (0, size - mine.numel()))


def _next_file(directory: Path) -> Path:
    return directory / f"state-{len(list(directory.iterdir())):05d}.safetensors"
