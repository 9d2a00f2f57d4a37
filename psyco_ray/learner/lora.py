"""Low-rank adapters (Hu et al. 2021) inside a model that keeps its class, and the merged weights for export."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from psyco_ray.config.optimizer import Lora
from psyco_ray.models.weight_files import persistent_tensors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_BASE = ".base_layer"


def inject(model: PreTrainedModel, settings: Lora) -> None:
    """Add adapters to every linear layer of the body and freeze everything else except the reward head.

    Where the experts of a layer are one tensor, peft adapts that tensor, the router and the attention instead.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules="all-linear",
        exclude_modules=["score"],
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score."))


def exported(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor, Any]]:
    """Yield the parameters and persistent buffers of the model without adapters.

    Yields:
        Name in the plain model, tensor, and the adapted layer that `merged` takes; None without an adapter.
    """
    adapted = {}
    for path, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            # peft names the tensor that it adapts where that is no linear layer's weight
            adapted[f"{path}.{getattr(layer, 'parameter_name', 'weight')}".replace(_BASE, "")] = layer
    for name, tensor in persistent_tensors(model):
        if ".lora_" not in name:
            plain = name.replace(_BASE, "")
            yield plain, tensor, adapted.get(plain)


def adapters(layer: Any) -> list[torch.Tensor]:
    """Return the two factors of a layer's update; of a linear layer their shapes are [rank, in] and [out, rank]."""
    return [layer.lora_A["default"].weight, layer.lora_B["default"].weight]


def merged(layer: Any) -> torch.Tensor:
    """Return an adapted layer's weight with its update, in the shape and dtype of the weight.

    A linear layer's is computed in float32 and rounded once, another one's as the forward pass computes it.
    """
    if hasattr(layer, "parameter_name"):
        return (layer.get_param() + layer.get_delta_weight("default")).detach()
    down, up = (factor.detach().float() for factor in adapters(layer))
    base = layer.base_layer.weight.detach()
    return (base.float() + layer.scaling["default"] * (up @ down)).to(base.dtype)
