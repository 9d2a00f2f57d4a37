"""The sending end of weight updates over vLLM's own transports, in a learner worker: NCCL, or CUDA IPC within a GPU.

All ranks take part, because ZeRO-3 gathers parameter by parameter; rank 0 calls the rollout actors. In the NCCL group
it is rank 0 as well, and every worker of every actor has a later rank. The group exists for one update: an actor that
joins later takes the weights from the object store, and a dead actor blocks no later update.

Written for vLLM 0.32. vLLM 0.24 has static methods instead of trainer-side engines; what they lack is written below.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from psyco_ray.models.weight_checksum import WeightChecksum

Parameters = Iterator[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class ParameterInfo:
    """Name, dtype and shape of a parameter, announced before it is sent."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the whole parameter."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class ParameterSource:
    """An iterable of whole parameters; vLLM reads it as its `WeightSource`."""

    def __init__(
        self, metadata: Sequence[ParameterInfo], parameters: Callable[[], Parameters], with_checksum: bool
    ) -> None:
        """Wrap the parameters.

        Args:
            metadata: of each parameter, in order.
            parameters: starts an iteration over them.
            with_checksum: add every parameter to `checksum` as it passes.
        """
        self._metadata, self._parameters, self._with_checksum = list(metadata), parameters, with_checksum
        self.checksum = WeightChecksum()

    def metadata(self) -> list[ParameterInfo]:
        """Return what an iteration yields, in the same order."""
        return self._metadata

    def __iter__(self) -> Parameters:
        self.checksum = WeightChecksum()
        for name, tensor in self._parameters():
            if self._with_checksum:
                self.checksum.add(name, tensor)
            yield name, tensor


class ReceiverClient:
    """Calls rollout actors through the interface of vLLM's trainer side.

    An actor that fails is left out from then on, because the ranks must finish the transfer together.
    """

    def __init__(self, transport: str, actors: Sequence[Any], version: int, workers: int, deadline_s: float) -> None:
        """Start the deadline.

        Args:
            transport: nccl or ipc.
            actors: rollout actors.
            version: of the weights.
            workers: of each actor's engine.
            deadline_s: seconds for the whole update.
        """
        self.failures: dict[int, str] = {}  # reason by the actor's index
        self._transport, self._actors = transport, dict(enumerate(actors))
        self._version, self._workers = version, workers
        self._deadline = time.monotonic() + deadline_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect every actor to rank 0, each of its workers with a rank of its own."""
        nccl = self._transport == "nccl"

        def settings(index: int) -> dict[str, Any]:
            return {**init_info, **({"rank_offset": 1 + index * self._workers} if nccl else {})}

        self._call("init_transfer", lambda index, actor: actor.init_transfer.remote(self._transport, settings(index)))

    def start_weight_update(self) -> None:
        """Announce the weights."""
        self._call("start_update", lambda _, actor: actor.start_update.remote())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Make every actor receive a chunk."""
        self._call("receive_chunk", lambda _, actor: actor.receive_chunk.remote(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update."""
        self._call("finish_update", lambda _, actor: actor.finish_update.remote(self._version))

    def _call(self, step: str, remote: Callable[[int, Any], Any]) -> None:
        calls = {index: remote(index, actor) for index, actor in self._actors.items()}
        for index, call in calls.items():
            try:
                ray.get(call, timeout=max(0.0, self._deadline - time.monotonic()))
            except RayError as error:
                self.failures[index] = f"{step}: {str(error).strip().splitlines()[-1]}"
                del self._actors[index]


def send(
    transport: str,
    source: ParameterSource,
    client: ReceiverClient,
    rank: int,
    rendezvous: tuple[str, int],
    world_size: int,
    chunk_bytes: int,
) -> None:
    """Send all parameters to the client's actors; every rank calls it.

    Args:
        transport: nccl or ipc.
        source: the parameters.
        client: the actors.
        rank: of this process; 0 calls the actors.
        rendezvous: address and free port of rank 0, for NCCL.
        world_size: members of the NCCL group: rank 0 and all workers.
        chunk_bytes: size of a chunk; a larger parameter is a chunk by itself.
    """
    torch.cuda.synchronize()  # other streams send what was computed on this one
    largest = max(parameter.bytes for parameter in source.metadata())
    packing = {"packed": True, "packed_buffer_size_bytes": max(chunk_bytes, largest)}
    group = {"master_address": rendezvous[0], "master_port": rendezvous[1], "world_size": world_size}
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    except ImportError:
        _send_0_24(transport, source, client, rank, group, packing)
        return
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    info = (
        NCCLTrainerInitInfo(rank=rank, **group, **packing)
        if transport == "nccl"
        else IPCTrainerInitInfo(rank=rank, **packing)
    )
    sender = WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
    try:
        sender.send_weights()
    finally:
        sender.shutdown()


def _send_0_24(
    transport: str,
    source: ParameterSource,
    client: ReceiverClient,
    rank: int,
    group: dict[str, Any],
    packing: dict[str, Any],
) -> None:
    if transport == "ipc":
        _send_ipc_0_24(source, client, rank, packing)
    elif rank:
        for _ in source:
            pass
    else:
        _send_nccl_0_24(source, client, group, packing)


def _send_nccl_0_24(
    source: ParameterSource, client: ReceiverClient, group: dict[str, Any], packing: dict[str, Any]
) -> None:
    """Rank 0's part: connects to the workers and sends while they receive."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerSendWeightsArgs, NCCLWeightTransferEngine

    update_info = {
        "names": [parameter.name for parameter in source.metadata()],
        "dtype_names": [str(parameter.dtype).removeprefix("torch.") for parameter in source.metadata()],
        "shapes": [list(parameter.shape) for parameter in source.metadata()],
        **packing,
    }
    with ThreadPoolExecutor(1) as background:
        connected = background.submit(client.init_weight_transfer_engine, group)
        communicator = NCCLWeightTransferEngine.trainer_init(group)
        connected.result()
        client.start_weight_update()
        received = background.submit(client.update_weights, update_info)
        arguments = NCCLTrainerSendWeightsArgs(group=communicator, **packing)
        NCCLWeightTransferEngine.trainer_send_weights(iter(source), arguments)
        received.result()
    torch.cuda.synchronize()
    client.finish_weight_update()
    communicator.destroy()


def _send_ipc_0_24(source: ParameterSource, client: ReceiverClient, rank: int, packing: dict[str, Any]) -> None:
    """Every rank's part: each worker reads the memory that the rank on its own GPU offers."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerSendWeightsArgs, IPCWeightTransferEngine

    arguments = IPCTrainerSendWeightsArgs(send_mode=lambda info: client.update_weights(asdict(info)), **packing)
    if not rank:
        client.init_weight_transfer_engine({})
        client.start_weight_update()
    for chunk in chunks(iter(source), packing["packed_buffer_size_bytes"]):
        # one call a chunk: within a call, 0.24 offers the same memory again and counts it as returned each time
        IPCWeightTransferEngine.trainer_send_weights(iter(chunk), arguments)
    if not rank:
        client.finish_weight_update()


def chunks(parameters: Parameters, max_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Yield lists of at most `max_bytes` of parameters, copied: the iterator may reuse its memory."""
    chunk: list[tuple[str, torch.Tensor]] = []
    filled = 0
    for name, tensor in parameters:
        if chunk and filled + tensor.nbytes > max_bytes:
            yield chunk
            chunk, filled = [], 0
        chunk.append((name, tensor.detach().clone()))
        filled += tensor.nbytes
    if chunk:
        yield chunk
