"""Made-up prompts and groups of a ledger."""

from pathlib import Path

import pyarrow as pa

from psyco_ray.config.training import Job
from psyco_ray.run.types import Group, Prompt, PromptBatch, Response

SCHEMA = pa.schema([("a", pa.int32())])


def job(path: Path, **changes) -> Job:
    return Job(run_dir=str(path / "run"), **changes)


def groups_of(item: PromptBatch) -> list[Group]:
    return [
        Group(
            p, tuple(Response(f"{p.speech_id}-{i}", (i, p.seed), i == 0) for i in range(2)), 3, {"reward": (0.5, -1.0)}
        )
        for p in item.prompts
    ]


ITEMS = [PromptBatch(f"item{k}", tuple(Prompt(f"s{k}{i}", (1, 2, k), 10 * k + i) for i in range(3))) for k in range(2)]
