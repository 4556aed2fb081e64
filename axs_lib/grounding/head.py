"""The grounding head: SAR, estimate and proposal at full resolution in, a residual and its gate out.

TerraMind's tokens cover 16 x 16 pixels and cannot carry edges; this small U-Net brings the structure of SAR and
proposal to pixels, after blocks were levelled (``block_grid``) and the tile filtered (``tile_filter``). Beside its
inputs it is given the estimate's fine detail and the estimate as a local function of SAR and proposal (``guided``).
Statistics of the tile tell which kind of error it may have. A fresh head changes nothing. What limits its output is in
``axs_lib.grounding.corrector``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from axs_lib.grounding import tile_filter
from axs_lib.grounding.block_grid import block_grid
from axs_lib.grounding.gap import unknown_share
from axs_lib.grounding.guided import guided_difference, proposal_guided_difference
from axs_lib.grounding.unet import DETAIL_SIGMAS_PX, UNet, fine_detail
from axs_lib.nodata import pad_square

INPUT_CHANNELS = 2 + 4 + 4 + 1 + 1 + 4 * len(DETAIL_SIGMAS_PX) + 4
HALF_CHANNELS = 4 + 1 + 4  # inputs at half resolution
STRIDES_PX = (1, 2, 4)  # of the differences whose energy stands for the estimate's spectrum
STATISTICS = 4 * 2 * len(STRIDES_PX) + 4 * len(DETAIL_SIGMAS_PX) + 4 + 4 + 4 + 4 + 3 + tile_filter.STATISTICS
LEAST_ENERGY = 1e-5  # z-units squared: about 3 DN
ENERGY_OFFSET = 2.4  # brings the logarithm of an energy to about zero
GUIDED_GAIN = 3.0  # brings the guided image's difference to about the strength of colour
OUTPUT_CHANNELS = 4 + 1 + 1 + 4
FRESH_ERROR = 0.1  # expected error of a fresh head in z-units
LOG_ERROR_RANGE = (-5.0, 4.0)


class HeadOutput(NamedTuple):
    """What the head predicts, before masks and constraint."""

    residual: Tensor  # (B, 4, H, W) in z-units of the optical bands
    gate: Tensor  # (B, 1, H, W) in [0, 1]
    missed_water: Tensor  # (B, 1, H, W) in [0, 1], where the head sees water that the estimate lacks
    error: Tensor  # standard error of the corrected image, (B, 4, H, W) in z-units, above 0


class GroundingHead(nn.Module):
    """The U-Net of the learned correction, after blocks were levelled and the tile filtered."""

    gate_floor: Tensor
    filter_floor: Tensor
    levelled: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = UNet(INPUT_CHANNELS, OUTPUT_CHANNELS, half_channels=HALF_CHANNELS, statistics=STATISTICS)
        self.filter = tile_filter.TileFilter()
        # An estimate's gate is closed below its floor, and what the filter changes in a band (z-units, RMS) comes
        # nearer to 0 by its. Chosen on the validation groups. ``levelled`` of the blocks' offsets is taken out.
        for name in ("gate_floor", "filter_floor", "levelled"):
            self.register_buffer(name, torch.zeros(()))

    @property
    def untrained(self) -> bool:
        """Whether the last layers are still at their zero initialisation."""
        return not bool(self.body.out.weight.any() or self.filter.last.weight.any() or self.levelled)

    def filtered(self, s1: Tensor, estimate: Tensor, trust: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What levelling and filtering change (B, 4, H, W), z-units; ``TileFilter``'s statistics; ``size`` unpadded."""
        is_estimate = ((trust > 0) & (trust < 1)).to(estimate.dtype)  # neither observed nor a gap's filling
        inside = (..., slice(size[0]), slice(size[1]))
        level, grid = block_grid(estimate[inside], is_estimate[inside], s1[inside])
        height, width = estimate.shape[-2:]
        level = self.levelled * is_estimate * pad_square(level, max(height, width))[..., :height, :width]
        change, statistics = self.filter(s1, estimate + level, is_estimate, grid, size)
        change = change * is_estimate
        rms = ((change.square().mean((2, 3)) + 1e-12) / is_estimate.mean((2, 3)).clamp_min(1e-3)).sqrt()
        return level + change * (1.0 - self.filter_floor / rms).clamp_min(0.0)[..., None, None], statistics

    def forward(
        self, s1: Tensor, estimate: Tensor, proposal: Tensor, trust: Tensor, sar_inconsistency: Tensor, spectrum: Tensor
    ) -> HeadOutput:
        """Residual, gate, missed water and error.

        s1 (B, 2, H, W), the filtered estimate and TerraMind's proposal (B, 4, H, W) are in z-units, H and W multiples
        of 16; trust (B, 1, H, W) holds values of ``axs_lib.checks.Trust``; the inconsistency (B, 1, H, W) is in [0, 1];
        ``spectrum`` are the filter's statistics.
        """
        guided, explained = guided_difference(s1, estimate, trust)  # (B, 4, H/2, W/2), (B, 1, H/2, W/2)
        fitted, agreement = proposal_guided_difference(proposal, estimate, trust)  # (B, 4, H, W), (B, 4, H/2, W/2)
        detail, difference = fine_detail(estimate), proposal - estimate
        inputs = [each.movedim(1, -1) for each in (s1, estimate, difference, trust, sar_inconsistency, *detail, fitted)]
        half = torch.cat([GUIDED_GAIN * guided, explained, agreement], dim=1)
        images = [*detail, guided, fitted, difference]
        maps = [agreement, (trust == 1).float(), unknown_share(trust), sar_inconsistency]
        statistics = torch.cat([tile_statistics(estimate, images, maps), spectrum], dim=1)
        out = self.body(torch.cat(inputs, dim=-1).movedim(-1, 1), half, statistics)
        residual, gate, missed_water, log_error = out.float().contiguous().split([4, 1, 1, 4], dim=1)  # (B, C, H, W)
        floor = self.gate_floor * (1.0 - unknown_share(trust))  # a gap has no estimate to protect
        gate = ((gate.sigmoid() - floor) / (1.0 - floor)).clamp_min(0.0)
        error = FRESH_ERROR * log_error.clamp(*LOG_ERROR_RANGE).exp()
        return HeadOutput(residual, gate, missed_water.sigmoid(), error)


def tile_statistics(estimate: Tensor, images: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """(B, STATISTICS) but the filter's: logarithms of the energy of differences and images, means of the maps."""
    differences = []
    for stride in STRIDES_PX:
        differences.append(estimate[..., stride:, :] - estimate[..., :-stride, :])
        differences.append(estimate[..., stride:] - estimate[..., :-stride])
    energies = torch.cat([image.float().square().mean((2, 3)) for image in (*differences, *images)], dim=1)
    logarithms = (energies + LEAST_ENERGY).log() + ENERGY_OFFSET
    return torch.cat([logarithms, *(each.float().mean((2, 3)) for each in maps)], dim=1)
