"""Proposals as generators of every strength may draw them, simulated from the truth, to train the grounding head."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from axs_lib.bands import TERRAMIND_BOA_OFFSET, TERRAMIND_OPTICAL_INDEX, TERRAMIND_S2_MEAN, TERRAMIND_S2_STD, VALID_DN
from axs_lib.data.degrade import OWN_BY_BAND, PRESETS, Draw, band_limited, blur, displace_patches, per_tile

BLUR_PX = (0.5, 6.0)
SHARP_CHANCE = 0.1  # of an informed proposal to be nearly the truth
CLAMP_CHANCE = 0.5
PATCH_CHANCE = 0.35
ROTATED_CHANCE = 0.3  # of a foreign proposal to be the place itself, rotated by half a turn
GAIN = 0.15  # greatest standard deviation, as a fraction
OFFSET_DN = SMOOTH_NOISE_DN = 120.0  # the same in DN
FINE_NOISE_DN = 60.0


def informed_proposal(truth: Tensor, *, generator: torch.Generator) -> Tensor:
    """The truth (B,4,H,W) in DN, without nodata, as a generator of some quality might draw it.

    Blurred by 0.5 to 6 px, gain and offset of each band wrong, smooth and fine noise, displaced patches, in half of the
    cases clamped to about one standard deviation as TerraMind's detokenizer does, in a tenth of them nearly the truth.
    """
    batch, _, height, width = truth.shape
    draw = Draw(generator, batch, truth.device)
    worse = draw.uniform(0.1, 1)
    worse = torch.where(draw.uniform(0, 1) < SHARP_CHANCE, 0.1 * worse, worse)

    # 1. Resolution.
    sigma = BLUR_PX[0] * (BLUR_PX[1] / BLUR_PX[0]) ** (worse * draw.uniform(0.5, 1))
    sigma = torch.where(worse < 0.05, 0.2, sigma)
    image = blur(truth, sigma[:, None].expand(-1, 2))

    # 2. Things in the wrong place.
    displaced = draw.uniform(0, 1) < PATCH_CHANCE * worse
    if bool(displaced.any()):
        moved = displace_patches(image, replace(PRESETS["train"], patches=(1, 3)), draw)
        image = torch.where(per_tile(displaced), moved, image)

    # 3. Colours, smooth and fine noise: each of another strength, by chance none.
    def level(greatest: float) -> Tensor:
        some = draw.uniform(0, 1) < 0.7
        return greatest * draw.uniform(0, 1) * worse * some

    band = torch.tensor(OWN_BY_BAND, device=truth.device)
    gain = 1 + level(GAIN)[:, None] * (0.7 * draw.normal(1) + 0.5 * draw.normal(4))
    offset = level(OFFSET_DN)[:, None] * (0.7 * draw.normal(1) + 0.7 * band * draw.normal(4))
    image = image * gain[..., None, None] + offset[..., None, None]
    smooth = per_tile(level(SMOOTH_NOISE_DN)) * band[:, None, None]
    image = image + smooth * band_limited(truth.shape[-2:], 4, (20, 120), draw)
    image = image + per_tile(level(FINE_NOISE_DN)) * draw.normal(4, height, width)

    # 4. The range of TerraMind's detokenizer.
    mean = torch.tensor([TERRAMIND_S2_MEAN[i] for i in TERRAMIND_OPTICAL_INDEX], device=truth.device)
    std = torch.tensor([TERRAMIND_S2_STD[i] for i in TERRAMIND_OPTICAL_INDEX], device=truth.device)
    low, high = ((mean - TERRAMIND_BOA_OFFSET + side * std)[:, None, None] for side in (-1, 1))
    clamped = image.clamp(low, high)
    image = torch.where(per_tile((draw.uniform(0, 1) < CLAMP_CHANCE) & (worse > 0.05)), clamped, image)
    return image.clamp(*VALID_DN)
