"""Decisions of the policy trainer that need no learner."""

from psyco_ray.config.training import DpoConfig, Job, Optimizer
from psyco_ray.learner.batching import batches
from psyco_ray.run.types import PreferencePair
from psyco_ray.training.policy_trainer import worker_count


def test_no_more_workers_train_than_the_smallest_batch_has_pairs() -> None:
    optimizer = Job(dpo=DpoConfig(optimizer=Optimizer(batch_size=8))).dpo.optimizer
    pairs = [PreferencePair(f"{i}", (1,), (2,), (3,), (0.0, 0.0)) for i in range(19)]
    planned = batches(pairs, optimizer, 2, seed=0)
    assert min(map(len, planned)) == 3
    assert worker_count(6, planned) == 3
    assert worker_count(2, planned) == 2
