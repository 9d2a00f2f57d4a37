"""Alternates steps of two trainers and records the cost of each step; shared by the benchmarks against TRL."""

from __future__ import annotations

import queue
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.cloudpickle

from psyco_ray.config.prompts import load_prompt
from psyco_ray.config.training import Prompts
from psyco_ray.data import preferences
from psyco_ray.run.types import ScoreRequest

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Turn:
    """Cost and loss of one step of one side."""

    wall: float  # seconds
    cpu: float  # CPU-seconds
    loss: float = 0.0  # nats per pair


class OnDemand:
    """Base of actors that hold a transformers trainer and take one step per call."""

    def begin(self, trainer: type, settings: Any, **arguments: Any) -> None:
        """Builds the trainer and trains in a background thread, which waits before each step.

        Args:
            trainer: a transformers trainer class.
            settings: its training arguments; the order of pairs must be fixed.
            arguments: further arguments of its constructor.
        """
        from transformers import TrainerCallback

        permits: queue.Queue[None] = queue.Queue()
        done: queue.Queue[float] = queue.Queue()
        losses: list[float] = []

        class Recording(trainer):  # type: ignore[misc]
            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(*args, **kwargs)
                losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
                return loss

        class Waiting(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                permits.get()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                done.put(statistics.mean(losses))
                losses.clear()

        built = Recording(args=settings, callbacks=[Waiting()], **arguments)
        self._permits, self._done = permits, done
        threading.Thread(target=built.train, daemon=True).start()

    def ready(self) -> None:
        """Returns once the trainer is built."""

    def step(self) -> Turn:
        """Trains on the next batch."""
        return timed(self._step)

    def peak(self) -> float:
        """Peak memory of this process, GiB."""
        return peak(self)

    def _step(self) -> float:
        self._permits.put(None)
        return self._done.get(timeout=3600)


def timed(work: Callable[[], float]) -> Turn:
    """Measures a step; `work` returns its loss."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss = work()
    return Turn(time.perf_counter() - wall, time.process_time() - cpu, loss)


def peak(_: Any) -> float:
    """Peak memory of this process, GiB; for `__ray_call__`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cpu_seconds(_: Any) -> float:
    """CPU-seconds of this process; for `__ray_call__`."""
    return time.process_time()


def first_pairs(pairs: str, count: int) -> list[ScoreRequest]:
    """Reads the first pairs of a file; each request has the chosen and the rejected response."""
    prompt = load_prompt(Prompts())
    rows = preferences.read(pairs).table.slice(0, count).to_pylist()
    return [
        ScoreRequest(
            row["pair_id"],
            tuple(preferences.conversation(row["form"], row["asked"], prompt)),
            (row["chosen"], row["rejected"]),
        )
        for row in rows
    ]


def conversations(requests: list[ScoreRequest]) -> list[dict[str, Any]]:
    """Converts pairs to TRL's conversational format."""
    return [
        {
            "prompt": list(request.messages),
            **{
                side: [{"role": "assistant", "content": text}]
                for side, text in zip(("chosen", "rejected"), request.responses, strict=True)
            },
        }
        for request in requests
    ]


def alternate(learner: Any, batches: list[Any], peer: Any) -> tuple[list[Turn], list[Turn]]:
    """Alternates the steps of a `LearnerGroup` with one worker and of an `OnDemand` actor."""
    [worker] = learner.workers
    ours: list[Turn] = []
    peers: list[Turn] = []
    steps = learner.train(batches, total_steps=len(batches))
    for number in range(len(batches)):
        before, start = ray.get(worker.__ray_call__.remote(cpu_seconds)), time.perf_counter()
        loss = next(steps).loss
        wall = time.perf_counter() - start
        ours.append(Turn(wall, ray.get(worker.__ray_call__.remote(cpu_seconds)) - before, loss))
        peers.append(ray.get(peer.step.remote()))
        a, b = ours[-1], peers[-1]
        print(f"step {number}: {format_turns(a, b, 'TRL')}, loss {a.loss:.5f} and {b.loss:.5f}", flush=True)
    return ours, peers


def check_losses(ours: list[Turn], peers: list[Turn]) -> None:
    """Fails unless the losses of both sides agree in every step."""
    for step, (a, b) in enumerate(zip(ours, peers, strict=True)):
        assert abs(a.loss - b.loss) <= 1e-3 * abs(b.loss), f"step {step}: loss {a.loss} is not TRL's {b.loss}"


def format_turns(ours: Turn, peers: Turn, peer: str) -> str:
    """Formats a turn of both sides."""
    return (
        f"ours {ours.wall:.2f} s ({ours.cpu:.2f} CPU), {peer} {peers.wall:.2f} s ({peers.cpu:.2f} CPU), "
        f"ratio {peers.wall / ours.wall:.2f} ({peers.cpu / ours.cpu:.2f} by CPU)"
    )


def result(name: str, count: int, ours: list[Turn], peers: list[Turn], bar: float) -> dict[str, Any]:
    """The result line: medians of the rates and of the ratios, without the first turn."""
    pairs = list(zip(ours, peers, strict=True))[1:]
    ratio = statistics.median(b.wall / a.wall for a, b in pairs)
    print(f"{name}: {statistics.median(b.cpu / a.cpu for a, b in pairs):.2f} times as fast by CPU-seconds")
    return {
        "name": name,
        "ours": round(statistics.median(count / a.wall for a, _ in pairs), 3),
        "peer": round(statistics.median(count / b.wall for _, b in pairs), 3),
        "ratio": round(ratio, 3),
        "bar": bar,
        "pass": ratio >= bar,
    }
