"""One rank of a learner group: a DeepSpeed engine in a process of its own."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Lora, Optimizer
from psyco_ray.learner.batching import MicroBatch
from psyco_ray.models.weight_codec import DeltaTracker
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.types import DeltaRef

if TYPE_CHECKING:
    import torch

    from psyco_ray.learner.losses import Objective

_STEPPED_APART = 8  # parts of the weights that the optimizer steps one after the other
_REDUCED_TOGETHER = 2**25  # gradients, which are copied for it


class LearnerWorker:
    """One rank: a DeepSpeed engine in a process of its own."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._exports = DeltaTracker()

    def place(self) -> tuple[str, str, int]:
        """Address and id of the node that this rank runs on, and its process id."""
        return ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id(), os.getpid()

    def size(self) -> tuple[int, int, str | None]:
        """Parameters of the model, those that are trained, and the name of this rank's GPU, if it has one."""
        import torch

        counts = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in self._model.parameters()]
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else None
        return sum(n for n, _ in counts), sum(n for n, trained in counts if trained), name

    def address(self) -> tuple[str, int]:
        """This process's host address and a free port, for the ranks to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    @gc_paused()
    def start(
        self,
        meeting: tuple[str, int],
        model: str,
        objective: Objective,
        settings: Learners,
        optimizer: Optimizer,
        seed: int,
        state: str | None,
        timeout_s: float,
        adapters: Lora | None,
    ) -> None:
        """Join the other ranks and build the engine.

        Args:
            meeting: address and port of rank 0.
            model: name or directory of the base model.
            objective: what is minimised; it also says which head the model gets.
            settings: dtype, ZeRO stage, sizes.
            optimizer: AdamW's numbers.
            seed: of a new reward head.
            state: a state written by `save_state`, to continue from.
            timeout_s: deadline of a collective.
            adapters: train low-rank adapters instead of all weights.
        """
        os.environ.update(
            MASTER_ADDR=meeting[0],
            MASTER_PORT=str(meeting[1]),
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world),
            LOCAL_RANK="0",
            LOCAL_SIZE="1",
        )
        on_gpu = settings.gpus > 0
        os.environ["DS_ACCELERATOR"] = "cuda" if on_gpu else "cpu"  # whatever the driver's environment says
        import deepspeed
        import torch
        from transformers.integrations import HfDeepSpeedConfig

        from psyco_ray.learner import lora
        from psyco_ray.learner.checkpoint import LearnerCheckpoint
        from psyco_ray.models import loading, reward_model
        from psyco_ray.models.packing import ResponseLogprobs, ResponseScores

        torch.set_num_threads(settings.threads)
        torch.manual_seed(seed)
        self._device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        self._objective, self._settings = objective, settings
        # DeepSpeed's own CPU collectives are compiled on first use (a killed build blocks every later one) and leave
        # their shared memory behind; gloo does
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            dist_backend="nccl" if on_gpu else "gloo",
            auto_mpi_discovery=False,
            rank=self.rank,
            world_size=self.world,
            timeout=timedelta(seconds=timeout_s),
            verbose=False,
        )
        config = _deepspeed_config(settings, optimizer, self.world)
        # transformers loads a ZeRO-3 model in shards while this object lives
        zero3 = HfDeepSpeedConfig(config) if settings.zero_stage == 3 else None
        path = loading.resolve(model, digests=True)
        self._tokenizer = loading.load_tokenizer(path)
        if objective.head == "reward":
            language_model = reward_model.new_model(path, self._tokenizer, settings.dtype, seed)
            module: torch.nn.Module = ResponseScores(language_model)
        else:
            language_model = loading.load_causal_lm(path, settings.dtype)
            module = ResponseLogprobs(language_model, settings.logit_rows)
        del zero3  # or the plain model that rank 0 alone builds to save would wait for the other ranks
        if adapters is not None:
            lora.inject(language_model, adapters)
        if settings.gradient_checkpointing:
            language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self._model = language_model
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            _groups(trained) if settings.zero_stage in (1, 2) else trained,
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self._engine, *_ = deepspeed.initialize(model=module.train(), optimizer=self._optimizer, config=config)
        if settings.zero_stage == 0:
            # it would join all gradients into one more copy of them, also for a single rank: `step` adds them up itself
            self._engine.enable_backward_allreduce = False
        self._state = LearnerCheckpoint(language_model, self._engine, self._optimizer, settings.zero_stage)
        if state:
            self._state.restore(state)

    def step(
        self, micros: list[MicroBatch], pairs: int, chosen_tokens: float, learning_rate: float, seed: int
    ) -> dict[str, float]:
        """One optimizer step over this rank's share of a batch.

        Args:
            micros: this rank's pairs, one list for each forward and backward pass; all ranks have as many.
            pairs: pairs in the whole batch, over all ranks.
            chosen_tokens: of a chosen response, the mean over the whole batch.
            learning_rate: of this step.
            seed: of whatever the model draws (dropout), so that a resumed step draws the same.

        Returns:
            Sums over this rank's pairs: loss, metrics; `grad_norm` is the whole model's.

        Raises:
            InputError: the loss is not a number.
        """
        import torch

        from psyco_ray.models.packing import pack

        torch.manual_seed(seed)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        sums: dict[str, float] = {"loss": 0.0}
        for index, micro in enumerate(micros):
            packed = pack([(e.prompt_ids, [e.chosen_ids, e.rejected_ids]) for e in micro]).to(self._device)
            values = self._engine(packed).view(-1, 2)
            given = torch.tensor(self._objective.given(micro), dtype=torch.float32, device=self._device)
            losses, metrics = self._objective(values, given, chosen_tokens)
            for example, loss in zip(micro, losses.tolist(), strict=True):
                if not math.isfinite(loss):
                    raise InputError(
                        f"the loss of pair {example.key} is {loss}; lower the learning rate or look at that pair"
                    )
            self._engine.set_gradient_accumulation_boundary(index == len(micros) - 1)
            # DeepSpeed takes the mean over ranks; the mean over the batch's pairs is wanted
            self._engine.backward(losses.sum() * (self.world / pairs), scale_wrt_gas=False)
            sums["loss"] += losses.sum().item()
            for name, metric in metrics.items():
                sums[name] = sums.get(name, 0.0) + metric.sum().item()
        if self._settings.zero_stage == 0 and self.world > 1:
            self._engine.allreduce_gradients(bucket_size=_REDUCED_TOGETHER)
        self._engine.step()
        self._state.stepped()
        norm = self._engine.get_global_grad_norm()
        return sums if norm is None else {**sums, "grad_norm": float(norm)}

    def values(self, micros: list[MicroBatch]) -> list[tuple[float, float]]:
        """Scores or log-probabilities (chosen, rejected) of pairs under the current weights, without training."""
        import torch

        from psyco_ray.models.packing import pack

        found: list[tuple[float, float]] = []
        with torch.no_grad():
            for micro in micros:
                packed = pack([(e.prompt_ids, [e.chosen_ids, e.rejected_ids]) for e in micro]).to(self._device)
                found += [(a, b) for a, b in self._engine(packed).view(-1, 2).tolist()]
        return found

    def reset_optimizer(self) -> None:
        """Forget Adam's moments and step count, as a new optimizer over the same weights would."""
        self._state.reset_moments()

    def export(self, bucket_bytes: int, deltas: bool = False) -> tuple[list[ray.ObjectRef], str, int, DeltaRef | None]:
        """Put the weights into the object store in the compute dtype; ranks other than 0 only take part.

        Args:
            bucket_bytes: of the largest bucket, about.
            deltas: also store what changed since the last export with this set.

        Returns:
            References to buckets of ``{name: (array, dtype)}``, their digest, bytes, and what is new if that is little.
        """
        from psyco_ray.models.weight_codec import Bucket, as_array, digest

        refs: list[ray.ObjectRef] = []
        buckets: list[Bucket] = []
        bucket: dict[str, tuple[np.ndarray, str]] = {}
        total = filled = 0
        for name, tensor in self._full_parameters():
            if self.rank:
                continue
            array, dtype = as_array(tensor.cpu())
            if bucket and filled + array.nbytes > bucket_bytes:
                refs.append(ray.put(bucket))
                buckets.append(ray.get(refs[-1]))
                bucket, filled = {}, 0
            bucket[name] = (array, dtype)
            filled += array.nbytes
            total += array.nbytes
        if bucket:
            refs.append(ray.put(bucket))
            buckets.append(ray.get(refs[-1]))
        found = digest(buckets)
        return refs, found, total, self._exports.changed(found, buckets) if deltas and not self.rank else None

    def send(
        self,
        transport: str,
        actors: list[Any],
        version: int,
        workers: int,
        meeting: tuple[str, int],
        piece_bytes: int,
        deadline_s: float,
    ) -> tuple[str, int, dict[int, str]]:
        """Send the weights, in the compute dtype, to rollout actors over one of vLLM's transports; all ranks take part.

        Args:
            transport: nccl or ipc.
            actors: that receive them; each other is left to itself if it fails.
            version: of the weights.
            workers: of each actor's engine.
            meeting: address and free port of rank 0.
            piece_bytes: of a piece, about.
            deadline_s: seconds that an actor may take.

        Returns:
            Of rank 0: their digest, bytes, and why actors failed, by number.
        """
        from psyco_ray.learner import lora, weight_sender

        described = [
            weight_sender.Described(name, parameter.dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for name, parameter, _ in lora.exported(self._model)
        ]
        everywhere = transport == "ipc"  # each rank serves the engine on its own GPU
        source = weight_sender.ParameterSource(
            described, lambda: self._full_parameters(everywhere), counted=not self.rank
        )
        client = weight_sender.ReceiverClient(transport, actors, version, workers, deadline_s)
        world = 1 + workers * len(actors)
        weight_sender.send(transport, source, client, self.rank, meeting, world, piece_bytes)
        return source.tally.digest(), source.tally.bytes, client.failures

    def sleep(self) -> None:
        """Leave the GPU to others: weights and optimizer go to the host."""
        self._state.to_host()

    def wake(self) -> None:
        """Come back, if it left."""
        self._state.to_device()

    def save_model(self, target: str) -> None:
        """Write the weights in the compute dtype as a model directory (rank 0; the others take part)."""
        from psyco_ray.models import loading

        state = {name: tensor.detach().cpu().clone() for name, tensor in self._full_parameters() if not self.rank}
        if not self.rank:
            loading.save(target, state, self._model.config, self._tokenizer)

    def save_state(self, target: str, moments: bool) -> None:
        """Write what training goes on from (rank 0; the others take part); see `LearnerCheckpoint`."""
        self._state.write(target, moments, self.rank)

    def load_state(self, target: str) -> None:
        """Go on from a state that `save_state` wrote."""
        self._state.restore(target)

    def _full_parameters(self, everywhere: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter, whole, in the compute dtype, adapters merged; a shared one comes once.

        Ranks other than 0 only take part, unless they are wanted `everywhere`.
        """
        wanted = everywhere or not self.rank
        import deepspeed

        from psyco_ray.learner import lora

        for name, parameter, layer in lora.exported(self._model):
            needed = [parameter, *(lora.adapters(layer) if layer is not None else [])]
            with deepspeed.zero.GatheredParameters(needed, enabled=self._settings.zero_stage == 3):
                if layer is not None:
                    yield name, lora.merged(layer) if wanted else parameter.data
                elif self._settings.zero_stage == 3 and wanted:
                    yield name, parameter.data.clone()
                else:
                    yield name, parameter.data


def _groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """The parameters in some groups of about the same size, in order.

    ZeRO-1 and -2 make a float32 copy of a group's gradients for its step, beside one of how they come: of all at once
    that would be the most memory that training takes.
    """
    room = -(-sum(parameter.numel() for parameter in parameters) // _STEPPED_APART)
    groups: list[dict[str, Any]] = []
    filled = room
    for parameter in parameters:
        if filled >= room:
            groups.append({"params": []})
            filled = 0
        groups[-1]["params"].append(parameter)
        filled += parameter.numel()
    return groups


def _deepspeed_config(settings: Learners, optimizer: Optimizer, world: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # rows; a row holds as many pairs as fit micro_batch_tokens
        "gradient_accumulation_steps": 1,  # the rank itself says where a batch ends
        "train_batch_size": world,
        "gradient_clipping": optimizer.max_grad_norm,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": settings.zero_stage,
            "overlap_comm": settings.gpus > 0,
            **(
                {}
                if settings.gpus
                else {"reduce_bucket_size": _REDUCED_TOGETHER, "allgather_bucket_size": _REDUCED_TOGETHER}
            ),
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
