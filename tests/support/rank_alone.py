"""Trains a tiny policy on one rank in this process and prints its losses and gradient norms as JSON.

Arguments: the model's directory, the ZeRO stage, and `moved` if the states leave the device between two steps.
Gradients are summed in float32, as on a GPU.
"""

import json
import random
import sys

from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Deadlines, DpoConfig, Optimizer
from psyco_ray.learner import memory
from psyco_ray.learner.batching import plan_step
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.rendezvous import address_of, listen
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.learner.worker import LearnerWorker
from psyco_ray.run.types import PreferencePair


def main(model: str, stage: int, moved: bool) -> None:
    memory.accumulates_float32 = lambda settings: True
    rng = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 40000) for _ in range(length))

    pairs = [PreferencePair(f"pair-{i}", ids(10), ids(15), ids(15), (-160.0, -161.0)) for i in range(6)]
    settings = Learners(zero_stage=stage, dtype="bfloat16", micro_batch_tokens=80)
    optimizer = Optimizer(learning_rate=1e-3, batch_size=6, schedule="constant")
    spec = WorkerSpec(model, DpoObjective(DpoConfig()), settings, optimizer, seed=1, deadlines=Deadlines())
    worker = LearnerWorker(0, 1)
    worker._listener = listen("127.0.0.1")
    worker.start(address_of(worker._listener), spec, None)
    [passes] = plan_step(pairs, 1, settings.micro_batch_tokens)
    steps = []
    for step in range(4):
        values = worker.step(passes, len(pairs), 15.0, 1e-3, step)
        steps.append((values["loss"], values["grad_norm"]))
        if moved and step == 1:
            for kept in ("weights", "nothing", "all"):
                worker.keep_on_gpu(kept)
    dtype = str(worker._engine.optimizer.gradient_accumulation_dtype)
    print(json.dumps({"passes": len(passes), "dtype": dtype, "steps": steps}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), "moved" in sys.argv[3:])
