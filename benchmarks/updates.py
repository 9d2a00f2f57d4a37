"""Weights from a learner rank to an engine on the same device, by one transport after the other."""

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

from psyco_ray.config.training import Job
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models import weight_codec
from psyco_ray.pool import placement
from psyco_ray.run.types import PreferencePair
from psyco_ray.training import weight_sync
from psyco_ray.training.colocation import ColocationManager

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

BAR_S = 3.0
SHORT = [(32, 32, 32)] * 2  # pairs of the step before an update; tokens of prompt, chosen and rejected
Line = dict[str, Any]


def made_up(lengths: list[tuple[int, int, int]], seed: int) -> list[PreferencePair]:
    """Pairs of random tokens; the reference's log-probabilities are about those of chance."""
    draw = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(100, 40000), k=length))

    return [
        PreferencePair(f"{seed}-{i}", ids(prompt), ids(chosen), ids(rejected), (-11.0 * chosen, -11.0 * rejected))
        for i, (prompt, chosen, rejected) in enumerate(lengths)
    ]


def learner_of(job: Job, rooms: PlacementGroup | None = None) -> LearnerGroup:
    """A learner of one rank."""
    limits = {"start_s": LIMIT_S, "step_s": LIMIT_S}
    spec = WorkerSpec(job.model, DpoObjective(job.dpo), job.learners, job.dpo.optimizer, seed=0, **limits)
    return LearnerGroup(spec, placement_group=rooms)


class Strict(logging.Handler):
    """Makes an error of a warning, such as that weights went another way than the one that is measured."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(record.getMessage())


@dataclass(frozen=True)
class Update:
    """A weight update: seconds without the handover, those of it, and those of a copy of as many bytes."""

    seconds: float
    handover_s: float
    copy_s: float
    bytes: int


@dataclass
class Pair:
    """A learner rank and the engine that gets its weights."""

    job: Job

    def __post_init__(self) -> None:
        job = self.job
        rooms = placement.shared_bundles(job) if job.colocated else None
        self.pool, self.group = pool_of(job.model, job.rollouts, rooms), learner_of(job, rooms)
        self.turns = ColocationManager(job.colocated, self.pool, self.group, LIMIT_S)
        self.group.wait_ready()
        self.turns.to_rollouts()
        self.pool.wait_ready()

    def update(self, version: int, way: weight_codec.Transport, step: Callable[[], Any]) -> Update:
        """Take an optimizer step and bring the weights over."""
        self.turns.to_learner()
        step()
        left: list[float] = []
        handover = functools.partial(timed, self.turns.to_rollouts, left)
        probe = made_up(SHORT, 0)[0]
        report = weight_sync.push_weights(
            self.group, self.pool, version, probe, self.job.sync, transport=way, handover=handover
        )
        [copy_s] = ray.get([rank.__ray_call__.remote(copying, report.bytes) for rank in self.group.ranks])
        parts = report.export_s - sum(left), report.load_s
        print(
            f"version {version} by {way}: {report.bytes / 2**20:.0f} MiB, learner's part {parts[0]:.3f} s, engine's "
            f"{parts[1]:.3f}; handover {sum(left):.3f}; gap {report.gap:.4f} nats a token",
            flush=True,
        )
        return Update(sum(parts), sum(left), copy_s, report.bytes)


def by_transport(name: str, job: Job, rounds: int) -> list[Line]:
    """Seconds of a weight update by every transport in turn, medians over rounds; one more goes before."""
    logging.getLogger("psyco_ray").addHandler(Strict(logging.WARNING))
    both, ways = Pair(job), sorted({job.transport, "object_store"})
    count = len(ways) * (rounds + 1)
    steps = both.group.train([made_up(SHORT, seed) for seed in range(count)], steps=count)
    done = [both.update(i + 1, ways[i % len(ways)], functools.partial(next, steps)) for i in range(count)]
    both.pool.close()
    both.group.close()
    return [moved(f"gpu sync {way} {name}", done[i :: len(ways)][1:]) for i, way in enumerate(ways)]


def moved(name: str, updates: list[Update]) -> Line:
    """The line of a transport."""
    ours, peer = (statistics.median(getattr(one, part) for one in updates) for part in ("seconds", "copy_s"))
    return {
        "name": name,
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "ratio": round(ours / peer, 2),
        "bar": BAR_S,
        "pass": ours <= BAR_S,
        "gb_per_s": round(updates[0].bytes / ours / 1e9, 3),
        "handover_s": round(statistics.median(one.handover_s for one in updates), 3),
    }


def timed(work: Callable[[], None], seconds: list[float]) -> None:
    """Do some work and note what it took."""
    began = time.perf_counter()
    work()
    seconds.append(time.perf_counter() - began)


def copying(_: Any, size: int) -> float:
    """Seconds to copy so many bytes on a rank's device, the median of five times."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target, found = torch.zeros_like(source), list[float]()
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        target[-1].item()  # waits for the GPU
        found.append(time.perf_counter() - began)
    del source, target
    torch.cuda.empty_cache()
    return statistics.median(found)
