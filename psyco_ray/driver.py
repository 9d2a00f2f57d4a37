"""Iterative DPO, its one-round form and offline DPO (paper §4.2), top to bottom.

Where things run is the crew's business, what is kept the ledger's, what comes next the standing's: every verb below
returns at once when the ledger says that it is done, so a resumed run walks through the same lines.
"""

from __future__ import annotations

import logging
from typing import Any

from psyco_ray.config.training import Job
from psyco_ray.data.mixture import mix
from psyco_ray.data.speeches import draw, load_speeches
from psyco_ray.pool import fit
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.schemas import SPEECHES
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.training import summary
from psyco_ray.training.orchestrator import Orchestrator
from psyco_ray.training.run_state import RunState

_log = logging.getLogger(__name__)


def iterate(job: Job, ledger: Ledger, telemetry: Telemetry) -> dict[str, Any]:
    """Train the policy for all iterations of the job, on its own responses ranked by the reward model, or on a file's.

    Returns:
        The run's summary, as in ``summary.json``.

    Raises:
        InputError: the job, its data or its models do not do, or the loss became NaN.
    """
    standing = RunState(job, ledger)
    if standing.ended():
        _log.info("all iterations are done already")
        return summary.write(job, ledger)
    fit.check("policy training", fit.iterate_phase(job), fit.cluster_nodes())
    offline = mix(job.mixture, job.data, job.seed).train if job.pairs_from == "file" else None
    with Orchestrator(job, ledger, telemetry) as crew:
        rows = ledger.table("speeches", SPEECHES, lambda: load_speeches(job, job.model)).to_pylist()
        by_id = {row["speech_id"]: row for row in rows}
        train = [row["speech_id"] for row in rows if row["split"] == "train"]
        dev = [row for row in rows if row["split"] == "dev"][: job.evaluation.speeches]
        sources = train if offline is None else [str(row) for row in range(offline.num_rows)]
        draws = {k: draw(sources, job.speeches_per_iteration, k, job.seed) for k in range(1, job.iterations + 1)}
        crew.wait_ready()
        _log.info(f"{len(sources)} to train on, {len(dev)} speeches held out; all actors are ready")

        crew.evaluate(0, dev)
        if job.pairs_from == "base":  # the rollouts hold it until the first sync, also where a run goes on
            for iteration, drawn in draws.items():
                crew.pairs(iteration, [by_id[key] for key in drawn])
        for iteration, drawn in draws.items():
            if standing.ended():
                _log.info(f"{job.guards.patience} iterations were rolled back; the run ends here")
                break
            if crew.trained < iteration:
                crew.sync()
                if offline is None:
                    pairs = crew.pairs(iteration, [by_id[key] for key in drawn])
                else:
                    pairs = crew.offline_pairs(iteration, drawn, offline)
                crew.train(iteration, pairs)
            crew.sync()
            crew.evaluate(iteration, dev)
            telemetry.log_iteration(iteration, summary.iteration_metrics(ledger, iteration))
    return summary.write(job, ledger)
