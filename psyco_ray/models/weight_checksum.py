"""A digest of weights that is computed on their device, without a copy to the host.

On a CPU it is that of `weight_codec`, which takes a fraction of the time there.
"""

from __future__ import annotations

import math

import torch

from psyco_ray.models import weight_codec

CHUNK = 2**22  # elements at a time, widened to 8 bytes each
_POSITION_WEIGHT = 0x9E3779B97F4A7C15 - 2**64  # odd, so that products with powers of two never vanish
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor's bits, once plainly and once weighted by position.

    Integers wrap around, so the result does not depend on the device or the order of additions. A flipped bit changes
    both sums, a swap of two elements the second.

    Returns:
        Two int64 on the tensor's device, shape [2].
    """
    bits = tensor.detach().contiguous().view(-1).view(_BITS[tensor.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for start in range(0, bits.numel(), CHUNK):
        values = bits[start : start + CHUNK].to(torch.int64)
        positions = torch.arange(start + 1, start + 1 + values.numel(), device=tensor.device)
        sums[0] += values.sum()
        sums[1] += (values * (positions * _POSITION_WEIGHT)).sum()
    return sums


class WeightChecksum:
    """Names, dtypes, shapes and bits of parameters, in any order.

    It detects truncated, mixed-up and damaged transfers, not an adversary.

    Example:
        >>> checksum = WeightChecksum()
        >>> for name, tensor in model.named_parameters():
        ...     checksum.add(name, tensor)
        >>> checksum.digest()
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._lines: list[str] = []  # of parameters on the CPU
        self._parameters: list[tuple[str, torch.Tensor]] = []  # others: description, fingerprint

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add a parameter; no device sync."""
        if tensor.device.type == "cpu":
            self._lines.append(weight_codec.digest_line(name, *weight_codec.as_array(tensor)))
        else:
            dtype = str(tensor.dtype).removeprefix("torch.")
            self._parameters.append((f"{name} {dtype} {tuple(tensor.shape)}", fingerprint(tensor)))
        self.bytes += math.prod(tensor.shape) * tensor.element_size()

    def digest(self) -> str:
        """Return the digest of all added parameters."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # parameters may have been added on several streams
        sums = torch.stack([pair for _, pair in self._parameters]).tolist() if self._parameters else []
        lines = [f"{text} {first} {second}" for (text, _), (first, second) in zip(self._parameters, sums, strict=True)]
        return weight_codec.digest_of([*self._lines, *lines])
