"""A real engine on the CPU after updates that break off, and after items that are abandoned."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray
import torch

from psyco_ray.config.resources import Rollouts
from psyco_ray.learner import weight_sender
from psyco_ray.learner.weight_sender import Receivers, summed
from psyco_ray.models.weight_checksum import WeightChecksum
from psyco_ray.models.weight_codec import as_array, digest
from psyco_ray.pool import placement
from psyco_ray.rollout.actor import RolloutActor, actor_environment
from psyco_ray.rollout.errors import WeightTransferError
from psyco_ray.run.types import PreferencePair, Prompt, SentWeights, Weights

PROMPT, RESPONSE = tuple(range(5, 15)), tuple(range(100, 120))
PROBE = PreferencePair("probe", PROMPT, RESPONSE, RESPONSE)


@pytest.fixture(scope="module")
def actor(local_ray, tiny_model) -> Iterator:
    settings = Rollouts(actors=1, cpus=0.5, dtype="float32", max_model_len=256, max_num_seqs=8, kv_cache_gb=0.1)
    options = placement.pool_options(settings, actor_environment(settings))
    actor = ray.remote(RolloutActor).options(**options).remote("rollout-0", str(tiny_model), settings, 0)
    ray.get(actor.ready.remote(), timeout=300)
    yield actor
    ray.kill(actor)


@pytest.fixture(scope="module")
def tensors(tiny_model) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def stored(tensors: dict[str, torch.Tensor], version: int) -> Weights:
    bucket = {name: as_array(tensor) for name, tensor in tensors.items()}
    return Weights(version, digest([bucket]), (ray.put(bucket),), sum(t.nbytes for t in tensors.values()))


def sent(weights: Weights) -> SentWeights:
    """Weights that went out in chunks and were stored too."""
    return SentWeights(weights.version, "of what was sent", weights.bytes, ray.put((weights.refs, weights.digest, 1)))


def load(actor, weights: Weights | SentWeights) -> tuple[float, ...]:
    ack = ray.get(actor.load_weights.remote(weights, PROBE), timeout=60)
    assert (ack.version, ack.digest) == (weights.version, weights.digest)
    return ray.get(actor.probe_logprobs.remote(), timeout=60)


def break_off(actor, step: str) -> None:
    """Leave an update as a transfer does that ends at a step."""

    def receive_part(worker) -> None:
        from psyco_ray.rollout import weight_reload

        model, receiver = worker.model_runner.model, worker.weight_transfer_engine
        assert receiver._started, "the reload starts while the first chunk is made"
        assert not model.model.embed_tokens.weight.is_meta, "the embedding is filled where it is"
        rows = {"q_proj": 64} if step == "part of a layer" else {"q_proj": 64, "k_proj": 32, "v_proj": 32}
        zeros = [(f"model.layers.0.self_attn.{name}.weight", torch.zeros(n, 64)) for name, n in rows.items()]
        if step == "embedding":
            zeros = [("model.embed_tokens.weight", torch.zeros(worker.model_config.get_vocab_size(), 64))]
        weight_reload.load_weights(model, zeros)
        if step == "chunk failed":
            worker._weight_update_active = False

    def run(actor) -> None:
        actor._engine.weights.init_transfer("object_store", ())
        actor._engine.weights.start_update()
        if step != "started":
            actor._engine._llm.collective_rpc(receive_part)

    ray.get(actor.__ray_call__.remote(run), timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["started", "part of a layer", "a layer", "embedding", "chunk failed"])
def test_an_engine_that_missed_a_part_takes_the_stored_weights(actor, tensors, step: str) -> None:
    expected = load(actor, stored(tensors, 1))
    changed = {name: tensor * 1.1 for name, tensor in tensors.items()}
    other = load(actor, stored(changed, 2))
    assert abs(other[0] - expected[0]) > 1
    break_off(actor, step)
    weights = stored(tensors, 3)
    with pytest.raises(WeightTransferError, match="version -1 with digest of a part arrived, version 3 with digest"):
        load(actor, sent(weights))
    assert load(actor, sent(weights)) == expected, "the second call takes the stored weights"
    break_off(actor, step)
    assert load(actor, stored(changed, 4)) == other, "stored weights end an update that broke off"


def turn(actor, feed: str, prompt: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Sample a response; returns the tokens of the prompt that were in the cache, and the response."""

    def run(own) -> tuple[int, tuple[int, ...]]:
        engine = own._engine
        engine._settings = engine._settings.model_copy(update={"feed": feed})
        vllm, outputs = engine._llm.llm_engine, []
        step = vllm.step

        def recorded() -> list:
            found = step()
            outputs.extend(found)
            return found

        vllm.step = recorded
        try:
            [group] = engine.generate([Prompt("speech", prompt, 3)], 1, 1.0, 1.0, 16)
        finally:
            vllm.step = step
        return outputs[-1].num_cached_tokens, group.responses[0].token_ids

    return ray.get(actor.__ray_call__.remote(lambda own: own._thread.call(run, own)), timeout=60)


@pytest.mark.slow
def test_the_next_turn_finds_the_last_one_in_the_cache_until_the_weights_change(actor, tensors) -> None:
    load(actor, stored(tensors, 1))
    first = tuple(range(1000, 1100))
    assert turn(actor, "items", first)[0] == 0
    cached, response = turn(actor, "continuous", first)
    assert cached == 96, "three whole blocks"
    second = (*first, *response, *range(2000, 2040))
    whole = (len(first) + len(response) - 1) // 32 * 32
    cached, _ = turn(actor, "continuous", second)
    assert cached == whole
    assert turn(actor, "continuous", second)[0] > whole, "the turn itself is there now"
    ray.get(actor.sleep.remote(True), timeout=60)
    assert turn(actor, "continuous", second)[0] == 0, "a cache is lost while its engine sleeps"
    load(actor, stored({name: tensor * 1.1 for name, tensor in tensors.items()}, 2))
    cached, response = turn(actor, "continuous", second)
    assert cached == 0, "other weights computed what was there"
    assert turn(actor, "items", second) == (0, response)
    assert turn(actor, "items", second) == (0, response), "equal prompts and seeds give equal responses"


def send(actor, transport: str, version: int, tensors: dict[str, torch.Tensor]) -> tuple[SentWeights, dict[int, str]]:
    """Send weights in chunks; returns what was sent and the failures."""
    receivers, checksum = Receivers([actor], 60, together=transport == "gloo"), WeightChecksum()
    sizes = [tensor.nbytes for tensor in tensors.values()]
    weights = summed(iter(tensors.items()), checksum)
    weight_sender.send(transport, weights, sizes, receivers, version, 0, 1, 2**20)
    return SentWeights(version, checksum.digest(), sum(sizes), None), receivers.failures


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["gloo", "shared_memory", "object_store"])
def test_an_engine_accepts_chunks_only_with_the_right_digest(actor, tensors, transport: str) -> None:
    expected = load(actor, stored(tensors, 1))
    changed = {name: tensor * 1.1 for name, tensor in tensors.items()}
    other = load(actor, stored(changed, 2))
    for version, keep in ((3, True), (4, False)):
        ray.get(actor.sleep.remote(keep), timeout=60)
        weights, failures = send(actor, transport, version, tensors)
        assert not failures
        assert load(actor, weights) == expected
    damaged = {name: tensor.clone() for name, tensor in changed.items()}
    next(iter(damaged.values())).view(-1)[3] += 1e-3
    arrived, failures = send(actor, transport, 5, damaged)
    assert not failures
    expected_text = f"version 5 with digest {arrived.digest} arrived, version 5 with digest other was sent"
    with pytest.raises(WeightTransferError, match=expected_text):
        load(actor, replace(arrived, digest="other"))
    weights, _ = send(actor, transport, 5, changed)
    assert load(actor, weights) == other


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["gloo", "shared_memory", "object_store"])
def test_an_engine_that_cannot_load_chunks_still_receives_all_and_says_why(actor, tensors, transport: str) -> None:
    expected = load(actor, stored(tensors, 1))
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        _, failures = send(actor, transport, 2, {key: tensor for key, tensor in tensors.items() if key != name})
        assert f"took no weights for {name}" in failures[0], failures
    _, failures = send(actor, transport, 3, {**tensors, name: tensors[name][:, :-1].contiguous()})
    assert "finish_update" in failures[0], failures
    assert "a chunk could not be loaded" in failures[0]
    assert load(actor, stored(tensors, 4)) == expected


@pytest.mark.slow
def test_a_tied_head_computes_with_the_packed_weights_of_the_embedding(actor, tensors) -> None:
    load(actor, stored(tensors, 1))

    def packed(worker) -> bool:
        model = worker.model_runner.model
        assert model.lm_head.weight is model.model.embed_tokens.weight
        return model.lm_head.cpu_linear is model.model.embed_tokens.cpu_linear

    [shared] = ray.get(actor.__ray_call__.remote(lambda own: own._engine._llm.collective_rpc(packed)), timeout=60)
    assert shared, "a second packed copy takes its memory and the time of packing"


def packing_threads(actor, weights: Weights, failing: str) -> set[str]:
    """Load weights; returns the threads that packed matrices. A name's thread fails in all of them."""

    def run(own) -> set[str]:
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod

        original, threads = UnquantizedLinearMethod.process_weights_after_loading, set()

        def recorded(method, layer) -> None:
            name = threading.current_thread().name.split("_")[0]
            threads.add(name)
            if name == failing:
                raise MemoryError("no memory today")
            original(method, layer)

        UnquantizedLinearMethod.process_weights_after_loading = recorded
        try:
            own._thread.call(own._engine.weights.load, weights)
        finally:
            UnquantizedLinearMethod.process_weights_after_loading = original
        return threads

    return ray.get(actor.__ray_call__.remote(run), timeout=60)


@pytest.mark.slow
def test_matrices_are_packed_beside_the_thread_that_loads_the_next_ones(actor, tensors) -> None:
    expected = load(actor, stored(tensors, 1))
    changed = {name: tensor * 1.1 for name, tensor in tensors.items()}
    assert "pack" in packing_threads(actor, stored(changed, 2), failing="")
    with pytest.raises(WeightTransferError, match="weights could not be packed, MemoryError: no memory today"):
        packing_threads(actor, stored(changed, 3), failing="pack")
    assert load(actor, stored(tensors, 4)) == expected


@pytest.mark.slow
def test_weights_that_do_not_fit_leave_an_engine_that_takes_others(actor, tensors) -> None:
    expected = load(actor, stored(tensors, 1))
    name = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(ray.exceptions.RayTaskError):
        load(actor, stored({**tensors, name: tensors[name][:, :-1].contiguous()}, 2))
    assert load(actor, stored(tensors, 3)) == expected


@pytest.mark.slow
def test_an_abandoned_item_leaves_nothing_to_the_next(actor, tensors) -> None:
    load(actor, stored(tensors, 1))

    def sample(actor, seeds: list[int], stop: bool) -> list:
        prompts = [Prompt(f"s{seed}", (*range(5, 80), seed), seed) for seed in seeds]
        groups = actor._engine.generate(prompts, 2, 1.0, 1.0, 8 if not stop else 64)
        taken = [next(groups)] if stop else list(groups)
        if stop:
            actor.abandoned = groups  # as a traceback holds it
        return [(group.prompt.speech_id, [r.token_ids for r in group.responses]) for group in taken]

    def run(seeds: list[int], stop: bool = False) -> list:
        return sorted(ray.get(actor.__ray_call__.remote(sample, seeds, stop), timeout=60))

    expected = run([1, 2])
    run([3, 4, 5, 6, 7, 8, 9, 10], stop=True)
    assert run([1, 2]) == expected
    run([3, 4, 5, 6, 7, 8, 9, 10], stop=True)
    changed = load(actor, stored({name: tensor * 1.1 for name, tensor in tensors.items()}, 2))
    assert run([1, 2]) != expected
    assert load(actor, stored({name: tensor * 1.1 for name, tensor in tensors.items()}, 3)) == changed


@pytest.mark.slow
def test_cached_prefixes_that_stay_are_an_error(actor, tensors) -> None:
    weights = stored(tensors, 1)

    def hold(actor) -> None:  # a request that this engine does not know of
        from vllm import SamplingParams

        engine = actor._engine._llm.llm_engine
        engine.add_request("other", {"prompt_token_ids": list(range(5, 80))}, SamplingParams(max_tokens=100))
        engine.step()

    ray.get(actor.__ray_call__.remote(hold), timeout=60)
    with pytest.raises(RuntimeError, match="vLLM kept cached prefixes"):
        load(actor, weights)
    ray.get(actor.__ray_call__.remote(lambda a: a._engine._llm.llm_engine.abort_request(["other"])), timeout=60)
    load(actor, weights)
