"""Weight updates from the learner to the rollouts, against vLLM's reload; the share that training changes; deltas.

.venv/bin/python benchmarks/sync.py [--model smollm2-135m] [--actors 1] [--rounds 4] [--learner-dtype float32]
.venv/bin/python benchmarks/sync.py --changed [--counts 1 10 100] [--rates 5e-7 5e-6]
.venv/bin/python benchmarks/sync.py --deltas [--rates 5e-6]

Seconds from the end of an optimizer step until every rollout actor has the weights and has shown that it computes with
them: export, digests, loading, which goes on meanwhile, and the probe. The peer is vLLM's own reload (`reload_weights`)
of the same tensors by the same actors, when the tensors lie in the memory of their node already. Medians over rounds
without the first; `ratio` is ours over the peer's. With --changed the learner trains on short pairs and the share of
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
    reports = []
    for version, _ in enumerate(learner.train(batches, total_steps=len(batches)), start=1):
        report = weight_sync.push_weights(learner, pool, version, probe, Sync(max_gap=5.0, deltas=deltas))
        print(
            f"deltas {deltas}, version {version}: {report.bytes / 2**20:.1f} MiB, export {report.export_s:.3f} s, "
            f"load {report.load_s:.3f} s; gap {report.gap:.4f} nats per token",
            flush=True,
        )
        reports.append((report.bytes, report.export_s + report.load_s))
    pool.close()
    learner.close()
    sizes, seconds = zip(*reports[1:], strict=True)
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
    ours, peer = [], []
    for version in range(1, len(batches) + 1):
        next(steps)
        start = time.perf_counter()
        report = weight_sync.push_weights(learner, pool, version, probe, Sync(max_gap=5.0))
        pushed = time.perf_counter() - start
        refs = learner.export(version, 1024).refs
        reloads = ray.get([actor.__ray_call__.remote(reload_s, refs) for actor in pool.actors])
        item = PromptBatch("first", (Prompt("first", (5, 6, 7, 8), seed=1),))
        start = time.perf_counter()
        next(
            pool.stream(
                RolloutActor.sample,
                [SamplingRequest(item, version, 1, 1.0, 1.0, 1)],
                identity=lambda result: result[0].version,
            )
        )
        print(
            f"version {version}: {pushed:.3f} s for {report.bytes / 2**20:.0f} MiB to {report.actors} actor(s): "
            f"sent and loaded {report.export_s:.3f}, checked {report.load_s:.3f}; reload {max(reloads):.3f} s; "
            f"first token {time.perf_counter() - start:.3f} s; gap {report.gap:.4f} nats per token",
            flush=True,
        )
        if version > 1:
            ours.append(pushed)
            peer.append(max(reloads))
    pool.close()
    learner.close()
    ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
    return {
        "name": "sync",
        "ours": round(statistics.median(ours), 4),
        "peer": round(statistics.median(peer), 4),
        "ratio": round(ratio, 2),
        "bar": BAR,
        "pass": ratio <= BAR,
        "bytes": report.bytes,
    }


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
