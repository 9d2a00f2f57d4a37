"""What a lead sees: progress and pace, agreement as the numbers grow, drift, sides, and what people disagree about."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psyco_ray.desk import judgements, people, queue, turns
from psyco_ray.desk.judgements import Judgement
from psyco_ray.desk.store import Item, Store

KINDS = {"pair": "pairs", "scores": "scored responses", "draft": "drafts"}
"""Kinds of items and what a page calls them."""

_VERSION = """
SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM judgements), (SELECT max(saved_at) FROM judgements),
       (SELECT count(*) FROM people)
"""


class Figures:
    """The figures of a desk, computed once for each state of its data.

    Threads that ask while they are computed wait for them. Bootstrap intervals take about a second with two annotators.
    """

    def __init__(self, store: Store) -> None:
        """Of a desk."""
        self._store = store
        self._lock = threading.Lock()
        self._version: tuple[Any, ...] | None = None
        self._figures: dict[str, Any] = {}

    def current(self) -> dict[str, Any]:
        """The figures of the data as they are now, see `figures`."""
        with self._lock:
            version = tuple(self._store.read().execute(_VERSION).fetchone())
            if version != self._version:
                self._figures = figures(self._store)
                self._version = version
        return self._figures


def figures(store: Store) -> dict[str, Any]:
    """Agreement, drift and sides, from all complete judgements. Items of one conversation are not independent.

    Returns:
        `between`: by kind (pair, scores), see `rater_agreement.between`; None without judgements. `with_labels`: by who
        labelled the pairs, see `rater_agreement.with_labels`. `with_ratings`: of scores with the judge's, see there.
        `drift` and `sides`: of pairs, see `rater_agreement.drift` and `positions`. People are named.
    """
    from psyco_ray.desk import rater_agreement  # loads statsmodels for seconds, and only a lead needs it

    names = {person.id: person.name for person in people.everyone(store, active=False)}
    seed = store.settings.seed
    pairs, scores = (judgements.latest(store, kind) for kind in ("pair", "scores"))
    items = [item for item in store.items() if item.kind != "draft"]
    facts, of = {item.id: item.facts for item in items}, turns.conversations(items)
    labels: dict[str, dict[str, Any]] = defaultdict(dict)
    for judgement in pairs:
        if given := facts[judgement.item_id].get("labels"):
            labels[facts[judgement.item_id].get("labels_by", "the source")][judgement.item_id] = given
    rows = store.read().execute("SELECT item_id, person_id, sides FROM assignments")
    swapped = {(row["item_id"], row["person_id"]): bool(row["sides"]) for row in rows}
    by_labeller = {by: rater_agreement.with_labels(pairs, given, seed, of) for by, given in sorted(labels.items())}
    return {
        "between": {
            "pair": rater_agreement.between(pairs, "pair", seed, of) if pairs else None,
            "scores": rater_agreement.between(scores, "scores", seed, of) if scores else None,
        },
        "with_labels": {
            by: {"people": _named(compared["people"], names), "majority": compared["majority"]}
            for by, compared in by_labeller.items()
        },
        "with_ratings": rater_agreement.with_ratings(scores, facts, seed, of),
        "drift": _named(rater_agreement.drift(pairs, conversations=of), names),
        "sides": _named(rater_agreement.positions(pairs, swapped), names),
    }


def progress(store: Store) -> dict[str, Any]:
    """How far everybody and every kind of item is.

    Returns:
        `people`: for each who has an account, `id`, `name`, `role`, and `done`, `open`, `left` and `per_hour` of
        `queue.Counts`, with the `hours` left at that pace (None without one). `items`: by kind the `total`, how many
        have all the complete judgements that the overlap asks for (`done`), and how many only some (`begun`).
    """
    found = []
    for person in people.everyone(store):
        counts = queue.counts(store, person)
        hours = counts.left / counts.per_hour if counts.per_hour else None
        found.append({**asdict(person), **asdict(counts), "hours": hours})
    annotators = sum(person["role"] == "annotator" for person in found)
    overlap = store.settings.overlap
    needed = max(annotators, 1) if overlap == "all" else overlap
    judged = Counter(judgement.item_id for judgement in judgements.latest(store))
    items: dict[str, Counter[str]] = {}
    for row in store.read().execute("SELECT id, kind FROM items"):
        count = items.setdefault(row["kind"], Counter(total=0, done=0, begun=0))
        enough = 1 if row["kind"] == "draft" else needed
        count["total"] += 1
        if judged[row["id"]]:
            count["done" if judged[row["id"]] >= enough else "begun"] += 1
    return {"people": found, "items": {kind: dict(items[kind]) for kind in KINDS if kind in items}}


@dataclass(frozen=True)
class Vote:
    """What a person said of a pair."""

    person: str
    answer: dict[str, Any]


@dataclass(frozen=True)
class Disagreement:
    """A pair about which people disagree overall, and that nobody has adjudicated."""

    item: Item
    votes: tuple[Vote, ...]


def disagreements(store: Store) -> list[Disagreement]:
    """The pairs to adjudicate, those with flags of risk first, then in the order in which they were added."""
    adjudicated = {row["item_id"] for row in store.read().execute("SELECT item_id FROM adjudications")}
    by_item: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements.latest(store, "pair"):
        if judgement.item_id not in adjudicated:
            by_item[judgement.item_id].append(judgement)
    open_items = {key: votes for key, votes in by_item.items() if _differ(votes)}
    if not open_items:
        return []
    names = {person.id: person.name for person in people.everyone(store, active=False)}
    items = [item for item in store.items("pair") if item.id in open_items]
    return [
        Disagreement(item, tuple(Vote(names[vote.person_id], vote.answer) for vote in open_items[item.id]))
        for item in sorted(items, key=lambda item: not item.crisis)
    ]


def _differ(votes: Sequence[Judgement]) -> bool:
    return len({vote.answer["overall"] for vote in votes}) > 1


def _named(by_person: dict[int, Any], names: dict[int, str]) -> dict[str, Any]:
    return {names[person]: value for person, value in by_person.items()}


@dataclass(frozen=True)
class Unfinished:
    """An item that somebody has and has not finished; it can be given to somebody else."""

    item_id: str
    kind: str
    person_id: int
    name: str
    assigned_at: float


def unfinished(store: Store) -> list[Unfinished]:
    """All unfinished items that people have, the oldest first."""
    done = {(judgement.item_id, judgement.person_id) for judgement in judgements.latest(store)}
    rows = store.read().execute(
        "SELECT a.item_id, i.kind, a.person_id, p.name, a.assigned_at "
        "FROM assignments a JOIN items i ON i.id=a.item_id JOIN people p ON p.id=a.person_id "
        "WHERE a.released_at IS NULL ORDER BY a.assigned_at, a.item_id"
    )
    return [Unfinished(*row) for row in rows if (row["item_id"], row["person_id"]) not in done]


def audit_lines(store: Store, count: int) -> list[dict[str, Any]]:
    """The newest lines of the audit log: `at`, the `name` of who acted (None: the command line), `action`, `item_id`,
    `detail`.
    """
    rows = store.read().execute(
        "SELECT a.at, p.name, a.action, a.item_id, a.detail FROM audit a LEFT JOIN people p ON p.id=a.person_id "
        "ORDER BY a.id DESC LIMIT ?",
        (count,),
    )
    return [dict(row) for row in rows]
