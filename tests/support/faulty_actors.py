"""Actors that crash as engines do; workers import them by name."""

import mmap
import os
import subprocess
import time
from collections.abc import Iterator

from psyco_ray.rollout.actor import RolloutActor

FATAL = "FATAL_TOKEN"


class FaultyRollout(RolloutActor):
    """A rollout actor that one token kills, as a speech that crashes the engine would."""

    def sample(self, request):
        groups = super().sample(request)
        for prompt in request.item.prompts:
            if int(os.environ[FATAL]) in prompt.token_ids:
                next(groups)  # the engine is busy
                os._exit(139)
        yield from groups


class Parent:
    """Has a child process and shared memory, as an engine over several GPUs has."""

    def ready(self) -> None:
        self.child = subprocess.Popen(["sleep", "600"])
        path = f"/dev/shm/psm_test_{os.getpid()}"
        with open(path, "wb+") as file:
            file.truncate(4096)
            self.memory = mmap.mmap(file.fileno(), 4096)

    def work(self, item: int) -> Iterator[int]:
        time.sleep(0.2)
        yield item
