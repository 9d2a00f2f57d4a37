"""The speeches of a job as a list."""

from psyco_ray.config.training import Job
from psyco_ray.data import speeches
from psyco_ray.run.schemas import SPEECHES


def prepared(job: Job) -> tuple[list[dict], dict]:
    """The rows that `prepare` streams, and its facts."""
    tables, facts = speeches.prepare(job)
    rows = []
    for table in tables:
        assert table.schema.equals(SPEECHES)
        rows += table.to_pylist()
    return rows, facts
