"""Weight updates from a learner worker to an engine on the same device, alternating between transports."""

from __future__ import annotations

import functools
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.cloudpickle
from engines import LIMIT_S, pool_of
from ray.util.placement_group import PlacementGroup

from psyco_ray.config.resources import Transport
from psyco_ray.config.training import Deadlines, Job
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.pool import placement
from psyco_ray.run.types import PreferencePair
from psyco_ray.training import weight_sync
from psyco_ray.training.colocation import ColocationManager

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

BAR_S = 3.0
SHORT = [(32, 32, 32)] * 2  # the pairs of a step: tokens of prompt, chosen and rejected
Line = dict[str, Any]


def random_pairs(lengths: list[tuple[int, int, int]], seed: int) -> list[PreferencePair]:
    """Pairs of random tokens, with reference log-probabilities near those of chance."""
    draw = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(100, 40000), k=length))

    return [
        PreferencePair(f"{seed}-{i}", ids(prompt), ids(chosen), ids(rejected), (-11.0 * chosen, -11.0 * rejected))
        for i, (prompt, chosen, rejected) in enumerate(lengths)
    ]


def learner_of(job: Job, placement_group: PlacementGroup | None = None) -> LearnerGroup:
    """A learner with one worker."""
    deadlines = Deadlines(start_s=LIMIT_S, step_s=LIMIT_S)
    spec = WorkerSpec(job.model, DpoObjective(job.dpo), job.learners, job.dpo.optimizer, seed=0, deadlines=deadlines)
    return LearnerGroup(spec, placement_group=placement_group)


class Strict(logging.Handler):
    """Raises on a warning, such as that weights took another transport than the measured one."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(record.getMessage())


@dataclass(frozen=True)
class Update:
    """Seconds of a weight update without its handover, of the handover, and of a copy of the same size."""

    seconds: float
    handover_s: float
    copy_s: float
    bytes: int


class TimedColocation(ColocationManager):
    """Measures how long the learner takes to leave the GPU."""

    seconds: tuple[float, ...] = ()

    def hand_over(self) -> None:
        """Leaves the weights alone on the GPU."""
        began = time.perf_counter()
        super().hand_over()
        self.seconds += (time.perf_counter() - began,)

    def to_rollouts(self) -> None:
        """Leaves the GPU."""
        began = time.perf_counter()
        super().to_rollouts()
        self.seconds += (time.perf_counter() - began,)

    def pop_seconds(self) -> tuple[float, ...]:
        """Seconds since the last call."""
        seconds, self.seconds = self.seconds, ()
        return seconds


@dataclass
class Pair:
    """A learner worker and the engine that loads its weights."""

    job: Job

    def __post_init__(self) -> None:
        job = self.job
        placement_group = placement.shared_bundles(job) if job.colocated else None
        self.pool, self.group = pool_of(job.model, job.rollouts, placement_group), learner_of(job, placement_group)
        self.colocation = TimedColocation(job.colocated, self.pool, self.group, LIMIT_S)
        self.group.wait_ready()
        self.colocation.to_rollouts()
        self.pool.wait_ready()

    def update(self, version: int, transport: Transport, step: Callable[[], Any]) -> Update:
        """Takes an optimizer step and pushes the weights."""
        self.colocation.to_learner()
        step()
        self.colocation.pop_seconds()
        probe, shared = random_pairs(SHORT, 0)[0], self.colocation if self.job.colocated else None
        pushed = weight_sync.push_weights(
            self.group, self.pool, version, probe, self.job.sync, transport=transport, colocation=shared
        )
        gap, handovers = pushed.verify(), self.colocation.pop_seconds()
        [copy_s] = ray.get([worker.__ray_call__.remote(copy_seconds, pushed.bytes) for worker in self.group.workers])
        parts = pushed.export_s - sum(handovers), pushed.load_s
        print(
            f"version {version} by {transport}: {pushed.bytes / 2**20:.0f} MiB, learner {parts[0]:.3f} s, engine "
            f"{parts[1]:.3f}; handover {sum(handovers):.3f}; gap {gap:.4f} nats per token",
            flush=True,
        )
        return Update(sum(parts), sum(handovers), copy_s, pushed.bytes)


def by_transport(name: str, job: Job, rounds: int) -> list[Line]:
    """Medians over rounds of the seconds of a weight update, by transport; one more round warms up."""
    logging.getLogger("psyco_ray").addHandler(Strict(logging.WARNING))
    pair, transports = Pair(job), sorted({job.transport, "object_store"})
    count = len(transports) * (rounds + 1)
    steps = pair.group.train([random_pairs(SHORT, seed) for seed in range(count)], total_steps=count)
    updates = [
        pair.update(i + 1, transports[i % len(transports)], functools.partial(next, steps)) for i in range(count)
    ]
    pair.pool.close()
    pair.group.close()
    return [
        result_line(f"gpu sync {transport} {name}", updates[i :: len(transports)][1:])
        for i, transport in enumerate(transports)
    ]


def result_line(name: str, updates: list[Update]) -> Line:
    """The result line of a transport."""
    ours, peer = (statistics.median(getattr(update, part) for update in updates) for part in ("seconds", "copy_s"))
    return {
        "name": name,
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "ratio": round(ours / peer, 2),
        "bar": BAR_S,
        "pass": ours <= BAR_S,
        "gb_per_s": round(updates[0].bytes / ours / 1e9, 3),
        "handover_s": round(statistics.median(update.handover_s for update in updates), 3),
    }


def copy_seconds(_: Any, size: int) -> float:
    """Median of five copies of `size` bytes on the worker's device, in seconds."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target, seconds = torch.zeros_like(source), list[float]()
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        target[-1].item()  # waits for the GPU
        seconds.append(time.perf_counter() - start)
    del source, target
    torch.cuda.empty_cache()
    return statistics.median(seconds)
