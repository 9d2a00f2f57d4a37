"""What a ZeRO-3 rank moves without DeepSpeed, whose own list of what has left the GPU does not name it."""

import ray
import torch

from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Deadlines, Optimizer
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import BradleyTerryObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.run.types import PreferencePair


def record_moves(worker) -> tuple[int, int]:
    """Write down what the rank moves from now on; returns its parameters, and elements of its float32 weights."""
    from psyco_ray.learner import offload

    move, worker.moves = offload._move, []

    def recorded(tensors: list[torch.Tensor], device: torch.device) -> None:
        large = [tensor for tensor in tensors if tensor.numel() > 1]  # the others count steps
        assert {tensor.dtype for tensor in large} == {torch.float32}
        assert len({tensor.data_ptr() for tensor in large}) == len(large), "nothing is moved twice"
        worker.moves.append((sum(tensor.numel() for tensor in large), str(device)))
        move(tensors, device)

    offload._move = recorded
    master = sum(flat.numel() for flat in worker._engine.optimizer.fp32_partitioned_groups_flat)
    return worker.size()[0], master


def test_a_zero_3_rank_moves_its_float32_weights_and_both_moments(local_ray, tiny_model) -> None:
    settings = Learners(cpus=0.5, zero_stage=3, dtype="bfloat16", micro_batch_tokens=80)
    spec = WorkerSpec(
        str(tiny_model), BradleyTerryObjective(), settings, Optimizer(batch_size=2), seed=5, deadlines=Deadlines()
    )
    learner = LearnerGroup(spec)
    try:
        learner.wait_ready()
        list(learner.train([[PreferencePair(f"pair-{n}", (5, 6), (7, n), (8,)) for n in (9, 10)]], total_steps=1))
        [(parameters, master)] = ray.get([w.__ray_call__.remote(record_moves) for w in learner.workers], timeout=60)
        for kept in ("weights", "nothing", "all"):
            learner.keep_on_gpu(kept)
        [moves] = ray.get([w.__ray_call__.remote(lambda w: w.moves) for w in learner.workers], timeout=60)
    finally:
        learner.close()
    assert master == parameters > 3e6, "one rank has all of them"
    assert moves == [(3 * parameters, "cpu")] * 2, "once to the host and once back, here to the same device"
