"""How weights travel from the learner's ranks to the workers of rollout engines: in chunks.

The sender announces each chunk in a call to every receiver, which loads it while the next one is made; over the object
store, where no buffer is filled again, while all others are made (`learner.weight_sender`, `rollout.weight_receiver`).
Its bytes go one of three ways, on GPUs and on CPUs:

    ===============  ========================================  =====================================  ==================
    way              a group of rank 0 and all workers         memory that a rank shares on its node  Ray's object store
    class            `weight_group.TransferGroup`              `weight_memory.SharedMemory`           `StoredChunk`
    on GPUs          nccl                                      ipc                                    object_store
    on CPUs          gloo                                      shared_memory                          object_store
    ===============  ========================================  =====================================  ==================

A group and shared memory have a buffer, in which a chunk's tensors are whole and lie one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = Iterable[tuple[str, torch.Tensor]]

GROUPS = ("nccl", "gloo")
"""The transports that broadcast in a group."""

SHARED = ("ipc", "shared_memory")
"""The transports by memory that ranks share."""

_DEVICES = {"nccl": "cuda", "ipc": "cuda", "gloo": "cpu", "shared_memory": "cpu"}
_ALIGNMENT = 16  # bytes, of a tensor in a buffer


class TransferError(RuntimeError):
    """A member of a transfer failed or left, or the time is up."""


@dataclass(frozen=True)
class Chunk:
    """Tensors that lie one behind the other in a buffer."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    bytes: int  # of the buffer
    handles: Mapping[str, Any] = field(default_factory=dict)  # of shared memory, by place


@dataclass(frozen=True)
class StoredChunk:
    """A bucket of tensors in Ray's object store."""

    ref: Any  # reference to a `weight_codec.Bucket`


def buffer_bytes(sizes: Iterable[int], chunk_bytes: int) -> int:
    """Size of a buffer for tensors of these sizes: a chunk, the largest tensor, or all if they are less."""
    padded = [_aligned(size) for size in sizes]
    return min(sum(padded), max(chunk_bytes, *padded))


def pack(tensors: Tensors, buffer: torch.Tensor) -> Iterator[Chunk]:
    """Copy tensors into a buffer of bytes and yield what it holds each time that the next one does not fit.

    The buffer is filled anew when the iterator goes on. A tensor that is larger than the buffer is an error.
    """
    packed: list[tuple[str, torch.Tensor]] = []
    filled = 0
    for name, tensor in tensors:
        start = _aligned(filled)
        if packed and start + tensor.nbytes > buffer.numel():
            yield _chunk(packed, filled)
            packed, start = [], 0
        filled = start + tensor.nbytes
        buffer[start:filled].view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
        packed.append((name, tensor.detach().to("meta")))
    if packed:
        yield _chunk(packed, filled)


def unpack(chunk: Chunk, buffer: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Views of a chunk's tensors in a buffer.

    Raises:
        TransferError: the tensors do not fill the buffer exactly.
    """
    tensors, filled = [], 0
    for name, dtype_name, shape in zip(chunk.names, chunk.dtypes, chunk.shapes, strict=True):
        dtype = getattr(torch, dtype_name)
        start = _aligned(filled)
        filled = start + torch.Size(shape).numel() * dtype.itemsize
        if filled > buffer.numel():
            break
        tensors.append((name, buffer[start:filled].view(dtype).view(shape)))
    if filled != buffer.numel():
        raise TransferError(f"a chunk of {buffer.numel()} bytes was announced with tensors of {filled}")
    return tensors


def _chunk(packed: list[tuple[str, torch.Tensor]], filled: int) -> Chunk:
    dtypes = tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in packed)
    return Chunk(tuple(name for name, _ in packed), dtypes, tuple(tuple(t.shape) for _, t in packed), filled)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def empty(transport: str, size: int) -> torch.Tensor:
    """A buffer of bytes on the device of a transport."""
    return torch.empty(size, dtype=torch.uint8, device=_DEVICES[transport])
