"""DeepSpeed training of one model over several ranks, one Ray actor each.

The objective is an argument (`DpoObjective` for a policy, `BradleyTerryObjective` for a reward model), so both train
through one code path.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Learners, Sync
from psyco_ray.config.training import Lora, Optimizer
from psyco_ray.learner.batching import learning_rate, plan_step
from psyco_ray.learner.flops import mfu, peak_flops
from psyco_ray.learner.recovery import Batches, Lasting, ReplaySegment
from psyco_ray.learner.worker_group import WorkerGroupFailedError
from psyco_ray.pool.slot import reason_of
from psyco_ray.run import storage
from psyco_ray.run.types import PreferencePair, SentWeights, StepResult, Weights

if TYPE_CHECKING:
    from psyco_ray.learner.losses import Objective

_VALUES_AT_A_TIME = 64  # pairs a rank computes values of in one call, which has a deadline

_log = logging.getLogger(__name__)


class WeightSendError(RuntimeError):
    """Weights could not be sent; there are new ranks in place of those that tried."""


class LearnerGroup(Lasting):
    """The ranks that train one model together."""

    def __init__(
        self,
        model: str,
        objective: Objective,
        settings: Learners,
        optimizer: Optimizer,
        *,
        seed: int,
        state: str | None = None,
        lora: Lora | None = None,
        rooms: PlacementGroup | None = None,
        start_s: float,
        step_s: float,
        worked: Callable[[float, float], None] = lambda *_: None,
    ) -> None:
        """Create the ranks; they load in the background until `wait_ready`.

        Args:
            model: name or directory of the model to start from.
            objective: what is minimised.
            settings: ranks, dtype, ZeRO stage, sizes.
            optimizer: AdamW's numbers and the schedule.
            seed: of a new reward head and of what the model draws.
            state: a directory that `save_state` wrote, to continue from.
            lora: train low-rank adapters instead of all weights.
            rooms: one for each rank, that it shares with a rollout; None: the ranks have theirs alone.
            start_s: seconds a rank may take to get ready.
            step_s: seconds a step may take.
            worked: told from when to when (`time.monotonic`) a rank was at work.

        Raises:
            PlacementTimeoutError: the cluster has no room for the ranks.
        """
        self._optimizer, self._seed, self._step_s = optimizer, seed, step_s
        begin = {
            "model": model,
            "objective": objective,
            "settings": settings,
            "optimizer": optimizer,
            "seed": seed,
            "timeout_s": step_s,
            "adapters": lora,
        }
        super().__init__(settings, begin, state, rooms, start_s, worked)

    def train(
        self,
        batches: Batches,
        steps: int,
        first: int = 0,
        *,
        fresh: bool = False,
        again: Callable[[int], Batches] | None = None,
    ) -> Iterator[StepResult]:
        """Take an optimizer step for each batch and yield what it reports.

        Args:
            batches: pairs of each step, as a stream.
            steps: how many the whole training has; the learning rate's schedule goes by it.
            first: number of the first of the batches, for a training that is resumed.
            fresh: forget Adam's moments before the first step.
            again: the batches from a step on, for steps that a rebuilt group repeats; None: `batches` is a list.

        Raises:
            InputError: the loss became NaN, or a batch has fewer pairs than there are ranks.
        """
        if again is None:
            assert isinstance(batches, list), "a stream cannot be walked again"
            given = batches
            again = lambda step: given[step - first :]  # noqa: E731 - short
        training = ReplaySegment(again, steps, first, first, fresh)
        if fresh:
            self._lasting(self._reset)
        self._since.append(training)
        for step, batch in enumerate(batches, start=first):
            result = self._lasting(self._step, batch, step, steps)
            training.done, self._rebuilds = step + 1, 0
            yield result

    def values(self, examples: Sequence[PreferencePair]) -> list[tuple[float, float]]:
        """Scores or log-probabilities (chosen, rejected) under the current weights, in the order of the pairs."""
        found: list[tuple[float, float]] = []
        while part := examples[len(found) : len(found) + _VALUES_AT_A_TIME * len(self.ranks)]:
            found += self._lasting(self._values, part)
        return found

    def export(self, version: int, bucket_mb: int, deltas: bool = False) -> Weights:
        """The current weights, in the object store, where they live as long as rank 0.

        Args:
            version: what they are called.
            bucket_mb: largest object, MiB.
            deltas: also store what changed since the last export, where that is little.
        """
        answers = self._lasting(self._ask, "export", bucket_mb * 2**20, deltas, doing="exporting its weights")
        refs, digest, size, delta = answers[0]
        return Weights(version, digest, tuple(refs), size, deltas, delta)

    def send(self, transport: str, actors: list[Any], version: int, workers: int, settings: Sync) -> SentWeights:
        """Send the current weights to rollout actors over NCCL or CUDA IPC, then store them for who joins later.

        An actor that failed to receive them is told of by its digest. What is stored lives as long as rank 0; nobody
        waits for it here.

        Args:
            transport: nccl or ipc.
            actors: of the rollouts.
            version: of the weights.
            workers: of each actor's engine.
            settings: deadline, size of a piece.

        Raises:
            WeightSendError: it failed, as where one of NCCL's partners dies; the group was rebuilt.
        """
        piece, deadline_s = settings.bucket_mb * 2**20, settings.deadline_s
        given = transport, actors, version, workers
        try:
            [meeting] = self._ranks.get([self.ranks[0].address.remote()], self._step_s, "finding a free port")
            digest, size, failures = self._ranks.ask(
                "send", *given, meeting, piece, 0.9 * deadline_s, deadline_s=deadline_s, doing="sending weights"
            )[0]
        except (WorkerGroupFailedError, RayTaskError) as error:
            # a sender that failed leaves the other ranks behind, waiting for it
            loss = (
                error
                if isinstance(error, WorkerGroupFailedError)
                else WorkerGroupFailedError(f"sending failed, {reason_of(error)}")
            )
            self._rebuild(loss)
            raise WeightSendError(str(loss)) from error
        for actor, reason in failures.items():
            _log.warning("rollout actor %d of %d did not receive the weights, %s", actor, len(actors), reason)
        stored, *_ = [rank.export.remote(piece) for rank in self.ranks]
        return SentWeights(version, digest, size, stored)

    def save_model(self, target: str | Path) -> None:
        """Write a model directory that transformers and vLLM load, at a path that rank 0 sees or at a URI."""
        self._lasting(self._ask, "save_model", storage.absolute(target), doing="saving the model")

    def save_state(self, target: str | Path, moments: bool = False) -> None:
        """Write the directory that `state` continues from: float32 weights, and Adam's moments where wanted.

        From now on a lost group is rebuilt from it, so it must stay until another is written or loaded.
        """
        where = storage.absolute(target)
        self._lasting(self._ask, "save_state", where, moments, doing="saving its state")
        self._state = where
        del self._since[:-1]
        for training in self._since:  # it may go on
            training.first, training.fresh = training.done, False

    def load_state(self, target: str | Path) -> None:
        """Go on from a state that `save_state` wrote; every rank reads it."""
        self._state, self._since = storage.absolute(target), []
        self._lasting(lambda: self._ranks.ask("load_state", self._state, deadline_s=self._start_s, doing="loading"))

    def sleep(self) -> None:
        """Move everything that the ranks hold on their GPUs to the host, until `wake`."""
        self._lasting(self._ask, "sleep", doing="leaving its GPU")

    def wake(self) -> None:
        """Bring it back; ranks that never slept stay as they are."""
        self._lasting(self._ask, "wake", doing="coming back to its GPU")

    def resize(self, count: int) -> None:
        """Go on with another number of ranks, which start from the last state; with fewer where there is no room.

        Raises:
            InputError: a batch has fewer pairs.
        """
        if not 1 <= count <= self._optimizer.batch_size:
            raise InputError(
                f"learners={count}: a batch of {self._optimizer.batch_size} pairs cannot be shared by so many ranks"
            )
        self._ranks.end()
        try:
            self._replace(count)
        except WorkerGroupFailedError as loss:
            self._rebuild(loss)

    def mfu(self, tokens_per_s: float) -> float | None:
        """Share of the GPUs' peak that so many trained tokens a second take; None where the peak is not known."""
        sizes = self._lasting(self._ask, "size", doing="telling its size")
        peaks = [peak_flops(gpu) for _, _, gpu in sizes]
        if None in peaks:
            return None
        parameters, trained, _ = sizes[0]
        return mfu(tokens_per_s, parameters, trained, sum(peak for peak in peaks if peak is not None))

    def _step(self, batch: Sequence[PreferencePair], step: int, steps: int) -> StepResult:
        began = time.monotonic()
        rate = learning_rate(self._optimizer, step, steps)
        shares = plan_step(batch, len(self.ranks), self._settings.micro_batch_tokens)
        chosen_tokens = sum(len(e.chosen_ids) for e in batch) / len(batch)
        sums = self._ranks.get(
            [
                rank.step.remote(share, len(batch), chosen_tokens, rate, self._seed + step)
                for rank, share in zip(self.ranks, shares, strict=True)
            ],
            self._step_s,
            f"optimizer step {step + 1}",
        )
        means = {name: sum(s[name] for s in sums) / len(batch) for name in sums[0] if name != "grad_norm"}
        return StepResult(
            step=step,
            steps=steps,
            loss=means.pop("loss"),
            learning_rate=rate,
            grad_norm=sums[0].get("grad_norm"),
            metrics=means,
            tokens=sum(e.tokens for e in batch),
            seconds=time.monotonic() - began,
        )

    def _values(self, examples: Sequence[PreferencePair]) -> list[tuple[float, float]]:
        numbered = [replace(example, key=f"{i:09d}") for i, example in enumerate(examples)]
        # ZeRO-3 ranks walk in step, so every rank gets something to do
        numbered += [replace(examples[-1], key=f"{i:09d}") for i in range(len(examples), len(self.ranks))]
        shares = plan_step(numbered, len(self.ranks), self._settings.micro_batch_tokens)
        parts = self._ranks.get(
            [rank.values.remote(share) for rank, share in zip(self.ranks, shares, strict=True)],
            self._step_s,
            "computing values",
        )
        found = {
            example.key: pair
            for share, values in zip(shares, parts, strict=True)
            for example, pair in zip((e for micro in share for e in micro), values, strict=True)
        }
        return [found[f"{i:09d}"] for i in range(len(examples))]

    def _reset(self) -> None:
        self._ask("reset_optimizer", doing="resetting its optimizer")

    def _ask(self, method: str, *given: Any, doing: str) -> list[Any]:
        return self._ranks.ask(method, *given, deadline_s=self._step_s, doing=doing)

    def _retake(self, training: ReplaySegment) -> None:
        if training.fresh:
            self._reset()
        numbers = range(training.first, training.done)
        for step, batch in zip(numbers, training.batches(training.first) if numbers else (), strict=False):
            self._step(batch, step, training.steps)
