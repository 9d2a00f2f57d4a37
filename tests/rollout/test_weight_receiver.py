"""Weights in pieces, as over NCCL and CUDA IPC: what is counted, how actors are spoken to, what an engine believes."""

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
from psyco_ray.run.types import SentWeights


def parameters(dtype: torch.dtype = torch.bfloat16) -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(0)
    return [(f"layer.{i}", torch.randn(7, 5 + i).to(dtype)) for i in range(4)]


def digest(found: list[tuple[str, torch.Tensor]]) -> str:
    tally = WeightChecksum()
    for name, tensor in found:
        tally.add(name, tensor)
    return tally.digest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8])
def test_a_fingerprint_knows_every_bit_and_place(dtype: torch.dtype) -> None:
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    found = (torch.randn(64, 33) * 50).to(dtype)
    whole = fingerprint(found)
    assert torch.equal(fingerprint(found.T.contiguous().T), whole), "however it lies in memory"
    for seed in range(50):
        rng = random.Random(seed)
        place, bit = rng.randrange(found.numel()), rng.randrange(8 * dtype.itemsize - 1)
        other = found.clone()
        other.view(bits).view(-1)[place] ^= 1 << bit
        assert (fingerprint(other) != whole).all(), (place, bit)
    flat = found.view(-1).clone()
    a, b = 3, next(i for i in range(4, len(flat)) if flat[i] != flat[3])
    flat[[a, b]] = flat[[b, a]]
    first, second = fingerprint(flat) == whole
    assert first, "the plain sum is blind to an exchange"
    assert not second


def test_a_fingerprint_does_not_depend_on_how_it_is_cut(monkeypatch) -> None:
    found = torch.randn(1000)
    whole = fingerprint(found)
    monkeypatch.setattr("psyco_ray.models.weight_checksum.CHUNK", 7)
    assert torch.equal(fingerprint(found), whole)


def test_a_tally_depends_on_every_part_but_not_on_the_order() -> None:
    given = parameters()
    whole = digest(given)
    assert digest(given[::-1]) == whole
    assert digest(given[1:]) != whole
    assert digest([(name + "x", tensor) for name, tensor in given]) != whole
    assert digest([(name, tensor.T.contiguous()) for name, tensor in given]) != whole
    assert digest([(name, tensor.view(torch.int16)) for name, tensor in given]) != whole
    assert digest([]) != whole


def test_pieces_are_bounded_whole_and_copies() -> None:
    lent = torch.empty(12)

    def lending():
        for i in range(6):
            lent.fill_(i)
            yield f"p{i}", lent

    found = list(chunks(lending(), 100))
    assert [[name for name, _ in piece] for piece in found] == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]
    assert [tensor[0].item() for piece in found for _, tensor in piece] == [0, 1, 2, 3, 4, 5]
    assert [len(piece) for piece in chunks(iter(parameters()), 1)] == [1] * 4, "a larger one is a piece by itself"


def test_a_source_can_be_read_again_and_counts_anew() -> None:
    given = parameters()
    described = [ParameterInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in given]
    source = ParameterSource(described, lambda: iter(given), with_checksum=True)
    for _ in range(2):
        assert [name for name, _ in source] == [one.name for one in source.metadata()]
        assert source.checksum.digest() == digest(given)
        assert source.checksum.bytes == sum(one.bytes for one in described) == sum(t.nbytes for _, t in given)


class Receiver:
    """Stands for a rollout actor in how it is spoken to."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at, self.told = fails_at, []

    def receive(self, step: str, **given) -> None:
        if step == self.fails_at:
            raise RuntimeError(f"no {step} today")
        self.told.append((step, given))

    def heard(self) -> list:
        return self.told


def update(client: ReceiverClient) -> None:
    client.init_weight_transfer_engine({"world_size": 7})
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.update_weights({"names": ["b"]})
    client.finish_weight_update()


def test_every_worker_has_a_rank_of_its_own_and_who_fails_is_left_out(local_ray) -> None:
    actor = ray.remote(Receiver).options(num_cpus=0)
    actors = [actor.remote(), actor.remote("take_piece"), actor.remote()]
    client = ReceiverClient("nccl", actors, version=3, workers=2, deadline_s=30)
    update(client)
    assert client.failures.keys() == {1}
    assert "take_piece: RuntimeError: no take_piece today" in client.failures[1]
    heard = ray.get([one.heard.remote() for one in actors])
    assert [step for step, _ in heard[0]] == ["meet", "start_update", "take_piece", "take_piece", "finish_update"]
    assert [step for step, _ in heard[1]] == ["meet", "start_update"], "nothing more is asked of it"
    meetings = [told[0][1] for told in heard]
    assert [met["settings"] for met in meetings] == [{"world_size": 7, "rank_offset": 1 + 2 * i} for i in range(3)]
    assert heard[2][-1] == ("finish_update", {"version": 3})


def test_an_actor_that_hangs_is_left_out_at_the_deadline(local_ray) -> None:
    class Hanging(Receiver):
        def receive(self, step: str, **given) -> None:
            time.sleep(60)

    actor = ray.remote(Hanging).options(num_cpus=0).remote()
    client = ReceiverClient("ipc", [actor], version=1, workers=1, deadline_s=1)
    update(client)
    assert client.failures.keys() == {0}
    ray.kill(actor)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["ipc", "nccl"])
def test_vllms_own_trainer_side_takes_our_source_and_client(local_ray, monkeypatch, transport: str) -> None:
    from vllm.distributed.weight_transfer import factory, ipc_engine, nccl_engine
    from vllm.distributed.weight_transfer.packed_tensor import PackedIpcChunk

    if not hasattr(factory, "WeightTransferTrainerFactory"):
        pytest.skip("this vLLM has no trainer side")

    ended, broadcast = [], []

    class Group:
        def destroy(self) -> None:
            ended.append(True)

    def offered(iterator, gpu_uuid, post_iter_func, buffer_size_bytes):
        for piece in chunks(iterator, buffer_size_bytes):
            names, shapes = [name for name, _ in piece], [list(tensor.shape) for _, tensor in piece]
            dtypes, sizes = ["bfloat16"] * len(piece), [tensor.nbytes for _, tensor in piece]
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

    given = parameters()
    described = [ParameterInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in given]
    source = ParameterSource(described, lambda: iter(given), with_checksum=True)
    actor = ray.remote(Receiver).options(num_cpus=0).remote()
    client = ReceiverClient(transport, [actor], version=4, workers=1, deadline_s=30)
    weight_sender.send(transport, source, client, 0, ("10.0.0.1", 5000), 2, 160)
    heard = ray.get(actor.heard.remote())
    assert not client.failures, client.failures
    assert source.checksum.digest() == digest(given)
    steps = [step for step, _ in heard]
    told = [told["piece"]["names"] for step, told in heard if step == "take_piece"]
    met = heard[0][1]["settings"]
    if transport == "ipc":
        assert steps == ["meet", "start_update", *["take_piece"] * 3, "finish_update"]
        assert told == [["layer.0", "layer.1"], ["layer.2"], ["layer.3"]]
        assert met == {"packed": True}
    else:
        assert steps == ["meet", "start_update", "take_piece", "finish_update"]
        assert told == [broadcast] == [[name for name, _ in given]]
        expected = {"master_address": "10.0.0.1", "master_port": 5000, "rank_offset": 1, "world_size": 2}
        assert expected.items() <= met.items()
        assert (met["packed"], met["packed_buffer_size_bytes"]) == (True, 160)
        assert ended == [True]


@dataclass
class Piece:
    """What a test's transport announces."""

    names: list[str]
    ref: list


def with_a_transport_of_its_own(actor) -> None:
    """In a rollout actor: make a transport known that takes tensors out of the object store, in pieces."""
    from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    piece = Piece  # the body of a class that is pickled by value does not carry its globals along

    class InPieces(WeightTransferEngine):
        init_info_cls, update_info_cls = WeightTransferInitInfo, piece

        def init_transfer_engine(self, init_info) -> None: ...

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info) -> None:
            self.model.load_weights(ray.get(update_info.ref[0]))

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None: ...

    WeightTransferEngineFactory.register_engine("in_pieces", InPieces)


@pytest.mark.slow
def test_an_engine_takes_pieces_sleeps_and_believes_only_the_digest(local_ray, tiny_model) -> None:
    from transformers import AutoModelForCausalLM

    from psyco_ray.config.resources import Rollouts
    from psyco_ray.pool import placement
    from psyco_ray.rollout.actor import RolloutActor, actor_environment

    settings = Rollouts(actors=1, cpus=0.5, dtype="float32", max_model_len=256, max_num_seqs=8, kv_cache_gb=0.1)
    options = placement.pool_options(settings, actor_environment(settings))
    actor = ray.remote(RolloutActor).options(**options).remote("rollout-0", str(tiny_model), settings, 0)
    ray.get(actor.ready.remote(), timeout=300)
    ray.get(actor.__ray_call__.remote(with_a_transport_of_its_own), timeout=60)

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    given = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    prompt, response = tuple(range(5, 15)), tuple(range(100, 120))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(response)[:, None]).sum().item()

    def sent(version: int, weights: list) -> None:
        client = ReceiverClient("in_pieces", [actor], version, workers=1, deadline_s=60)
        client.init_weight_transfer_engine({})
        client.start_weight_update()
        for piece in chunks(iter(weights), 2**20):
            client.update_weights({"names": [name for name, _ in piece], "ref": [ray.put(piece)]})
        client.finish_weight_update()
        assert not client.failures, client.failures

    def loaded(version: int, found: str):
        return ray.get(actor.load_weights.remote(SentWeights(version, found, 0, None), prompt, response), timeout=60)

    for version, keep in ((1, True), (2, False)):
        ray.get(actor.sleep.remote(keep), timeout=60)
        sent(version, given)
        answer = loaded(version, digest(given))
        assert (answer.version, answer.digest) == (version, digest(given))
        assert answer.logprob == pytest.approx(expected, abs=1e-2)

    damaged = [(name, tensor.clone()) for name, tensor in given]
    damaged[1][1].view(-1)[3] += 1e-3
    sent(3, damaged)
    with pytest.raises(ValueError, match=rf"version 3 with digest \w+ arrived, version 3 with digest {digest(given)}"):
        loaded(3, digest(given))
    sent(3, given)
    assert loaded(3, digest(given)).version == 3
    ray.kill(actor)
