"""Training states on disk: float32 weights and, optionally, Adam's moments; a restored training is bitwise the same.

Not DeepSpeed's own checkpoints: those store one shard per rank and bind a run to its number of ranks. Here tensors are
stored whole, so that any number of ranks can continue. All ranks iterate over the parameters together; rank 0 writes,
in files of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from psyco_ray.learner import offload
from psyco_ray.learner.spec import OnGpu
from psyco_ray.run import storage

MOMENTS = ("exp_avg", "exp_avg_sq")
_FILE_BYTES = 2**31


class LearnerCheckpoint:
    """Saves, restores and offloads the trainable float32 weights and moments of a DeepSpeed engine over a torch AdamW.

    Example:
        >>> checkpoint = LearnerCheckpoint(model, engine, optimizer, zero_stage=2)
        >>> checkpoint.write("run/state-000040", moments=True, rank=0)
        >>> checkpoint.restore("run/state-000040")
    """

    def __init__(self, model: Any, engine: Any, optimizer: torch.optim.Optimizer, zero_stage: int) -> None:
        """Wrap an engine.

        Args:
            model: the module whose parameter names are used.
            engine: DeepSpeed's engine.
            optimizer: the AdamW that the engine was given.
            zero_stage: 0 to 3.
        """
        self._model, self._engine, self._optimizer, self._zero_stage = model, engine, optimizer, zero_stage
        self._on_gpu: OnGpu = "all"
        self._linked = False

    def after_step(self) -> None:
        """Link parameters with their moments after the first optimizer step.

        DeepSpeed does so itself during that step, but too early: it links only the first parameter group.
        """
        if self._zero_stage in (1, 2) and not self._linked:
            self._link()

    def write(self, target: str, moments: bool, rank: int) -> None:
        """Write a state directory atomically; every rank takes part.

        Args:
            target: the directory, a path or a URI.
            moments: also write Adam's moments.
            rank: of this process; 0 writes.

        Raises:
            InputError: the directory cannot be written.
        """
        if rank:
            for _ in self._tensors(moments):
                pass
            return
        from safetensors.torch import save_file

        pending: dict[str, torch.Tensor] = {}
        with storage.atomic_dir(target) as staging:
            for name, tensor in self._tensors(moments):
                pending[name] = tensor.detach().to("cpu", torch.float32, copy=True)
                if sum(t.nbytes for t in pending.values()) > _FILE_BYTES:
                    save_file(pending, _next_file(staging))
                    pending = {}
            save_file(pending, _next_file(staging))

    def restore(self, target: str) -> None:
        """Load a state directory; if it has no moments, training continues as with a new optimizer.

        Raises:
            InputError: the directory is missing or damaged.
        """
        from safetensors import safe_open

        path = storage.fetch(target, digests=True)
        files = [safe_open(file, "pt") for file in sorted(path.glob("*.safetensors"))]
        file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping
        moments = any(name.endswith(f".{MOMENTS[0]}") for name in file_of)
        self.reset_moments()
        if moments:
            self._create_moments(file_of["step"].get_tensor("step").item())
        with torch.no_grad():
            for name, parameter in self._trainable():
                self._set_weight(parameter, file_of[name].get_tensor(name))
                for key in MOMENTS if moments else ():
                    self._set_moment(parameter, key, file_of[name].get_tensor(f"{name}.{key}"))

    def reset_moments(self) -> None:
        """Zero Adam's moments and step count, as a new optimizer over the same weights would start."""
        for state in self._optimizer.state.values():
            for value in state.values():
                value.zero_()

    def keep_on_gpu(self, kept: OnGpu) -> None:
        """Move what is not kept to the host and free the GPU's memory, or move everything back; no-op if it is so.

        Args:
            kept: less than is there now, or `all`.
        """
        if kept == self._on_gpu:
            return
        if kept == "all":
            offload.to_device(self._engine, self._optimizer, self._zero_stage)
        else:
            assert self._on_gpu != "nothing", "weights return with all other states"
            if self._on_gpu == "all":
                offload.training_states_to_host(self._engine, self._optimizer, self._zero_stage)
            if kept == "nothing":
                offload.weights_to_host(self._engine)
        self._on_gpu = kept

    def _trainable(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, parameter) for name, parameter in self._model.named_parameters() if parameter.requires_grad)

    def _tensors(self, moments: bool) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._trainable():
            master = safe_get_full_fp32_param(parameter)  # None at stage 0
            yield name, parameter if master is None else master
            for key in MOMENTS if moments else ():
                if self._zero_stage:
                    yield f"{name}.{key}", safe_get_full_optimizer_state(parameter, key)
                else:
                    yield f"{name}.{key}", self._optimizer.state[parameter][key]
        if moments:
            yield "step", next(iter(self._optimizer.state.values()))["step"]

    def _optimized_tensors(self) -> list[torch.Tensor]:
        """Return the tensors that AdamW keeps moments of on this rank."""
        if self._zero_stage == 3:
            return self._engine.optimizer.fp32_partitioned_groups_flat
        return [tensor for group in self._optimizer.param_groups for tensor in group["params"]]

    def _create_moments(self, step: float) -> None:
        """Allocate the moments, which AdamW itself does in its first step."""
        for tensor in self._optimized_tensors():
            zeros = {key: torch.zeros_like(tensor, dtype=torch.float32) for key in MOMENTS}
            self._optimizer.state[tensor] = {"step": torch.tensor(step, device=tensor.device), **zeros}
        if self._zero_stage in (1, 2):
            self._link()

    def _link(self) -> None:
        offload.link(self._engine.optimizer)
        self._linked = True

    def _set_weight(self, parameter: torch.Tensor, value: torch.Tensor) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        value = value.to(parameter.device)
        if self._zero_stage == 3:
            safe_set_local_fp32_param(parameter, self._partition(value))
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
            return
        if self._zero_stage:
            safe_set_full_fp32_param(parameter, value)
        parameter.copy_(value)

    def _set_moment(self, parameter: torch.Tensor, key: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(parameter.device)
        if self._zero_stage == 3:
            safe_set_local_optimizer_state(parameter, self._partition(value), key)
        elif self._zero_stage:
            safe_set_full_optimizer_state(parameter, value, key)
        else:
            self._optimizer.state[parameter][key].copy_(value)

    @staticmethod
    def _partition(value: torch.Tensor) -> torch.Tensor:
        """Return this rank's ZeRO-3 partition of a parameter, zero-padded to the size of all partitions."""
        from deepspeed import comm

        size = -(-value.numel() // comm.get_world_size())
        start = size * comm.get_rank()
        own = value.flatten()[start : start + size]
        return torch.nn.functional.pad(own, (0, size - own.numel()))


def _next_file(directory: Path) -> Path:
    return directory / f"state-{len(list(directory.iterdir())):05d}.safetensors"
