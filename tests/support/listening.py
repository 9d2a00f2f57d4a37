"""A local Ray with two ranks of a process group, as a command starts it; says `ready` and lives until stdin closes."""

import sys

from psyco_ray.run import ray_session

if __name__ == "__main__":
    ray_session.prepare_local()
    import ray

    from psyco_ray.learner.worker import LearnerWorker

    class Rank(LearnerWorker):
        """A rank that joins its group and loads no model."""

        def join(self, address) -> float:
            """The sum of a one from every rank."""
            from datetime import timedelta

            import torch

            from psyco_ray.learner import rendezvous

            rendezvous.join("gloo", address, self.rank, self.world_size, timedelta(seconds=60), self._listener)
            total = torch.ones(1)
            torch.distributed.all_reduce(total)
            return total.item()

    ray_session.connect(None)
    ranks = [ray.remote(Rank).options(num_cpus=0).remote(rank, 2) for rank in range(2)]
    address = ranks[0].listen.remote()
    assert ray.get([rank.join.remote(address) for rank in ranks]) == [2.0, 2.0]
    print("ready", flush=True)
    sys.stdin.read()
