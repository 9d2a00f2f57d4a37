"""Which models of a pool answer which speech, also after some of them failed (paper §3.3)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from psyco_ray.run import records, shards, storage


class MemberFailedError(Exception):
    """Members of the pool that share a model, or one behind an API, can answer no more; the message is the reason."""

    def __init__(self, names: Sequence[str], reason: str) -> None:
        super().__init__(reason)
        self.names = names


@dataclass(frozen=True)
class Failure:
    """A member of the pool that can answer no more, in the order of the failures.

    The parts that it finished stay; those of its speeches that are in other parts go to other members.
    """

    name: str
    reason: str
    finished: Mapping[str, Sequence[str]]  # parts, by round


@dataclass(frozen=True)
class Draw:
    """Draws `per_speech` models of a pool for each speech, by a hash: adding a model changes few other draws.

    Each speech has all models in an order of its own, of which it draws the first ones. Where a model fails, the next
    one in this order takes its place, so the draws depend on nothing but the seed and the recorded failures. Round 0
    is the first draw; round `n` are the speeches that the `n`-th failure hands on.

    Example:
        >>> Draw(("a", "b", "c"), per_speech=2).holders("3f2a", "3", seed=0)
        {'c': 0, 'a': 0}
    """

    pool: tuple[str, ...]
    per_speech: int
    failures: tuple[Failure, ...] = ()

    def holders(self, speech_id: str, part: str, seed: int) -> dict[str, int]:
        """The models that answer a speech of a part; each with the round in which it got the speech."""
        order = sorted(self.pool, key=lambda name: hashlib.sha256(f"{seed}:{speech_id}:{name}".encode()).digest())
        holders = dict.fromkeys(order[: self.per_speech], 0)
        out, tried = set[str](), {*holders}
        for number, failure in enumerate(self.failures, start=1):
            out.add(failure.name)
            held = holders.get(failure.name)
            if held is None or part in failure.finished.get(str(held), ()):
                continue
            del holders[failure.name]
            following = next((name for name in order if name not in tried and name not in out), None)
            if following is not None:
                holders[following] = number
                tried.add(following)
        return holders

    def parts(self, speeches: Path, seed: int) -> dict[tuple[str, int], tuple[str, ...]]:
        """The parts of a directory in which a model has speeches, by model and round."""
        found: dict[tuple[str, int], list[str]] = {}
        for part in shards.list_shards(speeches):
            rows = shards.read(speeches, part)
            for key in {key for row in rows for key in self.holders(row["speech_id"], part, seed).items()}:
                found.setdefault(key, []).append(part)
        return {key: tuple(parts) for key, parts in found.items()}

    def left(self) -> list[str]:
        """The models that have not failed."""
        failed = {failure.name for failure in self.failures}
        return [name for name in self.pool if name not in failed]


def read_failures(file: Path) -> tuple[Failure, ...]:
    """The failures recorded in a file; none if it does not exist.

    Raises:
        InputError: the file is damaged.
    """
    if not file.exists():
        return ()
    way_out = "remove the stage's directory to make the responses again"
    try:
        return tuple(Failure(**entry) for entry in records.read_json(file, way_out, list))
    except TypeError as error:
        raise records.damaged(file, error, way_out) from None


def record_failure(file: Path, failure: Failure) -> None:
    """Add a failure to a file.

    Raises:
        InputError: the file is damaged or cannot be written.
    """
    text = json.dumps([asdict(one) for one in (*read_failures(file), failure)], indent=1) + "\n"
    storage.write_text(file, text)
