"""Weights in chunks, as over NCCL and CUDA IPC: checksums, the calls to the actors, the engine's checks."""

import random
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import ray
import torch

from psyco_ray.learner import weight_sender
from psyco_ray.learner.weight_sender import ParameterInfo, ParameterSource, ReceiverClient, chunks
from psyco_ray.models.weight_checksum import WeightChecksum, fingerprint
from psyco_ray.models.weight_codec import as_array
from psyco_ray.models.weight_codec import digest as bucket_digest
from psyco_ray.rollout.errors import WeightTransferError
from psyco_ray.run.types import PreferencePair, SentWeights, Weights


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


def test_chunks_are_bounded_copies_of_whole_parameters() -> None:
    buffer = torch.empty(12)

    def reused_buffer():
        for i in range(6):
            buffer.fill_(i)
            yield f"p{i}", buffer

    cut = list(chunks(reused_buffer(), 100))
    assert [[name for name, _ in chunk] for chunk in cut] == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]
    assert [tensor[0].item() for chunk in cut for _, tensor in chunk] == [0, 1, 2, 3, 4, 5]
    assert [len(chunk) for chunk in chunks(iter(parameters()), 1)] == [1] * 4, "a larger parameter is its own chunk"


def test_a_source_restarts_its_checksum_when_read_again() -> None:
    weights = parameters()
    metadata = [ParameterInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights]
    source = ParameterSource(metadata, lambda: iter(weights), with_checksum=True)
    for _ in range(2):
        assert [name for name, _ in source] == [parameter.name for parameter in source.metadata()]
        assert source.checksum.digest() == digest(weights)
        assert (
            source.checksum.bytes == sum(parameter.bytes for parameter in metadata) == sum(t.nbytes for _, t in weights)
        )


class Receiver:
    """Records the calls to a rollout actor."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at, self.calls = fails_at, []

    def record(self, step: str, *arguments) -> None:
        if step == self.fails_at:
            raise RuntimeError(f"no {step} today")
        self.calls.append((step, *arguments))

    def init_transfer(self, transport: str, settings: dict) -> None:
        self.record("init_transfer", transport, settings)

    def start_update(self) -> None:
        self.record("start_update")

    def receive_chunk(self, chunk: dict) -> None:
        self.record("receive_chunk", chunk)

    def finish_update(self, version: int) -> None:
        self.record("finish_update", version)

    def recorded(self) -> list[tuple]:
        return self.calls


def update(client: ReceiverClient) -> None:
    client.init_weight_transfer_engine({"world_size": 7})
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.update_weights({"names": ["b"]})
    client.finish_weight_update()


def test_each_worker_gets_its_own_rank_and_a_failed_actor_is_left_out(local_ray) -> None:
    actor = ray.remote(Receiver).options(num_cpus=0)
    actors = [actor.remote(), actor.remote("receive_chunk"), actor.remote()]
    client = ReceiverClient("nccl", actors, version=3, workers=2, deadline_s=30)
    update(client)
    assert client.failures.keys() == {1}
    assert "receive_chunk: RuntimeError: no receive_chunk today" in client.failures[1]
    calls = ray.get([actor.recorded.remote() for actor in actors])
    steps = ["init_transfer", "start_update", "receive_chunk", "receive_chunk", "finish_update"]
    assert [[step for step, *_ in of_actor] for of_actor in calls] == [steps, steps[:2], steps]
    settings = [{"world_size": 7, "rank_offset": 1 + 2 * i} for i in range(3)]
    assert [of_actor[0] for of_actor in calls] == [("init_transfer", "nccl", expected) for expected in settings]
    assert calls[2][-1] == ("finish_update", 3)


def test_an_actor_that_hangs_is_left_out_at_the_deadline(local_ray) -> None:
    class Hanging(Receiver):
        def record(self, step: str, *arguments) -> None:
            time.sleep(60)

    actor = ray.remote(Hanging).options(num_cpus=0).remote()
    client = ReceiverClient("ipc", [actor], version=1, workers=1, deadline_s=1)
    update(client)
    assert client.failures.keys() == {0}
    ray.kill(actor)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["ipc", "nccl"])
def test_vllms_trainer_side_sends_through_source_and_client(local_ray, monkeypatch, transport: str) -> None:
    from vllm.distributed.weight_transfer import factory, ipc_engine, nccl_engine
    from vllm.distributed.weight_transfer.packed_tensor import PackedIpcChunk

    if not hasattr(factory, "WeightTransferTrainerFactory"):
        pytest.skip("this vLLM has no trainer side")

    ended, broadcast = [], []

    class Group:
        def destroy(self) -> None:
            ended.append(True)

    def offered(iterator, gpu_uuid, post_iter_func, buffer_size_bytes):
        for chunk in chunks(iterator, buffer_size_bytes):
            names, shapes = [name for name, _ in chunk], [list(tensor.shape) for _, tensor in chunk]
            dtypes, sizes = ["bfloat16"] * len(chunk), [tensor.nbytes for _, tensor in chunk]
            yield PackedIpcChunk(names, shapes, dtypes, sizes, {gpu_uuid: ("handle",)})

    # what needs a device
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="GPU-0"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(ipc_engine, "packed_ipc_producer", offered)
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda _: Group())
    monkeypatch.setattr(
        nccl_engine, "packed_nccl_broadcast_producer", lambda iterator, **_: broadcast.extend(n for n, _ in iterator)
    )

    weights = parameters()
    metadata = [ParameterInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights]
    source = ParameterSource(metadata, lambda: iter(weights), with_checksum=True)
    actor = ray.remote(Receiver).options(num_cpus=0).remote()
    client = ReceiverClient(transport, [actor], version=4, workers=1, deadline_s=30)
    weight_sender.send(transport, source, client, 0, ("10.0.0.1", 5000), 2, 160)
    calls = ray.get(actor.recorded.remote())
    assert not client.failures, client.failures
    assert source.checksum.digest() == digest(weights)
    steps = [step for step, *_ in calls]
    names = [call[1]["names"] for call in calls if call[0] == "receive_chunk"]
    settings = calls[0][2]
    if transport == "ipc":
        assert steps == ["init_transfer", "start_update", *["receive_chunk"] * 3, "finish_update"]
        assert names == [["layer.0", "layer.1"], ["layer.2"], ["layer.3"]]
        assert settings == {"packed": True}
    else:
        assert steps == ["init_transfer", "start_update", "receive_chunk", "finish_update"]
        assert names == [broadcast] == [[name for name, _ in weights]]
        expected = {"master_address": "10.0.0.1", "master_port": 5000, "rank_offset": 1, "world_size": 2}
        assert expected.items() <= settings.items()
        assert (settings["packed"], settings["packed_buffer_size_bytes"]) == (True, 160)
        assert ended == [True]


@dataclass
class Chunk:
    """What the test's transport announces."""

    names: list[str]
    ref: list


def register_transport(actor) -> None:
    """In a rollout actor: register a transport that reads chunks of tensors from the object store."""
    from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    chunk = Chunk  # the body of a class that is pickled by value does not carry its globals along

    class InChunks(WeightTransferEngine):
        init_info_cls, update_info_cls = WeightTransferInitInfo, chunk

        def init_transfer_engine(self, init_info) -> None: ...

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info) -> None:
            self.model.load_weights(ray.get(update_info.ref[0]))

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None: ...

    WeightTransferEngineFactory.register_engine("in_chunks", InChunks)


@pytest.mark.slow
def test_an_engine_accepts_chunks_only_with_the_right_digest_and_for_every_parameter(local_ray, tiny_model) -> None:
    from transformers import AutoModelForCausalLM

    from psyco_ray.config.resources import Rollouts
    from psyco_ray.pool import placement
    from psyco_ray.rollout.actor import RolloutActor, actor_environment

    settings = Rollouts(actors=1, cpus=0.5, dtype="float32", max_model_len=256, max_num_seqs=8, kv_cache_gb=0.1)
    options = placement.pool_options(settings, actor_environment(settings))
    actor = ray.remote(RolloutActor).options(**options).remote("rollout-0", str(tiny_model), settings, 0)
    ray.get(actor.ready.remote(), timeout=300)
    ray.get(actor.__ray_call__.remote(register_transport), timeout=60)

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    prompt, response = tuple(range(5, 15)), tuple(range(100, 120))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(response)[:, None]).sum().item()

    def send(version: int, weights: list) -> dict[int, str]:
        client = ReceiverClient("in_chunks", [actor], version, workers=1, deadline_s=60)
        client.init_weight_transfer_engine({})
        client.start_weight_update()
        for chunk in chunks(iter(weights), 2**20):
            client.update_weights({"names": [name for name, _ in chunk], "ref": [ray.put(chunk)]})
        client.finish_weight_update()
        return client.failures

    def load(version: int, expected: str):
        probe = PreferencePair("probe", prompt, response, response)
        return ray.get(actor.load_weights.remote(SentWeights(version, expected, 0, None), probe), timeout=60)

    for version, keep in ((1, True), (2, False)):
        ray.get(actor.sleep.remote(keep), timeout=60)
        assert not send(version, weights)
        ack = load(version, digest(weights))
        assert (ack.version, ack.digest) == (version, digest(weights))
        assert ack.logprobs == pytest.approx((expected, expected), abs=1e-2)

    damaged = [(name, tensor.clone()) for name, tensor in weights]
    damaged[1][1].view(-1)[3] += 1e-3
    assert not send(3, damaged)
    with pytest.raises(
        WeightTransferError, match=rf"version 3 with digest \w+ arrived, version 3 with digest {digest(weights)}"
    ):
        load(3, digest(weights))
    assert not send(3, weights)
    assert load(3, digest(weights)).version == 3

    partial = [(name, tensor) for name, tensor in weights if name != "model.layers.1.mlp.down_proj.weight"]
    refusal = "took no weights for model.layers.1.mlp.down_proj.weight from those that were sent"
    failures = send(4, partial)
    assert refusal in failures[0], failures
    bucket = {name: as_array(tensor) for name, tensor in partial}
    stored = Weights(4, bucket_digest([bucket]), (ray.put(bucket),), 0)
    with pytest.raises(WeightTransferError, match=refusal):
        ray.get(actor.load_weights.remote(stored, PreferencePair("probe", prompt, response, response)), timeout=60)
    assert not send(5, weights)
    assert load(5, digest(weights)).logprobs == pytest.approx((expected, expected), abs=1e-2)
    ray.kill(actor)
