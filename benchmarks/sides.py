"""What the benchmarks against other trainers share: two sides take turns, and each turn's cost is kept.

Importing it takes this directory off the module path: one of its files bears the name of a standard module, which
workers would find before it.
"""

from __future__ import annotations

import queue
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.cloudpickle

from psyco_ray.config.prompts import load_prompt
from psyco_ray.config.training import Prompts
from psyco_ray.data import preferences
from psyco_ray.run.types import ScoreRequest

if str(Path(__file__).resolve().parent) in sys.path:
    sys.path.remove(str(Path(__file__).resolve().parent))
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Turn:
    """What one turn of a side took, and the loss of its step."""

    wall: float  # seconds
    cpu: float  # CPU-seconds
    loss: float = 0.0  # nats a pair


class OnDemand:
    """A transformers trainer, as an actor that takes a step when it is told to."""

    def begin(self, trainer: type, settings: Any, **given: Any) -> None:
        """Build the trainer, and train in the background.

        Args:
            trainer: its class.
            settings: its arguments; their order of pairs must be fixed.
            given: what else it takes.
        """
        from transformers import TrainerCallback

        go: queue.Queue[None] = queue.Queue()
        done: queue.Queue[float] = queue.Queue()
        losses: list[float] = []

        class Recording(trainer):  # type: ignore[misc]
            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(*args, **kwargs)
                losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
                return loss

        class Waiting(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                go.get()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                done.put(statistics.mean(losses))
                losses.clear()

        built = Recording(args=settings, callbacks=[Waiting()], **given)
        self._go, self._done = go, done
        threading.Thread(target=built.train, daemon=True).start()

    def ready(self) -> None:
        """Answer once the trainer is there."""

    def step(self) -> Turn:
        """Train on the next batch."""
        return timed(self._step)

    def peak(self) -> float:
        """Peak memory of this process, GiB."""
        return peak(self)

    def _step(self) -> float:
        self._go.put(None)
        return self._done.get(timeout=3600)


def timed(work: Callable[[], float]) -> Turn:
    """What some work took; it returns its loss."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss = work()
    return Turn(time.perf_counter() - wall, time.process_time() - cpu, loss)


def peak(_: Any) -> float:
    """Peak memory of this process, GiB; for `__ray_call__`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cpu_seconds(_: Any) -> float:
    """CPU-seconds of this process; for `__ray_call__`."""
    return time.process_time()


def asked_of(pairs: str, count: int) -> list[ScoreRequest]:
    """The first pairs of a file, chosen before rejected."""
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


def conversations(asked: list[ScoreRequest]) -> list[dict[str, Any]]:
    """The pairs as TRL takes them."""
    return [
        {
            "prompt": list(one.messages),
            **{
                side: [{"role": "assistant", "content": text}]
                for side, text in zip(("chosen", "rejected"), one.responses, strict=True)
            },
        }
        for one in asked
    ]


def by_turns(learner: Any, batches: list[Any], peer: Any) -> tuple[list[Turn], list[Turn]]:
    """The steps of a `LearnerGroup` of one rank and of an `OnDemand` actor, one after the other."""
    [rank] = learner.workers
    ours: list[Turn] = []
    theirs: list[Turn] = []
    steps = learner.train(batches, total_steps=len(batches))
    for number in range(len(batches)):
        before, began = ray.get(rank.__ray_call__.remote(cpu_seconds)), time.perf_counter()
        loss = next(steps).loss
        wall = time.perf_counter() - began
        ours.append(Turn(wall, ray.get(rank.__ray_call__.remote(cpu_seconds)) - before, loss))
        theirs.append(ray.get(peer.step.remote()))
        a, b = ours[-1], theirs[-1]
        print(f"step {number}: {described(a, b, 'TRL')}, loss {a.loss:.5f} and {b.loss:.5f}", flush=True)
    return ours, theirs


def check_losses(ours: list[Turn], theirs: list[Turn]) -> None:
    """End with an error unless every step's loss is the peer's."""
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert abs(a.loss - b.loss) <= 1e-3 * abs(b.loss), f"step {step}: loss {a.loss} is not TRL's {b.loss}"


def described(ours: Turn, theirs: Turn, peer: str) -> str:
    """A turn of both sides in words."""
    return (
        f"ours {ours.wall:.2f} s ({ours.cpu:.2f} CPU), {peer} {theirs.wall:.2f} s ({theirs.cpu:.2f} CPU), "
        f"ratio {theirs.wall / ours.wall:.2f} ({theirs.cpu / ours.cpu:.2f} by CPU)"
    )


def result(name: str, count: int, ours: list[Turn], theirs: list[Turn], bar: float) -> dict[str, Any]:
    """The last line's facts, of all turns but the first: medians of rates a second, and of the turns' ratios."""
    pairs = list(zip(ours, theirs, strict=True))[1:]
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
