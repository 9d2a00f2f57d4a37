"""Chunks of weights, the group that broadcasts them and the memory that holds them, on the CPU within one process."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from support.processes import mapped_segments

from psyco_ray.learner import rendezvous
from psyco_ray.models import weight_chunks
from psyco_ray.models.weight_chunks import Chunk, TransferError, buffer_bytes, pack, unpack
from psyco_ray.models.weight_group import TransferGroup
from psyco_ray.models.weight_memory import MemoryReader, SharedMemory, map_memory, place_of

Tensors = list[tuple[str, torch.Tensor]]


def tensors() -> Tensors:
    torch.manual_seed(0)
    dtypes = [torch.bfloat16, torch.float32, torch.uint8, torch.int64, torch.float16]
    return [(f"layer.{i}", (torch.randn(3, 5 + i) * 50).to(dtype)) for i, dtype in enumerate(dtypes)]


def same(found: Tensors, expected: Tensors) -> bool:
    return [name for name, _ in found] == [name for name, _ in expected] and all(
        a.dtype == b.dtype and torch.equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("chunk_bytes", [1, 150, 200, 10_000])
def test_tensors_come_out_of_chunks_as_they_went_in(chunk_bytes: int) -> None:
    weights = [*tensors(), ("transposed", torch.randn(4, 6).T), ("scalar", torch.tensor(2.5)), ("empty", torch.ones(0))]
    size = buffer_bytes([tensor.nbytes for _, tensor in weights], chunk_bytes)
    buffer, found, counts = weight_chunks.empty("gloo", size), [], []
    for chunk in pack(iter(weights), buffer):
        assert chunk.bytes <= size
        received = buffer[: chunk.bytes].clone()
        buffer.fill_(7)  # the sender uses it again
        found += unpack(chunk, received)
        counts.append(len(chunk.names))
    assert same(found, weights)
    assert len(counts) == 1 if chunk_bytes == 10_000 else len(counts) > 1


def test_a_buffer_is_as_large_as_a_chunk_the_largest_tensor_or_all_of_them() -> None:
    assert buffer_bytes([10, 20, 30], 1000) == 16 + 32 + 32
    assert buffer_bytes([10, 20, 30] * 100, 1000) == 1000
    assert buffer_bytes([10, 5000, 30] * 100, 1000) == 5008


def test_a_chunk_that_does_not_fill_its_buffer_is_refused() -> None:
    [chunk] = pack(iter(tensors()), torch.empty(1000, dtype=torch.uint8))
    for size in (chunk.bytes - 16, chunk.bytes + 16):
        with pytest.raises(TransferError, match=rf"a chunk of {size} bytes was announced with tensors of \d+"):
            unpack(chunk, torch.empty(size, dtype=torch.uint8))


class Meeting:
    """A sender in this thread and receivers in others."""

    def __init__(self, receivers: int, timeout_s: float = 20.0, expected: int | None = None) -> None:
        self.listener = rendezvous.listen("127.0.0.1")
        self.address = rendezvous.address_of(self.listener)
        self.members, self.timeout_s = 1 + (receivers if expected is None else expected), timeout_s
        self.threads = ThreadPoolExecutor(max(1, receivers))
        self.receivers, self.groups = receivers, []

    def start(self, work: Callable[[TransferGroup], object]) -> list[Future]:
        """Start the receivers, which then do some work."""

        def receive(rank: int) -> object:
            group = TransferGroup("gloo", self.address, rank, self.members, self.timeout_s)
            self.groups.append(group)  # one that leaves early ends the others' broadcasts
            group.open()
            return work(group)

        self.began = time.monotonic()
        self.sender = TransferGroup("gloo", self.address, 0, self.members, self.timeout_s, self.listener)
        self.groups.append(self.sender)
        return [self.threads.submit(receive, rank) for rank in range(1, self.receivers + 1)]


@pytest.fixture
def meet() -> Iterator[Callable[..., Meeting]]:
    started: list[Meeting] = []

    def meet(*arguments, **options) -> Meeting:
        started.append(Meeting(*arguments, **options))
        return started[-1]

    yield meet
    for meeting in started:
        meeting.threads.shutdown()
        for group in meeting.groups:
            group.close()


def chunks_of(weights: Tensors, chunk_bytes: int) -> Iterator[tuple[Chunk, torch.Tensor]]:
    buffer = weight_chunks.empty("gloo", buffer_bytes([t.nbytes for _, t in weights], chunk_bytes))
    for chunk in pack(iter(weights), buffer):
        yield chunk, buffer[: chunk.bytes]


def broadcast_often(sender: TransferGroup, buffer: torch.Tensor, watch: Callable[[], None] = lambda: None) -> None:
    """Broadcast until it blocks or fails: the first buffers may fit into those of the system's sockets."""
    for _ in range(1000):
        sender.broadcast(buffer, watch)


def test_a_group_gives_every_receiver_every_tensor(meet) -> None:
    weights, announced = tensors(), [chunk for chunk, _ in chunks_of(tensors(), 1)]
    meeting = meet(3)
    receivers = meeting.start(lambda group: [tensor for chunk in announced for tensor in group.receive(chunk)])
    meeting.sender.open()
    for _, packed in chunks_of(weights, 1):
        meeting.sender.broadcast(packed)
    assert len(announced) > 2
    assert all(same(receiver.result(20), weights) for receiver in receivers)


def test_a_member_that_does_not_come_ends_the_meeting_at_the_deadline(meet) -> None:
    meeting = meet(1, timeout_s=1.0, expected=2)
    [receiver] = meeting.start(lambda group: None)
    with pytest.raises(TransferError, match="a weight transfer did not end in time"):
        meeting.sender.open()
    with pytest.raises(TransferError):
        receiver.result(20)
    assert time.monotonic() - meeting.began < 5


def test_a_sender_whose_watch_raises_stops_at_once(meet) -> None:
    meeting = meet(1, expected=2)
    [receiver] = meeting.start(lambda group: None)

    def watch() -> None:
        raise TransferError("rollout actor 1 failed, init_transfer: it died")

    with pytest.raises(TransferError, match="it died"):
        meeting.sender.open(watch)
    meeting.sender.abandon("rollout actor 1 failed")
    with pytest.raises(TransferError, match="the sender gave up: rollout actor 1 failed"):
        receiver.result(20)
    assert time.monotonic() - meeting.began < 5


def test_receivers_that_wait_for_a_chunk_hear_that_the_sender_gave_up(meet) -> None:
    [(chunk, packed)] = chunks_of(tensors(), 10_000)
    took_part = threading.Event()

    def work(group: TransferGroup) -> object:
        if group._rank == 1:
            took_part.wait(20)  # it never takes part in the broadcast
            return None
        return group.receive(chunk)

    meeting = meet(2)
    receivers = meeting.start(work)
    meeting.sender.open()
    looks = iter(range(20))

    def watch() -> None:
        if next(looks, None) is None:
            raise TransferError("rollout actor 0 failed, receive_chunk: it hangs")

    with pytest.raises(TransferError, match="it hangs"):
        broadcast_often(meeting.sender, packed, watch)
    meeting.sender.abandon("rollout actor 0 failed")
    took_part.set()
    waiting = receivers[1]
    with contextlib.suppress(TransferError):
        assert same(waiting.result(20), tensors()), "it has the chunk, or knows that it will not come"
    assert time.monotonic() - meeting.began < 10


def test_a_receiver_that_left_ends_the_broadcast_of_the_sender(meet) -> None:
    meeting = meet(1)
    [receiver] = meeting.start(TransferGroup.close)
    meeting.sender.open()
    receiver.result(20)
    with pytest.raises(TransferError, match="the connection to the receivers failed"):
        broadcast_often(meeting.sender, torch.zeros(2**20, dtype=torch.uint8))


SENDER = """
import sys, time, torch
from psyco_ray.learner import rendezvous
from psyco_ray.models.weight_group import TransferGroup
listener = rendezvous.listen("127.0.0.1")
print(rendezvous.address_of(listener)[1], flush=True)
group = TransferGroup("gloo", rendezvous.address_of(listener), 0, 2, 60.0, listener)
group.open()
print("open", flush=True)
time.sleep(60)
"""


def test_receivers_notice_that_the_senders_process_was_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", SENDER], stdout=subprocess.PIPE, text=True)
    try:
        group = TransferGroup("gloo", ("127.0.0.1", int(process.stdout.readline())), 1, 2, 60.0)
        group.open()
        assert process.stdout.readline() == "open\n"
        process.kill()
        [(chunk, _)] = chunks_of(tensors(), 10_000)
        began = time.monotonic()
        with pytest.raises(TransferError, match="the connection to the sender failed"):
            group.receive(chunk)
        assert time.monotonic() - began < 10
        group.close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_sender_that_cannot_be_reached_is_named() -> None:
    with rendezvous.listen("127.0.0.1") as listener:
        address = rendezvous.address_of(listener)
    with pytest.raises(TransferError, match=r"the sender at 127.0.0.1 cannot be reached"):
        TransferGroup("gloo", address, 1, 2, 0.5)


def test_shared_memory_is_read_chunk_by_chunk() -> None:
    weights, found = tensors(), []
    memory = SharedMemory("shared_memory", buffer_bytes([t.nbytes for _, t in weights], 1))
    reader = MemoryReader("shared_memory")
    for chunk in pack(iter(weights), memory.buffer):
        memory.synchronize()
        found += reader.receive(replace(chunk, handles={place_of("shared_memory"): memory.handle, "gpu 7": None}))
        memory.buffer.fill_(7)  # the sender goes on
    reader.close()
    memory.close()
    assert same(found, weights)


def test_memory_of_another_place_and_a_chunk_larger_than_the_memory_are_refused() -> None:
    [(chunk, _)] = chunks_of(tensors(), 10_000)
    memory, reader = SharedMemory("shared_memory", chunk.bytes - 16), MemoryReader("shared_memory")
    with pytest.raises(TransferError, match=f"no rank shares memory of {place_of('shared_memory')}, only of gpu 7"):
        reader.receive(replace(chunk, handles={"gpu 7": memory.handle}))
    with pytest.raises(TransferError, match="was announced with tensors of"):
        reader.receive(replace(chunk, handles={place_of("shared_memory"): memory.handle}))
    memory.close()


MEMORY = """
import time
from psyco_ray.models.weight_memory import SharedMemory
memory = SharedMemory("shared_memory", 1 << 20)
memory.buffer.fill_(9)
print(*memory.handle, flush=True)
time.sleep(60)
"""


def test_memory_of_another_process_is_mapped_and_goes_with_the_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", MEMORY], stdout=subprocess.PIPE, text=True)
    try:
        path, size = process.stdout.readline().split()
        mapped = map_memory("shared_memory", (path, int(size)))
        assert mapped.tolist() == [9] * 2**20
        assert not mapped_segments(process.pid), "its memory has no name that could stay"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not os.path.exists(path)
