"""Sizes of a job that leave a GPU without work; the defaults on GPUs do not."""

from __future__ import annotations

from psyco_ray.config.resources import Learners, Rollouts
from psyco_ray.config.training import Job

_SEQUENCES, _TOKENS = 64, 4096  # fewer do not fill a GPU


def too_small(job: Job) -> list[str]:
    """A sentence about each setting that is too small for a role on GPUs, with the way out."""
    sentences = _of_engines("rollouts", job.rollouts, job.sampling.responses)
    if job.simulate is not None and job.simulate.client.model is not None:
        sentences += _of_engines("simulate.client.rollouts", job.simulate.client.rollouts, 1)
    if job.scorers.gpus and job.scorers.row_tokens < _TOKENS:
        sentences.append(
            f"scorers.row_tokens {job.scorers.row_tokens} are few for a pass on a GPU; leave it out, for 8192"
        )
    for name, learners in (("learners", job.learners), ("reward.learners", job.reward.learners)):
        sentences += _of_learners(name, learners)
    return sentences


def _of_engines(name: str, rollouts: Rollouts, responses: int) -> list[str]:
    if not rollouts.gpus:
        return []
    sentences = []
    sampled = rollouts.speeches_per_item * responses
    if rollouts.enforce_eager:
        sentences.append(f"{name}.enforce_eager true decodes without CUDA graphs, about half as fast; leave it out")
    if rollouts.max_num_seqs < _SEQUENCES:
        sentences.append(
            f"{name}.max_num_seqs {rollouts.max_num_seqs} decodes few sequences at a time; leave it out, for 256"
        )
    elif rollouts.feed == "items" and sampled < rollouts.max_num_seqs:
        sentences.append(
            f"an item of {name}.speeches_per_item {rollouts.speeches_per_item} has {sampled} responses and never "
            f"fills {name}.max_num_seqs {rollouts.max_num_seqs}; leave {name}.feed out, for continuous"
        )
    return sentences


def _of_learners(name: str, learners: Learners) -> list[str]:
    if not learners.gpus or learners.micro_batch_tokens >= _TOKENS:
        return []
    return [
        f"{name}.micro_batch_tokens {learners.micro_batch_tokens} are few for a pass on a GPU; leave it out, for 8192, "
        "where the memory allows"
    ]
