"""Estimates of many kinds: what opt_v2 may look like, made from a clear truth, for training and testing Stage 3.

A kind of the split ``train`` trains Stage 3; ``choose`` serves choices on the validation groups (early stopping, gate,
settings); ``report`` has no part in training or in any choice, so its figures are the ones to report. A kind never
changes its split, since published figures depend on it. ``strength`` runs from 0 (light) to 1 (strong).

Sources: the reversible 5/3 wavelet of JPEG 2000 (ITU-T T.800); bilateral filter (Tomasi and Manduchi, 1998); guided
filter (He, Sun, Tang, 2013); anisotropic diffusion (Perona and Malik, 1990); bicubic kernel (Keys, 1981, a = -0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from kornia.filters import bilateral_blur, guided_blur
from torch import Tensor
from torch.nn import functional as F

from axs_lib.bands import OPTICAL_BANDS, VALID_DN
from axs_lib.blur import gaussian_blur
from axs_lib.data.degrade import (
    METRES_PER_PIXEL,
    OWN_BY_BAND,
    PIXELS_PER_FWHM,
    PRESETS,
    Draw,
    apply_matrices,
    band_limited,
    blur,
    degrade,
    degrade_lightly,
    displace_patches,
    median3,
    per_tile,
    texture,
)
from axs_lib.errors import InputError
from axs_lib.nodata import fill_nodata, valid_pixels

Split = Literal["train", "choose", "report"]
Make = Callable[[Tensor, Draw, Tensor], Tensor]  # truth (B,4,H,W) in DN, draws, strength (B,) in [0,1] -> estimate

FILTER_MARGIN = 16  # px mirrored at each border before a filter in the frequency domain
MOST_COMBINED = 3
TRANSFORM_BLOCKS = (5, 6, 7, 10, 12, 16)  # px; not JPEG's 8
HAZE_BY_BAND = (1.0, 0.8, 0.65, 0.3)  # path radiance of B02, B03, B04, B08 beside B02's


@dataclass(frozen=True)
class Kind:
    """One kind of estimate: what it is ``about``, its ranges from light to strong, and how it is made."""

    name: str
    split: Split
    about: str
    make: Make | None  # None for an image of the same place at another date, which ``make_estimate`` is given


def make_estimate(
    kind: str,
    truth: Tensor,
    *,
    generator: torch.Generator,
    strength: Tensor | float | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """An estimate of one kind of ``KINDS``: float32 DN clipped to 1..65535, NaN where truth is NaN.

    ``truth`` and, for a kind not made of it, ``given`` are (B,4,H,W) in DN. ``strength`` is 0 (light) to 1 (strong),
    for all tiles or (B,), and drawn uniformly for each tile by default. Raises InputError: unknown kind, wrong shape,
    or nothing given to a kind that needs it.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of estimate {kind!r}; choose one of {', '.join(KINDS)}")
    if truth.ndim != 4 or truth.shape[1] != len(OPTICAL_BANDS) or truth.numel() == 0:
        raise InputError(
            f"make_estimate got a tensor of shape {tuple(truth.shape)}; expected (B,4,H,W), not empty, with bands"
            f" {', '.join(OPTICAL_BANDS)}"
        )
    chosen = KINDS[kind]
    image = truth.detach().float()
    valid = valid_pixels(image)
    image = fill_nodata(image, valid, fallback=VALID_DN[0])
    draw = Draw(generator, len(truth), truth.device)
    level = draw.uniform(0, 1)
    if strength is not None:
        level = torch.as_tensor(strength, dtype=torch.float32, device=truth.device).expand(len(truth))
    if chosen.make is None:
        if given is None or given.shape != truth.shape:
            shape = "nothing" if given is None else f"shape {tuple(given.shape)}"
            raise InputError(f"kind {kind!r} needs an older image of shape {tuple(truth.shape)} and got {shape}")
        estimate = torch.where(given.isfinite(), given.float(), image)
    else:
        estimate = chosen.make(image, draw, level)
    return estimate.clamp(*VALID_DN).masked_fill(~valid, math.nan)


def kinds_of(split: Split) -> list[str]:
    """Names of the kinds of a split."""
    return [name for name, kind in KINDS.items() if kind.split == split]


def _between(strength: Tensor, light: float, strong: float, *, log: bool = False) -> Tensor:
    """(B,) from ``light`` to ``strong`` by strength."""
    if log:
        return torch.exp(math.log(light) + (math.log(strong) - math.log(light)) * strength)
    return light + (strong - light) * strength


def _by_strength(strength: Tensor, light: Callable[[], Tensor], strong: Callable[[], Tensor]) -> Tensor:
    """One image for tiles of strength below 0.5 and another for the rest; only what is needed is made."""
    below = strength < 0.5
    if bool(below.any()) and not bool(below.all()):
        return torch.where(per_tile(below), light(), strong())
    return light() if bool(below.all()) else strong()


def _positions(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device, dtype=torch.float32)


def _filtered(image: Tensor, transfer: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The image with mirrored borders times ``transfer`` of the frequencies down (h,1) and across (1,w), per pixel."""
    height, width = image.shape[-2:]
    margin = min(FILTER_MARGIN, height - 1, width - 1)
    padded = F.pad(image, (margin,) * 4, mode="reflect")
    down = torch.fft.fftfreq(padded.shape[-2], device=image.device)[:, None]
    across = torch.fft.rfftfreq(padded.shape[-1], device=image.device)[None]
    filtered = torch.fft.irfft2(torch.fft.rfft2(padded) * transfer(down, across), s=padded.shape[-2:])
    return filtered[..., margin : margin + height, margin : margin + width]


def _kernel(distance: Tensor, name: str) -> Tensor:
    """Interpolation kernel at distances (B, coarse, fine) in coarse pixels."""
    t = distance.abs()
    if name == "nearest":  # of a pixel half-way between two, rounding may put both farther than one half
        return (t == t.amin(1, keepdim=True)).float()
    if name == "bilinear":
        return (1 - t).clamp_min(0)
    if name == "bicubic":
        near = (1.5 * t - 2.5) * t * t + 1
        far = ((-0.5 * t + 2.5) * t - 4) * t + 2
        return torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))
    return torch.where(t < 3, torch.sinc(t) * torch.sinc(t / 3), torch.zeros_like(t))  # Lanczos, 3 lobes


def _resampling(size: int, factor: Tensor, phase: Tensor, gaussian: Tensor, name: str) -> Tensor:
    """(B,size,size) matrices that reduce an axis to pixels ``factor`` as large, mean or Gaussian, and enlarge it."""
    device = factor.device
    count = math.ceil(size / float(factor.min())) + 7
    index = torch.arange(count, device=device) - 3
    factor = factor[:, None, None]
    centre = ((index[None, :, None] + phase[:, None, None]) * factor).expand(-1, count, 1)
    fine = _positions(size, device) + 0.5
    inner = centre.clamp(0, size)  # a coarse pixel outside repeats what lies at the border
    overlap = torch.minimum(inner + factor / 2, fine + 0.5) - torch.maximum(inner - factor / 2, fine - 0.5)
    smooth = torch.exp(-0.5 * ((fine - inner) / (0.425 * factor)).square().clamp_max(60))
    reduce = torch.where(gaussian[:, None, None], smooth, overlap.clamp_min(0))
    reduce = reduce / reduce.sum(-1, keepdim=True).clamp_min(1e-6)
    enlarge = _kernel((fine - centre) / factor, name).transpose(1, 2)
    enlarge = enlarge / enlarge.sum(-1, keepdim=True)
    return enlarge @ reduce


def _enlarged(name: str, image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    """Reduced to pixels of 15 to 120 m and enlarged again, any phase, by the kernel of this name."""
    factor = _between(strength, 15, 120, log=True) / METRES_PER_PIXEL
    whole = draw.uniform(0, 1) < 0.5
    factor = torch.where(whole & (factor > 1.75), factor.round(), factor)
    gaussian = draw.uniform(0, 1) < 0.4
    aligned = draw.uniform(0, 1) < 0.5
    matrices = []
    for size in image.shape[-2:]:
        phase = torch.where(aligned, torch.full_like(factor, 0.5), draw.uniform(0, 1))
        matrices.append(_resampling(size, factor, phase, gaussian, name))
    return apply_matrices(image, *matrices)


def _warped(image: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """The image read at displacements (B,H,W) in pixels, bicubic, mirrored at the border."""
    height, width = image.shape[-2:]
    rows, columns = torch.broadcast_tensors(
        _positions(height, image.device)[:, None] + down, _positions(width, image.device) + across
    )
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(image, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def _in_patches(image: Tensor, draw: Draw, strength: Tensor, sizes: Tensor) -> Tensor:
    """The image with offsets of 5 to 120 DN that are constant in square patches of ``sizes`` (B,) pixels."""
    height, width = image.shape[-2:]
    level = _between(strength, 5, 120, log=True)
    cells = [int((side / sizes.min()).ceil()) + 1 for side in (height, width)]
    common = draw.normal(1, cells[0], cells[1])
    own = draw.normal(4, cells[0], cells[1]) * torch.tensor(OWN_BY_BAND, device=image.device)[:, None, None]
    values = per_tile(level) * (0.7 * common + 0.7 * own)
    start = draw.uniform(0, 1, 2) * sizes[:, None]
    rows = ((_positions(height, image.device) + start[:, :1]) / sizes[:, None]).long()
    columns = ((_positions(width, image.device) + start[:, 1:]) / sizes[:, None]).long()
    flat = (rows[:, :, None] * cells[1] + columns[:, None, :]).flatten(1)[:, None].expand(-1, 4, -1)
    return image + values.flatten(2).gather(2, flat).view_as(image)


def _gaussian_blur(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    fwhm = _between(strength, 6, 120, log=True)[:, None] * draw.uniform(0.8, 1.25, 2)
    return blur(image, fwhm * PIXELS_PER_FWHM)


def _roll_off(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    cut = per_tile(_between(strength, 0.7, 0.08, log=True))
    power = per_tile(draw.uniform(0.0, math.log(64.0)).exp())  # from exponential to a sharp cut
    return _filtered(image, lambda down, across: torch.exp(-((torch.hypot(down, across) / cut) ** power)))


def _one_way_blur(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    """A roll-off, a trapezoid or two copies side by side, each in one direction."""
    cut = per_tile(_between(strength, 0.7, 0.08, log=True))
    power = per_tile(draw.uniform(0.0, math.log(16.0)).exp())
    angle, across_too = per_tile(draw.uniform(0, math.pi)), per_tile(draw.uniform(0.0, 0.5))
    form, slope = per_tile(draw.uniform(0, 1)), per_tile(draw.uniform(0.25, 1.0))

    def transfer(down: Tensor, across: Tensor) -> Tensor:
        along, aside = down * angle.sin() + across * angle.cos(), across * angle.sin() - down * angle.cos()
        rolled = torch.exp(-((torch.hypot(along, across_too * aside) / cut) ** power))
        trapezoid = torch.sinc(0.6 * along / cut) * torch.sinc(0.6 * slope * along / cut)
        copies = torch.cos(0.35 * math.pi * along / cut)
        return torch.where(form < 0.5, rolled, torch.where(form < 0.8, trapezoid, copies))

    return _filtered(image, transfer)


def _motion_blur(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    length = per_tile(_between(strength, 1.0, 9.0, log=True))
    angle = per_tile(draw.uniform(0, math.pi))
    return _filtered(image, lambda down, across: torch.sinc(length * (down * angle.sin() + across * angle.cos())))


def _defocus_blur(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    radius = per_tile(_between(strength, 0.6, 5.0, log=True))

    def disc(down: Tensor, across: Tensor) -> Tensor:
        x = (2 * math.pi * radius * (down.square() + across.square()).sqrt()).clamp_min(1e-4)
        return 2 * torch.special.bessel_j1(x) / x

    return _filtered(image, disc)


def _bicubic_noisy(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    factor, gaussian = torch.full_like(strength, 3.0), draw.uniform(0, 1) < 0.5
    matrices = [_resampling(size, factor, draw.uniform(0, 1), gaussian, "bicubic") for size in image.shape[-2:]]
    level = per_tile(_between(strength, 5, 60, log=True))
    return apply_matrices(image, *matrices) + level * draw.normal(*image.shape[1:])


def _ringing(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    cut = per_tile(_between(strength, 0.40, 0.10))
    return _filtered(image, lambda down, across: torch.sigmoid((cut - torch.maximum(down.abs(), across.abs())) / 0.01))


def _over_sharpened(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    sigma = per_tile(draw.uniform(0.6, 2.5))
    amount = per_tile(_between(strength, 0.1, 1.5, log=True))

    def unsharp(down: Tensor, across: Tensor) -> Tensor:
        blurred = torch.exp(-2 * (math.pi * sigma).square() * (down.square() + across.square()))
        return 1 + amount * (1 - blurred)

    return _filtered(image, unsharp)


def _median_filter(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    small = median3(image)
    strong = per_tile((3 * strength - 2).clamp(0, 1))
    twice = torch.lerp(small, median3(small), strong) if bool(strong.any()) else small
    return torch.lerp(image, twice, per_tile((2 * strength + 0.3).clamp_max(1)))


def _edge_preserving(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    reach = _between(strength, 60, 600, log=True)  # DN between colours that still mix, RMS of the bands
    alike = (1e6, 1e6)  # px: pixels of the window count by their colour alone
    for _ in range(2):
        image = bilateral_blur(image, 5, math.sqrt(image.shape[1]) * reach, alike, "replicate", "l2")
    return image


def _guided_smoothing(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    bands = image.flatten(0, 1)[:, None]  # each is its own guide
    epsilon = _between(strength, 40, 500, log=True).square().repeat_interleave(image.shape[1])
    smoothed: Tensor = guided_blur(bands, bands, 7, epsilon, "replicate")
    return smoothed.view_as(image)


def _jpeg_blocks(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    from torchvision.io import decode_jpeg, encode_jpeg

    top, left = draw.uniform(0, 8, 2)[0].long().tolist()  # where the blocks begin
    low = image.amin((2, 3), keepdim=True)
    scale = (image.flatten(2).quantile(0.99, dim=2)[..., None, None] - low).clamp_min(100) / 255
    exact = (image - low) / scale
    levels = F.pad(exact.clamp_max(255), (left, 0, top, 0), mode="replicate").round().to(torch.uint8).cpu()
    qualities = _between(strength, 95, 30).round().int().tolist()
    tiles = zip(levels, qualities, strict=True)
    coded = [torch.cat([decode_jpeg(encode_jpeg(band[None], quality)) for band in tile]) for tile, quality in tiles]
    restored = torch.stack(coded)[..., top:, left:].to(image) + (exact - 255).clamp_min(0)
    return restored * scale + low


def _block_transform(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    """Blocks' cosine transform, quantised in steps that grow with frequency, and what is coded rounded to 8 bit."""
    sizes = torch.tensor(TRANSFORM_BLOCKS, device=image.device)[draw.uniform(0, len(TRANSFORM_BLOCKS)).long()]
    starts, slopes = draw.uniform(0, 1, 2), draw.uniform(0, 2)
    steps = _between(strength, 15, 500, log=True)[:, None] * draw.uniform(0.6, 1.6, 4)
    coded = []
    for tile, size, start, slope, step in zip(image, sizes.tolist(), starts, slopes, steps, strict=True):
        top, left = (start * size).long().tolist()
        height, width = tile.shape[1:]
        padded = F.pad(tile[None], (left, -(left + width) % size, top, -(top + height) % size), mode="replicate")[0]
        blocks = padded.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)  # (4, rows, columns, n, n)
        index = _positions(size, image.device)
        cosines = torch.cos(math.pi / size * (index + 0.5) * index[:, None]) * math.sqrt(2 / size)
        cosines[0] *= math.sqrt(0.5)
        grown = step[:, None, None, None, None] * (1 + slope * 4 * (index + index[:, None]) / size)
        blocks = cosines.T @ (((cosines @ blocks @ cosines.T) / grown).round() * grown) @ cosines
        decoded = blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, top : top + height, left : left + width]
        level = (decoded.amax((1, 2), keepdim=True) - decoded.amin((1, 2), keepdim=True)).clamp_min(100) / 255
        coded.append((decoded / level).round() * level)
    return torch.stack(coded)


def _diffusion(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    reach = per_tile(_between(strength, 60, 500, log=True))  # DN over a pixel beyond which an edge stays
    for _ in range(8):
        around = F.pad(image, (1, 1, 1, 1), mode="replicate")
        sides = (around[..., 2:, 1:-1], around[..., :-2, 1:-1], around[..., 1:-1, 2:], around[..., 1:-1, :-2])
        steps = [side - image for side in sides]
        flows = [step * torch.exp(-step.square().mean(1, keepdim=True) / reach.square()) for step in steps]
        image = image + 0.2 * sum(flows)
    return image


def _wavelet_step(x: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high half of the last axis (even length), 5/3 lifting with mirrored borders."""
    even, odd = x[..., 0::2], x[..., 1::2]
    high = odd - 0.5 * (even + torch.cat([even[..., 1:], even[..., -1:]], -1))
    low = even + 0.25 * (high + torch.cat([high[..., :1], high[..., :-1]], -1))
    return low, high


def _wavelet_back(low: Tensor, high: Tensor) -> Tensor:
    even = low - 0.25 * (high + torch.cat([high[..., :1], high[..., :-1]], -1))
    odd = high + 0.5 * (even + torch.cat([even[..., 1:], even[..., -1:]], -1))
    return torch.stack([even, odd], -1).flatten(-2)


def _quantised(x: Tensor, step: Tensor) -> Tensor:
    """Rounded towards 0, the middle of the cell elsewhere: the dead zone of JPEG 2000."""
    cell = (x.abs() / step).floor()
    return torch.where(cell > 0, x.sign() * (cell + 0.5) * step, torch.zeros_like(x))


def _wavelet(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    x = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate")
    step = per_tile(_between(strength, 15, 500, log=True))
    details = []
    for level in range(4):
        (x, a), (b, c) = (_wavelet_step(part.transpose(2, 3)) for part in _wavelet_step(x))
        details.append([_quantised(part, step * 0.75**level) for part in (a, b, c)])
        x = x.transpose(2, 3)
    for a, b, c in reversed(details):
        low, high = _wavelet_back(x.transpose(2, 3), a), _wavelet_back(b, c)
        x = _wavelet_back(low.transpose(2, 3), high.transpose(2, 3))
    return x[..., :height, :width]


def _grey_levels(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    step = per_tile(_between(strength, 10, 160, log=True))
    start = step * draw.uniform(0, 1, 4)[..., None, None]
    return ((image - start) / step).round() * step + start


def _median_composite(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    dates = []
    for _ in range(5):
        light = band_limited(image.shape[-2:], 4, (150, 400), draw)
        level = per_tile(_between(strength, 0.02, 0.10))
        shift = draw.normal(2) * _between(strength, 0.2, 1.2)[:, None]
        moved = _warped(image, shift[:, 0, None, None], shift[:, 1, None, None])
        noise = per_tile(_between(strength, 5, 40)) * draw.normal(*image.shape[1:])
        dates.append(moved * (1 + level * light) + noise)
    return torch.stack(dates).median(0).values


def _gain_offset(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    gain = 1 + _between(strength, 0.005, 0.15)[:, None] * (0.7 * draw.normal(1) + 0.5 * draw.normal(4))
    level, common = _between(strength, 3, 120)[:, None], 0.7
    own = draw.normal(4) * torch.tensor(OWN_BY_BAND, device=image.device)
    offset = level * (common * draw.normal(1) + math.sqrt(1 - common**2) * own)
    return image * gain[..., None, None] + offset[..., None, None]


def _tone_curve(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    power = torch.exp(_between(strength, 0.02, 0.35)[:, None] * (0.8 * draw.normal(1) + 0.4 * draw.normal(4)))
    middle = image.mean((2, 3), keepdim=True).clamp_min(50)
    return middle * (image.clamp_min(1) / middle) ** power[..., None, None]


def _haze(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    field = band_limited(image.shape[-2:], 1, (200, 600), draw)
    depth = per_tile(_between(strength, 0.02, 0.35)) * (1 + 0.5 * field).clamp_min(0)
    veil = torch.tensor(HAZE_BY_BAND, device=image.device)[:, None, None]
    return image * (1 - depth * veil) + 3000.0 * depth * veil


def _patch_offsets(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    small = draw.uniform(0, 1) < 0.5
    sizes = torch.where(small, draw.uniform(8, 13).floor(), draw.uniform(20, 33).floor())
    return _in_patches(image, draw, strength, sizes)


def _patch_offsets_16(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    return _in_patches(image, draw, strength, torch.full_like(strength, 16.0))


def _white_noise(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    level = _between(strength, 4, 150, log=True)[:, None] * draw.uniform(0.5, 1.5, 4)
    noise = draw.normal(*image.shape[1:])
    soft = per_tile(draw.uniform(0, 1) < 0.3)
    return image + level[..., None, None] * torch.where(soft, 2.4 * gaussian_blur(noise, 0.7), noise)


def _speckled(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    level = per_tile(_between(strength, 0.005, 0.12, log=True))
    return image * (1 + level * draw.normal(*image.shape[1:])).clamp_min(0.1)


def _stripes(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    level = _between(strength, 3, 80, log=True)[:, None] * draw.uniform(0.5, 1.5, 4)
    rows, columns = draw.normal(4, height, 1), draw.normal(4, 1, width)
    across = per_tile(draw.uniform(0, 1) < 0.5)
    return image + level[..., None, None] * torch.where(across, rows, columns)


def _texture(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    return image + per_tile(_between(strength, 0.1, 1.6)) * texture(image.shape[-2:], PRESETS["train"], draw)


def _displaced_patches(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    light = replace(PRESETS["train"], patches=(1, 2), patch_shift=(10, 30), copy_chance=0.1)
    strong = replace(PRESETS["train"], patches=(2, 4), patch_shift=(20, 90), copy_chance=0.4)
    return _by_strength(
        strength, lambda: displace_patches(image, light, draw), lambda: displace_patches(image, strong, draw)
    )


def _shift(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    length, angle = _between(strength, 0.05, 3.0, log=True), draw.uniform(0, 2 * math.pi)
    whole = draw.uniform(0, 1) < 0.3
    down, across = (
        torch.where(whole, part.round(), part)[:, None, None] for part in (length * angle.sin(), length * angle.cos())
    )
    return _warped(image, down, across)


def _smooth_warp(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    field = band_limited(image.shape[-2:], 2, (100, 400), draw) * per_tile(_between(strength, 0.1, 2.5, log=True))
    return _warped(image, field[:, 0], field[:, 1])


def _line_jitter(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    size = draw.uniform(6, 40)
    jitter = draw.normal(image.shape[-2] // 6 + 2) * _between(strength, 0.1, 2.0, log=True)[:, None]
    line = (_positions(image.shape[-2], image.device) / size[:, None]).long()
    return _warped(image, torch.zeros_like(line)[..., None].float(), jitter.gather(1, line)[..., None])


def _changed_fields(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    """Areas of like colour change together, as fields do from one month to another."""
    smooth = gaussian_blur(image, 1.0)
    index = (smooth[:, 3:] - smooth[:, 2:3]) / (smooth[:, 3:] + smooth[:, 2:3]).clamp_min(1)
    spread = index.std((2, 3), keepdim=True).clamp_min(0.01)
    place = 0.7 * band_limited(image.shape[-2:], 1, (60, 200), draw)
    label = (2.0 * ((index - index.mean((2, 3), keepdim=True)) / spread + place) + 8).long().clamp(0, 15)
    level = _between(strength, 0.03, 0.30)[:, None, None]
    gains = torch.exp(level * (0.7 * draw.normal(1, 16) + 0.7 * draw.normal(4, 16)))
    gain = gains.gather(2, label.flatten(2).expand(-1, 4, -1)).view_as(image)
    return image * gaussian_blur(gain, 0.7)


def _refiner(image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    return _by_strength(
        strength,
        lambda: degrade_lightly(image, generator=draw.generator),
        lambda: degrade(image, generator=draw.generator, preset="train"),
    )


def _combination(names: tuple[str, ...], image: Tensor, draw: Draw, strength: Tensor) -> Tensor:
    """Two or three of these kinds one after the other, for each tile others."""
    made = []
    for one, level in zip(image.split(1), strength, strict=True):
        own = Draw(draw.generator, 1, image.device)
        order = torch.randperm(len(names), generator=draw.generator)
        count = 2 + int(own.uniform(0, MOST_COMBINED - 1).floor())
        for index in sorted(order[:count].tolist()):
            make_one = KINDS[names[index]].make
            assert make_one is not None
            one = make_one(one, own, (level * own.uniform(0.5, 1.2)).clamp(0, 1))
        made.append(one)
    return torch.cat(made)


# In the order in which they happen to an image.
COMBINED = (
    "changed_fields", "displaced_patches", "shift", "gaussian_blur", "enlarged_nearest", "enlarged_bilinear",
    "enlarged_lanczos", "median_filter", "over_sharpened", "tone_curve", "gain_offset", "hallucinated_texture",
    "patch_offsets", "stripes", "white_noise", "wavelet",
)  # fmt: skip
COMBINED_REPORT = ("smooth_warp", "motion_blur", "haze", "speckled", "jpeg_blocks")

_TABLE = (
    # trained on
    Kind("truth", "train", "the truth itself", lambda image, draw, strength: image),
    Kind("gaussian_blur", "train", "Gaussian point spread function of 6 to 120 m (FWHM)", _gaussian_blur),
    Kind("roll_off", "train", "exp(-(f / f0)^p), f0 0.7 to 0.08 cycles per pixel, p 1 to 64", _roll_off),
    Kind("one_way_blur", "train", "roll-off, trapezoid or two copies, in one direction", _one_way_blur),
    Kind("block_transform", "train", "cosine transform of blocks of 5 to 16 px but 8, quantised", _block_transform),
    Kind("diffusion", "train", "anisotropic diffusion, 60 to 500 DN", _diffusion),
    Kind("enlarged_nearest", "train", "15 to 120 m pixels, nearest", partial(_enlarged, "nearest")),
    Kind("enlarged_bilinear", "train", "15 to 120 m pixels, bilinear", partial(_enlarged, "bilinear")),
    Kind("enlarged_lanczos", "train", "15 to 120 m pixels, Lanczos", partial(_enlarged, "lanczos")),
    Kind("median_filter", "train", "median of 3 x 3 pixels, in part, wholly or twice", _median_filter),
    Kind("wavelet", "train", "wavelet compression, finest step 15 to 500 DN", _wavelet),
    Kind("over_sharpened", "train", "unsharp mask of 0.6 to 2.5 px, amount 0.1 to 1.5", _over_sharpened),
    Kind("gain_offset", "train", "gain of 0.5 to 15 % and offset of 3 to 120 DN, by band", _gain_offset),
    Kind("tone_curve", "train", "power law, exponent off by 2 to 35 %", _tone_curve),
    Kind("patch_offsets", "train", "offsets of 5 to 120 DN in patches of 8-12 or 20-32 px", _patch_offsets),
    Kind("white_noise", "train", "4 to 150 DN, in part correlated between neighbours", _white_noise),
    Kind("stripes", "train", "rows or columns off by 3 to 80 DN", _stripes),
    Kind("hallucinated_texture", "train", "invented texture of 20 to 80 m, to 160 DN", _texture),
    Kind("displaced_patches", "train", "1 to 4 patches 10 to 90 m aside or copied", _displaced_patches),
    Kind("shift", "train", "the whole tile 0.5 to 30 m aside", _shift),
    Kind("changed_fields", "train", "areas of like colour brighter or darker by 3 to 30 %", _changed_fields),
    Kind("refiner", "train", "degrade's preset train, or its light damage", _refiner),
    Kind("combined", "train", "two or three of the kinds above", partial(_combination, COMBINED)),
    # only for choices
    Kind("defocus_blur", "choose", "disc of 6 to 50 m radius", _defocus_blur),
    Kind("guided_smoothing", "choose", "guided filter, 7 x 7 px, 40 to 500 DN", _guided_smoothing),
    Kind("grey_levels", "choose", "rounded to steps of 10 to 160 DN", _grey_levels),
    Kind("line_jitter", "choose", "bands of 6 to 40 rows 1 to 20 m aside", _line_jitter),
    # left out: reported
    Kind("bicubic_30m_noisy", "report", "30 m pixels, bicubic, with noise of 5 to 60 DN", _bicubic_noisy),
    Kind("jpeg_blocks", "report", "JPEG's blocks of 8 x 8 px, quality 95 to 30", _jpeg_blocks),
    Kind("edge_preserving", "report", "bilateral filter, twice, 60 to 600 DN", _edge_preserving),
    Kind("patch_offsets_16", "report", "offsets of 5 to 120 DN in patches of 16 px", _patch_offsets_16),
    Kind("median_composite", "report", "median of five simulated dates", _median_composite),
    Kind("older_image", "report", "the same place at another date", None),
    Kind("motion_blur", "report", "10 to 90 m in a line, any direction", _motion_blur),
    Kind("haze", "report", "smooth veil, strongest in B02", _haze),
    Kind("smooth_warp", "report", "warp of 1 to 25 m (1 std)", _smooth_warp),
    Kind("speckled", "report", "noise of 0.5 to 12 % of the signal", _speckled),
    Kind("ringing", "report", "cut-off at 0.40 to 0.10 cycles per pixel", _ringing),
    Kind("combined_left_out", "report", "two or three of five kinds left out", partial(_combination, COMBINED_REPORT)),
)
KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _TABLE})
