"""What vLLM's layerwise reload of weights misses.

A reload moves a model's parameters to the meta device, keeps what their weight loaders get, and fills and packs a layer
when it has all of its weights. It does not see weights that a model copies into a parameter itself (gpt-oss), and a
layer without new weights goes on with the old ones, with a warning. On a CPU it leaves packed copies as they were.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import layerwise
from vllm.platforms import current_platform

from psyco_ray.rollout.weight_packing import Packing

_NAMED = 3  # parameters in a message

_reloaded: weakref.WeakSet[Any] = weakref.WeakSet()  # models that have had a whole reload
_copying: weakref.WeakSet[Any] = weakref.WeakSet()  # those of them that copy weights themselves
_packing: weakref.WeakKeyDictionary[Any, Packing] = weakref.WeakKeyDictionary()  # by model, during a reload on a CPU


def start(model: Any) -> None:
    """Start a reload."""
    layerwise.initialize_layerwise_reload(model)
    if current_platform.is_cpu() and model in _reloaded and model not in _copying:
        _packing[model] = Packing(model)


def load_weights(model: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
    """Have a model load some of its weights after a reload was started, including those it copies itself."""
    if model in _reloaded and model not in _copying:  # watching costs a fifth of a reload on a CPU
        return model.load_weights(weights)
    with _DirectCopies(model) as copies:
        loaded = model.load_weights(weights)
    if copies.hand_over():
        _copying.add(model)
    return loaded


def finish(model: Any, finish_reload: Callable[[], None]) -> str:
    """Finish a reload; returns what went wrong, such as parameters that got no weights and keep the old ones."""
    problem = _packing[model].wait() if model in _packing else ""
    missing = _without_weights(model)
    _end(model, finish_reload)
    if problem:
        return problem
    if not missing:
        _reloaded.add(model)
        return ""
    more = f" and {len(missing) - _NAMED} more parameters" if len(missing) > _NAMED else ""
    return (
        f"vLLM's {type(model).__name__} took no weights for {', '.join(missing[:_NAMED])}{more} from those that were "
        "sent; it cannot be trained with this vLLM"
    )


def abandon(model: Any, finish_reload: Callable[[], None]) -> None:
    """End a reload that broke off, or none: layers without all of their new weights get the old ones back.

    Else the next reload would count the weights that these layers have got as its own.
    """
    for layer in model.modules():
        info = layerwise.get_layerwise_info(layer)
        if info.can_load():
            info.loaded_weights.clear()
            info.load_numel = 0
    _end(model, finish_reload)


def _end(model: Any, finish_reload: Callable[[], None]) -> None:
    if model in _packing:
        _packing.pop(model).end()
    finish_reload()
    _refresh_tied_heads(model)


@contextlib.contextmanager
def experts_packed_again(model: Any) -> Iterator[None]:
    """Have a reload pack fused experts: vLLM's CPU build packs them only where they have no kernel yet."""
    methods: list[Any] = [getattr(module, "quant_method", None) for module in model.modules()]
    kernels = [(method, method.moe_kernel) for method in methods if getattr(method, "moe_kernel", None) is not None]
    if not current_platform.is_cpu():
        kernels = []
    for method, _ in kernels:
        method.moe_kernel = None
    try:
        yield
    finally:
        for method, kernel in kernels:
            if method.moe_kernel is None:  # the layer was not reloaded
                method.moe_kernel = kernel


class _DirectCopies(TorchDispatchMode):
    """Keeps what is copied into parameters on the meta device without their weight loaders."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._owners = {
            parameter.untyped_storage()._cdata: (layer, name)
            for layer in model.modules()
            for name, parameter in layer._parameters.items()
            if parameter is not None and not isinstance(parameter, UninitializedParameter) and parameter.is_meta
        }
        self._copies: list[tuple[Any, str, torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].is_meta:
            target, source = args[:2]
            layer, name = self._owners.get(target.untyped_storage()._cdata, (None, ""))
            if layer is not None and not _takes_itself(layer, name):
                self._copies.append((layer, name, target, source))
        return func(*args, **(kwargs or {}))

    def hand_over(self) -> bool:
        """Give the copies to the reload, as if weight loaders had made them; returns whether there are any."""
        for layer, name, target, source in self._copies:
            parameter = getattr(layer, name)
            if _loader(parameter) is not _place:
                parameter.weight_loader = _place
                parameter.weight_loader = layerwise.make_online_process_loader(layer, name)
            parameter.weight_loader(parameter, source, target.shape, target.stride(), target.storage_offset())
        return bool(self._copies)


def _takes_itself(layer: Any, name: str) -> bool:
    """Whether the reload knows of a copy into a parameter, because the parameter's weight loader makes it."""
    taken = (own for own, _ in layerwise.get_layerwise_info(layer).loaded_weights)
    return name in taken and _loader(getattr(layer, name)) is not _place


def _loader(parameter: torch.Tensor) -> Callable[..., Any]:
    return layerwise._get_original_loader(parameter)


def _place(
    param: torch.Tensor, loaded_weight: torch.Tensor, shape: torch.Size, stride: tuple[int, ...], offset: int
) -> None:
    """Copy weights into a part of a parameter."""
    param.data.as_strided(shape, stride, offset).copy_(loaded_weight)


def _without_weights(model: Any) -> list[str]:
    """Names of the parameters that have got no weights since a reload started; tied ones count as one."""
    kept, waiting, packing = set(), [], _packing.get(model)
    for prefix, layer in model.named_modules():
        info = layerwise.get_layerwise_info(layer)
        own = {name: parameter for name, parameter in layer._parameters.items() if parameter is not None}
        if packing is not None and packing.unfilled(layer):
            waiting.append((f"{prefix}.weight", id(layer.weight)))
        elif not info.can_load():  # all of its weights have arrived
            kept |= {id(parameter) for parameter in own.values()}
        elif not layerwise.is_deferred_attention_layer(layer):  # which has scales of the cache at most
            before = info.kernel_tensors[0] if info.kernel_tensors else own
            taken = {name for name, _ in info.loaded_weights} | layerwise.SKIP_LOAD_TENSORS
            # a model may also replace a parameter by a filled one (biased heads of vLLM's Transformers models)
            taken |= {name for name, now in own.items() if not now.is_meta and now is not before.get(name)}
            kept |= {id(before.get(name)) for name in own if name in taken}
            waiting += [(f"{prefix}.{name}", id(before.get(name))) for name in own if name not in taken]
    return [name for name, parameter in waiting if parameter not in kept]


def _refresh_tied_heads(model: Any) -> None:
    """Have tied output layers compute with the embedding's packed weights.

    vLLM's CPU build packs both apart, and a reload packs the embedding alone.
    """
    if not current_platform.is_cpu():
        return
    layers = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    embeddings = {id(layer.weight): layer for layer in layers if not isinstance(layer, ParallelLMHead)}
    for layer in layers:
        if isinstance(layer, ParallelLMHead) and id(layer.weight) in embeddings:
            layer.cpu_linear = embeddings[id(layer.weight)].cpu_linear
