"""What a desk asks about: the answers of a training run, preference pairs, or the answers of an evaluation, as items.

The `facts` of an item are never shown before it is judged:

- `labels`: what a judge or a dataset says, by `overall` and principle: 1 for the first response, -1 for the second, 0
  for neither; `labels_by`: who says so.
- `ratings`: 1 to 5 by principle, of each response; `models`: what wrote each response; `finished`: whether each ended
  by itself.
- `split` (train, dev or test), `topic`, `coarse_topic`, `pair_id`, `run`, `iteration`, `policy`, `variant`, `screened`.
- `dialogue` of a pair or an evaluation that knows the dialogue which the context is a part of.
- `form` and `asked` of a pair whose question is no client speech, as in COMPARISONS.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from psyco_ray.config.errors import InputError
from psyco_ray.data.pair_files import HUB
from psyco_ray.data.splits import fold, speech_id
from psyco_ray.desk import source_evaluations, source_pairs, source_runs
from psyco_ray.desk.candidates import Candidate
from psyco_ray.desk.store import Item
from psyco_ray.files.records import SAMPLES
from psyco_ray.run import records, storage
from psyco_ray.run.hashing import key_of
from psyco_ray.run.remote import is_remote
from psyco_ray.screening import crisis

Task = Literal["pairs", "scores", "drafts"]
Split = Literal["dev", "train"]

TASKS: tuple[Task, ...] = get_args(Task)
SPLITS: tuple[Split, ...] = get_args(Split)

_KINDS: dict[Task, Literal["pair", "scores", "draft"]] = {"pairs": "pair", "scores": "scores", "drafts": "draft"}
_USUAL: dict[str, tuple[Task, ...]] = {"run": ("drafts",), "pairs": ("pairs",), "evaluation": ("pairs", "scores")}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is wanted of the sources.

    Attributes:
        task: None: drafts of a run, pairs of a file, pairs and scores of an evaluation.
        count: number of items, of an evaluation for each of its comparisons; None: all.
        seed: of the draw and the order.
        split: of a run: its answers to the held-out speeches, or to those that it trains on.
    """

    task: Task | None = None
    count: int | None = None
    seed: int = 0
    split: Split = "dev"


def read(source: str, request: Request, known: Container[str] = ()) -> list[Item]:
    """The new items of a source, in an order that the seed decides.

    The id of an item depends on its kind and texts alone, so a source that is read again adds nothing, wherever it is.

    Args:
        source: the directory of a training run or of one of its iterations, of a policy evaluation, or of a dataset of
            `data build`; or a file of pairs as `data.preferences` takes it.
        request: what is wanted of it.
        known: ids of items that are left out: the screening for a crisis takes the time.

    Raises:
        InputError: the source is none of these, is damaged or unfinished, or has nothing for the task.
    """
    if request.count is not None and request.count < 1:
        raise InputError(f"--count {request.count} asks for nothing; ask for 1 or more")
    kind = kind_of(source)
    tasks = (request.task,) if request.task else _USUAL[kind]
    found: list[Item] = []
    wanted = 0
    for task in tasks:
        comparisons: dict[str, dict[str, Candidate]] = {}
        for candidate in _candidates(kind, source, task, request.split):
            key = item_id(_KINDS[task], candidate.speech, candidate.responses)
            comparisons.setdefault(candidate.source, {}).setdefault(key, candidate)
        for name, by_id in comparisons.items():
            drawn = _drawn(list(by_id.values()), request)
            if request.count is not None and len(drawn) < request.count:
                _log.warning(f"{name} has {len(drawn)} items for {task}, fewer than --count {request.count}")
            wanted += len(drawn)
            new = [one for one in drawn if item_id(_KINDS[task], one.speech, one.responses) not in known]
            found += [item_of(candidate, _KINDS[task]) for candidate in new]
    if not wanted:
        raise InputError(f"{source} has nothing for the task {' or '.join(tasks)}; choose another source or --task")
    unscreened = sum(not item.facts["screened"] for item in found)
    flagged = sum(bool(item.crisis) for item in found)
    _log.info(f"{source}: {len(found)} new of {wanted} items, {flagged} with signs of a crisis")
    if unscreened:
        _log.warning(f"{source}: nobody has screened {unscreened} speeches for a crisis: no lexicon has their language")
    return found


def kind_of(source: str) -> str:
    """The kind of a source: run, evaluation or pairs.

    Raises:
        InputError: it is a directory of another kind, or a remote one.
    """
    if is_remote(source):
        raise InputError(f"{source} is remote; copy it to this machine, and name the copy")
    path = storage.local_path(source)
    if source in SAMPLES or source.startswith(HUB) or not path.is_dir():
        return "pairs"
    if source_runs.run_of(path) is not None:
        return "run"
    if (path / "evaluation.json").exists():
        evaluation = records.read_json(path / "evaluation.json", "restore it, or run evaluate-policy again")
        if {"policies", "opponent"} <= evaluation.keys():
            return "evaluation"
    elif (path / "pairs").is_dir() or any(path.glob("*.parquet")):
        return "pairs"
    raise InputError(
        f"{source} is no directory of a training run, of evaluate-policy, of data build or of Parquet files of pairs; "
        "name one of these, or a file of pairs"
    )


def item_of(candidate: Candidate, kind: Literal["pair", "scores", "draft"]) -> Item:
    """The item about a candidate; a speech that nobody has screened for a crisis is screened by the lexicons."""
    signs = crisis.signs(candidate.speech) if candidate.crisis is None else candidate.crisis
    return Item(
        id=item_id(kind, candidate.speech, candidate.responses),
        kind=kind,
        source=candidate.source,
        speech_id=speech_id(candidate.speech),
        speech=candidate.speech,
        responses=candidate.responses,
        crisis=tuple(signs or ()),
        facts={**candidate.facts, "screened": signs is not None},
    )


def item_id(kind: str, speech: str, responses: Sequence[str]) -> str:
    """The id of an item: 16 hex digits."""
    return key_of("desk", kind, fold(speech), list(responses))


def _candidates(kind: str, source: str, task: Task, split: Split) -> Iterator[Candidate]:
    if kind == "run":
        yield from source_runs.candidates(storage.local_path(source), split, pairs=task != "drafts")
        return
    if task == "drafts":
        raise InputError(
            f"{source} is no training run, and drafts are a run's answers; name one, or choose another --task"
        )
    if kind == "evaluation":
        yield from source_evaluations.candidates(storage.local_path(source))
    else:
        yield from source_pairs.candidates(source)


def _drawn(candidates: list[Candidate], request: Request) -> list[Candidate]:
    """Those of one comparison that are asked about, by a hash of texts: pairs and scores have the same ones."""
    order = sorted(candidates, key=lambda one: key_of(request.seed, "draw", fold(one.speech), list(one.responses)))
    return order[: request.count]
