"""Where the ranks of a learner group meet: a store of rank 0 that listens on the address of its node alone.

torch's own `env://` rendezvous listens on all addresses and asks nobody for a password, so a stranger on the network
could change what the ranks tell each other.
"""

from __future__ import annotations

import socket
from datetime import timedelta

Address = tuple[str, int]


def listen(host: str) -> socket.socket:
    """A socket that listens on a free port of one address."""
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def address_of(listener: socket.socket) -> Address:
    """Host and port of a socket."""
    host, port = listener.getsockname()[:2]
    return host, port


def join(
    backend: str,
    address: Address,
    rank: int,
    world_size: int,
    timeout: timedelta,
    listener: socket.socket | None = None,
) -> None:
    """Join torch's process group; every rank calls it.

    Args:
        backend: gloo, or nccl, whose rank then uses GPU 0 of those that it sees.
        address: of rank 0's listener.
        rank: of this process.
        world_size: number of ranks.
        timeout: of joining and of every collective.
        listener: of rank 0 alone; this call takes it over.
    """
    import torch

    host, port = address
    store = torch.distributed.TCPStore(
        host,
        port,
        world_size,
        is_master=listener is not None,
        timeout=timeout,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    # DeepSpeed binds GPUs in the same way; a group of one has nobody to reach
    device = torch.device("cuda", 0) if backend == "nccl" and world_size > 1 else None
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=device
    )
