"""A job whose rollout actors and learner ranks share GPUs."""

from psyco_ray.config.resources import Learners, Rollouts, Scorers
from psyco_ray.config.training import Job


def job(pairs: int, rollout: float = 0.4, learner: float = 0.5, scorer: float = 0.1) -> Job:
    return Job(
        colocated=True,
        rollouts=Rollouts(actors=pairs, gpus=rollout, cpus=0.5),
        learners=Learners(actors=pairs, gpus=learner, cpus=0.5),
        scorers=Scorers(gpus=scorer, cpus=0.5),
    )
