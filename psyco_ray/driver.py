"""Iterative DPO, its one-round form and offline DPO (paper §4.2).

`Orchestrator` owns actors and stages, `Ledger` the files, `RunState` decides what comes next. Each verb returns at once
if the ledger shows its stage as done, so a resumed run executes the same lines.
"""

from __future__ import annotations

import logging
from typing import Any

from psyco_ray.config.training import Job
from psyco_ray.data.mixture import mix
from psyco_ray.data.speech_rows import draw, train_and_dev
from psyco_ray.data.speeches import check_prompt, prepare
from psyco_ray.pool import fit
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.schemas import SPEECHES
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.training import client_turns, heldout, summary
from psyco_ray.training.orchestrator import Orchestrator
from psyco_ray.training.run_state import RunState

_log = logging.getLogger(__name__)


def iterate(job: Job, ledger: Ledger, telemetry: Telemetry) -> dict[str, Any]:
    """Trains the policy for all iterations of a job, on its own responses or on pairs from a file.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        InputError: the job, its data or its models are invalid, or the loss became NaN.
    """
    run_state = RunState(job, ledger)
    if run_state.ended():
        _log.info("all iterations are done already")
        return summary.write_summary(job, ledger, run_state)
    fit.check("policy training", fit.iterate_phase(job), fit.cluster_nodes())
    check_prompt(job)
    client_turns.check(job)
    from_file = job.pairs_from == "file"
    offline = mix(job.mixture, job.data, job.seed, unfinished=job.sampling.unfinished) if from_file else None
    with Orchestrator(job, ledger, telemetry, run_state) as orchestrator:
        train, dev = train_and_dev(ledger.table("speeches", SPEECHES, lambda: prepare(job)))
        dev = dev[: job.evaluation.speeches]
        if offline is not None:
            ledger.write_json("mixture.json", {"parts": offline.parts})
        ledger.write_json("judge-pairs.json", heldout.compare_training_pairs(job) or {})
        total = len(train) if offline is None else offline.train.num_rows
        draws = draw(total, job.speeches_per_iteration, job.iterations, job.seed)
        orchestrator.wait_ready()
        _log.info(f"{total} to train on, {len(dev)} speeches held out; all actors are ready")
        if job.simulate is not None:
            _log.info(f"the best checkpoint is that of the highest {run_state.measure}")

        orchestrator.evaluate(0, dev)
        if job.pairs_from == "base":  # the rollouts hold the base model until the first sync, also after a resume
            for iteration, drawn in enumerate(draws, start=1):
                orchestrator.sample_pairs(iteration, train[drawn])
        for iteration, drawn in enumerate(draws, start=1):
            if run_state.ended():
                _log.info(f"{job.guards.patience} iterations were rolled back; the run ends here")
                break
            if orchestrator.trained < iteration:
                orchestrator.sync_weights()
                if offline is None:
                    pairs = orchestrator.sample_pairs(iteration, train[drawn])
                else:
                    pairs = orchestrator.load_offline_pairs(iteration, drawn, offline.train)
                orchestrator.train(iteration, pairs)
            orchestrator.sync_weights()
            orchestrator.evaluate(iteration, dev)
            telemetry.log_iteration(iteration, summary.iteration_metrics(ledger, iteration))
    return summary.write_summary(job, ledger, run_state)
