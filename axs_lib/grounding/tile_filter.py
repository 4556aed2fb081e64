"""The tile's filter: one filter for a whole tile that sharpens, smooths or mixes the estimate's bands.

Blur, noise, sharpening and compression do not show at one pixel; over a tile they leave their marks in the power
spectrum and in how much bands and SAR have in common at each scale. From those statistics a small network predicts the
coefficients of one linear filter of the estimate's detail, as Wiener's filter follows from spectra, and where power
is anisotropic, of one that acts otherwise along the dominant orientation than across. A fresh one changes nothing, and
neither does any on a tile unlike those that it was fitted on, in statistics or size.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.blur import detail_bands, gaussian_blur
from axs_lib.fresh import zeroed
from axs_lib.grounding.block_grid import STATISTICS as GRID_STATISTICS
from axs_lib.grounding.sar_inconsistency import smoothstep
from axs_lib.precision import exact_matmul

SCALES_PX = (0.6, 1.0, 1.6, 2.5)  # Gaussian scales between which the bands of detail lie
ACTIVITY_SIGMA_PX = 2.0
FEATHER_PX = 4.0  # scale over which the statistics fade out towards pixels that are no estimate
# Edges of rings in cycles per pixel: of the power, of what bands have in common, and of the power along the axes.
RINGS = (*(0.02 + 0.025 * ring for ring in range(17)), 0.45, 0.48, 0.51, 0.71)
WIDE_RINGS = (0.02, 0.07, 0.12, 0.17, 0.22, 0.295, 0.37, 0.45, 0.71)
AXIS_RINGS = (0.1, 0.2, 0.35, 0.51)
ANISOTROPY_RINGS = (0.07, 0.12, 0.17, 0.22, 0.295, 0.37, 0.45)  # of the power by orientation
SECTORS, OFF_AXIS = 8, 2.5  # of half a turn; what is left out beside the axes, in steps of frequency
PAIRS = 10  # of the four bands and the SAR
LEAST_POWER = 1e-6  # z-units squared: about 1 DN
DETAIL_CHANNELS = 4 * len(SCALES_PX)
TERMS = 3 * DETAIL_CHANNELS  # detail, detail where the ground is varied, and differences along the orientation
HARMONICS = 2 * 4 * (len(ANISOTROPY_RINGS) - 1) + 1  # of the power over the orientations
STATISTICS = (
    4 * (len(RINGS) - 1) + PAIRS * (len(WIDE_RINGS) - 1) + 2 * 4 * (len(AXIS_RINGS) - 1) + DETAIL_CHANNELS + HARMONICS
    + GRID_STATISTICS
)  # fmt: skip
LEAST_ANISOTROPY = 0.2  # of the logarithm of power, below which a tile has hardly a dominant orientation
UNLIKE = (5.0, 8.0)  # standard deviations of the farthest statistic, from where on the filter fades, and to nothing
SWATH_EDGE = (0.5, 1.5)  # logarithm of the whole tile's stripes over its quarters', from where on it is an edge's
LEAST_PIXELS = 64 * 64  # of an estimate, below which the filter fades: statistics of few pixels are uncertain


class TileFilter(nn.Module):
    """Statistics of a tile, the coefficients that follow from them, and what the filter of those changes."""

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden: int = 288) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(STATISTICS))
        self.register_buffer("scale", torch.full((STATISTICS,), 4.0))  # a typical one
        self.first = nn.Linear(STATISTICS, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = zeroed(nn.Linear(hidden, 4 * TERMS))

    def forward(
        self, s1: Tensor, estimate: Tensor, is_estimate: Tensor, grid: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """What the filter changes, (B, 4, H, W) in z-units, and the standardised statistics, (B, STATISTICS).

        s1 (B, 2, H, W) and estimate (B, 4, H, W) are z-scored; ``is_estimate`` (B, 1, H, W) is 0 where
        it was observed or is unknown, else 1; ``grid`` are the statistics of ``block_grid``; ``size`` are H and W
        without padding.
        """
        with torch.autocast(estimate.device.type, enabled=False):
            images = torch.cat([estimate, s1.mean(1, keepdim=True)], dim=1).float()  # (B, 5, H, W)
            detail, smoother = scales_of(images[:, :4])
            inside = (..., slice(size[0]), slice(size[1]))
            surely = gaussian_blur(is_estimate[inside].float(), FEATHER_PX)
            weight = (2.0 * surely - 1.0).clamp_min(0.0)  # inside estimates
            weight = torch.where(weight.amax((2, 3), keepdim=True) > 0, weight, 1.0)
            statistics, orientation = spectral_statistics(images[inside], detail[inside], weight)
            statistics = (torch.cat([statistics, grid], dim=1) - self.mean) / self.scale
            known = (weight.sum((1, 2, 3)) / LEAST_PIXELS).clamp_max(1.0)
            known = known * (1.0 - smoothstep(statistics[:, :-GRID_STATISTICS].abs().amax(1), *UNLIKE))
            everywhere, varied, along = self.coefficients(statistics).split(DETAIL_CHANNELS, dim=2)
            mixed = exact_matmul(torch.cat([everywhere, varied], dim=1), detail.flatten(2))
            smooth = exact_matmul(along, smoother.flatten(2)).unflatten(2, detail.shape[2:])
            filtered, where_varied = mixed.unflatten(2, detail.shape[2:]).split(4, dim=1)
            filtered = filtered + where_varied * activity(detail, weight) + difference_along(smooth, orientation)
            return filtered * known[:, None, None, None], statistics

    def coefficients(self, statistics: Tensor) -> Tensor:
        """(B, 4, TERMS): what of every term goes into each band, from standardised statistics."""
        hidden = F.silu(self.norm(self.first(statistics)))
        hidden = hidden + F.silu(self.second(hidden))
        return self.last(hidden).unflatten(1, (4, TERMS))


def scales_of(bands: Tensor) -> tuple[Tensor, Tensor]:
    """Detail between the scales, and what is smoother than each times its scale squared, (B, 16, H, W) each."""
    detail = detail_bands(bands, SCALES_PX)
    smoother = bands - torch.stack(detail).cumsum(0)
    return torch.cat(detail, dim=1), torch.cat([s * s * image for s, image in zip(SCALES_PX, smoother, strict=True)], 1)


def difference_along(images: Tensor, orientation: Tensor) -> Tensor:
    """Second difference of (B, C, H, W) along less that across an orientation, (B, 2): its double-angle vector."""
    around = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across, down = (around[..., 1:-1, 2:] + around[..., 1:-1, :-2]), (around[..., 2:, 1:-1] + around[..., :-2, 1:-1])
    diagonal = around[..., 2:, 2:] + around[..., :-2, :-2] - around[..., 2:, :-2] - around[..., :-2, 2:]
    straight, slanted = orientation[..., None, None].unbind(1)
    return straight[:, None] * (across - down) + 0.5 * slanted[:, None] * diagonal


def spectral_statistics(images: Tensor, detail: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(B, STATISTICS) but a grid's, of z-scored bands and SAR (B, 5, H, W), bands' detail (B, 16, H, W) and weights.

    Logarithms of the power in rings of frequency, the coherence of bands and SAR in wider ones, power along the axes
    beside that around (stripes), how sparse the detail is (noise or edges), and the anisotropy of the power. And the
    dominant orientation, (B, 2) as ``difference_along`` takes it.
    """
    rings, wide = _plan(images.shape[-2], images.shape[-1], images.device)[:2]
    power, real, imaginary = _spectra(images, weight)  # (B, 5, H, W/2 + 1)
    cross = _pairs(real) + _pairs(imaginary)
    own, common = (torch.cat([power, cross], dim=1).flatten(2) @ wide).split([5, PAIRS], dim=1)
    coherence = common * _pairs((own + LEAST_POWER).rsqrt())
    in_rings = (power[:, :4].flatten(2) @ rings + LEAST_POWER).log()
    stripes = _stripes(images[:, :4], weight, power[:, :4])
    weighted = detail * weight
    squares, sizes = (each.mean((2, 3)) / weight.mean((2, 3)) for each in (weighted * detail, weighted.abs()))
    sparse = (squares + LEAST_POWER).log() - 2 * (sizes + 1e-3).log()
    anisotropy, orientation = _anisotropy(power[:, :4], images.shape[-1])
    parts = (in_rings, coherence, stripes, sparse, anisotropy)
    return torch.cat([part.flatten(1) for part in parts], dim=1), orientation


def _spectra(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Power, real and imaginary part of (B, C, H, W) under a window of unit power, (B, C, H, W/2 + 1)."""
    window = _plan(images.shape[-2], images.shape[-1], images.device)[-1] * weight
    window = window * window.square().mean((2, 3), keepdim=True).rsqrt()
    transform = torch.fft.rfft2((images - _mean(images, weight)[..., None, None]) * window, norm="ortho")
    return transform.real.square() + transform.imag.square(), transform.real, transform.imag


def _stripes(bands: Tensor, weight: Tensor, power: Tensor) -> Tensor:
    """Logarithms of the power along the axes beside that around, (B, 4, 6) of (B, 4, H, W).

    Stripes are in every part of a tile, the edge of a swath only in some: what the whole has and the median of its
    quarters has not does not count.
    """
    height, width = bands.shape[-2:]
    starts = itertools.product((0, height - height // 2), (0, width - width // 2))
    quarters = [(..., slice(y, y + height // 2), slice(x, x + width // 2)) for y, x in starts]
    parts, inside = (torch.cat([image[quarter] for quarter in quarters]) for image in (bands, weight))  # (4 * B, ...)
    enough = inside.mean((2, 3), keepdim=True) > 0.1
    own = _along_axes(_spectra(parts, torch.where(enough, inside, 1.0))[0], width // 2)
    whole = _along_axes(power, width)
    own = torch.where(enough[..., 0], own, whole.repeat(4, 1, 1))
    median = own.unflatten(0, (4, -1)).sort(0).values[1:3].mean(0)
    return median + (whole - median) * (1.0 - smoothstep(whole - median, *SWATH_EDGE))


def _along_axes(power: Tensor, width: int) -> Tensor:
    """As ``_stripes``, of the power of one part of a tile."""
    down, across, around = _plan(power.shape[-2], width, power.device)[2]
    along = torch.cat([power[..., 0] @ down, power[:, :, 0] @ across], dim=2)
    beside = (power.flatten(2) @ around).repeat(1, 1, 2)
    return (along + LEAST_POWER).log() - (beside + LEAST_POWER).log()


def _anisotropy(power: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Angular harmonics of the power (B, HARMONICS), and its dominant orientation, (B, 2) up to length 1."""
    sectors = _plan(power.shape[-2], width, power.device)[3]
    log_power = (power.flatten(2) @ sectors + LEAST_POWER).log().unflatten(2, (-1, SECTORS))  # (B, 4, rings, sectors)
    angle = torch.arange(SECTORS, device=power.device) * (2 * math.pi / SECTORS)  # twice that of an orientation
    second, fourth = (
        torch.complex((log_power * (n * angle).cos()).mean(3), (log_power * (n * angle).sin()).mean(3)) for n in (1, 2)
    )
    rings = itertools.pairwise(ANISOTROPY_RINGS)
    # The finer the more: the ground is anisotropic at all scales, a blur above all at fine ones.
    weights = torch.tensor([(low + high) ** 2 for low, high in rings], device=power.device)
    mean = second.mean(1) @ (weights / weights.sum()).to(second.dtype)
    length = mean.abs()
    rotation = (mean / length.clamp_min(1e-6)).conj()[:, None, None]  # to the dominant orientation
    harmonics = torch.cat([(second * rotation).real, (fourth * rotation * rotation).real], dim=1).flatten(1)
    orientation = torch.view_as_real(mean) / torch.hypot(length, torch.full_like(length, LEAST_ANISOTROPY))[:, None]
    return torch.cat([harmonics, length[:, None]], dim=1), orientation


def activity(detail: Tensor, weight: Tensor) -> Tensor:
    """How varied the ground is, (B, 1, H, W) in [0, 1), by the energy of fine detail beside its weighted mean."""
    energy = gaussian_blur(detail[:, :8].square().sum(1, keepdim=True), ACTIVITY_SIGMA_PX)
    mean = _mean(energy[..., : weight.shape[-2], : weight.shape[-1]], weight)
    return energy / (energy + mean[..., None, None] + LEAST_POWER)


def _mean(images: Tensor, weight: Tensor) -> Tensor:
    """(B, C), the weighted mean over (B, C, H, W)."""
    return (images * weight).mean((2, 3)) / weight.mean((2, 3))


def _pairs(images: Tensor) -> Tensor:
    """The products of every two of five channels, (B, PAIRS, ...)."""
    return torch.cat([images[:, one : one + 1] * images[:, one + 1 :] for one in range(4)], dim=1)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached weights must serve training, too
def _plan(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor, Tensor]:
    """Weights that average over narrow and wide rings, along both axes and around, and by orientation; and a window."""
    down, across = torch.fft.fftfreq(height).float(), torch.fft.rfftfreq(width).float()
    radius = torch.hypot(down[:, None], across[None]).flatten()

    def weights(frequency: Tensor, edges: tuple[float, ...]) -> Tensor:
        rings = itertools.pairwise(edges)
        inside = torch.stack([((frequency >= low) & (frequency < high)).float() for low, high in rings], dim=1)
        return (inside / inside.sum(0).clamp_min(1.0)).to(device)

    rows, columns = (torch.hann_window(side + 2, periodic=False).float()[1:-1] for side in (height, width))
    axes = tuple(weights(frequency, AXIS_RINGS) for frequency in (down.abs(), across, radius))
    # Sectors leave out what lies along the axes: stripes and edges of swaths.
    sector = (torch.atan2(down[:, None], across[None]) * (SECTORS / math.pi)).round().flatten() % SECTORS
    off_axis = ((down.abs()[:, None] > OFF_AXIS / height) & (across[None] > OFF_AXIS / width)).flatten()
    in_rings = weights(radius, ANISOTROPY_RINGS).cpu()[:, :, None] * off_axis[:, None, None]
    parts = (in_rings * (sector[:, None, None] == torch.arange(SECTORS))).flatten(1)
    count = parts.sum(0)
    whole = in_rings.expand(-1, -1, SECTORS).flatten(1)
    parts = torch.where(count > 0, parts / count.clamp_min(1e-9), whole / whole.sum(0).clamp_min(1e-9))
    window = rows[:, None] * columns
    return weights(radius, RINGS), weights(radius, WIDE_RINGS), axes, parts.to(device), window.to(device)
