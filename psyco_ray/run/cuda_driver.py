"""Whether the NVIDIA driver of a node can run this PyTorch."""

from __future__ import annotations

import ctypes
import socket

from psyco_ray.config.errors import InputError

_LEAST_DRIVERS = {12: "525", 13: "580"}  # by CUDA's major version, whose minor versions run on one driver


def check_driver(gpus: float) -> None:
    """Check that a process with GPUs can use them, before CUDA's own message of several lines.

    Args:
        gpus: of the process; 0: nothing is checked.

    Raises:
        InputError: PyTorch is the CPU build, the driver is missing, or it is too old for PyTorch's CUDA.
    """
    if not gpus:
        return
    import torch

    node, built = socket.gethostname(), torch.version.cuda
    if built is None:
        raise InputError(
            f"{node} has the CPU build of PyTorch {torch.__version__}, and this actor takes GPUs; install the "
            "requirements of pyproject.toml there (README.md, GPUs), or set gpus to 0"
        )
    version, major = _driver_cuda(), int(built.split(".")[0])
    least = f"driver {_LEAST_DRIVERS[major]} or later" if major in _LEAST_DRIVERS else "a newer driver"
    if version is None:
        raise InputError(f"{node} has no NVIDIA driver, and this actor takes GPUs; CUDA {built} needs {least}")
    if version[0] < major:
        raise InputError(
            f"the NVIDIA driver of {node} supports CUDA {version[0]}.{version[1]}, and PyTorch {torch.__version__} was "
            f"built for CUDA {built}, which needs {least}; update the driver there"
        )


def _driver_cuda() -> tuple[int, int] | None:
    """The latest CUDA version that the driver supports; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10
