"""Responses of one open model on vLLM engines, for the data pipeline and for evaluations."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Deadlines
from psyco_ray.data.respond import EMPTY, ResponseTask, response_row
from psyco_ray.judge.callers import set_aside_row
from psyco_ray.models import loading
from psyco_ray.run import shards
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Prompt, Row

if TYPE_CHECKING:
    from psyco_ray.rollout.engine import Engine

_FILLED_TIMES = 4  # prompts per work item, in units of what an engine decodes at once: it stays full to the end


@dataclass(frozen=True)
class LocalModel:
    """An open model and its engines."""

    model: str  # a packaged name, a directory or a hub id
    rollouts: Rollouts
    seed: int
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ResponseWork:
    """A work item: parts of a task."""

    task: ResponseTask
    parts: tuple[str, ...]


class Responder:
    """An engine that answers parts of tasks; an actor of an `ActorPool`."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def ready(self) -> None:
        """Load the engine."""
        from psyco_ray.rollout.engine import Engine

        model = self._model
        path = loading.resolve(model.model)
        self._tokenizer = loading.load_tokenizer(path, model.trust_remote_code)
        self._engine: Engine = Engine(path, model.rollouts, model.seed, model.trust_remote_code)

    def answer(self, work: ResponseWork) -> Iterator[int]:
        """Answer the missing ones of some parts and write each of them; yields the number of parts."""
        task = work.task
        done = set(shards.list_shards(task.out))
        todo = [part for part in work.parts if part not in done]
        rows: dict[str, list[Row]] = {part: [] for part in todo}
        set_aside: dict[str, list[Row]] = {part: [] for part in todo}
        part_of: dict[str, str] = {}
        prompts: list[Prompt] = []
        room = self._model.rollouts.max_model_len - task.sampling.max_tokens
        for part in todo:
            for row in task.rows(part):
                speech_id = row["speech_id"]
                ids = loading.conversation_ids(self._tokenizer, task.messages(row["speech"]))
                if len(ids) > room:
                    reason = f"the prompt takes {len(ids)} tokens, {room} fit; raise respond.rollouts.max_model_len"
                    set_aside[part].append(set_aside_row(speech_id, task.name, reason, None))
                    continue
                part_of[speech_id] = part
                prompts.append(Prompt(speech_id, tuple(ids), task.seed_of(speech_id)))
        for speech_id, text, finished in self._generate(task, prompts):
            if text:
                rows[part_of[speech_id]].append(response_row(speech_id, task.name, text, finished))
            else:
                set_aside[part_of[speech_id]].append(set_aside_row(speech_id, task.name, EMPTY, ""))
        for part in todo:
            task.write(part, rows[part], set_aside[part])
        yield len(work.parts)

    def _generate(self, task: ResponseTask, prompts: list[Prompt]) -> Iterator[tuple[str, str, bool]]:
        """Speech id, stripped text and whether it is finished, of every response."""
        if not prompts:
            return
        sampling = task.sampling
        for group in self._engine.generate(prompts, 1, sampling.temperature, sampling.top_p, sampling.max_tokens):
            (response,) = group.responses
            yield group.prompt.speech_id, response.text.strip(), response.finished


@dataclass(frozen=True)
class EngineRun:
    """An open model and all that it answers."""

    name: str  # on the progress line
    model: LocalModel
    tasks: Sequence[ResponseTask]


class Engines:
    """Open models that answer one after another, each on all engines; `stop` ends them from another thread."""

    def __init__(self, runs: Sequence[EngineRun], deadlines: Deadlines) -> None:
        """Nothing runs yet.

        Args:
            runs: the models and their tasks.
            deadlines: as in `generate`.
        """
        self._runs, self._deadlines = runs, deadlines
        self._lock = threading.Lock()
        self._stopped = False
        self._close: Callable[[], None] | None = None  # of the current pool

    def run(self, progress: Progress, on_item: Callable[[], None]) -> None:
        """Answer all missing parts; returns early if stopped. Ray must be running if a part is missing.

        Args:
            progress: receives finished work items.
            on_item: called after each work item; its parts are written then.

        Raises:
            InputError, RuntimeError, TimeoutError: as `generate`.
        """
        for run in self._runs:
            if self._stopped:
                return
            try:
                generate(run.model, run.tasks, self._deadlines, progress, run.name, on_item, self._started)
            except RuntimeError:
                if not self._stopped:  # the pool was closed
                    raise

    def stop(self) -> None:
        """End the engines; parts that are written stay."""
        with self._lock:
            self._stopped = True
            close = self._close
        if close is not None:
            close()

    def _started(self, close: Callable[[], None]) -> None:
        with self._lock:
            self._close = close
        if self._stopped:
            close()


def generate(
    model: LocalModel,
    tasks: Sequence[ResponseTask],
    deadlines: Deadlines,
    progress: Progress,
    what: str,
    on_item: Callable[[], None] = lambda: None,
    on_start: Callable[[Callable[[], None]], None] = lambda close: None,
) -> None:
    """Answer the missing parts of all tasks on engines that load the model once. Ray must be running.

    Args:
        model: the model.
        tasks: what it answers.
        deadlines: `start_s` to load an engine, `item_s` for one work item.
        progress: receives finished work items.
        what: the name of the work on the progress line.
        on_item: called after each work item; its parts are written then.
        on_start: called with a function that ends the engines, which makes this one raise a RuntimeError.

    Raises:
        InputError: the engines do not fit on the cluster.
        RuntimeError: an engine cannot load the model, or a work item failed repeatedly.
        TimeoutError: an engine does not load in time.
    """
    import ray

    from psyco_ray.pool import fit, placement
    from psyco_ray.pool.actor_pool import ActorPool
    from psyco_ray.rollout.actor import actor_environment

    settings = model.rollouts
    work = [item for task in tasks for item in _work_items(task, settings)]
    if not work:
        return
    actors = min(settings.actors, len(work))
    role = fit.Role("responder", actors, settings.cpus, settings.gpus, settings.role)
    fit.check(what, [role], fit.cluster_nodes())
    pool = ActorPool[Responder](
        "responder",
        lambda index: (
            ray.remote(Responder).options(**placement.pool_options(settings, actor_environment(settings))).remote(model)
        ),
        actors,
        deadlines,
    )
    close = _Once(pool.close)
    try:
        on_start(close)
        pool.wait_ready()
        for _ in progress.track(pool.stream(Responder.answer, work, name=what), what, len(work)):
            on_item()
    finally:
        close()


class _Once:
    """A function that does its work in the first call; calls in other threads wait for its end."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function, self._lock, self._called = function, threading.Lock(), False

    def __call__(self) -> None:
        with self._lock:
            if not self._called:
                self._called = True
                self._function()


def _work_items(task: ResponseTask, settings: Rollouts) -> Iterator[ResponseWork]:
    """Missing parts, grouped to keep an engine full and to give every engine some work."""
    prompts = {part: len(task.rows(part)) for part in task.missing()}
    least = min(_FILLED_TIMES * settings.max_num_seqs, math.ceil(sum(prompts.values()) / settings.actors))
    parts, size = list[str](), 0
    for part, count in prompts.items():
        parts.append(part)
        size += count
        if size >= least:
            yield ResponseWork(task, tuple(parts))
            parts, size = [], 0
    if parts:
        yield ResponseWork(task, tuple(parts))
