"""Weight updates from DeepSpeed workers to vLLM engines over CUDA IPC and NCCL, checked against transformers."""

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from psyco_ray.config.resources import Learners, Rollouts, Sync
from psyco_ray.config.training import Deadlines, DpoConfig, Job, Optimizer, Sampling
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.models.shape import shape_of
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest, actor_environment
from psyco_ray.run.types import PreferencePair, Prompt, PromptBatch
from psyco_ray.training import weight_sync
from psyco_ray.training.colocation import ColocationManager

pytestmark = pytest.mark.slow

OPTIMIZER = Optimizer(learning_rate=3e-3, batch_size=4, schedule="constant")
SYNC = Sync(bucket_mb=2, deadline_s=300)  # several buckets, one of them the embedding alone


def pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    rng = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 40000) for _ in range(length))

    return [PreferencePair(f"pair-{i}", ids(20), ids(30), ids(30), (-300.0, -300.0)) for i in range(count)]


PROBE = pairs(1, seed=7)[0]


class Pipeline:
    """Engines and workers of a job, as an orchestrator starts them."""

    def __init__(self, job: Job) -> None:
        self.job, self.placement_group = job, placement.shared_bundles(job) if job.colocated else None
        actor = ray.remote(RolloutActor)
        self.rollouts = ActorPool(
            "rollout",
            lambda index: actor.options(
                **placement.pool_options(job.rollouts, actor_environment(job.rollouts), self.placement_group, index)
            ).remote(f"rollout-{index}", job.model, job.rollouts, 0, shared=job.colocated),
            job.rollouts.actors,
            Deadlines(start_s=600, item_s=120),
            suspended=job.colocated,
        )
        spec = WorkerSpec(
            job.model,
            DpoObjective(job.dpo),
            job.learners,
            OPTIMIZER,
            seed=0,
            deadlines=Deadlines(start_s=600, step_s=300),
        )
        self.learner = LearnerGroup(spec, placement_group=self.placement_group)
        self.colocation = ColocationManager(job.colocated, self.rollouts, self.learner, 120)
        self.learner.wait_ready()
        self.colocation.to_rollouts()
        self.rollouts.wait_ready()

    def push(self, version: int) -> weight_sync.PushedWeights:
        self.colocation.to_learner()
        return weight_sync.push_weights(
            self.learner,
            self.rollouts,
            version,
            PROBE,
            self.job.sync,
            transport=self.job.transport,
            colocation=self.colocation if self.job.colocated else None,
        )

    def logprobs(self) -> list[float]:
        """Log-probability per token of the probe, by each engine."""
        texts = PROBE.prompt_ids, PROBE.chosen_ids
        calls = [
            actor.__ray_call__.remote(lambda a: a._thread.call(a._engine.logprobs, [texts])[0])
            for actor in self.rollouts.actors
        ]
        return [value / len(PROBE.chosen_ids) for value in ray.get(calls, timeout=300)]

    def memory(self) -> int:
        """Bytes that worker 0 holds on its GPU, freed ones that it keeps included."""
        return ray.get(self.learner.workers[0].__ray_call__.remote(lambda _: torch.cuda.memory_reserved()), timeout=60)

    def close(self) -> None:
        self.rollouts.close()
        self.learner.close()
        if self.placement_group is not None:
            ray.util.remove_placement_group(self.placement_group)


def by_transformers(model: Path) -> float:
    """Log-probability per token of the probe, by transformers on a saved model."""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([[*PROBE.prompt_ids, *PROBE.chosen_ids]])
    with torch.no_grad():
        logprobs = policy(ids).logits[0, len(PROBE.prompt_ids) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(PROBE.chosen_ids)[:, None]).mean().item()


def roles(zero_stage: int, kv_cache_gb: float | None = 0.5, **each: Any) -> dict[str, Any]:
    return {
        "rollouts": Rollouts(max_model_len=256, max_num_seqs=32, kv_cache_gb=kv_cache_gb, **each),
        "learners": Learners(zero_stage=zero_stage, micro_batch_tokens=400, **each),
        "dpo": DpoConfig(optimizer=OPTIMIZER),
        "sampling": Sampling(max_tokens=64),
        "sync": SYNC,
    }


@pytest.fixture
def start() -> Iterator:
    started: list[Pipeline] = []

    def start(job: Job) -> Pipeline:
        started.append(Pipeline(job))
        return started[-1]

    yield start
    for pipeline in started:
        pipeline.close()


def warnings(caplog) -> list[str]:
    """What psyco_ray has warned of since the last `clear`."""
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in records if record.name.startswith("psyco_ray.")]


def check(pipeline: Pipeline, tmp_path: Path, record_property, caplog) -> None:
    """Trains, updates the engines and compares with transformers, also on an engine that joins later."""
    base = pipeline.logprobs()
    assert base == pytest.approx([by_transformers(Path(pipeline.job.model))] * len(base), abs=0.05)
    pipeline.colocation.to_learner()
    list(pipeline.learner.train([[*pairs(8)[1:], PROBE]] * 6, total_steps=6))
    pipeline.learner.save_model(tmp_path / "trained")
    expected = by_transformers(tmp_path / "trained")
    assert min(abs(value - expected) for value in base) > 0.2, (
        "training must change the probe's log-probability for the comparison to mean anything"
    )
    workers = list(pipeline.learner.workers)
    caplog.clear()
    for version in (1, 2):  # twice: the first update may leave state behind
        pushed = pipeline.push(version)
        assert (pushed.version, pushed.actors) == (version, len(pipeline.rollouts.actors))
        assert pushed.verify() < 0.05
        measured = pipeline.logprobs()
        record_property(f"logprob_{version}", (measured, expected, pushed.export_s, pushed.load_s))
        assert measured == pytest.approx([expected] * len(measured), abs=0.05)
    # weights that the transport cannot send go through the object store, with the same values
    assert warnings(caplog) == []
    assert pipeline.learner.workers == workers, "a transfer that fails in a rank replaces the ranks"
    ray.kill(pipeline.rollouts.actors[0])
    prompts = tuple(Prompt(f"s{i}", (5, 6, 7, 8 + i), 1000 * i) for i in range(4))
    request = SamplingRequest(PromptBatch("item", prompts), 2, 4, 1.0, 1.0, 16)
    stream = pipeline.rollouts.stream(
        RolloutActor.sample, [request], identity=lambda result: result[0].prompt.speech_id
    )
    assert [group.version for group, _ in stream] == [2] * 4, "the replacement loads the current weights"
    assert pipeline.rollouts.status()[0]["restarts"] == 1
    assert pipeline.logprobs() == pytest.approx([expected] * len(measured), abs=0.05)


@pytest.mark.gpus(1)
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_weights_over_ipc_give_the_log_probabilities_of_transformers(
    local_ray, tiny_model, tmp_path, start, record_property, caplog, zero_stage: int
) -> None:
    pipeline = start(Job(model=str(tiny_model), colocated=True, **roles(zero_stage, actors=1, gpus=0.5, cpus=1)))
    assert pipeline.job.transport == "ipc"
    check(pipeline, tmp_path, record_property, caplog)


@pytest.mark.gpus(1)
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_one_side_frees_the_gpu_while_the_other_works(
    local_ray, base_model, start, record_property, zero_stage: int
) -> None:
    """With a model whose states are larger than what CUDA's libraries keep, and whose cache has the default size."""
    sizes = roles(zero_stage, kv_cache_gb=None, actors=1, gpus=0.5, cpus=1)
    pipeline = start(Job(model=str(base_model), colocated=True, **sizes))
    parameters = shape_of("smollm2-135m").parameters
    before, asleep = pipeline.logprobs(), pipeline.memory()
    free_while_sampling, total = torch.cuda.mem_get_info()
    record_property("free_and_total_bytes", (free_while_sampling, total))
    assert 0.02 < free_while_sampling / total < 0.2, "the cache leaves a tenth for what is not calculated"
    pipeline.colocation.to_learner(keep_weights=True)
    awake, free_while_training = pipeline.memory(), torch.cuda.mem_get_info()[0]
    record_property("worker_bytes", (asleep, awake))
    assert asleep < 2 * parameters, "less than the weights alone"
    assert awake > 5 * parameters, "weights and float32 weights"
    assert free_while_training > total / 2, "the engine's cache has left"
    pipeline.colocation.to_rollouts()
    assert pipeline.logprobs() == pytest.approx(before, abs=1e-3), "the engine wakes up with its weights"
    pipeline.colocation.to_learner()
    list(pipeline.learner.train([pairs(8)], total_steps=1))
    trained = pipeline.memory()
    pipeline.colocation.hand_over()
    left = pipeline.memory()
    record_property("bytes_before_and_after_handover", (trained, left))
    assert trained > 12 * parameters, "weights, float32 weights and both moments"
    assert left < 5 * parameters, "weights in bfloat16 are left when the engine's wake up: no float32 state is"


@pytest.mark.gpus(2)
def test_weights_over_nccl_give_the_log_probabilities_of_transformers(
    local_ray, tiny_model, tmp_path, start, record_property, caplog
) -> None:
    sync = SYNC.model_copy(update={"transport": "nccl"})
    pipeline = start(Job(model=str(tiny_model), **roles(2, actors=1, gpus=1, cpus=1) | {"sync": sync}))
    assert pipeline.job.transport == "nccl"
    check(pipeline, tmp_path, record_property, caplog)
