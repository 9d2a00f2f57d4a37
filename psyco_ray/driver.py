"""Iterative DPO (paper §4.2), top to bottom.

Where things run is the crew's business, what is kept the ledger's: every verb below returns at once when the ledger
says that it is done, so a resumed run walks through the same lines.
"""

from __future__ import annotations

from typing import Any

from psyco_ray import placement
from psyco_ray.config import Job
from psyco_ray.crew import Crew
from psyco_ray.data.speeches import draw, load_speeches
from psyco_ray.ledger import Ledger
from psyco_ray.records import SPEECHES
from psyco_ray.report import summary
from psyco_ray.telemetry import Telemetry


def iterate(job: Job, ledger: Ledger, telemetry: Telemetry) -> dict[str, Any]:
    """Train the policy on its own responses, ranked by the reward model, for all iterations of the job.

    Returns:
        The run's summary, as in ``summary.json``.

    Raises:
        ValueError: the job, its data or its models do not do, or the loss became NaN.
    """
    if ledger.record(f"iteration-{job.iterations:03d}/evaluate") is not None:
        telemetry.say("all iterations are done already")
        return summary.write(job, ledger)
    placement.check("iterative DPO", placement.iterate_phase(job), placement.cluster_nodes())
    with Crew(job, ledger, telemetry) as crew:
        rows = ledger.table("speeches", SPEECHES, lambda: load_speeches(job, job.model)).to_pylist()
        by_id = {row["speech_id"]: row for row in rows}
        train = [row["speech_id"] for row in rows if row["split"] == "train"]
        dev = [row for row in rows if row["split"] == "dev"][: job.evaluation.speeches]
        crew.wait_ready()
        telemetry.say(f"{len(train)} speeches to train on, {len(dev)} held out; all actors are ready")

        crew.evaluate(0, dev)
        for iteration in range(1, job.iterations + 1):
            drawn = draw(train, job.speeches_per_iteration, iteration, job.seed)
            if crew.trained < iteration:
                crew.sync()
                pairs = crew.pairs(iteration, [by_id[key] for key in drawn])
                crew.train(iteration, pairs)
            crew.sync()
            crew.evaluate(iteration, dev)
            telemetry.metrics(iteration, summary.iteration_metrics(ledger, iteration))
    return summary.write(job, ledger)
