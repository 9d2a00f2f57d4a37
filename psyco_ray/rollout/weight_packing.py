"""Packs an engine's weights on a CPU, in a thread beside the one that loads the next ones.

vLLM's CPU build computes with packed copies of matrices, which oneDNN makes. That takes half of a reload, and a reload
waits for each of them. It also copies an embedding to new memory first, which the system must provide page by page.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import layerwise

_WAITING = 4  # matrices, whose unpacked copies take memory; more are packed by the thread that loads them

_thread = ThreadPoolExecutor(1, "pack")


class Packing:
    """Packs matrices and fills embeddings during one reload of a model.

    On a CPU nothing but the layer refers to a weight's memory, so an embedding gets its weights where it is.
    """

    def __init__(self, model: Any) -> None:
        """Prepare the layers of a model whose reload has started; `end` must follow."""
        self._jobs: list[Future[None]] = []
        self._linear: set[Any] = set()
        self._loaders: dict[Any, Callable[..., Any]] = {}  # of embeddings' weights
        self._heads: dict[Any, list[Any]] = {}  # output layers that are tied to an embedding
        self._filled: set[Any] = set()
        owners: dict[int, Any] = {}
        for layer in model.modules():
            info = layerwise.get_layerwise_info(layer)
            if not info.can_load():
                continue
            assert info.kernel_tensors is not None, "a reload keeps what a layer computes with"
            self._prepare(layer, info, info.kernel_tensors[0], owners)

    def _prepare(self, layer: Any, info: Any, parameters: dict[str, torch.Tensor], owners: dict[int, Any]) -> None:
        method: Any = getattr(layer, "quant_method", None)
        weight = parameters.get("weight")
        packed_alone = weight is not None and not weight.numel()  # vLLM keeps no other copy of a matrix
        if type(method) is UnquantizedLinearMethod and packed_alone:
            self._linear.add(layer)
            method.process_weights_after_loading = self._pack_later
        elif type(method) is UnquantizedEmbeddingMethod and list(parameters) == ["weight"]:
            owner = owners.setdefault(id(weight), layer)
            if owner is not layer:
                self._heads[owner].append(layer)
                return
            # a layer with one parameter has all of its weights at once
            self._heads[layer] = []
            layerwise._place_kernel_tensors(layer, info)
            info.reset()
            self._loaders[layer] = layerwise._get_original_loader(layer.weight)
            layer.weight.weight_loader = functools.partial(self._fill_later, layer)

    def unfilled(self, layer: Any) -> bool:
        """Whether an embedding that is filled where it is has got no weights."""
        return layer in self._loaders and layer not in self._filled

    def wait(self) -> str:
        """Wait until everything is packed; returns what went wrong, if anything did."""
        errors = [error for job in self._jobs if (error := job.exception()) is not None]
        return f"weights could not be packed, {type(errors[0]).__name__}: {errors[0]}" if errors else ""

    def end(self) -> None:
        """Wait, and leave the layers as other reloads find them."""
        self.wait()
        for layer in self._linear:
            layer.quant_method.__dict__.pop("process_weights_after_loading", None)  # layers may share a method
        for layer, loader in self._loaders.items():
            layer.weight.weight_loader = loader

    def _pack_later(self, layer: Any) -> None:
        """Pack a layer whose weights are loaded, now or in the thread; called in place of the layer's method."""
        if layer not in self._linear or not all(job.done() for job in self._jobs[-_WAITING : -_WAITING + 1]):
            type(layer.quant_method).process_weights_after_loading(layer.quant_method, layer)
            return
        weight = layer.weight
        layer.weight = torch.nn.Parameter(torch.empty(0, dtype=weight.dtype), requires_grad=False)
        self._jobs.append(_thread.submit(_pack, layer, weight))

    def _fill_later(self, layer: Any, *arguments: Any, **keywords: Any) -> None:
        """Load an embedding's weight and pack it in the thread; the arguments are the weight loader's."""
        self._filled.add(layer)
        fill = functools.partial(self._loaders[layer], *arguments, **keywords)
        self._jobs.append(_thread.submit(_fill, layer, self._heads[layer], fill))


@torch.no_grad()
def _pack(layer: Any, weight: torch.Tensor) -> None:
    # a stand-in, because the reload goes on with the layer meanwhile
    packed: Any = SimpleNamespace(weight=weight, bias=getattr(layer, "bias", None))
    type(layer.quant_method).process_weights_after_loading(layer.quant_method, packed)
    layer.cpu_linear = packed.cpu_linear


@torch.no_grad()
def _fill(layer: Any, heads: list[Any], fill: Callable[[], Any]) -> None:
    fill()
    layer.quant_method.process_weights_after_loading(layer)
    for head in heads:  # a reload packs the embedding alone; the last one to refer to the old copy frees it
        head.cpu_linear = layer.cpu_linear
