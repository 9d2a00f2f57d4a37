"""A second look for signs of a crisis by a classifier of texts, on this cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.data import CrisisClassifier
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Deadlines
from psyco_ray.data.crisis_flags import CLASSIFIER, DIRECTORIES, flag
from psyco_ray.data.dataset import Dataset
from psyco_ray.models import loading, text_classifier
from psyco_ray.run import hub, shards, storage
from psyco_ray.run.changes import digest_of_model
from psyco_ray.run.cuda_driver import check_driver
from psyco_ray.run.progress import Progress
from psyco_ray.run.remote import is_remote
from psyco_ray.run.schemas import CRISIS_SIGNS
from psyco_ray.run.types import Row
from psyco_ray.screening.crisis import KINDS

_DEADLINES = Deadlines(start_s=4 * 3600, item_s=3600)  # the model may be downloaded first

_log = logging.getLogger(__name__)


def is_directory(settings: CrisisClassifier) -> bool:
    """Whether the model is a directory, perhaps a remote one, not a hub id."""
    return is_remote(settings.model) or storage.local_path(settings.model).is_dir()


def check(settings: CrisisClassifier) -> text_classifier.Labels:
    """Find the model, download it if it is on the hub, and compare its labels with those of the job.

    Returns:
        The labels of the model.

    Raises:
        InputError: the model is unknown, not pinned or no classifier, or lacks a label.
    """
    labels = text_classifier.read_labels(_resolve(settings))
    if unknown := [name for name in settings.labels if name not in labels.names]:
        raise InputError(
            f"crisis.classifier.labels names {unknown[0]!r}, which {settings.model} does not have; its labels are "
            f"{', '.join(labels.names)}"
        )
    return labels


def _resolve(settings: CrisisClassifier) -> Path:
    """The local directory of the model, with safetensors.

    Raises:
        InputError: there is none, or a hub id is not pinned.
    """
    if not is_directory(settings) and hub.is_id(settings.model):
        hub_id, revision = hub.split_revision(settings.model)
        if not hub.is_commit(settings.revision or revision):
            raise InputError(
                f"crisis.classifier.model {hub_id} is no directory here; of a hub id pin crisis.classifier.revision, "
                "the 40 hex digits of a commit, because the hub's files may change"
            )
    return loading.resolve(settings.model, revision=settings.revision, allow_code=settings.allow_code, pickles=False)


class ClassifierActor:
    """A classifier that reads parts of the collected speeches; an actor of an `ActorPool`."""

    def __init__(self, settings: CrisisClassifier, name: str, root: Path) -> None:
        """Set the model; `ready` loads it.

        Args:
            settings: the model, its labels and its resources.
            name: of the model in the table.
            root: of the dataset.
        """
        self._settings, self._name, self._root = settings, name, root

    def ready(self) -> None:
        """Load the model.

        Raises:
            InputError: the model is unknown or damaged, or the driver of the node is too old for its GPUs.
        """
        settings = self._settings
        check_driver(settings.gpus)
        import torch

        torch.set_num_threads(settings.threads)
        path = _resolve(settings)
        self._model = text_classifier.TextClassifier(
            path, settings.dtype, settings.gpus, settings.row_tokens, settings.allow_code
        )

    def classify(self, part: str) -> Iterator[str]:
        """Write the flags of a part; yields its name.

        Of a conversation each of the client's turns is classified, as a text of its own.

        A part is classified as a whole, so that its batches, and with them the last bits of its scores, are the same
        in every run.
        """
        rows = shards.read(self._root / "collect" / "speeches", part)
        contexts = [Context.of(row["speech"]) for row in rows]
        windows = iter(self._model.classify([turn for context in contexts for turn in context.client_turns]))
        found = [
            self._row(row, [window for start in context.places[::2] for window in _moved(next(windows), start)])
            for row, context in zip(rows, contexts, strict=True)
        ]
        shards.write(self._root / DIRECTORIES[CLASSIFIER], part, found, CRISIS_SIGNS)
        yield part

    def _row(self, row: Row, windows: Sequence[text_classifier.Window]) -> Row:
        """What the model says of a speech: a flag for each window and kind whose probability reaches the threshold."""
        labels, threshold = self._settings.labels, self._settings.threshold
        flags, highest = [], dict.fromkeys(labels, 0.0)
        for window in windows:
            probabilities = dict(zip(self._model.labels.names, window.probabilities, strict=True))
            highest = {name: max(before, probabilities[name]) for name, before in highest.items()}
            kinds = {kind for name, kind in labels.items() if probabilities[name] >= threshold}
            flags += [flag(kind, CLASSIFIER, window.start, window.end) for kind in kinds]
        flags.sort(key=lambda one: (KINDS.index(one["kind"]), one["start"]))
        scores = [{"label": name, "score": score} for name, score in highest.items()]
        return {"speech_id": row["speech_id"], "flags": flags, "scores": scores, "model": self._name}


def _moved(windows: Sequence[text_classifier.Window], start: int) -> list[text_classifier.Window]:
    """The windows of a turn by their places in the transcript, where it begins at `start`."""
    return [replace(window, start=window.start + start, end=window.end + start) for window in windows]


def name_of(settings: CrisisClassifier) -> str:
    """The model's name for tables and cards: a hub id, or the last part of a path."""
    if not is_directory(settings) and hub.is_id(settings.model):
        return settings.model
    return settings.model.partition("?")[0].rstrip("/").rpartition("/")[2]


def make(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Make the stage; returns its record.

    Raises:
        InputError: as `check`; or the stage was begun with other settings, the actors do not fit on the cluster, or the
            model cannot be loaded.
    """
    settings = dataset.job.crisis.classifier
    assert settings is not None
    digest = digest_of_model(settings.model) if is_directory(settings) else None
    decisive = settings.model_dump(mode="json", exclude={"actors", "cpus", "gpus", "threads", "row_tokens"})
    dataset.begin("classify", classifier=decisive, weights=digest)
    if (record := dataset.record("classify")) is not None:
        _log.info("crisis: classified before")
        return record
    began, labels = time.time(), check(settings)
    _log.info(f"crisis: the outputs of {settings.model} become probabilities by {labels.function}")
    dataset.connect()
    _classify(settings, dataset.root, progress)
    model = {"model": settings.model, "revision": settings.revision, "weights": digest}
    return dataset.finish("classify", began, **model, labels=labels.names, function=labels.function)


def _classify(settings: CrisisClassifier, root: Path, progress: Progress) -> None:
    """Classify the parts of the collected speeches that have no flags yet."""
    import ray

    from psyco_ray.pool import fit, placement
    from psyco_ray.pool.actor_pool import ActorPool

    done = set(shards.list_shards(root / DIRECTORIES[CLASSIFIER]))
    missing = [part for part in shards.list_shards(root / "collect" / "speeches") if part not in done]
    if not missing:
        return
    name = name_of(settings)
    if is_directory(settings):  # actors may have another working directory
        settings = settings.model_copy(update={"model": storage.absolute(settings.model)})
    count = min(settings.actors, len(missing))
    role = fit.Role("classifier", count, settings.cpus, settings.gpus, settings.role)
    fit.check("crisis.classifier", [role], fit.cluster_nodes())
    pool = ActorPool[ClassifierActor](
        "classifier",
        lambda index: (
            ray.remote(ClassifierActor)
            .options(**placement.pool_options(settings))
            .remote(settings, name, root.absolute())
        ),
        count,
        _DEADLINES,
    )
    try:
        pool.wait_ready()
        stream = pool.stream(ClassifierActor.classify, missing, name="crisis.classifier")
        for _ in progress.track(stream, "crisis: classifier", len(missing)):
            pass
    finally:
        pool.close()
