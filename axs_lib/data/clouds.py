"""Trust maps, 1 where an image was observed clear and 0 where unknown: simulated, and of real cloudy images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.data.degrade import Draw, Range, per_tile
from axs_lib.errors import InputError
from axs_lib.nodata import fill_nodata, spread, valid_pixels

COARSEST = 32  # cells between the samples of the coarsest noise; every octave halves it
OCTAVES = 5
CELL = 2  # px: clouds are drawn on a grid of 20 m, as cloud masks are, and interpolated
PERSISTENCE: Range = (0.4, 0.65)  # amplitude of an octave beside its neighbour's, away from the strongest
STRONGEST_OCTAVE = 2.5  # of the octaves from 0, the coarsest, the greatest that may be the strongest
SHADOW_CHANCE = 0.5
SHADOW_SHIFT: Range = (3.0, 15.0)  # cells from cloud to shadow: 60 to 300 m
SWATH_CHANCE = 0.06
SWATH_STEEPNESS = 3.0  # of the ramp across half a tile, in standard deviations of the noise
BLANK_CHANCE = 0.02

WINDOW = 7  # px over which two images are averaged before they are compared
CLOUD_DN = 300.0
SHADOW_NIR = 0.75
BUFFER = 3  # px


def cloud_trust(
    batch: int, height: int, width: int, *, generator: torch.Generator, cover: Range = (0.1, 0.7)
) -> Tensor:
    """Draw trust maps (B,1,H,W) of 10 m pixels, 1 clear and 0 unknown, with the shapes of clouds and of their shadows.

    A cloud is where fractal noise (five octaves, 640 m to 40 m, the strongest of them drawn per sample) exceeds a
    level. The level is chosen last, so that the share of unknown pixels is the one drawn uniformly from ``cover``, a
    range within 0..1, within about 1 %. One sample in 50 is unknown everywhere.
    """
    low, high = cover
    if not 0 <= low <= high <= 1:
        raise InputError(f"cover is {cover}; expected the least and the greatest share of clouds, 0 to 1")
    draw = Draw(generator, batch, generator.device)

    def chance(share: float) -> Tensor:
        """(B,1,1,1) bool, true for about this share of the samples."""
        return per_tile(draw.uniform(0, 1) < share)

    rows, columns = -(-height // CELL), -(-width // CELL)

    # 1. A window of its own for each sample, and the same field as displaced by the shadow.
    reach = math.ceil(SHADOW_SHIFT[1])
    field = _fractal(rows + 2 * reach, columns + 2 * reach, draw)
    length, angle = draw.uniform(*SHADOW_SHIFT), draw.uniform(0, 2 * math.pi)
    clouds = field[..., reach : reach + rows, reach : reach + columns]
    shadow = _window(field, reach + length * angle.sin(), reach + length * angle.cos(), rows, columns)
    clouds = torch.where(chance(SHADOW_CHANCE), torch.maximum(clouds, shadow), clouds)

    # 2. Specks go, the rest grows by about 20 m and is smoothed, as cloud masks are buffered.
    clouds = spread(-spread(-clouds, 1), 2)
    clouds = functional.avg_pool2d(clouds, 3, stride=1, padding=1, count_include_pad=False)

    # 3. A swath ends in a straight line.
    angle = per_tile(draw.uniform(0, 2 * math.pi))
    down = torch.linspace(-1, 1, rows, device=field.device)[:, None]
    across = torch.linspace(-1, 1, columns, device=field.device)
    ramp = SWATH_STEEPNESS * (angle.sin() * down + angle.cos() * across)
    clouds = torch.where(chance(SWATH_CHANCE), torch.maximum(clouds, ramp), clouds)

    # 4. The level that leaves the share drawn.
    unknown = (draw.uniform(*cover) * rows * columns).long()
    ranked = functional.pad(clouds.flatten(1).sort(dim=1, descending=True).values, (0, 1), value=-math.inf)
    level = torch.where(chance(BLANK_CHANCE), -math.inf, per_tile(ranked.gather(1, unknown[:, None])[:, 0]))
    clouds = functional.interpolate(clouds, scale_factor=CELL, mode="bilinear", align_corners=False)
    return (clouds[..., :height, :width] <= level).float()


def cloudy_trust(s2: Tensor, s2_cloudy: Tensor) -> Tensor:
    """Find the clear pixels (1,H,W), 1 clear and 0 unknown, of a cloudy image by a clear one of the place and season.

    Both images are (4,H,W) in DN, NaN is nodata, and averaged over 7x7 px, so that a shifted edge or a new roof is no
    cloud. Unknown is

    - cloud and haze: the mean of B02, B03 and B04 is more than 300 DN above the clear image;
    - shadow: B08 is below 75 % of the clear image, and the mean of B02, B03 and B04 not above it;
    - what lies within 3 px of either, and nodata in either image.

    Fields that were ploughed or flooded between the two dates count as shadow too: what is left agrees with the clear
    image. On the 14 pairs of SEN12MS-CR in the project's training data it drops 77 % of the pixels in the mean and 91 %
    in the median.
    """
    if s2.ndim != 3 or s2.shape[0] != len(OPTICAL_BANDS) or s2.shape != s2_cloudy.shape or s2.numel() == 0:
        raise InputError(
            f"the clear image has shape {tuple(s2.shape)} and the cloudy one {tuple(s2_cloudy.shape)}; expected (4,H,W)"
            f" for both, with bands {', '.join(OPTICAL_BANDS)}"
        )
    images = torch.stack([s2, s2_cloudy]).float()
    valid = valid_pixels(images[:1], images[1:])
    clear, cloudy = functional.avg_pool2d(
        fill_nodata(images, valid.expand(2, -1, -1, -1)), WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False
    )
    brighter = (cloudy - clear)[:3].mean(0)
    cloud = brighter > CLOUD_DN
    shadow = (cloudy[3] < SHADOW_NIR * clear[3]) & (brighter <= 0)
    unknown = spread((cloud | shadow).float()[None, None], BUFFER)
    return torch.where(valid, 1 - unknown, 0.0)[0]


def _fractal(rows: int, columns: int, draw: Draw) -> Tensor:
    """(B,1,rows,columns) noise of several scales; doubling the grid by interpolation smooths each a little more."""
    strongest, persistence = draw.uniform(0, STRONGEST_OCTAVE), draw.uniform(*PERSISTENCE)
    size = (-(-rows // COARSEST) + 1, -(-columns // COARSEST) + 1)
    field = torch.zeros(draw.batch, 1, *size, device=draw.device)
    for octave in range(OCTAVES):
        field = field + per_tile(persistence ** (octave - strongest).abs()) * draw.normal(*field.shape[1:])
        field = functional.interpolate(field, scale_factor=2, mode="bilinear", align_corners=False)
    return field[..., :rows, :columns]


def _window(field: Tensor, top: Tensor, left: Tensor, rows: int, columns: int) -> Tensor:
    """(B,1,rows,columns) of a larger field, each sample from its own corner."""
    down = top.round().long()[:, None] + torch.arange(rows, device=field.device)
    across = left.round().long()[:, None] + torch.arange(columns, device=field.device)
    sample = torch.arange(len(field), device=field.device)[:, None, None]
    return field[sample, 0, down[:, :, None], across[:, None, :]][:, None]
