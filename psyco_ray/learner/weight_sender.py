"""The sending end of weight updates in chunks (see `models.weight_chunks`), in a learner worker.

All ranks take part, because ZeRO-3 gathers parameter by parameter; rank 0 calls the rollout actors. A group exists for
one update: an actor that joins later takes the weights from the object store, and a dead actor blocks no later update.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from psyco_ray.learner import rendezvous
from psyco_ray.models import weight_chunks, weight_codec, weight_memory
from psyco_ray.models.weight_checksum import WeightChecksum
from psyco_ray.models.weight_chunks import StoredChunk, TransferError
from psyco_ray.models.weight_files import layer_of
from psyco_ray.models.weight_group import TransferGroup
from psyco_ray.models.weight_memory import SharedMemory

Parameters = Iterator[tuple[str, torch.Tensor]]
Exported = tuple[str, torch.Tensor, Any]
"""What `lora.exported` yields."""

STORED_BYTES = 64 * 2**20  # of weights that are stored while the next ones are gathered, or those before are loaded
_FIRST_BYTES = 8 * 2**20  # of the first chunk, for which all engines wait


def summed(parameters: Parameters, checksum: WeightChecksum) -> Parameters:
    """Add every parameter to a checksum as it passes."""
    for name, tensor in parameters:
        checksum.add(name, tensor)
        yield name, tensor


def in_sending_order(exported: Sequence[Exported], embedding: torch.Tensor) -> list[Exported]:
    """Put the input embedding, the largest tensor of many models, behind layers that are as large together.

    Engines wait for the first chunk alone then, and on a CPU they fill and pack the embedding beside later layers. No
    layer is parted, because `WeightFiles` converts its tensors together.
    """
    own = [item for item in exported if item[1] is embedding]
    others = [item for item in exported if item[1] is not embedding]
    left, place, layer = _elements(embedding), 0, ""
    for name, tensor, _ in others:
        if left <= 0 and layer_of(name) != layer:
            break
        layer, place, left = layer_of(name), place + 1, left - _elements(tensor)
    return [*others[:place], *own, *others[place:]]


def _elements(tensor: torch.Tensor) -> int:
    return getattr(tensor, "ds_numel", tensor.numel())  # ZeRO-3 has emptied it


class Receivers:
    """Calls rollout actors for one weight update. An actor that fails, or is late, is left out from then on."""

    def __init__(self, actors: Sequence[Any], deadline_s: float, together: bool) -> None:
        """Start the deadline.

        Args:
            actors: rollout actors.
            deadline_s: seconds for the whole update.
            together: none can receive after one has failed; every method raises a TransferError then.
        """
        self.failures: dict[int, str] = {}  # reason by the actor's index
        self._actors, self._together = dict(enumerate(actors)), together
        self._calls: dict[int, list[ray.ObjectRef]] = {}
        self._step = ""
        self._deadline = time.monotonic() + deadline_s

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._deadline - time.monotonic())

    def begin(self, step: str, *arguments: Any, numbered: Callable[[int], tuple[Any, ...]] = lambda _: ()) -> None:
        """Call a method of every actor, after its last calls have ended.

        Args:
            step: name of the method.
            *arguments: of the method.
            numbered: returns further arguments of the actor with an index.
        """
        self.end()
        self._step = step
        self._calls = {i: [getattr(actor, step).remote(*arguments, *numbered(i))] for i, actor in self._actors.items()}

    def add(self, argument: Any) -> None:
        """Repeat the last step with another argument, without waiting; an actor may take such calls in any order."""
        for index, actor in self._actors.items():
            self._calls[index].append(getattr(actor, self._step).remote(argument))

    def end(self) -> None:
        """Wait until the last calls have ended."""
        self._settle(list(self._calls))

    def watch(self) -> None:
        """Look at the last calls without waiting."""
        calls = [call for of_actor in self._calls.values() for call in of_actor]
        ended = set(ray.wait(calls, num_returns=len(calls), timeout=0)[0]) if calls else set()
        self._settle([index for index, of_actor in self._calls.items() if ended.issuperset(of_actor)])

    def fail_all(self, reason: str) -> None:
        """Leave out all actors."""
        self.failures |= dict.fromkeys(self._actors, reason)
        self._actors, self._calls = {}, {}

    def _settle(self, indices: list[int]) -> None:
        for index in indices:
            # an actor that hangs leaves the others half of the time
            timeout_s = self.left_s if self._together else self.left_s / 2
            calls = self._calls.pop(index)
            try:
                ray.get(calls, timeout=timeout_s)
            except RayError as error:
                # nothing of this update may reach an engine that takes the stored weights
                ray.wait(calls, num_returns=len(calls), timeout=self.left_s / 2)
                self.failures[index] = f"{self._step}: {str(error).strip().splitlines()[-1]}"
                del self._actors[index]
                if self._together:
                    raise TransferError(f"rollout actor {index} failed, {self.failures[index]}") from error


def send(
    transport: str,
    parameters: Parameters,
    sizes: Sequence[int],
    receivers: Receivers,
    version: int,
    rank: int,
    workers: int,
    chunk_bytes: int,
) -> list[ray.ObjectRef]:
    """Send all parameters to the receivers and finish the update. Every rank calls it, whatever becomes of them.

    Args:
        transport: nccl, ipc, gloo, shared_memory or object_store.
        parameters: whole ones; for ipc and shared_memory on every rank, else on rank 0 alone, and the others only
            iterate over them. For object_store on the CPU.
        sizes: bytes of each parameter; object_store needs none.
        receivers: the actors.
        version: of the weights.
        rank: of this process; 0 calls the actors.
        workers: of each actor's engine.
        chunk_bytes: size of a chunk; a larger parameter is a chunk by itself.

    Returns:
        On rank 0: references to the chunks in the object store, if the transport is that.
    """
    stored: list[ray.ObjectRef] = []
    with contextlib.ExitStack() as kept:  # what the receivers need until they have finished
        with _left_out(receivers):
            if transport in weight_chunks.SHARED:
                _share(transport, parameters, weight_chunks.buffer_bytes(sizes, chunk_bytes), receivers, rank, kept)
            elif not rank and transport in weight_chunks.GROUPS:
                size = weight_chunks.buffer_bytes(sizes, chunk_bytes)
                _broadcast(transport, parameters, size, receivers, workers, kept)
            elif not rank:
                _store(parameters, receivers, min(chunk_bytes, STORED_BYTES), stored)
        for _ in parameters:  # the other ranks gather what is left
            pass
        with _left_out(receivers):
            if not rank:
                receivers.begin("finish_update", version)
                receivers.end()
    return stored


@contextlib.contextmanager
def _left_out(receivers: Receivers) -> Iterator[None]:
    """Leave out all receivers of a group that failed."""
    try:
        yield
    except TransferError as error:
        receivers.fail_all(str(error))


def _store(parameters: Parameters, receivers: Receivers, bucket_bytes: int, stored: list[ray.ObjectRef]) -> None:
    """Rank 0's part in the object store: it stores chunks while the receivers load those before."""
    receivers.begin("init_transfer", "object_store", ())
    receivers.begin("start_update")
    arrays = ((name, weight_codec.as_array(tensor)) for name, tensor in parameters)
    for bucket in weight_codec.in_buckets(arrays, bucket_bytes, _FIRST_BYTES):
        stored.append(ray.put(bucket))
        chunk = StoredChunk(stored[-1])
        if len(stored) == 1:
            receivers.begin("receive_chunk", chunk)
        else:
            receivers.add(chunk)


def _broadcast(
    transport: str,
    parameters: Parameters,
    size: int,
    receivers: Receivers,
    workers: int,
    kept: contextlib.ExitStack,
) -> None:
    """Rank 0's part in a group. One failed receiver ends it, because the others would wait for it.

    Raises:
        TransferError: a receiver failed, or the time is up.
    """
    listener = rendezvous.listen(ray.util.get_node_ip_address())
    address, world_size = rendezvous.address_of(listener), 1 + workers * len(receivers)
    group = TransferGroup(transport, address, 0, world_size, receivers.left_s, listener)
    kept.callback(group.close)

    def place(index: int) -> tuple[Any, ...]:
        return ((address, 1 + index * workers, world_size, receivers.left_s),)

    try:
        receivers.begin("init_transfer", transport, numbered=place)
        group.open(receivers.watch)
        receivers.begin("start_update")
        buffer = weight_chunks.empty(transport, size)
        for chunk in weight_chunks.pack(parameters, buffer):  # packs while the receivers load the chunk before
            receivers.begin("receive_chunk", chunk)
            group.broadcast(buffer[: chunk.bytes], receivers.watch)
    except TransferError as error:
        group.abandon(str(error))
        raise


def _share(
    transport: str,
    parameters: Parameters,
    size: int,
    receivers: Receivers,
    rank: int,
    kept: contextlib.ExitStack,
) -> None:
    """Every rank's part in sharing memory: each worker reads what the rank on its own GPU, or node, offers."""
    memory = SharedMemory(transport, size)
    kept.callback(memory.close)
    if not rank:
        receivers.begin("init_transfer", transport, ())
        receivers.begin("start_update")
    for chunk in weight_chunks.pack(parameters, memory.buffer):
        memory.synchronize()
        handles = _gathered({weight_memory.place_of(transport): memory.handle})
        if not rank:
            receivers.begin("receive_chunk", replace(chunk, handles=handles))
            receivers.end()
        _gathered({})  # no rank fills its buffer before all receivers have read theirs


def _gathered(handles: dict[str, Any]) -> dict[str, Any]:
    """The handles of all ranks; waits for all of them."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return handles
    of_ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_ranks, handles)
    return {place: handle for of_rank in of_ranks for place, handle in of_rank.items()}
