"""Checksums of weights, and a sender's calls to rollout actors over gloo and shared memory."""

import os
import random
import signal
import time
from collections.abc import Iterator

import pytest
import ray
import torch

from psyco_ray.learner import weight_sender
from psyco_ray.learner.weight_sender import Receivers, summed
from psyco_ray.models import weight_chunks, weight_codec
from psyco_ray.models.weight_checksum import WeightChecksum, fingerprint
from psyco_ray.models.weight_chunks import Chunk, StoredChunk
from psyco_ray.models.weight_group import TransferGroup
from psyco_ray.models.weight_memory import MemoryReader


def parameters(dtype: torch.dtype = torch.bfloat16) -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(0)
    return [(f"layer.{i}", torch.randn(7, 5 + i).to(dtype)) for i in range(4)]


def digest(weights: list[tuple[str, torch.Tensor]]) -> str:
    checksum = WeightChecksum()
    for name, tensor in weights:
        checksum.add(name, tensor)
    return checksum.digest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8])
def test_a_fingerprint_depends_on_every_bit_and_position(dtype: torch.dtype) -> None:
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    tensor = (torch.randn(64, 33) * 50).to(dtype)
    expected = fingerprint(tensor)
    assert torch.equal(fingerprint(tensor.T.contiguous().T), expected), "independent of the memory layout"
    for seed in range(50):
        rng = random.Random(seed)
        position, bit = rng.randrange(tensor.numel()), rng.randrange(8 * dtype.itemsize - 1)
        other = tensor.clone()
        other.view(bits).view(-1)[position] ^= 1 << bit
        assert (fingerprint(other) != expected).all(), (position, bit)
    flat = tensor.view(-1).clone()
    a, b = 3, next(i for i in range(4, len(flat)) if flat[i] != flat[3])
    flat[[a, b]] = flat[[b, a]]
    plain_sum, weighted_sum = fingerprint(flat) == expected
    assert plain_sum, "the plain sum does not see an exchange"
    assert not weighted_sum


def test_a_fingerprint_does_not_depend_on_the_chunk_size(monkeypatch) -> None:
    tensor = torch.randn(1000)
    expected = fingerprint(tensor)
    monkeypatch.setattr("psyco_ray.models.weight_checksum.CHUNK", 7)
    assert torch.equal(fingerprint(tensor), expected)


def test_a_checksum_depends_on_every_part_but_not_on_the_order() -> None:
    weights = parameters()
    expected = digest(weights)
    assert digest(weights[::-1]) == expected
    assert digest(weights[1:]) != expected
    assert digest([(name + "x", tensor) for name, tensor in weights]) != expected
    assert digest([(name, tensor.T.contiguous()) for name, tensor in weights]) != expected
    assert digest([(name, tensor.view(torch.int16)) for name, tensor in weights]) != expected
    assert digest([]) != expected


def test_the_checksum_of_weights_on_a_cpu_is_the_digest_of_the_stored_ones() -> None:
    weights = [*parameters(), ("scalar", torch.tensor(2.5)), ("transposed", torch.randn(4, 6).T)]
    assert digest(weights) == weight_codec.digest([{name: weight_codec.as_array(tensor) for name, tensor in weights}])


class Receiver:
    """Receives weights as a rollout actor does, and fails at a step."""

    def __init__(self, step: str = "", how: str = "") -> None:
        self.step, self.how, self.found, self.calls = step, how, [], []
        self.transport: TransferGroup | MemoryReader | None = None

    def init_transfer(self, transport: str, settings: tuple) -> None:
        self.maybe_fail("init_transfer")
        if transport in weight_chunks.GROUPS:
            address, rank, members, timeout_s = settings
            self.calls.append(rank)
            self.transport = TransferGroup(transport, address, rank, members, timeout_s)
            self.transport.open()
        elif transport in weight_chunks.SHARED:
            self.transport = MemoryReader(transport)

    def start_update(self) -> None:
        self.maybe_fail("start_update")

    def receive_chunk(self, chunk: Chunk | StoredChunk) -> None:
        self.maybe_fail("receive_chunk", now=bool(self.found))  # the second chunk
        if self.how == "slow":
            time.sleep(0.5)
        if isinstance(chunk, StoredChunk):
            received = [(name, weight_codec.as_tensor(*packed)) for name, packed in ray.get(chunk.ref).items()]
        else:
            received = [(name, tensor.clone()) for name, tensor in self.transport.receive(chunk)]
        self.calls.append(len(received))
        self.found += received

    def finish_update(self, version: int) -> None:
        self.maybe_fail("finish_update")
        self.calls.append(f"version {version}")

    def maybe_fail(self, step: str, now: bool = True) -> None:
        if step == self.step and now:
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "hang":
                time.sleep(60)
            raise RuntimeError(f"no {step} today")

    def forget(self) -> None:
        self.found, self.calls, self.transport = [], [], None

    def received(self) -> tuple[str, list]:
        return digest(self.found), self.calls


@pytest.fixture
def start(local_ray) -> Iterator:
    started = []

    def start(*arguments: str):
        started.append(ray.remote(Receiver).options(num_cpus=0).remote(*arguments))
        return started[-1]

    yield start
    for actor in started:
        ray.kill(actor)


@pytest.fixture(scope="module")
def unharmed(local_ray) -> Iterator:
    """A receiver that never fails, for transports that do not bind it to others."""
    actor = ray.remote(Receiver).options(num_cpus=0).remote()
    yield actor
    ray.kill(actor)


def send(transport: str, actors: list, deadline_s: float = 20.0) -> Receivers:
    weights, checksum = parameters(), WeightChecksum()
    receivers = Receivers(actors, deadline_s, together=transport == "gloo")
    sizes = [tensor.nbytes for _, tensor in weights]
    stored = weight_sender.send(transport, summed(iter(weights), checksum), sizes, receivers, 3, 0, 1, 170)
    assert checksum.digest() == digest(weights), "the sender comes to its end whatever the receivers do"
    in_store = [
        (name, weight_codec.as_tensor(*packed)) for bucket in ray.get(stored) for name, packed in bucket.items()
    ]
    assert digest(in_store) == digest(weights if transport == "object_store" else [])
    return receivers


@pytest.mark.parametrize("transport", ["gloo", "shared_memory", "object_store"])
def test_every_actor_receives_all_weights_in_chunks(start, transport: str) -> None:
    actors = [start(), start()]
    ray.get([actor.received.remote() for actor in actors])  # they have started
    assert not send(transport, actors).failures
    assert not send(transport, actors).failures, "a second update needs no new actors"
    for index, (_, calls) in enumerate(ray.get([actor.received.remote() for actor in actors])):
        steps = [1 + index] if transport == "gloo" else []
        assert calls == 2 * [*steps, 2, 1, 1, "version 3"]


def test_all_weights_are_stored_while_a_slow_actor_loads_its_first_chunk(start) -> None:
    actor, weights = start("", "slow"), parameters()
    ray.get(actor.received.remote())
    began, receivers = time.monotonic(), Receivers([actor], 20, together=False)
    sizes = [tensor.nbytes for _, tensor in weights]
    taken = []

    def timed():
        for parameter in weights:
            yield parameter
            taken.append(time.monotonic() - began)

    weight_sender.send("object_store", timed(), sizes, receivers, 3, 0, 1, 170)
    assert taken[-1] < 0.5, "the sender waits for no chunk"
    assert time.monotonic() - began > 1.5, "three chunks"
    assert ray.get(actor.received.remote()) == (digest(weights), [2, 1, 1, "version 3"])


@pytest.mark.parametrize(
    ("transport", "step", "how"),
    [
        ("gloo", "init_transfer", "die"),
        ("gloo", "init_transfer", "hang"),
        ("gloo", "receive_chunk", "raise"),
        ("gloo", "receive_chunk", "die"),
        ("gloo", "receive_chunk", "hang"),
        ("gloo", "finish_update", "die"),
        ("shared_memory", "init_transfer", "raise"),
        ("shared_memory", "receive_chunk", "die"),
        ("shared_memory", "receive_chunk", "hang"),
        ("object_store", "receive_chunk", "raise"),
        ("object_store", "finish_update", "die"),
    ],
)
def test_an_actor_that_fails_at_a_step(start, unharmed, transport: str, step: str, how: str) -> None:
    """It alone is left out, but for a group: there nobody can receive, and all are told at once."""
    whole, failing = start() if transport == "gloo" else unharmed, start(step, how)
    ray.get([whole.forget.remote(), failing.received.remote()])
    began = time.monotonic()
    receivers = send(transport, [whole, failing], deadline_s=2.0 if how == "hang" else 20.0)
    assert time.monotonic() - began < 8
    assert receivers.failures.keys() == ({0, 1} if transport == "gloo" else {1}), receivers.failures
    reasons = {
        "raise": [f"no {step} today"],
        "die": ["died", "the connection to the receivers failed"],
        "hang": ["time"],
    }
    told = list(receivers.failures.values())
    assert any(reason in text for text in told for reason in reasons[how]), told
    found, calls = ray.get(whole.received.remote(), timeout=5)
    if transport != "gloo":
        assert found == digest(parameters())
        assert calls[-1] == "version 3"
