"""Responses of one open model on vLLM engines, for the data pipeline and for evaluations."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Deadlines
from psyco_ray.data.draws import MemberFailedError
from psyco_ray.data.respond import EMPTY, ResponseTask, response_row
from psyco_ray.judge.callers import set_aside_row
from psyco_ray.models import loading, templates
from psyco_ray.run import shards
from psyco_ray.run.cuda_driver import check_driver
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Prompt, Row

if TYPE_CHECKING:
    from psyco_ray.rollout.engine import Engine

_log = logging.getLogger(__name__)

_FILLED_TIMES = 4  # prompts per work item, in units of what an engine decodes at once: it stays full to the end


class ModelFailedError(RuntimeError):
    """A model cannot be loaded, or its engines fail again and again; the message is one line."""


@dataclass(frozen=True)
class LocalModel:
    """An open model and its engines."""

    model: str  # a packaged name, a directory or a hub id
    rollouts: Rollouts
    seed: int
    revision: str | None = None  # of a hub id
    allow_code: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)


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
        model = self._model
        check_driver(model.rollouts.gpus)
        from psyco_ray.rollout.engine import Engine

        path = loading.resolve(model.model, revision=model.revision, allow_code=model.allow_code)
        self._tokenizer = loading.load_tokenizer(path, model.allow_code, model.template_options)
        templates.check(self._tokenizer, templates.TRIAL)
        self._engine: Engine = Engine(path, model.rollouts, model.seed, model.allow_code)

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
                ids = templates.conversation_ids(self._tokenizer, task.messages(row["speech"]))
                if len(ids) > room:
                    reason = f"the prompt takes {len(ids)} tokens, {room} fit; raise max_model_len of the engines"
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
            InputError: the engines cannot write.
            MemberFailedError: a model cannot be used, or its engines failed twice.
        """
        for run in self._runs:
            for attempt in (1, 2):
                if self._stopped:
                    return
                try:
                    generate(run.model, run.tasks, self._deadlines, progress, run.name, on_item, self._started)
                    break
                except ModelFailedError as error:
                    if self._stopped:  # the pool was closed
                        return
                    if attempt == 2 or isinstance(error.__cause__, InputError):
                        names = dict.fromkeys(task.name for task in run.tasks if task.missing())
                        raise MemberFailedError([*names], str(error)) from error
                    _log.warning(f"{run.name}: {error}; once more")  # it may have been the node

    def check(self) -> None:
        """Check that the engines of each model fit on the cluster. Ray must be running if a part is missing.

        Raises:
            InputError: they do not fit.
        """
        for run in self._runs:
            check_fit(run.model, run.tasks, run.name)

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


def check_fit(model: LocalModel, tasks: Sequence[ResponseTask], what: str) -> list[ResponseWork]:
    """The missing work of a model, whose engines fit on the cluster. Ray must be running if there is any.

    Raises:
        InputError: they do not fit.
    """
    from psyco_ray.pool import fit

    settings = model.rollouts
    work = [item for task in tasks for item in _work_items(task, settings)]
    if work:
        role = fit.Role("responder", min(settings.actors, len(work)), settings.cpus, settings.gpus, settings.role)
        fit.check(what, [role], fit.cluster_nodes())
    return work


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
        InputError: the engines do not fit on the cluster, or cannot write.
        ModelFailedError: the model cannot be loaded, or its engines fail again and again.
    """
    import ray
    from ray.exceptions import RayError

    from psyco_ray.pool import placement
    from psyco_ray.pool.actor_pool import ActorPool
    from psyco_ray.rollout.actor import actor_environment

    settings, work = model.rollouts, check_fit(model, tasks, what)
    if not work:
        return
    pool = ActorPool[Responder](
        "responder",
        lambda index: (
            ray.remote(Responder).options(**placement.pool_options(settings, actor_environment(settings))).remote(model)
        ),
        min(settings.actors, len(work)),
        deadlines,
    )
    close = _Once(pool.close)
    try:
        on_start(close)
        with _failures(RuntimeError, TimeoutError, InputError, RayError):  # what `Responder.ready` raises
            pool.wait_ready()
        for _ in progress.track(_guarded(pool.stream(Responder.answer, work, name=what)), what, len(work)):
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


def _guarded(results: Iterator[int]) -> Iterator[int]:
    """The results, as they come. Errors of input pass: they are of the disk, not of the model."""
    while True:
        with _failures(RuntimeError, TimeoutError):
            if (result := next(results, None)) is None:
                return
        yield result


@contextlib.contextmanager
def _failures(*kinds: type[Exception]) -> Iterator[None]:
    """Turns some kinds of errors into ModelFailedError."""
    from psyco_ray.pool.slot import reason_of

    try:
        yield
    except kinds as error:
        raise ModelFailedError(reason_of(error).removeprefix("InputError: ")) from error


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
