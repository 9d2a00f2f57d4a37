"""The group that broadcasts the weights of one update: over NCCL among GPUs, over gloo among CPUs."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch.distributed import PrefixStore, TCPStore

from psyco_ray.models import weight_chunks
from psyco_ray.models.weight_chunks import Chunk, TransferError

Address = tuple[str, int]

_POLL_S = (0.0002, 0.02)  # first and longest pause between two looks at a broadcast
_STORE_POLL_S = 0.25  # between two looks at the sender's store
_ABANDONED = "abandoned"


class _Broadcast(Protocol):
    """A broadcast that goes on in the background."""

    def is_completed(self) -> bool: ...
    def wait(self) -> object: ...


class _Nccl:
    """NCCL among the current GPUs of the members, as vLLM binds it."""

    def __init__(self, store: PrefixStore, rank: int, world_size: int, timeout: timedelta) -> None:
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup

        device = torch.device("cuda", torch.cuda.current_device())
        members = StatelessProcessGroup(rank=rank, world_size=world_size, store=store)
        self._communicator = PyNcclCommunicator(members, device)

    def broadcast(self, tensor: torch.Tensor) -> _Broadcast:
        self._communicator.broadcast(tensor, src=0, stream=torch.cuda.current_stream())
        return _CudaEvent(torch.cuda.current_stream().record_event())

    def close(self) -> None:
        self._communicator.destroy()  # aborts what still runs


class _CudaEvent:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.is_completed, self.wait = event.query, event.synchronize


class _Gloo:
    """gloo over TCP."""

    def __init__(self, store: PrefixStore, rank: int, world_size: int, timeout: timedelta) -> None:
        self._group = torch.distributed.ProcessGroupGloo(store, rank, world_size, timeout)
        self._last: Any = None

    def broadcast(self, tensor: torch.Tensor) -> _Broadcast:
        options = torch.distributed.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        self._last = self._group.broadcast([tensor], options)  # type: ignore[attr-defined]
        return self._last

    def close(self) -> None:
        if self._last is not None and not self._last.is_completed():
            # gloo cannot abort, and a group with a broadcast under way blocks whoever drops it
            threading.Thread(target=_keep_until_completed, args=(self._group, self._last), daemon=True).start()
        del self._group, self._last


def _keep_until_completed(group: object, broadcast: _Broadcast) -> None:
    with contextlib.suppress(RuntimeError):
        broadcast.wait()  # ends with the group's timeout


_LINKS: dict[str, type[_Nccl | _Gloo]] = {"nccl": _Nccl, "gloo": _Gloo}


class TransferGroup:
    """The sender (rank 0) and the receivers of one weight update.

    A partner that left is noticed without the help of NCCL, which has none to give: the sender watches its calls to the
    receivers, and the receivers look into a store of the sender's that tells when it gave up, and ends with it.
    """

    def __init__(
        self,
        transport: str,
        address: Address,
        rank: int,
        world_size: int,
        timeout_s: float,
        listener: socket.socket | None = None,
    ) -> None:
        """Open the sender's store, or connect to it.

        Args:
            transport: nccl or gloo.
            address: of the sender's listener.
            rank: of this member; 0 sends.
            world_size: number of members.
            timeout_s: seconds for the whole transfer.
            listener: of the sender alone; this call takes it over.

        Raises:
            TransferError: the sender cannot be reached.
        """
        self._transport, self._rank, self._world_size = transport, rank, world_size
        self._deadline = time.monotonic() + timeout_s
        self._link: _Nccl | _Gloo | None = None
        descriptor = None if listener is None else listener.detach()
        try:
            self._store = TCPStore(
                *address,
                is_master=listener is not None,
                timeout=timedelta(seconds=timeout_s),
                wait_for_workers=False,
                master_listen_fd=descriptor,
            )
        except RuntimeError as error:
            raise TransferError(f"the sender at {address[0]} cannot be reached: {error}") from error

    def open(self, watch: Callable[[], None] = lambda: None) -> None:
        """Wait for all members, then connect them.

        Args:
            watch: called again and again; raises what shall end the transfer.

        Raises:
            TransferError: the time is up, or the sender gave up.
        """
        with self._failures_named():
            self._store.add("members", 1)
        self._until(lambda: self._store.add("members", 0) >= self._world_size, watch)
        left = timedelta(seconds=max(0.1, self._deadline - time.monotonic()))
        with self._failures_named():
            self._link = _LINKS[self._transport](PrefixStore("link", self._store), self._rank, self._world_size, left)

    def broadcast(self, buffer: torch.Tensor, watch: Callable[[], None] = lambda: None) -> None:
        """Send a buffer, or receive one of the same size; arguments and errors as of `open`."""
        assert self._link is not None, "open comes first"
        with self._failures_named():
            broadcast = self._link.broadcast(buffer)
        self._until(broadcast.is_completed, watch)
        with self._failures_named():
            broadcast.wait()

    def receive(self, chunk: Chunk) -> list[tuple[str, torch.Tensor]]:
        """Receive the tensors of an announced chunk."""
        buffer = weight_chunks.empty(self._transport, chunk.bytes)
        self.broadcast(buffer)
        return weight_chunks.unpack(chunk, buffer)

    def abandon(self, reason: str) -> None:
        """Tell the receivers that the sender gave up."""
        self._store.set(_ABANDONED, reason)

    def close(self) -> None:
        """Leave; a broadcast that still runs is aborted."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _until(self, done: Callable[[], bool], watch: Callable[[], None]) -> None:
        pause, looked = _POLL_S[0], time.monotonic()
        while True:
            with self._failures_named():
                if done():
                    return
            watch()
            now = time.monotonic()
            if now > self._deadline:
                raise TransferError("a weight transfer did not end in time")
            if self._rank and now > looked + _STORE_POLL_S:
                looked = now
                self._look_into_store()
            time.sleep(pause)
            pause = min(2 * pause, _POLL_S[1])

    def _look_into_store(self) -> None:
        with self._failures_named():
            if self._store.check([_ABANDONED]):
                raise TransferError(f"the sender gave up: {self._store.get(_ABANDONED).decode()}")

    def _failures_named(self) -> _Named:
        return _Named("the receivers" if self._rank == 0 else "the sender")


class _Named:
    """Turns the errors of collective libraries and stores into `TransferError`."""

    def __init__(self, partner: str) -> None:
        self._partner = partner

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError) and not isinstance(error, TransferError):
            text = re.sub(r"^\[\S+\] ", "", str(error).strip()).partition(". ")[0]  # without the line in gloo's source
            raise TransferError(f"the connection to {self._partner} failed: {text}") from error
