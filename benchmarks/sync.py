"""Weight updates from the learner to the rollouts, against vLLM's reload; the share that training changes; deltas.

.venv/bin/python benchmarks/sync.py [--model smollm2-135m] [--actors 1] [--rounds 4] [--learner-dtype float32]
.venv/bin/python benchmarks/sync.py --changed [--counts 1 10 100] [--rates 5e-7 5e-6]
.venv/bin/python benchmarks/sync.py --deltas [--rates 5e-6]

Seconds from the end of an optimizer step until every rollout actor has the weights, their digest is confirmed, and it
takes items: export, digests, and loading, which goes on meanwhile. The peer is vLLM's own reload (`reload_weights`) of
the same tensors by the same actors, when the tensors lie in the memory of their node already. The probe, by which each
engine shows that it computes with the weights, runs beside the first items, whose results wait for it; `first_token_s`
is the time from the end of the step, and of the peer from the start of its reload, until the first sampled token is
delivered, with the probe. Medians over rounds without the first; `ratio` is ours over the peer's.

With --changed the learner trains on short pairs and the share of
weights is printed whose bfloat16 value differs from the start; nothing is compared. With --deltas the rollouts are on
an emulated second node and load only the weights that each step changed (`sync.deltas`); the peer sends all weights
after the same steps, and `ratio` is that of the bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# a token of this run, set before the import: Ray would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), HF_HUB_OFFLINE="1")

import numpy as np
import ray

from psyco_ray.config.resources import Learners, Rollouts, Sync, fast_dtype
from psyco_ray.config.training import Deadlines, DpoConfig, Optimizer
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models import weight_codec
from psyco_ray.pool import fit, placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest, actor_environment
from psyco_ray.run.types import PreferencePair, Prompt, PromptBatch, Weights
from psyco_ray.training import weight_sync

BAR = 1.5
DELTA_BAR = 0.1
PAIRS = 2  # per optimizer step


def pairs(prompt: int, response: int, count: int, seed: int) -> list[PreferencePair]:
    """Pairs of random tokens, with reference log-probabilities near those of chance."""
    rng = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(100, 40000) for _ in range(length))

    chance = -10.0 * response
    return [
        PreferencePair(f"{seed}-{i}", ids(prompt), ids(response), ids(response), (chance, chance)) for i in range(count)
    ]


def learner_of(options: argparse.Namespace, rate: float) -> LearnerGroup:
    """Starts a learner with one worker."""
    spec = WorkerSpec(
        options.model,
        DpoObjective(DpoConfig()),
        Learners(
            threads=options.threads,
            dtype=options.learner_dtype,
            zero_stage=0 if options.learner_dtype == "float32" else 1,
            micro_batch_tokens=1024,
        ),
        Optimizer(learning_rate=rate, batch_size=PAIRS, warmup_ratio=0.0, schedule="constant"),
        seed=0,
        deadlines=Deadlines(start_s=600, step_s=600),
    )
    learner = LearnerGroup(spec)
    learner.wait_ready()
    return learner


def pool_of(options: argparse.Namespace) -> ActorPool:
    """Starts the rollout actors."""
    settings = Rollouts(
        actors=options.actors, cpus=0.5, dtype=options.dtype, max_model_len=512, max_num_seqs=16, kv_cache_gb=0.2
    )
    actor = ray.remote(RolloutActor)
    resources = placement.pool_options(settings, actor_environment(settings))
    pool = ActorPool(
        "rollout",
        lambda index: actor.options(**resources).remote(f"rollout-{index}", options.model, settings, 0),
        options.actors,
        Deadlines(start_s=900, item_s=600),
    )
    pool.wait_ready()
    return pool


def reload_s(actor: RolloutActor, refs: tuple[Any, ...]) -> float:
    """Seconds of vLLM's own reload of weights that lie in the object store, in a rollout actor's process."""
    buckets = ray.get(list(refs))
    tensors = [(name, weight_codec.as_tensor(*packed)) for bucket in buckets for name, packed in bucket.items()]
    start = time.perf_counter()
    actor._engine._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors)})
    return time.perf_counter() - start


def measure_updates(options: argparse.Namespace, deltas: bool) -> tuple[float, float]:
    """Medians of an update's bytes and seconds over rounds, without the first, which sends all weights."""
    learner, pool = learner_of(options, options.rates[0]), pool_of(options)
    probe = pairs(options.prompt, options.response, 1, seed=99)[0]
    batches = [pairs(10, 10, PAIRS, seed) for seed in range(options.rounds + 1)]
    updates = []
    for version, _ in enumerate(learner.train(batches, total_steps=len(batches)), start=1):
        pushed = weight_sync.push_weights(learner, pool, version, probe, Sync(max_gap=5.0, deltas=deltas))
        print(
            f"deltas {deltas}, version {version}: {pushed.bytes / 2**20:.1f} MiB, export {pushed.export_s:.3f} s, "
            f"load {pushed.load_s:.3f} s; gap {pushed.verify():.4f} nats per token",
            flush=True,
        )
        updates.append((pushed.bytes, pushed.export_s + pushed.load_s))
    pool.close()
    learner.close()
    sizes, seconds = zip(*updates[1:], strict=True)
    return statistics.median(sizes), statistics.median(seconds)


def two_nodes() -> None:
    """Starts Ray with two emulated nodes, one for the learner and one for the rollouts."""
    from ray.cluster_utils import Cluster

    labels = {role: {fit.ROLE_LABEL: role} for role in ("learner", "rollout")}
    head = {"num_cpus": 4, "include_dashboard": False, "labels": labels["learner"]}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=4, labels=labels["rollout"])
    ray.init(address=cluster.address, log_to_driver=False)


def compare_deltas(options: argparse.Namespace) -> dict[str, Any]:
    """Bytes of an update with deltas, against all weights."""
    (ours, ours_s), (peer, peer_s) = measure_updates(options, True), measure_updates(options, False)
    return {
        "name": "sync deltas",
        "ours": ours,
        "peer": peer,
        "ratio": round(ours / peer, 4),
        "bar": DELTA_BAR,
        "pass": ours / peer <= DELTA_BAR,
        "seconds": [round(ours_s, 3), round(peer_s, 3)],
    }


def compare_reload(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an update, against vLLM's reload of the same weights by the same actors."""
    learner, pool = learner_of(options, 5e-6), pool_of(options)
    probe = pairs(options.prompt, options.response, 1, seed=99)[0]
    batches = [pairs(10, 10, PAIRS, seed) for seed in range(options.rounds + 1)]
    steps = learner.train(batches, total_steps=len(batches))
    ours, peer = [], []  # seconds of the update and of the first token
    for version in range(1, len(batches) + 1):
        next(steps)
        start = time.perf_counter()
        pushed = weight_sync.push_weights(learner, pool, version, probe, Sync(max_gap=5.0))
        updated = time.perf_counter() - start
        with ThreadPoolExecutor(1) as background:
            gap = background.submit(pushed.verify)
            sample_token(pool, version)
            first_token = time.perf_counter() - start
        refs = learner.export(version, 1024).refs
        start = time.perf_counter()
        reloaded = max(ray.get([actor.__ray_call__.remote(reload_s, refs) for actor in pool.actors]))
        called = time.perf_counter() - start - reloaded  # fetching the tensors, which the peer has already
        sample_token(pool, version)
        peer_token = time.perf_counter() - start - called
        print(
            f"version {version}: {updated:.3f} s for {pushed.bytes / 2**20:.0f} MiB to {pushed.actors} actor(s): "
            f"sent and loaded {pushed.export_s:.3f}, confirmed {pushed.load_s:.3f}; first token {first_token:.3f}; "
            f"reload {reloaded:.3f}, first token {peer_token:.3f}; gap {gap.result():.4f} nats per token",
            flush=True,
        )
        if version > 1:
            ours.append((updated, first_token))
            peer.append((reloaded, peer_token))
    pool.close()
    learner.close()
    ratios = [[a / b for a, b in zip(one, other, strict=True)] for one, other in zip(ours, peer, strict=True)]
    ratio, token_ratio = (statistics.median(column) for column in zip(*ratios, strict=True))
    (ours_s, ours_token), (peer_s, peer_token) = (
        map(statistics.median, zip(*side, strict=True)) for side in (ours, peer)
    )
    return {
        "name": "sync",
        "ours": round(ours_s, 4),
        "peer": round(peer_s, 4),
        "ratio": round(ratio, 2),
        "bar": BAR,
        "pass": ratio <= BAR,
        "bytes": pushed.bytes,
        "first_token_s": [round(ours_token, 4), round(peer_token, 4), round(token_ratio, 2)],
    }


def sample_token(pool: ActorPool, version: int) -> None:
    """Samples one token with a version of the weights."""
    item = PromptBatch("first", (Prompt("first", (5, 6, 7, 8), seed=1),))
    requests = [SamplingRequest(item, version, 1, 1.0, 1.0, 1)]
    next(pool.stream(RolloutActor.sample, requests, identity=lambda result: result[0].version))


def bfloat16(weights: Weights) -> dict[str, np.ndarray]:
    """The bits of every weight rounded to bfloat16."""
    import torch

    bits = {}
    for ref in weights.refs:
        for name, packed in ray.get(ref).items():
            rounded = weight_codec.as_tensor(*packed).to(torch.bfloat16)
            bits[name] = weight_codec.as_array(rounded)[0].copy()
    return bits


def count_changes(options: argparse.Namespace) -> dict[str, Any]:
    """Share of bfloat16 weights that differ after each number of steps, by learning rate."""
    shares: dict[str, dict[int, float]] = {}
    for rate in options.rates:
        learner = learner_of(options, rate)
        base = bfloat16(learner.export(0, 1024))
        size = sum(array.size for array in base.values())
        last = max(options.counts)
        shares[f"{rate:g}"] = {}
        batches = [pairs(16, 12, PAIRS, seed) for seed in range(last)]
        for result in learner.train(batches, total_steps=last):
            count = result.step + 1
            if count in options.counts:
                now = bfloat16(learner.export(count, 1024))
                differ = sum(int(np.count_nonzero(now[name] != array)) for name, array in base.items())
                shares[f"{rate:g}"][count] = round(differ / size, 6)
                print(f"rate {rate:g}, {count} steps: {differ / size:.4%} of {size} weights changed", flush=True)
        learner.close()
    return {"name": "sync changed", "ours": shares, "peer": None, "ratio": None, "bar": None, "pass": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--actors", type=int, default=1, help="rollout actors")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="threads of the learner")
    parser.add_argument("--dtype", default=fast_dtype({}), help="dtype of the rollouts")
    parser.add_argument(
        "--learner-dtype", default=fast_dtype({}), help="dtype of the learner's compute and of the sent weights"
    )
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the probe's prompt")
    parser.add_argument("--response", type=int, default=32, help="tokens of the probe's response")
    parser.add_argument("--deltas", action="store_true", help="send only changed weights, to another node")
    parser.add_argument("--changed", action="store_true", help="count the weights that training changes")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100], help="optimizer steps")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-7, 5e-6], help="learning rates")
    options = parser.parse_args()
    if options.deltas:
        two_nodes()
    else:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    result = (
        compare_deltas(options)
        if options.deltas
        else count_changes(options)
        if options.changed
        else compare_reload(options)
    )
    ray.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
