"""The check of the NVIDIA driver, with a stub for the driver's library."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from psyco_ray.config.errors import InputError
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
