"""One Gaussian blur for everything in the network's path.

It is written here rather than taken from kornia because it must be exact whatever precision the process allows, fast on
short axes, and free at start: importing kornia takes longer than grounding a tile. Losses and metrics use kornia's.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from axs_lib.precision import exact_matmul


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of (B, C, H, W) with reflected (then repeated) borders; ``sigma`` in pixels."""
    with torch.autocast(image.device.type, enabled=False):
        rows, columns = (_blur_matrix(size, sigma, image.dtype, image.device) for size in image.shape[-2:])
        return exact_matmul(exact_matmul(rows, image), columns.mT)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # a cached matrix must serve training, too
def _blur_matrix(size: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, size) matrix of the blur along one axis, borders included: the axes of a tile are short."""
    radius, last = max(1, math.ceil(3 * sigma)), size - 1
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.float() / sigma) ** 2)
    position = torch.arange(size)[:, None] + offsets
    source = torch.where(position > last, (2 * last - position).clamp_min(0), position.abs().clamp_max(last))
    matrix = torch.zeros(size, size).scatter_add_(1, source, (kernel / kernel.sum()).expand(size, -1))
    return matrix.to(device, dtype)
