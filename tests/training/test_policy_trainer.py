"""Steps, learning rates and workers of the policy trainer."""

import math
import os
import signal
from collections.abc import Iterator

import pytest
from support.groups import job as job_in
from support.trackers import tensorboard_scalars

from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Deadlines, DpoConfig, Job, Optimizer, TelemetryConfig
from psyco_ray.learner.batching import batches, learning_rate
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.run import preemption
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.timeline import Timeline
from psyco_ray.run.types import PreferencePair
from psyco_ray.training.policy_trainer import Batches, PolicyTrainer, schedule_position, worker_count

OPTIMIZER = Optimizer(learning_rate=1.0, batch_size=4, warmup_ratio=0.25, schedule="linear", min_lr_ratio=0.0)
LEARNERS = Learners(actors=1, cpus=0.5, zero_stage=0, dtype="float32", micro_batch_tokens=80, logit_rows=16)
OVER_ITERATIONS = [1, 1, 2 / 3, 1 / 3, 1, 1, 2 / 3, 1 / 3]  # of 4 steps each, the first of them the warm-up
OVER_RUN = [1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]


def pairs_of(count: int, first: int = 0) -> list[PreferencePair]:
    return [PreferencePair(f"{i}", (1, 5), (2, 6 + i), (3, 7), (-20.0, -21.0)) for i in range(first, first + count)]


def rates(job: Job, steps: list[int]) -> list[float]:
    """The learning rate of each step of iterations with so many steps."""
    positions = [(schedule_position(job, k, count), count) for k, count in enumerate(steps, 1)]
    return [
        learning_rate(job.dpo.optimizer, first + step, total)
        for (first, total), count in positions
        for step in range(count)
    ]


def train_with_sigterm(trainer: PolicyTrainer, iteration: int, planned: Batches) -> None:
    """Trains until the end of the first step."""
    with preemption.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        trainer.train(iteration, planned)


@pytest.mark.parametrize("keep_optimizer", [False, True])
@pytest.mark.parametrize("pairs_from", ["policy", "base", "file"])
@pytest.mark.parametrize("over", ["iteration", "run"])
def test_the_schedule_of_each_method_is_that_of_schedule_over_alone(over, pairs_from, keep_optimizer) -> None:
    dpo = DpoConfig(schedule_over=over, keep_optimizer=keep_optimizer, optimizer=OPTIMIZER)
    job = Job(iterations=2, speeches_per_iteration=16, pairs_from=pairs_from, dpo=dpo)
    alone = over == "iteration" and pairs_from == "policy"
    assert rates(job, [4, 4]) == pytest.approx(OVER_ITERATIONS if alone else OVER_RUN)
    assert job.applied_dpo.keep_optimizer is (keep_optimizer or pairs_from != "policy")


def test_with_the_papers_sizes_the_three_methods_have_one_cosine_over_1600_steps() -> None:
    methods = [Job(pairs_from=origin, dpo=DpoConfig(schedule_over="run")) for origin in ("policy", "base", "file")]
    iterative, online, offline = (rates(job, [100] * 16) for job in methods)
    assert iterative == online == offline
    assert (len(offline), offline.index(max(offline)), max(offline)) == (1600, 47, 5e-7)
    assert offline[-1] == pytest.approx(5e-8, rel=1e-2)
    default = rates(Job(), [100] * 16)
    assert default == default[:100] * 16
    assert [math.isclose(rate, 5e-7) for rate in default[:5]] == [False, False, True, True, False]


def test_an_iteration_with_fewer_pairs_leaves_the_rates_of_the_next_as_they_are() -> None:
    job = Job(iterations=2, speeches_per_iteration=16, dpo=DpoConfig(schedule_over="run", optimizer=OPTIMIZER))
    assert rates(job, [2, 4]) == pytest.approx(OVER_RUN[:2] + OVER_RUN[4:])


@pytest.fixture(scope="module")
def learner(local_ray, tiny_model) -> Iterator[LearnerGroup]:
    deadlines, optimizer = Deadlines(start_s=180, step_s=120), OPTIMIZER.model_copy(update={"learning_rate": 1e-4})
    learner = LearnerGroup(WorkerSpec(str(tiny_model), DpoObjective(DpoConfig()), LEARNERS, optimizer, 0, deadlines))
    learner.wait_ready()
    yield learner
    learner.close()


@pytest.mark.parametrize(("over", "expected"), [("iteration", OVER_ITERATIONS), ("run", OVER_RUN)])
def test_a_stopped_and_resumed_training_logs_the_learning_rates_of_its_schedule(
    learner, tmp_path, over, expected
) -> None:
    dpo = DpoConfig(schedule_over=over, optimizer=learner.spec.optimizer)
    telemetry = TelemetryConfig(tensorboard=True)
    job = job_in(tmp_path, iterations=2, speeches_per_iteration=16, learners=LEARNERS, dpo=dpo, telemetry=telemetry)
    ledger = Ledger(job, resume=False)
    try:
        trainer = PolicyTrainer(job, ledger, Telemetry(job, ledger), Timeline(ledger, dict), learner)
        trainer.save(trainer.train(1, trainer.plan(1, pairs_of(16))))
        second = trainer.plan(2, pairs_of(16, first=16))
        with preemption.stop_on_signals(), pytest.raises(preemption.Preempted):
            train_with_sigterm(trainer, 2, second)
        assert ledger.record(stage(2, "train")) is None, "it stopped after a step"
        with preemption.stop_on_signals():
            trainer.save(trainer.train(2, second))
    finally:
        ledger.close()
    shown = tensorboard_scalars(ledger.root / "tensorboard" / "policy")["lr"]
    assert [number for number, _ in shown] == list(range(1, 9)), "steps count on over iterations and stops"
    assert [rate / 1e-4 for _, rate in shown] == pytest.approx(expected)
    logged = [step["lr"] / 1e-4 for k in (1, 2) for step in ledger.record(stage(k, "train"))["steps"]]
    assert logged == pytest.approx(expected)


def test_no_more_workers_train_than_the_smallest_batch_has_pairs() -> None:
    planned = batches(pairs_of(19), Optimizer(batch_size=8), 2, seed=0)
    assert min(map(len, planned)) == 3
    assert worker_count(6, planned) == 3
    assert worker_count(2, planned) == 2
