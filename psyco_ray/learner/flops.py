"""Model FLOPs utilisation of a training."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
"""Peak dense bfloat16 FLOP/s by words of the GPU's name (vendors' data sheets); the first match counts."""


def peak_flops(gpu: str | None) -> float | None:
    """Return a GPU's peak bfloat16 FLOP/s; None for an unknown GPU or a CPU."""
    return next((flops for words, flops in BF16_FLOPS.items() if re.search(rf"\b{words}\b", gpu or "")), None)


def mfu(tokens_per_s: float, parameters: int, trained: int, peak: float) -> float:
    """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B, without attention).

    Args:
        tokens_per_s: tokens that all ranks compute in a second; a prompt that several responses share counts once.
        parameters: of the model; each takes 2 FLOPs forward and 2 backward a token.
        trained: of them; the gradient of each takes 2 more.
        peak: FLOP/s of all ranks' devices.

    Returns:
        Share of the peak, 0 to 1.
    """
    return tokens_per_s * (4 * parameters + 2 * trained) / peak


def mfu_of_ranks(tokens_per_s: float, sizes: Sequence[tuple[int, int, str | None]]) -> float | None:
    """As `mfu`, from each rank's parameters, trained parameters and GPU; None if a peak is unknown."""
    peaks = [peak_flops(gpu) for _, _, gpu in sizes]
    if None in peaks:
        return None
    parameters, trained, _ = sizes[0]
    return mfu(tokens_per_s, parameters, trained, sum(peak for peak in peaks if peak is not None))
