"""Nodata inside the network: NaN pixels are filled from their valid neighbours on entry and masked again on exit.

Filling is pull-push: valid pixels are averaged into coarser and coarser levels, and holes take the finest level that
knows a value. At every level the holes are then brought nearer to the harmonic surface between what is known, which
meets it without a step. A tile cut at any place fills the same way from what it contains, and no invalid value spreads.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 5  # of relaxation at every level


def valid_pixels(*images: Tensor) -> Tensor:
    """(B, 1, H, W) bool: True where every channel of every image (B, C, H, W), of numbers, is finite."""
    return torch.stack([image.abs().amax(dim=1, keepdim=True).isfinite() for image in images]).all(dim=0)


def fill_nodata(image: Tensor, valid: Tensor, *, fallback: Tensor | float = 0.0, steps: int = STEPS) -> Tensor:
    """The image (B, C, H, W) with smooth neighbours in place of what is not ``valid`` (B, 1, H, W), NaN perhaps.

    ``fallback`` is the value where a tile has no valid pixel at all, broadcast against the image; ``steps`` are those
    of relaxation at every level, 0 for pull-push alone.
    """
    if bool(valid.all()):
        return image
    mask = valid.to(image.dtype)
    return torch.where(valid, image, _pull_push(torch.nan_to_num(image) * mask, mask, fallback, steps))


def _pull_push(weighted: Tensor, mask: Tensor, fallback: Tensor | float, steps: int) -> Tensor:
    """Values everywhere from ``weighted`` = value * mask."""
    value = weighted / mask.clamp_min(1e-12)
    if bool((mask > 0).all()) or max(mask.shape[-2:]) == 1:
        return torch.where(mask > 0, value, torch.as_tensor(fallback, dtype=value.dtype, device=value.device))
    halved, known = (F.avg_pool2d(each, 2, ceil_mode=True) for each in (weighted, mask))
    coarse = _pull_push(halved, known, fallback, steps)
    pushed = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    pushed = pushed[..., : mask.shape[-2], : mask.shape[-1]]
    value = torch.where(mask > 0, value, pushed)
    for _ in range(steps):
        around = F.pad(value, (1, 1, 1, 1), mode="replicate")
        rows, columns = around[..., 1:-1], around[..., 1:-1, :]
        mean = (rows[..., :-2, :] + rows[..., 2:, :] + columns[..., :-2] + columns[..., 2:]) / 4
        value = torch.where(mask > 0, value, mean)
    return value


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
