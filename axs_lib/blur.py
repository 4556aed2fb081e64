"""One Gaussian blur for everything in the network's path.

Not kornia's, because it must be exact whatever precision the process allows (sums are not rounded as products of
matrices are) and free at start: importing kornia takes longer than grounding a tile. Losses and metrics use kornia's.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of (B, C, H, W), floating point; borders reflected, then repeated; ``sigma`` in px."""
    radius = max(1, math.ceil(3 * sigma))
    kernel = [math.exp(-0.5 * (distance / sigma) ** 2) for distance in range(radius + 1)]
    total = kernel[0] + 2 * sum(kernel[1:])
    blurred = image.to(torch.promote_types(image.dtype, torch.float32))
    for axis in (-2, -1):
        size = blurred.shape[axis]
        before, after = (blurred.index_select(axis, end) for end in _reflected(size, radius, image.device))
        padded = torch.cat([before, blurred, after], dim=axis)
        blurred = padded.narrow(axis, radius, size) * (kernel[0] / total)
        for distance in range(1, radius + 1):
            for start in (radius - distance, radius + distance):
                blurred.add_(padded.narrow(axis, start, size), alpha=kernel[distance] / total)
    return blurred.to(image.dtype)


def detail_bands(image: Tensor, sigmas: Sequence[float]) -> list[Tensor]:
    """Detail of (B, C, H, W) between Gaussian scales in pixels that grow, finest first."""
    levels = [image, *(gaussian_blur(image, sigma) for sigma in sigmas)]
    return [finer - coarser for finer, coarser in itertools.pairwise(levels)]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached index must serve training, too
def _reflected(size: int, radius: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in an axis the ``radius`` pixels before its first and after its last lie."""
    before = torch.arange(radius, 0, -1).clamp_max(size - 1).to(device)
    return before, size - 1 - before.flip(0)
