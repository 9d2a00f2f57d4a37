"""Peak speeds of GPUs, and the share of it that training uses."""

from __future__ import annotations

import re

BF16_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
}
"""Dense bfloat16 floating-point operations a second, by words of the GPU's name (vendor's data sheets); the first that
fits counts."""


def peak_flops(gpu: str | None) -> float | None:
    """What a GPU can compute in a second, in bfloat16; None where that is not known, and on a CPU."""
    return next((flops for words, flops in BF16_FLOPS.items() if re.search(rf"\b{words}\b", gpu or "")), None)


def mfu(tokens_per_s: float, parameters: int, trained: int, peak: float) -> float:
    """Share of the peak that a model's arithmetic takes (Chowdhery et al. 2022, appendix B, without attention).

    Args:
        tokens_per_s: trained, over all ranks.
        parameters: of the model; each takes 2 operations forward and 2 backward a token.
        trained: of them; the gradient of each takes 2 more.
        peak: operations a second of all ranks' devices.
    """
    return tokens_per_s * (4 * parameters + 2 * trained) / peak
