"""DeepSpeed training of one model over several workers, which recovers from lost workers.

    LearnerGroup ── owns ─┬─ WorkerGroup    the processes, until the first failure (`worker_group`)
                          ├─ ReplayLog      checkpoint and steps since, to replay (`recovery`)
                          └─ RestartPolicy  when to restart, with how many workers (`recovery`)

The objective is an argument (`DpoObjective` for a policy, `BradleyTerryObjective` for a reward model), so that both
train through the same code.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup

from psyco_ray.config.errors import InputError, NonFiniteError, require_finite
from psyco_ray.config.resources import Sync
from psyco_ray.learner.batching import learning_rate
from psyco_ray.learner.flops import mfu_of_ranks
from psyco_ray.learner.recovery import Batches, ReplayLog, ReplaySegment, RestartPolicy, WeightSendError
from psyco_ray.learner.spec import OnGpu, WorkerSpec
from psyco_ray.learner.worker import WAY_OUT, LearnerWorker
from psyco_ray.learner.worker_group import OnBusy, WorkerGroup, WorkerGroupFailedError, ignore_busy, values_of
from psyco_ray.pool import placement
from psyco_ray.pool.slot import reason_of
from psyco_ray.run import preemption, storage
from psyco_ray.run.types import PreferencePair, SentWeights, StepResult, Weights

_EVALUATED_TOGETHER = 64  # pairs of a worker in one `evaluate` call, which has a deadline

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)


class LearnerGroup:
    """The workers that train one model together.

    If a worker dies or hangs during a call, the group is restarted from the last training state, the steps since then
    are replayed, and the call is repeated. Every method raises a RuntimeError if that fails too often.

    Example:
        >>> learner = LearnerGroup(WorkerSpec("smollm2-135m", DpoObjective(DpoConfig()), ...))
        >>> learner.wait_ready()
        >>> for step in learner.train(batches, total_steps=len(batches)):
        ...     print(step.loss)
        >>> learner.save_model("/models/policy")
        >>> learner.close()
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        state: str | None = None,
        placement_group: PlacementGroup | None = None,
        on_busy: OnBusy = ignore_busy,
    ) -> None:
        """Create the workers, which load in the background until `wait_ready`.

        Args:
            spec: model, objective, optimizer, resources and deadlines.
            state: directory or URI that `save_state` wrote, to continue from.
            placement_group: one bundle for each worker, shared with a rollout actor; None: the workers get their own.
            on_busy: called with each busy interval of a worker.

        Raises:
            PlacementTimeoutError: the cluster has no room for the workers.
        """
        self.spec, self._step_s = spec, spec.deadlines.step_s
        self._placement_group, self._on_busy = placement_group, on_busy
        self._replay_log, self._restarts = ReplayLog(state), RestartPolicy()
        self._closed = False
        self._failure: WorkerGroupFailedError | None = None  # not yet recovered from
        self._group = self._start_group(spec.settings.actors, placement.PLACEMENT_DEADLINE_S)

    @property
    def workers(self) -> list[Any]:
        """The workers' actor handles by rank; a restart replaces them."""
        return self._group.workers

    def wait_ready(self) -> None:
        """Wait until every worker has loaded its model."""
        if note := self._with_recovery(lambda: self._group.wait_ready()):
            _log.warning(note)

    def close(self) -> None:
        """Kill the workers and free their resources."""
        self._closed = True
        self._group.shutdown()

    def train(
        self,
        batches: Batches,
        total_steps: int,
        first_step: int = 0,
        *,
        reset_optimizer: bool = False,
        batches_from: Callable[[int], Batches] | None = None,
    ) -> Iterator[StepResult]:
        """Take an optimizer step for each batch.

        Args:
            batches: pairs of each step, as a stream.
            total_steps: steps of the whole training, which the learning-rate schedule spans.
            first_step: number of the first batch, for a resumed training.
            reset_optimizer: zero Adam's moments before the first step.
            batches_from: returns the batches from a step on, for a replay; None: `batches` is a list.

        Yields:
            Loss and metrics of each step.

        Raises:
            InputError: a batch has fewer pairs than there are workers.
            NonFiniteError: the loss, a value or the gradient of a step.
        """
        if batches_from is None:
            assert isinstance(batches, list), "a stream cannot be replayed"
            all_batches = batches
            batches_from = lambda step: all_batches[step - first_step :]  # noqa: E731 - short
        if reset_optimizer:
            self._run(LearnerWorker.reset_optimizer, "resetting its optimizer")
        segment = self._replay_log.open(
            ReplaySegment(batches_from, total_steps, first_step, first_step, reset_optimizer)
        )
        for step, batch in enumerate(batches, start=first_step):
            result = self._with_recovery(self._step, batch, step, total_steps)
            segment.next_step = step + 1
            self._restarts.step_completed()
            yield result

    def evaluate_pairs(self, examples: Sequence[PreferencePair]) -> list[tuple[float, float]]:
        """Compute values of pairs under the current weights, without training.

        Returns:
            For each pair, in order, the rewards or log-probabilities in nats (chosen, rejected), all finite.
        """
        values: list[tuple[float, float]] = []
        while part := examples[len(values) : len(values) + _EVALUATED_TOGETHER * len(self.workers)]:
            values += self._with_recovery(self._evaluate, part)[: len(part)]
        return self._finite(examples, values)

    def export(self, version: int, bucket_mb: int, deltas: bool = False) -> Weights:
        """Put the current weights into Ray's object store, where they stay until rank 0 ends.

        Args:
            version: of the weights.
            bucket_mb: size limit of an object, MiB.
            deltas: also store the difference from the last export, if it is small.
        """
        buckets = self._run(LearnerWorker.export, "exporting its weights", bucket_mb * 2**20, deltas)
        refs, digest, size, delta = buckets[0]
        return Weights(version, digest, tuple(refs), size, deltas, delta)

    def send(
        self,
        transport: str,
        actors: list[Any],
        version: int,
        workers: int,
        settings: Sync,
    ) -> SentWeights:
        """Send the current weights to rollout actors in chunks, and store them for those that miss any.

        The copy in Ray's object store stays until rank 0 ends; this method does not wait for it.

        Args:
            transport: nccl, ipc, gloo, shared_memory or object_store.
            actors: rollout actors.
            version: of the weights.
            workers: of each actor's engine.
            settings: deadline and size of a chunk.

        Raises:
            NonFiniteError: a weight is not finite.
            WeightSendError: no actor received the weights.
        """
        chunk_bytes, deadline_s = settings.bucket_mb * 2**20, settings.deadline_s
        arguments = transport, actors, version, workers, chunk_bytes, 0.9 * deadline_s
        try:
            sent = self._group.run(LearnerWorker.send, "sending weights", deadline_s, *arguments)
        except NonFiniteError:
            raise
        except (WorkerGroupFailedError, RayTaskError) as error:
            failure = error
            if not isinstance(failure, WorkerGroupFailedError):
                failure = WorkerGroupFailedError(f"sending failed, {reason_of(error)}")
            self._group.shutdown()  # the other workers still wait in the transfer
            self._failure = failure  # restarted when needed: until then engines may have the weights on shared GPUs
            raise WeightSendError(str(failure)) from error
        digest, size, failures, stored = sent[0]
        if len(failures) == len(actors):
            raise WeightSendError(f"no rollout actor received the weights, {failures[0]}")
        for actor, reason in failures.items():
            _log.warning("rollout actor %d of %d did not receive the weights, %s", actor, len(actors), reason)
        if stored is None:
            stored, *_ = [worker.export.remote(chunk_bytes) for worker in self.workers]
        return SentWeights(version, digest, size, stored)

    def save_model(self, target: str | Path) -> None:
        """Write a model directory that transformers and vLLM load, to a path on rank 0's node or a URI."""
        self._run(LearnerWorker.save_model, "saving the model", storage.absolute(target))

    def save_state(self, target: str | Path, moments: bool = False) -> None:
        """Write the training state: float32 weights, and Adam's moments with `moments`.

        A lost group is restarted from this directory, so it must exist until another state is written or loaded.
        """
        checkpoint = storage.absolute(target)
        self._run(LearnerWorker.save_state, "saving its state", checkpoint, moments)
        self._replay_log.saved(checkpoint)

    def load_state(self, target: str | Path) -> None:
        """Restore a training state that `save_state` wrote; every worker reads it."""
        checkpoint = storage.absolute(target)
        self._replay_log.loaded(checkpoint)
        load_s = self.spec.deadlines.start_s
        self._with_recovery(lambda: self._group.run(LearnerWorker.load_state, "loading its state", load_s, checkpoint))

    def keep_on_gpu(self, kept: OnGpu) -> None:
        """Move what is not kept from the GPUs to the host, or everything back; no-op for workers where it is so."""
        self._run(LearnerWorker.keep_on_gpu, "moving between GPU and host", kept)

    def resize(self, world_size: int) -> None:
        """Restart the group with another number of workers, or as many as the cluster has room for.

        Raises:
            InputError: a batch has fewer pairs than that.
        """
        batch_size = self.spec.optimizer.batch_size
        if not 1 <= world_size <= batch_size:
            raise InputError(
                f"learners={world_size}: a batch of {batch_size} pairs cannot be shared by this many ranks"
            )
        self._group.shutdown()
        try:
            self._replace_group(world_size)
        except WorkerGroupFailedError as failure:
            self._restart(failure)

    def mfu(self, tokens_per_s: float) -> float | None:
        """Return the model FLOPs utilisation at a speed in computed tokens a second; None if the peak is unknown."""
        return mfu_of_ranks(tokens_per_s, self._run(LearnerWorker.size, "reporting its size"))

    def _step(self, batch: Sequence[PreferencePair], step: int, total_steps: int) -> StepResult:
        started = time.monotonic()
        rate = learning_rate(self.spec.optimizer, step, total_steps)
        shards = self._group.plan(batch)
        mean_chosen_tokens = sum(e.trained_tokens[0] for e in batch) / len(batch)
        sums = self._group.run_sharded(
            LearnerWorker.step,
            f"optimizer step {step + 1}",
            self._step_s,
            shards,
            *(len(batch), mean_chosen_tokens, rate, step),
        )
        means = {name: sum(s[name] for s in sums) / len(batch) for name in sums[0] if name != "grad_norm"}
        return StepResult(
            step=step,
            steps=total_steps,
            loss=means.pop("loss"),
            learning_rate=rate,
            grad_norm=sums[0].get("grad_norm"),
            metrics=means,
            tokens=self._group.tokens(shards),
            seconds=time.monotonic() - started,
        )

    def _evaluate(self, examples: Sequence[PreferencePair]) -> list[tuple[float, float]]:
        shards = self._group.plan_values(examples)
        results = self._group.run_sharded(LearnerWorker.evaluate, "computing values", self._step_s, shards)
        return values_of(shards, results)

    def _finite(
        self, examples: Sequence[PreferencePair], values: list[tuple[float, float]]
    ) -> list[tuple[float, float]]:
        for example, pair in zip(examples, values, strict=False):  # `plan_values` may have added some
            require_finite(pair, f"a {self.spec.objective.head} value of pair {example.key}", WAY_OUT)
        return values[: len(examples)]

    def _run(
        self, method: Callable[Concatenate[LearnerWorker, P], T], activity: str, *args: P.args, **kwargs: P.kwargs
    ) -> list[T]:
        """Call a method on every worker within `step_s`, with recovery; see `WorkerGroup.run`."""
        return self._with_recovery(lambda: self._group.run(method, activity, self._step_s, *args, **kwargs))

    def _with_recovery(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of an action, which is repeated after each restart of the group."""
        if self._failure is not None:
            self._restart(self._failure)
        while True:
            try:
                return action(*args, **kwargs)
            except WorkerGroupFailedError as failure:
                self._restart(failure)

    def _restart(self, failure: WorkerGroupFailedError) -> None:
        """Replace a failed group by one with the same weights."""
        started = time.monotonic()
        while True:
            self._group.shutdown()
            preemption.check()  # the files on disk are complete, and a preempted run needs no new group
            if self._closed:
                raise failure
            self._restarts.check_restart(failure)
            _log.warning("%s; restarting the learner from %s", failure, self._replay_log.checkpoint or "the base model")
            try:
                self._replace_group(len(self.workers))
            except WorkerGroupFailedError as another:
                failure = another
            else:
                seconds = time.monotonic() - started
                _log.warning("restarted the learner with %d ranks in %.1f s", len(self.workers), seconds)
                return

    def _replace_group(self, world_size: int) -> None:
        """Start a group from the last training state and replay the steps since then."""
        self._failure = None
        self._group = self._restarts.start_largest(self._start_group, world_size)
        if self._closed:
            self._group.shutdown()
            raise WorkerGroupFailedError("the learner was closed during a restart")
        self._group.wait_ready()
        self._replay_log.replay(
            self._step,
            lambda: self._group.run(LearnerWorker.reset_optimizer, "resetting its optimizer", self._step_s),
        )

    def _start_group(self, world_size: int, placement_s: float) -> WorkerGroup:
        return WorkerGroup(
            self.spec,
            world_size,
            placement_s,
            checkpoint=self._replay_log.checkpoint,
            placement_group=self._placement_group,
            on_busy=self._on_busy,
        )
