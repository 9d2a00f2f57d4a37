"""The command ``plan``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from psyco_ray.cli.arguments import add_command, add_job
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.run import hub, ray_session


def add(subparsers: Any) -> None:
    """Adds the command."""
    command = add_command(
        subparsers,
        "plan",
        plan,
        "print a job's resources, whether the cluster holds it, and the time of an iteration",
        "psyco-ray plan --gpus 32 --model llama-3.1-8b",
        job=Job,
    )
    add_job(command, "rollouts.actors=4", optional=True)  # a plan for N GPUs needs no file: the paper's settings apply
    command.add_argument("--cluster", action="store_true", help="on a running cluster: the placement of all actors")
    command.add_argument("--gpus", type=int, help="propose a split of N GPUs and estimate an iteration's time")
    command.add_argument("--model", help="of the policy, such as llama-3.1-8b (default: the job's)")
    command.add_argument("--device", help="a profile's name or file, such as h100 (benchmarks/device_profile.py)")
    command.add_argument("--run", dest="finished", metavar="RUN", help="a finished run to learn from")


def _memory(job: Job) -> str:
    """What the job takes of its GPUs: of this machine's kind if it has any, else of an H100.

    Raises:
        InputError: a GPU does not hold its actors.
    """
    from psyco_ray.cli.plan import devices, memory_report

    try:
        shape = memory_report.shape_here(job.model)
    except InputError as error:
        return f"the memory of the GPUs is unknown: {error}"
    h100 = devices.profile_of("h100")
    return memory_report.describe(job, shape, *(memory_report.gpu_here() or (h100.memory_bytes, h100.device)))


def plan(job: Job, options: argparse.Namespace) -> int:
    """Prints the resource plan and the time of an iteration; fails where the cluster cannot hold the job."""
    from psyco_ray.cli.plan import advice, memory_report
    from psyco_ray.data import speeches
    from psyco_ray.pool import fit

    if options.job is None and options.gpus is None:
        raise InputError("plan needs JOB.yaml, or --gpus for the paper's settings on N GPUs")
    choices = {name: getattr(options, name) for name in ("gpus", "model", "device", "finished")}
    if any(value is not None for value in choices.values()):
        if options.cluster:
            raise InputError("plan --cluster shows a job's own actors; leave --gpus, --model, --device and --run out")
        print(advice.forecast(job, **choices))
        return 0
    directory = hub.on_this_machine(job.model)
    if directory is not None:
        speeches.check_prompt(job, directory)
    on_cluster = bool(options.address or os.environ.get("RAY_ADDRESS"))
    if options.cluster and not on_cluster:
        raise InputError("plan --cluster needs a running cluster; give --address or set RAY_ADDRESS")
    if on_cluster:
        ray_session.connect(options.address)
    nodes = fit.cluster_nodes()
    phases = {"train-reward": fit.reward_phase(job), "iterate": fit.iterate_phase(job)}
    print(fit.describe(phases, nodes))
    if memory_report.uses_gpus(job):
        print(_memory(job))
    for phase, roles in phases.items():
        places = fit.describe_placement(phase, roles, nodes)
        if on_cluster:
            print(places)
    print("every phase fits")
    try:
        print(advice.forecast(job, cores=max(1, int(sum(node.cpus for node in nodes)))))
    except InputError as error:  # the job can run all the same
        print(f"the time of an iteration is unknown: {error}")
    return 0
