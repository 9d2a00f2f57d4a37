"""Weights from real DeepSpeed ranks to real vLLM engines."""

import os
import random
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch

from psyco_ray.config.resources import Learners, Rollouts, Sync
from psyco_ray.config.training import Deadlines, DpoConfig, Optimizer
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models import weight_codec
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest, actor_environment, actor_options
from psyco_ray.rollout.errors import WeightTransferError
from psyco_ray.run.types import DeltaRef, PreferencePair, Prompt, PromptBatch, Weights, WeightUpdateAck
from psyco_ray.training import weight_sync


def pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    rng = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 40000) for _ in range(length))

    return [PreferencePair(f"pair-{i}", ids(20), ids(30), ids(30), (-300.0, -300.0)) for i in range(count)]


@pytest.fixture(scope="module")
def learner(local_ray, tiny_model):
    settings = Learners(actors=2, cpus=0.5, zero_stage=3, dtype="float32", micro_batch_tokens=200)
    optimizer = Optimizer(learning_rate=3e-3, batch_size=4, schedule="constant")
    spec = WorkerSpec(
        str(tiny_model),
        DpoObjective(DpoConfig()),
        settings,
        optimizer,
        seed=0,
        deadlines=Deadlines(start_s=180, step_s=120),
    )
    group = LearnerGroup(spec)
    group.wait_ready()
    yield group
    group.close()


@pytest.fixture(scope="module")
def rollouts(local_ray, tiny_model):
    settings = Rollouts(
        actors=2,
        cpus=0.5,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=32,
        kv_cache_gb=0.1,
        feed="continuous",
    )
    actor = ray.remote(RolloutActor)
    pool = ActorPool(
        "rollout",
        lambda index: actor.options(**actor_options(settings)).remote(f"rollout-{index}", str(tiny_model), settings, 0),
        settings.actors,
        Deadlines(start_s=300, item_s=120),
    )
    pool.wait_ready()
    yield pool
    pool.close()


def on_all(rollouts: ActorPool, method: str, *args) -> list:
    return ray.get([getattr(actor, method).remote(*args) for actor in rollouts.actors], timeout=60)


def load(rollouts: ActorPool, weights: Weights, probe: PreferencePair) -> list[SimpleNamespace]:
    """The actors' answers to an update, with their log-probabilities of its probe."""
    acks = on_all(rollouts, "load_weights", weights, probe)
    logprobs = on_all(rollouts, "probe_logprobs")
    return [SimpleNamespace(**asdict(ack), logprobs=found) for ack, found in zip(acks, logprobs, strict=True)]


def gaps(learner: LearnerGroup, rollouts: ActorPool, probe: PreferencePair) -> list[float]:
    expected = learner.evaluate_pairs([probe])[0][0]
    texts = probe.prompt_ids, probe.chosen_ids
    found = on_all(rollouts, "__ray_call__", lambda actor: actor._thread.call(actor._engine.logprobs, [texts])[0])
    return [abs(value - expected) / len(probe.chosen_ids) for value in found]


def request(version: int, count: int = 6) -> SamplingRequest:
    prompts = tuple(Prompt(f"s{i}", (5, 6, 7, 8 + i), 1000 * i) for i in range(count))
    return SamplingRequest(PromptBatch("item", prompts), version, 4, 1.0, 1.0, 16)


def sampled(rollouts: ActorPool, version: int) -> dict[str, list[tuple[int, ...]]]:
    stream = rollouts.stream(RolloutActor.sample, [request(version)], identity=lambda found: found[0].prompt.speech_id)
    found = [group for group, _ in stream]
    return {g.prompt.speech_id: [r.token_ids for r in g.responses] for g in found}


def test_more_prompts_than_a_step_takes_are_all_answered(rollouts) -> None:
    rng = random.Random(0)
    prompts = tuple(Prompt(f"s{i}", tuple(rng.randrange(3, 40000) for _ in range(200)), i) for i in range(30))
    asked = SamplingRequest(PromptBatch("item", prompts), 0, 1, 1.0, 1.0, 4)
    stream = rollouts.stream(RolloutActor.sample, [asked], identity=lambda found: found[0].prompt.speech_id)
    assert len({group.prompt.speech_id for group, _ in stream}) == 30


def test_items_that_share_an_engine_have_the_responses_of_each_alone(rollouts) -> None:
    rng = random.Random(1)
    requests = []
    for k in range(8):
        prompts = tuple(Prompt(f"s{k}-{i}", (5, 6, 7 + k, 8 + i), 1000 * k + 10 * i) for i in range(4))
        requests.append(SamplingRequest(PromptBatch(f"item-{k}", prompts), 0, 4, 1.0, 1.0, rng.randrange(8, 64)))

    def responses(in_flight: int) -> dict[str, list[tuple[int, ...]]]:
        stream = rollouts.stream(
            RolloutActor.sample, requests, identity=lambda found: found[0].prompt.speech_id, in_flight=in_flight
        )
        found = [group for group, _ in stream]
        assert len(found) == 32
        return {group.prompt.speech_id: [r.token_ids for r in group.responses] for group in found}

    alone, together = responses(1), responses(4)
    same = [a == b for key in alone for a, b in zip(alone[key], together[key], strict=True)]
    assert sum(same) >= 0.98 * len(same), "the sampled tokens depend on the seed alone, but for rounding"


def test_logprobs_agree_after_a_sync_and_differ_before_it(learner, rollouts, record_property) -> None:
    probe = pairs(1, seed=7)[0]
    assert max(gaps(learner, rollouts, probe)) < 1e-4, "the same base model on both sides"
    before = sampled(rollouts, 0)
    list(learner.train([pairs(8)] * 6, total_steps=6))
    apart = min(gaps(learner, rollouts, probe))
    assert apart > 0.05
    pushed = weight_sync.push_weights(learner, rollouts, 1, probe, Sync(bucket_mb=1, deadline_s=60))
    gap = pushed.verify()
    together = max(gaps(learner, rollouts, probe))
    record_property("gap_before_and_after_nats_per_token", (apart, together))
    print(f"log-probability gap: {apart:.4f} nats a token before the sync, {together:.6f} after")
    assert together < 1e-4
    assert gap < 1e-4, "of a part of the probe"
    assert pushed.version == 1
    after = sampled(rollouts, 1)
    assert after != before, "the new weights sample other responses"
    assert after == sampled(rollouts, 1), "the same seeds give the same responses"


def test_samples_say_which_weights_made_them_and_a_stale_actor_refuses(learner, rollouts) -> None:
    probe = replace(pairs(1, seed=7)[0], context=(7, 4))
    weights = learner.export(2, 1)
    loaded = load(rollouts, weights, probe)
    assert {(found.version, found.digest) for found in loaded} == {(2, weights.digest)}
    assert list(ray.get(weights.refs[-1])) == ["model.embed_tokens.weight"], "engines load the layers before it comes"
    [expected] = learner.evaluate_pairs([probe])
    for found in loaded:
        assert found.logprobs == pytest.approx(expected, abs=1e-3), "over the trained tokens"
    stream = rollouts.stream(RolloutActor.sample, [request(2)], identity=lambda found: found[0].prompt.speech_id)
    assert {group.version for group, _ in stream} == {2}
    with pytest.raises(AssertionError, match="has policy version 2, version 1 was asked for"):
        list(rollouts.stream(RolloutActor.sample, [request(1)]))


def test_a_corrupted_push_is_caught_and_the_old_weights_stay(learner, rollouts) -> None:
    weights = learner.export(3, 1024)
    probe = pairs(1, seed=7)[0]
    load(rollouts, weights, probe)
    bucket = {name: (array.copy(), dtype) for name, (array, dtype) in ray.get(weights.refs[0]).items()}
    name = next(iter(bucket))
    bucket[name][0].reshape(-1)[17] ^= 1 << 20  # one bit
    corrupted = replace(weights, version=4, refs=(ray.put(bucket), *weights.refs[1:]))
    with pytest.raises(
        WeightTransferError, match=r"the weights that arrived have digest \w+, those sent had \w+; nothing was"
    ):
        load(rollouts, corrupted, probe)
    assert max(gaps(learner, rollouts, probe)) < 1e-4
    missing = {key: value for key, value in bucket.items() if key != name}
    with pytest.raises(WeightTransferError, match="nothing was loaded"):
        load(rollouts, replace(weights, refs=(ray.put(missing),)), probe)


def changed_a_little(weights: Weights, version: int) -> Weights:
    """A version in which one weight in a thousand is another, as a delta and whole."""
    held = [ray.get(ref) for ref in weights.refs]
    new = [{name: (array.copy(), dtype) for name, (array, dtype) in bucket.items()} for bucket in held]
    rng = np.random.default_rng(version)
    for bucket in new:
        for array, _ in bucket.values():
            array.reshape(-1)[rng.integers(array.size, size=max(1, array.size // 1000))] ^= 1 << 22  # the exponent
    delta = weight_codec.diff(held, new)
    changed = DeltaRef(weights.digest, ray.put(delta), weight_codec.size(delta))
    refs = tuple(map(ray.put, new))
    return Weights(version, weight_codec.digest(new), refs, weights.bytes, keep=True, delta=changed)


def test_a_delta_does_what_all_weights_do(learner, rollouts) -> None:
    probe = pairs(1, seed=7)[0]
    whole = learner.export(20, 1, deltas=True)
    before = load(rollouts, whole, probe)
    version = whole
    for number in (21, 22):
        version = changed_a_little(version, number)
        by_delta = load(rollouts, version, probe)
        assert {found.bytes for found in by_delta} == {version.delta.bytes}
        assert version.delta.bytes < version.bytes / 100
    entire = load(rollouts, replace(version, version=23, delta=None), probe)
    assert {found.bytes for found in entire} == {whole.bytes}
    assert [found.logprobs for found in by_delta] == [found.logprobs for found in entire]
    assert abs(by_delta[0].logprobs[0] - before[0].logprobs[0]) > 1e-3


@pytest.mark.long
def test_an_engine_over_several_processes_takes_weights_and_deltas(learner, tiny_model) -> None:
    probe = pairs(1, seed=7)[0]
    settings = Rollouts(tensor_parallel=2, cpus=1, dtype="float32", max_model_len=256, max_num_seqs=8, kv_cache_gb=0.1)
    cores = sorted(os.sched_getaffinity(0))
    variables = actor_environment(settings) | {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}"}
    actor = ray.remote(RolloutActor).options(**placement.pool_options(settings, variables))
    pool = ActorPool(
        "rollout", lambda _: actor.remote("wide", str(tiny_model), settings, 0), 1, Deadlines(start_s=300, item_s=120)
    )
    try:
        pool.wait_ready()
        whole = learner.export(50, 1, deltas=True)
        [taken] = load(pool, whole, probe)
        assert (taken.version, taken.digest) == (50, whole.digest)
        assert taken.logprobs == pytest.approx(learner.evaluate_pairs([probe])[0], abs=1e-3)
        [by_delta] = load(pool, changed_a_little(whole, 51), probe)
        assert by_delta.bytes < whole.bytes / 100
        [entire] = load(pool, replace(changed_a_little(whole, 51), version=52, delta=None), probe)
        assert by_delta.logprobs == entire.logprobs
        assert abs(entire.logprobs[0] - taken.logprobs[0]) > 1e-3
    finally:
        pool.close()


def test_whoever_cannot_use_a_delta_takes_all_weights(learner, rollouts) -> None:
    probe = pairs(1, seed=7)[0]
    whole = learner.export(30, 1024, deltas=True)
    next_one = changed_a_little(whole, 31)
    load(rollouts, replace(whole, keep=False), probe)
    late = load(rollouts, next_one, probe)
    assert {found.bytes for found in late} == {whole.bytes}, "they hold nothing that the delta could change"
    damaged = {name: (places, values ^ 1) for name, (places, values) in ray.get(next_one.delta.ref).items()}
    last = changed_a_little(next_one, 32)
    broken = replace(last, delta=replace(last.delta, ref=ray.put(damaged)))
    with pytest.raises(WeightTransferError, match="nothing was loaded"):
        load(rollouts, broken, probe)
    again = load(rollouts, broken, probe)
    assert {found.bytes for found in again} == {whole.bytes}


def test_pushes_with_deltas_send_what_changed_or_everything(learner, rollouts) -> None:
    probe, settings = pairs(1, seed=7)[0], Sync(deadline_s=60, deltas=True)
    gap_of_first = weight_sync.push_weights(learner, rollouts, 40, probe, settings).verify()
    same = weight_sync.push_weights(learner, rollouts, 41, probe, settings)
    gap_of_same = same.verify()
    assert (same.bytes, gap_of_same) == (0, pytest.approx(gap_of_first))
    list(learner.train([pairs(8, seed=5)], total_steps=1))
    other = weight_sync.push_weights(learner, rollouts, 42, probe, settings)
    assert other.bytes > 1e6, "in float32 a step changes nearly every weight"
    assert other.verify() < 1e-4


def test_a_delta_is_exact_and_none_where_it_does_not_pay() -> None:
    rng = np.random.default_rng(0)
    old = {f"p{i}": (rng.integers(-99, 99, (17, 5 + i)).astype(np.int16), "bfloat16") for i in range(4)}
    new = {name: (array.copy(), dtype) for name, (array, dtype) in old.items()}
    new["p1"][0][3, 2] += 1
    new["p3"][0][16, 7] -= 1
    delta = weight_codec.diff([old], [{"p0": new["p0"], "p1": new["p1"]}, {"p2": new["p2"], "p3": new["p3"]}])
    assert delta is not None
    assert delta.keys() == {"p1", "p3"}
    assert weight_codec.size(delta) == 2 * (4 + 2)
    weight_codec.apply(delta, old)
    assert weight_codec.digest([old]) == weight_codec.digest([new])
    assert weight_codec.diff([old], [new]) == {}
    assert weight_codec.diff([], [new]) is None
    assert weight_codec.diff([{"p0": old["p0"]}], [{"p0": (old["p0"][0], "float16")}]) is None
    assert weight_codec.diff([old], [{name: (array + 1, dtype) for name, (array, dtype) in old.items()}]) is None


def miss_a_chunk(actor: RolloutActor) -> None:
    """Have an actor fail at the next chunk, once."""
    weights = actor._engine.weights
    receive = weights.receive_chunk

    def fail(chunk: object) -> None:
        weights.receive_chunk = receive
        raise RuntimeError("the chunk is lost")

    weights.receive_chunk = fail


@pytest.mark.parametrize("transport", ["gloo", "shared_memory", "object_store"])
def test_weights_arrive_in_chunks_and_who_misses_one_takes_the_stored_weights(
    learner, rollouts, transport: str, caplog
) -> None:
    probe, workers, actors = pairs(1, seed=7)[0], learner.workers, rollouts.actors
    settings = Sync(bucket_mb=1, deadline_s=60)
    for version in (60, 61):
        list(learner.train([pairs(8, seed=version)], total_steps=1))
        if version == 61:
            ray.get(actors[1].__ray_call__.remote(miss_a_chunk), timeout=60)
        before = gaps(learner, rollouts, probe)
        pushed = weight_sync.push_weights(learner, rollouts, version, probe, settings, transport=transport)
        assert (pushed.version, pushed.actors) == (version, 2)
        assert pushed.verify() < 1e-4
        assert max(gaps(learner, rollouts, probe)) < 1e-4 < min(before)
    assert any("the chunk is lost" in record.getMessage() for record in caplog.records)
    assert (rollouts.actors, learner.workers) == (actors, workers), "nobody was restarted"


@pytest.mark.slow
def test_where_weights_cannot_be_sent_they_go_through_the_object_store(learner, rollouts, caplog) -> None:
    probe, before = pairs(1, seed=7)[0], learner.workers
    pushed = weight_sync.push_weights(
        learner, rollouts, 9, probe, Sync(deadline_s=120), transport="nccl"
    )  # there is no GPU
    assert (pushed.version, pushed.actors) == (9, 2)
    assert pushed.verify() < 1e-4
    assert max(gaps(learner, rollouts, probe)) < 1e-4
    assert learner.workers != before, "a sender that failed may have left its partners waiting"
    told = [record.getMessage() for record in caplog.records]
    assert any("sending failed" in text and "version 9 go through the object store" in text for text in told), told


class Taking:
    """Stands for a rollout actor in how it takes weights."""

    def __init__(self, how: str, chosen: float) -> None:
        self.how, self.chosen = how, chosen

    def ready(self) -> None: ...

    def init_transfer(self, transport, settings) -> None: ...

    def start_update(self) -> None: ...

    def receive_chunk(self, chunk) -> None: ...

    def finish_update(self, version) -> None: ...

    def load_weights(self, weights, probe) -> WeightUpdateAck:
        if self.how == "slow":
            time.sleep(30)
        digest = "" if self.how == "other" else weights.digest
        return WeightUpdateAck(weights.version, digest, weights.bytes, 0.0)

    def probe_logprobs(self) -> tuple[float, ...]:
        # forgetful: it says that it took them, and computes with others; half: only the first response is right
        return (self.chosen, -1.0) if self.how == "half" else (-1.0, -1.0)


@pytest.mark.parametrize(
    ("how", "error", "told"),
    [
        ("forgetful", RuntimeError, r"after the update to version 5 .* more than sync.max_gap 0.02"),
        ("half", RuntimeError, r"after the update to version 5 .* more than sync.max_gap 0.02"),
        ("other", RuntimeError, r"it took version 5 with digest , \w+ was sent"),
        ("slow", TimeoutError, r"rollout actor [01] on \S+ did not finish load_weights within 2 s"),
    ],
)
def test_engines_that_do_not_take_the_weights_are_found_out(learner, how, error, told) -> None:
    actor, settings = ray.remote(Taking).options(num_cpus=0), Sync(max_gap=0.02, deadline_s=2 if how == "slow" else 60)
    probe = pairs(1, seed=7)[0]
    [(chosen, _)] = learner.evaluate_pairs([probe])
    pool = ActorPool("rollout", lambda _: actor.remote(how, chosen), 2, Deadlines(start_s=60, item_s=30))
    try:
        pool.wait_ready()
        with pytest.raises(error, match=f"no rollout actor took version 5: .*{told}"):
            weight_sync.push_weights(learner, pool, 5, probe, settings).verify()
    finally:
        pool.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_arrays_carry_every_bit(dtype: torch.dtype) -> None:
    tensor = torch.randn(5, 7).to(dtype)
    array, name = weight_codec.as_array(tensor)
    assert np.issubdtype(array.dtype, np.integer)
    assert torch.equal(weight_codec.as_tensor(array, name), tensor)


def test_digest_depends_on_every_part_but_not_on_the_order() -> None:
    a, b = weight_codec.as_array(torch.arange(6.0)), weight_codec.as_array(torch.arange(6.0).flip(0))
    digest = weight_codec.digest([{"a": a, "b": b}])
    assert digest == weight_codec.digest([{"b": b}, {"a": a}])
    assert digest != weight_codec.digest([{"a": b, "b": a}])
    assert digest != weight_codec.digest([{"a": a}])
    assert digest != weight_codec.digest([{"a": a, "b": (b[0].reshape(2, 3), b[1])}])
    assert digest != weight_codec.digest([{"a": a, "b": (b[0], "bfloat16")}])
