"""Made-up prompts and groups of a ledger."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from psyco_ray.config.training import Job
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.types import Group, Prompt, PromptBatch, Response

SCHEMA = pa.schema([("a", pa.int32())])


def job(path: Path, **changes) -> Job:
    return Job(run_dir=str(path / "run"), **changes)


def parts_of(*parts: list[int]) -> Iterator[pa.Table]:
    """The parts of a table of SCHEMA."""
    for values in parts:
        yield pa.table({"a": values}, schema=SCHEMA)


def groups_of(item: PromptBatch) -> list[Group]:
    return [
        Group(
            p, tuple(Response(f"{p.speech_id}-{i}", (i, p.seed), i == 0) for i in range(2)), 3, {"reward": (0.5, -1.0)}
        )
        for p in item.prompts
    ]


def stream(ledger: Ledger, produce, quarantined: Mapping[str, str] | None = None) -> Iterator[Group]:
    """The groups of ITEMS in a ledger: those stored, then those that `produce` yields for the missing items."""
    yield from ledger.stored_groups("it/samples", ITEMS)
    yield from ledger.store_missing("it/samples", ITEMS, produce, {} if quarantined is None else quarantined)


ITEMS = [PromptBatch(f"item{k}", tuple(Prompt(f"s{k}{i}", (1, 2, k), 10 * k + i) for i in range(3))) for k in range(2)]
