"""A small training run that a test stops by a signal; its learner is an actor on a Ray of its own.

`python stopped_run.py JOB [no-ray]` prints `ready` when a step is going on. Asked to stop, it has the learner save.
"""

import sys
import time
from pathlib import Path

from psyco_ray.cli import train
from psyco_ray.cli.main import main
from psyco_ray.run import preemption, ray_session


class Learner:
    def step(self) -> None:
        time.sleep(0.3)

    def save(self, path: str) -> None:
        time.sleep(2)  # a state of some size
        Path(path).write_text("saved")


def work(ledger, telemetry) -> None:
    if "no-ray" in sys.argv:
        with preemption.deferred():
            print("ready", flush=True)
            while not preemption.requested():
                time.sleep(0.1)
            print("saving", flush=True)
            ledger.path("checkpoint").write_text("saved")
    import ray  # after `main` has set the token of this Ray

    learner = ray.remote(Learner).options(num_cpus=0).remote()
    with preemption.deferred():
        ray.get(learner.step.remote())
        print("ready", flush=True)
        while not preemption.requested():
            ray.get(learner.step.remote())
        saver = ray.remote(Learner).options(num_cpus=0).remote()  # which only a Ray that lives can start
        ray.get(saver.save.remote(str(ledger.path("checkpoint"))))


if __name__ == "__main__":
    if "no-ray" in sys.argv:
        ray_session.connect = lambda address: None
    train.train_reward = lambda job, options: train._in_run(job, options, work)
    sys.exit(main(["train-reward", sys.argv[1], "--resume"]))
