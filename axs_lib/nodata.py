"""Nodata inside the network: NaN pixels are filled from their valid neighbours on entry and masked again on exit.

Filling is pull-push: valid pixels are averaged into coarser and coarser levels, and holes take the finest level that
knows a value. A tile cut at any place fills the same way from what it contains, and no invalid value spreads.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def valid_pixels(*images: Tensor) -> Tensor:
    """(B, 1, H, W) bool: True where every channel of every image (B, C, H, W), of numbers, is finite."""
    return torch.stack([image.abs().amax(dim=1, keepdim=True).isfinite() for image in images]).all(dim=0)


def fill_nodata(image: Tensor, valid: Tensor, *, fallback: Tensor | float = 0.0) -> Tensor:
    """(B, C, H, W) with smooth neighbours where not ``valid`` (B, 1, H, W), or ``fallback`` where nothing is valid."""
    if bool(valid.all()):
        return image
    mask = valid.to(image.dtype)
    return torch.where(valid, image, _pull_push(torch.nan_to_num(image) * mask, mask, fallback))


def _pull_push(weighted: Tensor, mask: Tensor, fallback: Tensor | float) -> Tensor:
    """Values everywhere from ``weighted`` = value * mask."""
    value = weighted / mask.clamp_min(1e-12)
    if bool((mask > 0).all()) or max(mask.shape[-2:]) == 1:
        return torch.where(mask > 0, value, torch.as_tensor(fallback, dtype=value.dtype, device=value.device))
    coarse = _pull_push(F.avg_pool2d(weighted, 2, ceil_mode=True), F.avg_pool2d(mask, 2, ceil_mode=True), fallback)
    pushed = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    pushed = pushed[..., : mask.shape[-2], : mask.shape[-1]]
    return torch.where(mask > 0, value, pushed)


def spread(image: Tensor, radius: int) -> Tensor:
    """The greatest value of (B, C, H, W) within a square of this radius in pixels."""
    for axis in (-2, -1):
        reach = (radius, radius) if axis == -1 else (0, 0, radius, radius)
        padded = F.pad(image, reach, value=-math.inf)
        shifted = (padded.narrow(axis, shift, image.shape[axis]) for shift in range(2 * radius + 1))
        image = functools.reduce(torch.maximum, shifted)  # many times faster than max_pool2d on a CPU
    return image


def pad_square(image: Tensor, side: int) -> Tensor:
    """(B, C, H, W) reflected at the bottom and right up to (B, C, side, side), in steps where one cannot reach."""
    while image.shape[-2] < side or image.shape[-1] < side:
        height, width = image.shape[-2:]
        bottom, right = min(side - height, height - 1), min(side - width, width - 1)
        image = F.pad(image, (0, right, 0, bottom), mode="reflect")
    return image
