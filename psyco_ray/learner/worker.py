"""One process of a learner group: a rank of a DeepSpeed training."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ray

from psyco_ray.config.errors import require_finite
from psyco_ray.learner.batching import MicroBatch
from psyco_ray.learner.rendezvous import Address, address_of, listen
from psyco_ray.learner.spec import OnGpu, WorkerSpec
from psyco_ray.models import weight_codec
from psyco_ray.models.sharing import Computed
from psyco_ray.models.weight_codec import Bucket, DeltaTracker
from psyco_ray.run.cuda_driver import check_driver
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.types import DeltaRef

if TYPE_CHECKING:
    import torch

WAY_OUT = "lower the learning rate, or look at that pair and the base model; --resume continues from the last state"


class LearnerWorker:
    """One rank of a learner group, a Ray actor around a DeepSpeed engine.

    Every method except `location`, `size` and `listen` is collective: all ranks call it together, because
    ZeRO-3 gathers parameters and every step reduces gradients.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._deltas = DeltaTracker()
        self._listener: socket.socket | None = None

    def location(self) -> tuple[str, str, int]:
        """Return the address and id of this worker's node, and its process id."""
        return ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id(), os.getpid()

    def size(self) -> tuple[int, int, str | None]:
        """Return the model's parameters, its trained parameters, and the name of this worker's GPU (None: a CPU)."""
        import torch

        counts = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in self._model.parameters()]
        gpu = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else None
        return sum(n for n, _ in counts), sum(n for n, trained in counts if trained), gpu

    def listen(self) -> Address:
        """Listen for the ranks of the group, on rank 0 alone; return the address."""
        self._listener = listen(ray.util.get_node_ip_address())
        return address_of(self._listener)

    @gc_paused()
    def start(self, address: Address, spec: WorkerSpec, checkpoint: str | None) -> tuple[Computed, str]:
        """Join the process group and build the engine.

        Args:
            address: where rank 0 listens.
            spec: model, objective, optimizer and sizes.
            checkpoint: directory or URI that `save_state` wrote, to continue from; None: the base model.

        Returns:
            How the model is computed, and what a user should know of that; else an empty text.
        """
        check_driver(spec.settings.gpus)
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world_size),
            LOCAL_RANK="0",
            LOCAL_SIZE="1",
            # DeepSpeed reads it on import; the driver's environment must not decide
            DS_ACCELERATOR="cuda" if spec.settings.gpus > 0 else "cpu",
        )
        from psyco_ray.learner import engine
        from psyco_ray.learner.checkpoint import LearnerCheckpoint

        self._spec, self._objective = spec, spec.objective
        self._zero_stage = spec.settings.zero_stage
        self._device = engine.init_process_group(spec, self.rank, self.world_size, address, self._listener)
        built = engine.build_engine(spec, self.world_size)
        self._engine, self._model, self._tokenizer = built.engine, built.model, built.tokenizer
        self._files = built.files
        self._reduce_bucket = engine.REDUCE_BUCKET
        built.optimizer.register_step_pre_hook(self._check_gradients)
        self._checkpoint = LearnerCheckpoint(built.model, built.engine, built.optimizer, self._zero_stage)
        if checkpoint:
            self._checkpoint.restore(checkpoint)
        return built.engine.module.computed(self._device), built.note

    def step(
        self,
        micro_batches: list[MicroBatch],
        batch_size: int,
        mean_chosen_tokens: float,
        learning_rate: float,
        step: int,
    ) -> dict[str, float]:
        """Take one optimizer step over this rank's share of a batch.

        Args:
            micro_batches: this rank's pairs, one list for each forward and backward pass; equally many on every rank.
            batch_size: pairs in the whole batch, over all ranks.
            mean_chosen_tokens: mean length of a chosen response over the whole batch, in trained tokens.
            learning_rate: of this step.
            step: its number from 0; with the job's seed it seeds dropout, so that a replayed step is the same.

        Returns:
            Sums over this rank's pairs: `loss` and the objective's metrics; `grad_norm` is that of the whole model.

        Raises:
            NonFiniteError: the loss, a value or the gradient is not finite; the weights are those of the step before.
        """
        import torch

        from psyco_ray.learner import passes

        self._step = step
        torch.manual_seed(self._spec.seed + step)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate

        def backward(loss: torch.Tensor, last: bool) -> None:
            self._engine.set_gradient_accumulation_boundary(last)
            # DeepSpeed averages over ranks; the loss is the mean over the batch's pairs
            self._engine.backward(loss * (self.world_size / batch_size), scale_wrt_gas=False)

        where = self._device, self._engine.module
        run = passes.run(micro_batches, self._objective, mean_chosen_tokens, *where, self._engine, backward)
        sums = run.read(self._objective.head, f"in step {step + 1} of {self._spec.model}", WAY_OUT)
        if self._zero_stage == 0 and self.world_size > 1:
            self._engine.allreduce_gradients(bucket_size=self._reduce_bucket)
        self._engine.step()
        self._checkpoint.after_step()
        norm = self._engine.get_global_grad_norm()
        if norm is None:
            return sums
        require_finite([float(norm)], self._gradient(), WAY_OUT)  # DeepSpeed skips such a step
        return {**sums, "grad_norm": float(norm)}

    def _gradient(self) -> str:
        return f"the gradient of step {self._step + 1} of {self._spec.model}"

    def _check_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Called by the optimizer before it changes a weight: DeepSpeed lets some gradients of NaN pass."""
        import torch

        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            total = torch.stack([gradient.sum(dtype=torch.float32) for gradient in gradients]).sum()
            require_finite([total.item()], self._gradient(), WAY_OUT)

    def evaluate(self, micro_batches: list[MicroBatch]) -> list[tuple[float, float]]:
        """Return scores or log-probabilities (chosen, rejected) of pairs under the current weights, without dropout."""
        import torch

        from psyco_ray.learner import passes
        from psyco_ray.models.selftest import values_repeat

        with torch.no_grad(), values_repeat(self._model):
            module = self._engine.module
            values = [self._engine(passes.packed(pairs, module, self._device)).view(-1, 2) for pairs in micro_batches]
            return [(chosen, rejected) for chosen, rejected in torch.cat(values).tolist()]

    def reset_optimizer(self) -> None:
        """Zero Adam's moments and step count, as a new optimizer over the same weights would start."""
        self._checkpoint.reset_moments()

    def export(self, bucket_bytes: int, deltas: bool = False) -> tuple[list[ray.ObjectRef], str, int, DeltaRef | None]:
        """Put the weights into Ray's object store in the compute dtype; ranks other than 0 return nothing.

        Args:
            bucket_bytes: size limit of a bucket, of 64 MiB if that is less; a larger parameter is a bucket by itself.
            deltas: also store the difference from the last export with this option.

        Returns:
            References to buckets of ``{name: (array, dtype)}``, their digest, their bytes, and the delta if it is small
            enough to pay.
        """
        refs: list[ray.ObjectRef] = []
        weights = weight_codec.digest(weight_codec.stored(self._buckets(bucket_bytes), refs))
        buckets = ray.get(refs)
        size = sum(array.nbytes for bucket in buckets for array, _ in bucket.values())
        delta = self._deltas.update(weights, buckets) if deltas and not self.rank else None
        return refs, weights, size, delta

    def send(
        self,
        transport: str,
        actors: list[Any],
        version: int,
        workers: int,
        chunk_bytes: int,
        deadline_s: float,
    ) -> tuple[str, int, dict[int, str], ray.ObjectRef | None]:
        """Send the weights, in the compute dtype, to rollout actors in chunks.

        Args:
            transport: nccl, ipc, gloo, shared_memory or object_store.
            actors: receiving rollout actors; one that fails is left out.
            version: of the weights.
            workers: of each actor's engine.
            chunk_bytes: size of a chunk; a larger parameter is a chunk by itself.
            deadline_s: seconds for an actor to receive everything.

        Returns:
            On rank 0: digest of the weights, their bytes, the reason of each failure by the actor's index, and a
            reference to what `export` returns, if the weights went through the object store.
        """
        from psyco_ray.learner import lora, weight_sender
        from psyco_ray.models import weight_chunks
        from psyco_ray.models.weight_checksum import WeightChecksum
        from psyco_ray.models.weight_files import without_data

        sizes = []
        if transport != "object_store":
            stand_ins = without_data((name, tensor) for name, tensor, _ in lora.exported(self._model))
            sizes = [tensor.nbytes for _, tensor in self._files.converted(stand_ins)]
        receivers = weight_sender.Receivers(actors, deadline_s, together=transport in weight_chunks.GROUPS)
        checksum = WeightChecksum()
        # each rank shares memory with the engine on its own GPU
        parameters = self._full_parameters(all_ranks=transport in weight_chunks.SHARED)
        if not self.rank:
            if transport == "object_store":
                parameters = ((name, tensor.cpu()) for name, tensor in parameters)
            parameters = weight_sender.summed(parameters, checksum)
        where = receivers, version, self.rank, workers, chunk_bytes
        refs = weight_sender.send(transport, parameters, sizes, *where)
        digest, size = checksum.digest(), checksum.bytes
        return digest, size, receivers.failures, ray.put((refs, digest, size, None)) if refs else None

    def keep_on_gpu(self, kept: OnGpu) -> None:
        """Move what is not kept to the host, or everything back; see `LearnerCheckpoint`."""
        self._checkpoint.keep_on_gpu(kept)

    def save_model(self, target: str) -> None:
        """Write the weights in the compute dtype as a transformers directory; rank 0 writes."""
        from psyco_ray.models import saving

        state = {name: tensor.detach().cpu().clone() for name, tensor in self._full_parameters() if not self.rank}
        if not self.rank:
            saving.save(target, self._files, self._tokenizer, state)

    def save_state(self, target: str, moments: bool) -> None:
        """Write the training state, see `LearnerCheckpoint`; rank 0 writes."""
        self._checkpoint.write(target, moments, self.rank)

    def load_state(self, target: str) -> None:
        """Restore a training state that `save_state` wrote."""
        self._checkpoint.restore(target)

    def _buckets(self, bucket_bytes: int) -> Iterator[Bucket]:
        """Yield all weights in buckets of at most this size; none on ranks other than 0, which only take part."""
        from psyco_ray.learner.weight_sender import STORED_BYTES

        own = ((name, tensor) for name, tensor in self._full_parameters() if not self.rank)
        arrays = ((name, weight_codec.as_array(tensor.cpu())) for name, tensor in own)
        return weight_codec.in_buckets(arrays, min(bucket_bytes, STORED_BYTES))

    def _full_parameters(self, all_ranks: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every parameter and persistent buffer, whole, in the compute dtype, as the base's files have them.

        Adapters are merged, and a shared parameter comes once. Every rank iterates; the tensors are complete on rank 0,
        and on the others with `all_ranks`.

        Raises:
            NonFiniteError: a weight is not finite.
        """
        complete = all_ranks or not self.rank
        tensors = self._gathered(complete)
        return self._files.converted(tensors) if complete else tensors

    def _gathered(self, complete: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """As `_full_parameters`, as the model has them; where not `complete`, a rank only takes part in gathering."""
        import deepspeed

        from psyco_ray.learner import lora
        from psyco_ray.learner.weight_sender import in_sending_order

        exported = list(lora.exported(self._model))
        for name, tensor, layer in in_sending_order(exported, self._model.get_input_embeddings().weight):
            gathered = [tensor, *(lora.adapters(layer) if layer is not None else [])]
            with deepspeed.zero.GatheredParameters(gathered, enabled=self._zero_stage == 3):
                whole = tensor.data
                if layer is not None and complete:
                    whole = lora.merged(layer)
                elif self._zero_stage == 3 and complete:
                    whole = whole.clone()
                if complete:
                    self._check_weights(name, whole)
                yield name, whole

    def _check_weights(self, name: str, tensor: torch.Tensor) -> None:
        import torch

        if tensor.is_floating_point():
            # a sum in float32 takes twice as long, and only float16's own range is too small for one
            total = tensor.sum(dtype=torch.float32 if tensor.dtype is torch.float16 else tensor.dtype).item()
            require_finite([total], f"the sum of weight {name} of {self._spec.model}", WAY_OUT)
