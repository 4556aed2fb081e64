"""Simulate a Stage 2 estimate from a clean truth tile, for training and testing where no Stage 2 output exists.

Truth and estimate are DN (B02, B03, B04, B08; 10 m pixels). ``degrade`` draws from ``PRESETS``: a model trained on
``train`` is tested on errors that it has not been fitted to. ``degrade_lightly`` draws what a good estimate may suffer
from, down to nothing at all: a head that has met only ``degrade`` would repair what is not broken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from axs_lib.bands import VALID_DN
from axs_lib.errors import InputError
from axs_lib.precision import exact_matmul

Preset = Literal["train", "test"]
Range = tuple[float, float]

METRES_PER_PIXEL = 10.0
PIXELS_PER_FWHM = 1 / (2.0 * math.sqrt(2.0 * math.log(2.0)) * METRES_PER_PIXEL)  # of a Gaussian's standard deviation
BANDPASS_RATIO = 3  # outer over inner Gaussian of the band-limited texture
NO_DAMAGE = 0.10  # chance that a light degradation is none
LIGHT_RESOLUTION = (5.0, 30.0)  # m, FWHM
NOISE = (10.0, 100.0)  # DN
OWN_BY_BAND = (0.6, 0.7, 0.8, 1.5)  # what a band does by itself, of B02, B03, B04, B08
NOISE_STEP = 2  # px between the white-noise samples the texture is smoothed from


@dataclass(frozen=True)
class Degradation:
    """Ranges of one preset, by default ``train``, drawn uniformly: lengths in metres, DN, gains as fractions."""

    patches: tuple[int, int] = (0, 3)  # in a tile
    patch_radius: Range = (60, 200)  # each axis of an ellipse
    patch_shift: Range = (20, 60)  # any direction
    copy_chance: float = 0.30  # of a patch to come from elsewhere
    copy_shift: Range = (120, 480)
    patch_edge: Range = (10, 20)  # width of the soft edge
    resolution: Range = (30, 50)  # FWHM of a Gaussian point spread function, each axis on its own
    gain_common: float = 0.06
    gain_band: float = 0.04
    bias_common: float = 40
    bias_band: tuple[float, float] = (30, 60)  # visible, NIR
    texture_scale: Range = (20, 80)  # standard deviation of the Gaussian that smooths it
    brightness: tuple[Range, Range] = ((10, 60), (20, 100))  # of the texture in all bands (1 std): visible, NIR
    greenness: tuple[Range, Range] = ((10, 30), (40, 130))  # NIR up and red down: red, NIR
    independent: tuple[Range, Range] = ((5, 20), (10, 40))  # each band on its own: visible, NIR


PRESETS = {
    "train": Degradation(),
    "test": Degradation(
        patches=(1, 4), patch_radius=(80, 240), patch_shift=(30, 80), copy_chance=0.20, copy_shift=(160, 400),
        patch_edge=(15, 30), resolution=(40, 60), gain_common=0.08, gain_band=0.05, bias_common=50, bias_band=(40, 80),
        texture_scale=(30, 120), brightness=((20, 60), (30, 100)), greenness=((12, 35), (50, 150)),
        independent=((5, 25), (15, 50)),
    ),
}  # fmt: skip


def degrade(
    truth: Tensor, *, generator: torch.Generator | None = None, seed: int | None = None, preset: Preset = "train"
) -> Tensor:
    """Return a simulated Stage 2 estimate of a clean optical tile (B,4,H,W) or (4,H,W) in DN, NaN = nodata.

    Every draw is from ``generator``, or makes the result a function of truth and ``seed``; with neither, the seed is a
    fresh one of the operating system. The estimate is float32 DN of truth's shape and device, clipped to 1..65535, NaN
    exactly where truth is NaN. Raises InputError: wrong shape, unknown preset, or both a generator and a seed.
    """
    image = _filled(truth)
    if preset not in PRESETS:
        raise InputError(f"unknown degradation preset {preset!r}; choose one of {', '.join(map(repr, PRESETS))}.")
    if generator is not None and seed is not None:
        raise InputError("degrade got both a generator and a seed; give one of them.")
    ranges = PRESETS[preset]
    if generator is None:
        generator = torch.Generator()
        generator.manual_seed(generator.seed() if seed is None else seed)
    draw = Draw(generator, len(image), image.device)
    image = displace_patches(image, ranges, draw)
    image = blur(image, draw.uniform(*ranges.resolution, 2) * PIXELS_PER_FWHM)
    image = gain_and_bias(image, ranges, draw)
    image = image + texture(image.shape[-2:], ranges, draw)
    return image.clamp(*VALID_DN).view(truth.shape).masked_fill(truth.isnan(), math.nan)


def degrade_lightly(truth: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return an estimate as ``degrade`` does, with little or other damage: each component by chance."""
    draw = Draw(generator, 1, truth.device)
    images = torch.cat([_degrade_lightly(image, draw) for image in _filled(truth).split(1)])
    return images.clamp(*VALID_DN).view(truth.shape).masked_fill(truth.isnan(), math.nan)


def _degrade_lightly(image: Tensor, draw: Draw) -> Tensor:
    """One image (1,4,H,W), no nodata."""
    train = PRESETS["train"]

    def happens(chance: float) -> bool:
        return bool(draw.uniform(0, 1) < chance)

    if happens(NO_DAMAGE):
        return image
    if happens(0.25):
        image = displace_patches(image, replace(train, patches=(1, 3)), draw)
    sharpness = float(draw.uniform(0, 1))
    if sharpness < 0.30:
        image = blur(image, draw.uniform(*LIGHT_RESOLUTION, 2) * PIXELS_PER_FWHM)
    elif sharpness < 0.60:
        image = _resample(image, draw)
    elif sharpness < 0.70:
        image = median3(image)
    if happens(0.50):
        image = gain_and_bias(image, train, draw)
    if happens(0.25):
        image = image + texture(image.shape[-2:], train, draw)
    if happens(0.40):
        level = torch.exp(draw.uniform(math.log(NOISE[0]), math.log(NOISE[1]))) * draw.uniform(0.5, 1.5, 4)
        image = image + level[:, :, None, None] * draw.normal(*image.shape[1:])
    return image


def median3(image: Tensor) -> Tensor:
    """Median of 3 x 3 pixels of (B,C,H,W), borders repeated."""
    from kornia.filters import median_blur

    return median_blur(functional.pad(image, (1,) * 4, mode="replicate"), 3)[..., 1:-1, 1:-1]


def _resample(image: Tensor, draw: Draw) -> Tensor:
    """Average to pixels of 20 to 40 m and interpolate back."""
    height, width = image.shape[-2:]
    factor = int(draw.uniform(2, 5).floor())
    coarse = functional.interpolate(image, size=(-(-height // factor), -(-width // factor)), mode="area")
    mode = ("nearest", "bilinear", "bicubic")[int(draw.uniform(0, 3).floor())]
    return functional.interpolate(coarse, size=(height, width), mode=mode)


class Draw:
    """Draws per-sample parameters from one generator and puts them on the tile's device."""

    def __init__(self, generator: torch.Generator, batch: int, device: torch.device) -> None:
        self.generator, self.batch, self.device = generator, batch, device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand((self.batch, *shape), generator=self.generator, device=self.generator.device)
        return (low + (high - low) * unit).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        noise = torch.randn((self.batch, *shape), generator=self.generator, device=self.generator.device)
        return noise.to(self.device)


def per_tile(values: Tensor) -> Tensor:
    """(B,) as (B,1,1,1)."""
    return values[:, None, None, None]


def _filled(truth: Tensor) -> Tensor:
    """(B,4,H,W) float32 with each band's valid mean in place of nodata, so that NaN spreads nowhere."""
    if truth.ndim not in (3, 4) or truth.shape[-3] != 4 or truth.numel() == 0:
        raise InputError(
            f"degrade got a tensor of shape {tuple(truth.shape)}; expected (B,4,H,W) or (4,H,W), not empty, "
            "with bands B02, B03, B04, B08. Stack or unsqueeze the tile first."
        )
    batch = truth.detach().float().view(-1, *truth.shape[-3:])
    mean = batch.nanmean(dim=(-2, -1), keepdim=True).nan_to_num(VALID_DN[0])
    return torch.where(batch.isnan(), mean, batch)


def displace_patches(image: Tensor, ranges: Degradation, draw: Draw) -> Tensor:
    """Blend in elliptic patches of the tile that lie a few pixels off, or come from elsewhere in it."""
    batch, bands, height, width = image.shape
    device = image.device
    rows = torch.arange(height, device=device, dtype=torch.float32)
    cols = torch.arange(width, device=device, dtype=torch.float32)
    fewest, most = ranges.patches
    count = draw.uniform(fewest, most + 1).floor()
    source = image
    for index in range(most):
        centre = draw.uniform(0, 1, 2) * torch.tensor([height, width], device=device)
        radius = draw.uniform(*ranges.patch_radius, 2) / METRES_PER_PIXEL
        edge = draw.uniform(*ranges.patch_edge) / METRES_PER_PIXEL
        copied = draw.uniform(0, 1) < ranges.copy_chance
        near, far = draw.uniform(*ranges.patch_shift), draw.uniform(*ranges.copy_shift)
        length = torch.where(copied, far, near) / METRES_PER_PIXEL
        angle = draw.uniform(0, 2 * math.pi)

        take_rows = _mirror(rows + (length * torch.sin(angle)).round()[:, None], height)
        take_cols = _mirror(cols + (length * torch.cos(angle)).round()[:, None], width)
        flat = (take_rows[:, :, None] * width + take_cols[:, None, :]).view(batch, 1, -1)
        moved = source.reshape(batch, bands, -1).gather(2, flat.expand(-1, bands, -1)).view_as(image)

        along = ((rows - centre[:, :1]) / radius[:, :1]).square()[:, :, None]
        across = ((cols - centre[:, 1:]) / radius[:, 1:]).square()[:, None, :]
        inside = (1.0 - (along + across).sqrt()) * radius.mean(1)[:, None, None]  # px inside the rim
        soft = torch.sigmoid(4.0 * inside / edge[:, None, None])
        soft = soft * (count > index)[:, None, None]
        image = torch.lerp(image, moved, soft[:, None])
    return image


def _mirror(index: Tensor, size: int) -> Tensor:
    """Fold indices of any value into 0..size-1 by reflection at both borders."""
    index = index.remainder(2 * size)
    return torch.minimum(index, 2 * size - 1 - index).long()


def gaussian_matrix(outputs: int, inputs: Tensor, sigma: Tensor) -> Tensor:
    """(B, outputs, inputs) matrices that smooth along one axis; rows sum to 1, so borders keep their level."""
    centre = torch.arange(outputs, device=sigma.device, dtype=torch.float32)
    distance = (centre[:, None] - inputs[None, :]) / sigma[:, None, None]
    weight = torch.exp(-0.5 * distance.square().clamp_max(40.0))  # the tail is flat: denormal numbers are slow
    return weight / weight.sum(-1, keepdim=True)


def apply_matrices(image: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Apply per-sample row and column matrices to (B,C,h,w), each as one matrix product a sample."""
    batch, channels, height, width = image.shape
    image = exact_matmul(image.reshape(batch, channels * height, width), cols.transpose(1, 2))
    image = image.view(batch, channels, height, -1).transpose(1, 2).reshape(batch, height, -1)
    return exact_matmul(rows, image).view(batch, rows.shape[1], channels, -1).transpose(1, 2)


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (B,C,H,W) by standard deviations (B,2) in pixels, down and across; borders keep their level."""
    matrices = [
        gaussian_matrix(size, torch.arange(size, device=image.device, dtype=torch.float32), sigma[:, axis])
        for axis, size in enumerate(image.shape[-2:])
    ]
    return apply_matrices(image, *matrices)


def gain_and_bias(image: Tensor, ranges: Degradation, draw: Draw) -> Tensor:
    """Scale and shift the bands: a part they share and a part of their own."""
    visible, nir = ranges.bias_band
    reach = torch.tensor([visible, visible, visible, nir], device=image.device)
    gain = 1 + draw.uniform(-ranges.gain_common, ranges.gain_common, 1)
    gain = gain + draw.uniform(-ranges.gain_band, ranges.gain_band, 4)
    bias = draw.uniform(-ranges.bias_common, ranges.bias_common, 1) + draw.uniform(-1, 1, 4) * reach
    return image * gain[:, :, None, None] + bias[:, :, None, None]


def texture(size: torch.Size, ranges: Degradation, draw: Draw) -> Tensor:
    """Smooth invented structure (B,4,H,W) in DN: brightness, greenness and one field for each band."""
    fields = band_limited(size, 6, ranges.texture_scale, draw)

    def amplitude(visible: Range, nir: Range) -> tuple[Tensor, Tensor]:
        level = draw.uniform(0, 1)[:, None]
        return visible[0] + (visible[1] - visible[0]) * level, nir[0] + (nir[1] - nir[0]) * level

    visible, nir = amplitude(*ranges.brightness)
    bright = torch.cat([visible, visible, visible, nir], 1)
    red, nir = amplitude(*ranges.greenness)
    green = torch.cat([-0.3 * red, torch.zeros_like(red), -red, nir], 1)
    visible, nir = amplitude(*ranges.independent)
    own = torch.cat([visible, visible, visible, nir], 1)

    shape = (slice(None), slice(None), None, None)
    return bright[shape] * fields[:, 0:1] + green[shape] * fields[:, 1:2] + own[shape] * fields[:, 2:6]


def band_limited(size: torch.Size, channels: int, scale: Range, draw: Draw) -> Tensor:
    """Band-limited Gaussian noise (B,channels,*size), zero mean and unit standard deviation in each field."""
    height, width = size
    sigma = draw.uniform(*scale) / METRES_PER_PIXEL
    margin = math.ceil(2 * scale[1] / METRES_PER_PIXEL)
    at_rows = torch.arange(-margin, height + margin, NOISE_STEP, device=sigma.device, dtype=torch.float32)
    at_cols = torch.arange(-margin, width + margin, NOISE_STEP, device=sigma.device, dtype=torch.float32)
    white = draw.normal(channels, at_rows.numel(), at_cols.numel())
    fine = apply_matrices(white, gaussian_matrix(height, at_rows, sigma), gaussian_matrix(width, at_cols, sigma))
    pooled = functional.avg_pool2d(white, BANDPASS_RATIO)  # the outer Gaussian needs no finer grid than this
    at_rows, at_cols = (functional.avg_pool1d(at[None], BANDPASS_RATIO)[0] for at in (at_rows, at_cols))
    wide = sigma * BANDPASS_RATIO
    coarse = apply_matrices(pooled, gaussian_matrix(height, at_rows, wide), gaussian_matrix(width, at_cols, wide))
    field = fine - coarse
    field = field - field.mean((-2, -1), keepdim=True)
    return field / field.std((-2, -1), correction=0, keepdim=True).clamp_min(1e-6)
