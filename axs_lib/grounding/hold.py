"""The low-frequency hold: a correction keeps its detail everywhere, its broad colour shift only where released.

Stage 2 is trusted for broad colour; the SAR is trusted for structure. A correction is split by a Gaussian into a low
and a high frequency part, and the low part is multiplied by a release map: 0 holds the estimate's broad colour to
1e-6, 1 lets the whole correction through (a flood that the SAR shows and the estimate does not).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of (B, C, H, W) with reflected (then repeated) borders; ``sigma`` in pixels."""
    with torch.autocast(image.device.type, enabled=False):
        return _blur(image, sigma)


def _blur(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32, device=image.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(image.dtype)
    channels = image.shape[1]
    for axis in (2, 3):
        size = image.shape[axis]
        inner = min(radius, size - 1)
        pad = [0, 0, inner, inner] if axis == 2 else [inner, inner, 0, 0]
        padded = F.pad(image, pad, mode="reflect") if inner else image
        if radius > inner:
            rest = radius - inner
            padded = F.pad(padded, [0, 0, rest, rest] if axis == 2 else [rest, rest, 0, 0], mode="replicate")
        shape = (-1, 1) if axis == 2 else (1, -1)
        weight = kernel.reshape(1, 1, *shape).expand(channels, 1, *(kernel.reshape(shape).shape))
        image = F.conv2d(padded, weight, groups=channels)
    return image


class LowFrequencyHold(nn.Module):
    """Split a correction and release its low frequencies by a map.

    Args:
        sigma: Gaussian scale in pixels; structure coarser than about ``4 * sigma`` counts as low frequency.
    """

    def __init__(self, sigma: float = 4.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, correction: Tensor, release: Tensor) -> Tensor:
        """The held correction.

        Args:
            correction: (B, C, H, W), any unit.
            release: (B, 1, H, W) in [0, 1].
        """
        low = self.low_pass(correction)
        return correction + (release - 1.0) * low

    def low_pass(self, image: Tensor) -> Tensor:
        """The low-frequency part of (B, C, H, W).

        The image is reduced by area averaging before the blur and enlarged after, as no detail survives anyway.
        """
        factor = 4 if min(image.shape[-2:]) >= 32 else 1
        reduced = F.avg_pool2d(image, factor) if factor > 1 else image
        low = gaussian_blur(reduced, self.sigma / factor)
        if factor > 1:
            low = F.interpolate(low, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return low
