"""The check of the NVIDIA driver, with a stub for the driver's library."""

import builtins
import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from psyco_ray.config.data import CrisisClassifier
from psyco_ray.config.errors import InputError
from psyco_ray.config.optimizer import Optimizer
from psyco_ray.config.resources import Learners, Rollouts, Scorers
from psyco_ray.config.training import Deadlines
from psyco_ray.data.crisis_classifier import ClassifierActor
from psyco_ray.data.generate import LocalModel, Responder
from psyco_ray.learner.losses import BradleyTerryObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.learner.worker import LearnerWorker
from psyco_ray.models import loading
from psyco_ray.rollout.actor import RolloutActor
from psyco_ray.rollout.scorer import ScorerActor
from psyco_ray.run.cuda_driver import check_driver


def install(monkeypatch, built: str | None, driver: int | None) -> None:
    """Stands for a PyTorch that was built for a CUDA version, and for a driver that supports one (13000: CUDA 13.0)."""

    def library(name: str) -> SimpleNamespace:
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")

        def version(target) -> int:
            ctypes.cast(target, ctypes.POINTER(ctypes.c_int))[0] = driver
            return 0

        return SimpleNamespace(cuDriverGetVersion=version)

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(ctypes, "CDLL", library)


@pytest.mark.parametrize(
    ("built", "driver", "sentence"),
    [
        ("13.0", 12040, "supports CUDA 12.4, and PyTorch .* was built for CUDA 13.0, which needs driver 580 or later"),
        ("12.8", 11080, "supports CUDA 11.8, .* needs driver 525 or later"),
        ("13.0", None, "has no NVIDIA driver, .* CUDA 13.0 needs driver 580 or later"),
        (None, 13000, "has the CPU build of PyTorch"),
    ],
)
def test_a_driver_that_cannot_run_pytorch_is_named_in_one_sentence(monkeypatch, built, driver, sentence: str) -> None:
    install(monkeypatch, built, driver)
    with pytest.raises(InputError, match=sentence):
        check_driver(0.5)
    check_driver(0)


@pytest.mark.parametrize("driver", [13000, 13020, 14000])
def test_a_driver_of_the_same_or_a_later_cuda_is_enough(monkeypatch, driver: int) -> None:
    install(monkeypatch, "13.1", driver)
    check_driver(1)


def roles_on_gpus() -> dict[str, Callable[[], object]]:
    """How each actor that may have GPUs starts."""
    worker = LearnerWorker(0, 1)
    spec = WorkerSpec("m", BradleyTerryObjective(), Learners(gpus=1), Optimizer(), seed=0, deadlines=Deadlines())
    classifier = CrisisClassifier(model="m", labels={"suicidal": "self-harm"}, gpus=0.5)
    return {
        "rollout": RolloutActor("rollout-0", "m", Rollouts(gpus=0.5), 0).ready,
        "scorer": ScorerActor("scorer-0", {"reward": "m"}, "m", Scorers(gpus=0.2)).ready,
        "learner": lambda: worker.start(("127.0.0.1", 1), spec, None),
        "classifier": ClassifierActor(classifier, "m", Path("nowhere")).ready,
        "responder": Responder(LocalModel("m", Rollouts(gpus=1), 0)).ready,
    }


@pytest.mark.parametrize("role", roles_on_gpus())
def test_an_actor_with_gpus_refuses_an_old_driver_before_it_loads_anything(monkeypatch, role: str) -> None:
    install(monkeypatch, "13.0", 12040)
    start, imports = roles_on_gpus()[role], builtins.__import__

    def watched(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("psyco_ray", "deepspeed", "vllm", "transformers")):
            pytest.fail(f"it imports {name}")
        return imports(name, *args, **kwargs)

    monkeypatch.setattr(loading, "resolve", lambda *_, **__: pytest.fail("it looks for its model"))
    monkeypatch.setattr(builtins, "__import__", watched)
    with pytest.raises(InputError, match=r"supports CUDA 12\.4"):
        start()
