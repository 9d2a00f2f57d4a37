"""Memory in which a rank offers weights to the workers on its GPU (CUDA IPC) or, on CPUs, on its node."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch

from psyco_ray.models import weight_chunks
from psyco_ray.models.weight_chunks import Chunk, TransferError


class SharedMemory:
    """A buffer of a rank that workers on the same GPU, or on the same node, map into their own address space."""

    def __init__(self, transport: str, size: int) -> None:
        """Allocate it.

        Args:
            transport: ipc or shared_memory.
            size: bytes.
        """
        if transport == "ipc":
            from torch.multiprocessing.reductions import reduce_tensor

            self.buffer = weight_chunks.empty(transport, size)
            self.handle: Any = reduce_tensor(self.buffer)[1]
        else:
            # anonymous, so that nothing is left of it when its process is killed
            self._descriptor = os.memfd_create("psyco_ray_weights")
            self.handle = f"/proc/{os.getpid()}/fd/{self._descriptor}", size
            self.buffer = map_memory(transport, self.handle)
        self._transport = transport

    def synchronize(self) -> None:
        """Wait until everything has been written."""
        if self._transport == "ipc":
            torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        """Free it when the last process has closed it."""
        del self.buffer
        if self._transport == "ipc":
            torch.cuda.ipc_collect()
        else:
            os.close(self._descriptor)


def place_of(transport: str) -> str:
    """Name of the GPU or node whose processes can map each other's memory."""
    if transport == "ipc":
        return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    return socket.gethostname()


def map_memory(transport: str, handle: Any) -> torch.Tensor:
    """Map another process's `SharedMemory`."""
    if transport == "ipc":
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        arguments = list(handle)
        arguments[6] = torch.cuda.current_device()  # the same GPU may have another number here
        return rebuild_cuda_tensor(*arguments)
    path, size = handle
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


class MemoryReader:
    """The receiving end of `SharedMemory`, which maps each buffer once: CUDA counts the processes that do."""

    def __init__(self, transport: str) -> None:
        self._transport = transport
        self._mapped: tuple[Any, torch.Tensor] | None = None

    def receive(self, chunk: Chunk) -> list[tuple[str, torch.Tensor]]:
        """Copy the tensors of an announced chunk; the sender fills its buffer again afterwards.

        Raises:
            TransferError: no rank shares memory of this place, or the chunk does not fit it.
        """
        place = place_of(self._transport)
        if place not in chunk.handles:
            raise TransferError(f"no rank shares memory of {place}, only of {', '.join(chunk.handles) or 'none'}")
        handle = chunk.handles[place]
        if self._mapped is None or self._mapped[0] != handle:
            self._mapped = handle, map_memory(self._transport, handle)
        # copies of their own: a layer keeps its tensors until it has all of them
        return [(name, tensor.clone()) for name, tensor in weight_chunks.unpack(chunk, self._mapped[1][: chunk.bytes])]

    def close(self) -> None:
        """Unmap the buffer."""
        self._mapped = None
