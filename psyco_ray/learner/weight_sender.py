"""The sending end of weight updates over vLLM's own transports, in a learner rank: NCCL, or CUDA IPC within a GPU.

All ranks take part, for ZeRO-3 gathers parameter by parameter; rank 0 speaks with the rollout actors. In NCCL's group
it is rank 0 too, and every worker of every actor has a rank after it. The group is made for one update and ended after
it: who joins later takes the weights from the object store, and nobody has to be waited for who is gone.

Written for vLLM 0.32. 0.24 has no trainer-side engines but static methods; what they lack is written out below.
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
class Described:
    """A parameter as it will come."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of the whole parameter."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class ParameterSource:
    """The parameters, each whole, one after the other; vLLM reads it as its `WeightSource`."""

    def __init__(self, described: Sequence[Described], parameters: Callable[[], Parameters], counted: bool) -> None:
        """Say which they are, how they are had, and whether they are counted as they pass."""
        self._described, self._parameters, self._counted = list(described), parameters, counted
        self.tally = WeightChecksum()

    def metadata(self) -> list[Described]:
        """What will come, in the same order."""
        return self._described

    def __iter__(self) -> Parameters:
        self.tally = WeightChecksum()
        for name, tensor in self._parameters():
            if self._counted:
                self.tally.add(name, tensor)
            yield name, tensor


class ReceiverClient:
    """Speaks to rollout actors as vLLM's trainer side wants it.

    An actor that fails is left out from then on: the ranks have to come to an end together whatever becomes of it.
    """

    def __init__(self, transport: str, actors: Sequence[Any], version: int, workers: int, deadline_s: float) -> None:
        """Name the actors.

        Args:
            transport: nccl or ipc.
            actors: rollout actors.
            version: of the weights.
            workers: of each actor's engine.
            deadline_s: seconds for all of it.
        """
        self.failures: dict[int, str] = {}  # by actor
        self._transport, self._actors = transport, dict(enumerate(actors))
        self._version, self._workers = version, workers
        self._until = time.monotonic() + deadline_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have every actor meet rank 0, each worker with a rank of its own."""
        nccl = self._transport == "nccl"

        def settings(index: int) -> dict[str, Any]:
            return {**init_info, **({"rank_offset": 1 + index * self._workers} if nccl else {})}

        self._ask("meet", lambda index: {"transport": self._transport, "settings": settings(index)})

    def start_weight_update(self) -> None:
        """Weights are about to come."""
        self._ask("start_update", lambda _: {})

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Have every actor receive a piece."""
        self._ask("take_piece", lambda _: {"piece": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """All weights have come."""
        self._ask("finish_update", lambda _: {"version": self._version})

    def _ask(self, step: str, given: Callable[[int], dict[str, Any]]) -> None:
        asked = {index: actor.receive.remote(step, **given(index)) for index, actor in self._actors.items()}
        for index, answer in asked.items():
            try:
                ray.get(answer, timeout=max(0.0, self._until - time.monotonic()))
            except RayError as error:
                self.failures[index] = f"{step}: {str(error).strip().splitlines()[-1]}"
                del self._actors[index]


def send(
    transport: str,
    source: ParameterSource,
    client: ReceiverClient,
    rank: int,
    meeting: tuple[str, int],
    world: int,
    piece_bytes: int,
) -> None:
    """Send all parameters to the client's actors; every rank calls it.

    Args:
        transport: nccl or ipc.
        source: the parameters.
        client: the actors.
        rank: of this process; 0 speaks with the actors.
        meeting: address and free port of rank 0, for NCCL.
        world: members of the NCCL group: rank 0 and all workers.
        piece_bytes: of a piece, about; a larger parameter is a piece by itself.
    """
    torch.cuda.synchronize()  # what is sent on other streams was computed
    largest = max(described.bytes for described in source.metadata())
    how = {"packed": True, "packed_buffer_size_bytes": max(piece_bytes, largest)}
    place = {"master_address": meeting[0], "master_port": meeting[1], "world_size": world}
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    except ImportError:
        _send_0_24(transport, source, client, rank, place, how)
        return
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    info = (
        NCCLTrainerInitInfo(rank=rank, **place, **how) if transport == "nccl" else IPCTrainerInitInfo(rank=rank, **how)
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
    place: dict[str, Any],
    how: dict[str, Any],
) -> None:
    if transport == "ipc":
        _send_ipc_0_24(source, client, rank, how)
    elif rank:
        for _ in source:
            pass
    else:
        _send_nccl_0_24(source, client, place, how)


def _send_nccl_0_24(
    source: ParameterSource, client: ReceiverClient, place: dict[str, Any], how: dict[str, Any]
) -> None:
    """Rank 0's part: it meets the workers and sends while they receive."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerSendWeightsArgs, NCCLWeightTransferEngine

    announced = {
        "names": [one.name for one in source.metadata()],
        "dtype_names": [str(one.dtype).removeprefix("torch.") for one in source.metadata()],
        "shapes": [list(one.shape) for one in source.metadata()],
        **how,
    }
    with ThreadPoolExecutor(1) as beside:
        met = beside.submit(client.init_weight_transfer_engine, place)
        group = NCCLWeightTransferEngine.trainer_init(place)
        met.result()
        client.start_weight_update()
        received = beside.submit(client.update_weights, announced)
        NCCLWeightTransferEngine.trainer_send_weights(iter(source), NCCLTrainerSendWeightsArgs(group=group, **how))
        received.result()
    torch.cuda.synchronize()
    client.finish_weight_update()
    group.destroy()


def _send_ipc_0_24(source: ParameterSource, client: ReceiverClient, rank: int, how: dict[str, Any]) -> None:
    """Every rank's part: the workers find memory of their own GPU's rank among what all ranks offer."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerSendWeightsArgs, IPCWeightTransferEngine

    args = IPCTrainerSendWeightsArgs(send_mode=lambda info: client.update_weights(asdict(info)), **how)
    if not rank:
        client.init_weight_transfer_engine({})
        client.start_weight_update()
    for piece in pieces(iter(source), how["packed_buffer_size_bytes"]):
        # a call for each: within one, 0.24 offers the same memory again and counts it as given back each time
        IPCWeightTransferEngine.trainer_send_weights(iter(piece), args)
    if not rank:
        client.finish_weight_update()


def pieces(parameters: Parameters, size: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Parameters in lists of at most so many bytes, each of them copied: what is lent may be gone with the next."""
    piece: list[tuple[str, torch.Tensor]] = []
    filled = 0
    for name, tensor in parameters:
        if piece and filled + tensor.nbytes > size:
            yield piece
            piece, filled = [], 0
        piece.append((name, tensor.detach().clone()))
        filled += tensor.nbytes
    if piece:
        yield piece
