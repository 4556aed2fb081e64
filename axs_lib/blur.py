"""One Gaussian blur for everything in the network's path.

It is written here rather than taken from kornia because it must be exact whatever precision the process allows, fast on
short axes, and free at start: importing kornia takes longer than grounding a tile. Losses and metrics use kornia's.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.precision import exact_matmul

PRODUCT_SIDE = 512  # up to this many pixels an axis is blurred by a matrix product, beyond by a convolution


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of (B, C, H, W) with reflected (then repeated) borders; ``sigma`` in pixels."""
    with torch.autocast(image.device.type, enabled=False):
        for axis in (-2, -1):
            image = _blur_axis(image, sigma, axis)
    return image


def _radius(sigma: float) -> int:
    return max(1, math.ceil(3 * sigma))


def _kernel(sigma: float) -> Tensor:
    """The Gaussian's weights, float32, of odd length."""
    radius = _radius(sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return kernel / kernel.sum()


def _blur_axis(image: Tensor, sigma: float, axis: int) -> Tensor:
    """Blur along the rows (-2) or columns (-1)."""
    size, radius = image.shape[axis], _radius(sigma)
    if size <= max(PRODUCT_SIDE, radius):
        matrix = _blur_matrix(size, sigma, image.dtype, image.device)
        return exact_matmul(matrix, image) if axis == -2 else exact_matmul(image, matrix.mT)
    # The radius is less than the side here, so one reflection reaches.
    pad = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
    shape = (1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1)
    weight = _kernel(sigma).to(image).reshape(shape)
    channels = image.shape[1]
    padded = F.pad(image, pad, mode="reflect")
    return F.conv2d(padded, weight.expand(channels, *weight.shape[1:]), groups=channels)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # a cached matrix must serve training, too
def _blur_matrix(size: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, size) matrix of the blur along one axis, borders included: as a matrix product a short axis is fastest."""
    kernel = _kernel(sigma)
    radius, last = _radius(sigma), size - 1
    position = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)
    source = torch.where(position > last, (2 * last - position).clamp_min(0), position.abs().clamp_max(last))
    return torch.zeros(size, size).scatter_add_(1, source, kernel.expand(size, -1)).to(device, dtype)
