"""A digest of weights that is computed where they are, on a GPU as on the CPU, without bringing them to the host."""

from __future__ import annotations

import math

import torch
import xxhash

_AT_A_TIME = 2**22  # elements, widened to 8 bytes each
_SPREAD = 0x9E3779B97F4A7C15 - 2**64  # odd, so that no power of two takes it to zero
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """Two sums over a tensor's bits, one of them weighted by position, as int64 of shape (2,) on its device.

    Integers wrap around, so every device finds the same whatever order it adds in. One flipped bit changes both sums,
    two exchanged elements the second.
    """
    bits = tensor.detach().contiguous().view(-1).view(_BITS[tensor.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for start in range(0, bits.numel(), _AT_A_TIME):
        values = bits[start : start + _AT_A_TIME].to(torch.int64)
        places = torch.arange(start + 1, start + 1 + values.numel(), device=tensor.device)
        sums[0] += values.sum()
        sums[1] += (values * (places * _SPREAD)).sum()
    return sums


class WeightChecksum:
    """Names, types, shapes and fingerprints of parameters as they pass, in whatever order.

    It guards against truncated, mixed-up and damaged transfers, not against an adversary.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: list[tuple[str, torch.Tensor]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one parameter into account; nothing waits for the device."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._seen.append((f"{name} {dtype} {tuple(tensor.shape)}", fingerprint(tensor)))
        self.bytes += math.prod(tensor.shape) * tensor.element_size()

    def digest(self) -> str:
        """The digest of all that passed."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # they may have passed on several streams
        sums = torch.stack([found for _, found in self._seen]).tolist() if self._seen else []
        lines = sorted(f"{text} {first} {second}" for (text, _), (first, second) in zip(self._seen, sums, strict=True))
        return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())
