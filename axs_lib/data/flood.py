"""Simulate a flood that only the SAR has seen: tiles in dB in, the same tiles with open water in a patch of them out.

Along the shore power is mixed, since a pixel spans about 20 m on the ground. The values follow the open water of this
project's pairs (NDWI over 0.3, B08 under 600 DN, 2 px from the shore; 9 tiles): VV -18.2 to -21.0 dB, VH -26.3 to -32.9
dB, 3 to 7 looks in single images, 20 to 44 in averaged images, neighbours correlated by 0.33 to 0.58.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.data.degrade import Draw, Range, per_tile
from axs_lib.errors import InputError
from axs_lib.nodata import valid_pixels

FLOODED_SHARE = (0.10, 0.25)
WATER_VV = (-22.0, -17.0)  # dB
VH_BELOW_VV = (6.0, 12.0)  # dB
LOOKS = (4.0, 36.0)
OCTAVES = ((32, 1.0), (16, 0.4), (8, 0.15))  # px, weight
NEIGHBOUR = 0.3  # weight of a neighbour beside 1: correlates neighbours by 2 * 0.3 / (1 + 2 * 0.3 ** 2) = 0.51


def simulate_flood(
    s1: Tensor, generator: torch.Generator, *, vv: Range = WATER_VV, vh_below_vv: Range = VH_BELOW_VV
) -> tuple[Tensor, Tensor]:
    """Flood a patch of each tile (B, 2, H, W), VV and VH in dB, NaN = nodata; ``InputError`` for another shape.

    Gives the SAR of the same shape, float32, equal to ``s1`` bit for bit from 2 px outside the patch on and NaN exactly
    where ``s1`` is, and the patch, (B, 1, H, W) bool, False in nodata.
    """
    if s1.ndim != 4 or s1.shape[1] != 2 or s1.numel() == 0:
        raise InputError(
            f"simulate_flood got a tensor of shape {tuple(s1.shape)}; expected (B,2,H,W), not empty, with VV and VH in"
            " dB"
        )
    batch, _, height, width = s1.shape
    s1 = s1.detach().float()
    draw = Draw(generator, batch, generator.device)

    # 1. The patch: the highest part of a smooth field.
    share = draw.uniform(*FLOODED_SHARE)
    field = _smooth_noise(height, width, draw).flatten(1)
    rank = field.argsort(1).argsort(1)  # of each pixel, the lowest first
    flooded = (rank >= ((1 - share) * rank.shape[1]).round()[:, None]).view(batch, 1, height, width)

    # 2. The water in linear power, with speckle.
    level = draw.uniform(*vv)
    level = torch.stack([level, level - draw.uniform(*vh_below_vv)], 1)[:, :, None, None]
    looks = draw.uniform(math.log(LOOKS[0]), math.log(LOOKS[1])).exp()
    water = torch.pow(10, level / 10) * _speckle(looks, height, width, draw)

    # 3. Mix along the shore, and leave the rest as it was.
    flooded, water = flooded.to(s1.device), water.to(s1.device)
    share_of_water = F.avg_pool2d(flooded.float(), 3, stride=1, padding=1, count_include_pad=False)
    mixed = torch.lerp(torch.pow(10, s1 / 10), water, share_of_water)
    mixed = 10 * mixed.clamp_min(1e-10).log10()  # clamp keeps NaN
    return torch.where(share_of_water > 0, mixed, s1), flooded & valid_pixels(s1)


def _smooth_noise(height: int, width: int, draw: Draw) -> Tensor:
    """(B, H, W): octaves of noise, each interpolated from a grid that lies at a random place."""
    field = torch.zeros(draw.batch, height, width, device=draw.device)
    for cell, weight in OCTAVES:
        rows, cols = math.ceil(height / cell) + 2, math.ceil(width / cell) + 2
        fine = F.interpolate(draw.normal(1, rows, cols), scale_factor=cell, mode="bicubic")[:, 0]
        shift = torch.randint(0, cell, (2,), generator=draw.generator, device=draw.device).tolist()
        field += weight * fine[:, shift[0] : shift[0] + height, shift[1] : shift[1] + width]
    return field


def _speckle(looks: Tensor, height: int, width: int, draw: Draw) -> Tensor:
    """(B, 2, H, W) gamma distributed, mean 1, variance 1 / looks, correlated; by Wilson and Hilferty (1931)."""
    white = draw.normal(2, height + 2, width + 2).flatten(0, 1)[:, None]
    line = torch.tensor([NEIGHBOUR, 1.0, NEIGHBOUR], device=looks.device)
    kernel = line[:, None] * line[None, :]
    normal = F.conv2d(white, kernel[None, None] / kernel.square().sum().sqrt())
    ninth = 1 / (9 * per_tile(looks))
    root = 1 - ninth + ninth.sqrt() * normal.view(len(looks), 2, height, width)
    return root.clamp_min(0.05) ** 3
