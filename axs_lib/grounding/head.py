"""The grounding head: SAR, estimate and proposal at full resolution in, a bounded correction out.

TerraMind's tokens cover 16 x 16 pixels and cannot carry edges. This small dense U-Net brings the structure of SAR and
proposal to pixels. Its inputs are backscatter, estimate, the estimate's fine detail, the estimate as a local function of
the SAR and of the proposal (``guided``), the proposal's difference from it, where the estimate was observed and where
the SAR is inconsistent with it. Means over the tile, among them of the estimate's spectrum, tell which kind of error the
estimate may have. Its outputs are a residual, a gate (how much of it to use), a release map (where broad colour may
change) and the expected error. The last layer starts at zero, so a fresh head changes nothing.

All images are in the head's own z-units (``SAR_STATISTICS``, ``OPTICAL_STATISTICS``), whatever the generator's are, so
that one head serves every generator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from axs_lib.grounding.gap import unknown_share
from axs_lib.grounding.guided import guided_difference, proposal_guided_difference
from axs_lib.grounding.orientation import turn_back
from axs_lib.grounding.unet import DETAIL_SIGMAS_PX, UNet, fine_detail

# Mean and standard deviation of the head's z-units: VV, VH in dB, and B02, B03, B04, B08 in DN.
SAR_STATISTICS = ((-12.599, -20.293), (5.195, 5.890))
OPTICAL_STATISTICS = ((470.0, 585.0, 555.0, 2135.0), (380.0, 370.0, 475.0, 1125.0))

INPUT_CHANNELS = 2 + 4 + 4 + 1 + 1 + 4 * len(DETAIL_SIGMAS_PX) + 4
HALF_CHANNELS = 4 + 1 + 4  # inputs at half resolution
STRIDES_PX = (1, 2, 4)  # of the differences whose energy stands for the estimate's spectrum
STATISTICS = 4 * 2 * len(STRIDES_PX) + 4 * len(DETAIL_SIGMAS_PX) + 4 + 4 + 4 + 4 + 3
LEAST_ENERGY = 1e-5  # z-units squared: about 3 DN
GUIDED_GAIN = 3.0  # brings the guided image's difference to about the strength of colour
OUTPUT_CHANNELS = 4 + 1 + 1 + 4
FRESH_ERROR = 0.1  # expected error of a fresh head in z-units
LOG_ERROR_RANGE = (-5.0, 4.0)


class Correction(NamedTuple):
    """What a way to correct proposes, before the hold.

    Attributes:
        residual: (B, 4, H, W) in z-units of the optical bands.
        gate: (B, 1, H, W) in [0, 1].
        release: (B, 1, H, W) in [0, 1].
        error: expected standard error of the corrected image, (B, 4, H, W) in z-units; ``None`` where none is made.
    """

    residual: Tensor
    gate: Tensor
    release: Tensor
    error: Tensor | None = None

    def turned_back(self, orientation: int) -> Correction:
        """Of the tile itself, where the head saw it turned."""
        return Correction(*(None if part is None else turn_back(part, orientation) for part in self))  # type: ignore[arg-type]


class GroundingHead(nn.Module):
    """The U-Net of the learned correction.

    Args:
        widths: channels at half, quarter, eighth and sixteenth resolution.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.body = UNet(
            INPUT_CHANNELS, OUTPUT_CHANNELS, widths, half_channels=HALF_CHANNELS, statistics=STATISTICS
        )
        # Gates below the floor are closed, and the others let ``scale`` of the correction through: chosen after
        # training on estimates of kinds that were not trained on.
        self.register_buffer("gate_floor", torch.zeros(()))
        self.register_buffer("gate_scale", torch.ones(()))

    @property
    def untrained(self) -> bool:
        """Whether the last layer is still at its zero initialisation."""
        return not bool(self.body.out.weight.any())

    def forward(
        self, s1: Tensor, estimate: Tensor, proposal: Tensor, trust: Tensor, contradiction: Tensor
    ) -> Correction:
        """The correction.

        Broad colour is released only where the SAR contradicts the estimate or nothing is known of it.

        Args:
            s1: (B, 2, H, W) z-units; H and W multiples of 16.
            estimate: opt_v2 (B, 4, H, W) in z-units.
            proposal: TerraMind's image (B, 4, H, W) in z-units.
            trust: (B, 1, H, W), 1 where opt_v2 was observed, 0 where it is unknown, 0.5 where it is an estimate.
            contradiction: (B, 1, H, W) from ``contradiction``.
        """
        guided, explained = guided_difference(s1, estimate, trust)
        fitted, agreement = proposal_guided_difference(proposal, estimate, trust)
        detail = fine_detail(estimate)
        difference = proposal - estimate
        inputs = [s1, estimate, difference, trust, contradiction, *detail, fitted]
        half = torch.cat([GUIDED_GAIN * guided, explained, agreement], dim=1)
        statistics = tile_statistics(estimate, detail, guided, fitted, difference, agreement, trust, contradiction)
        out = self.body(torch.cat(inputs, dim=1), half, statistics).float()
        residual, gate, release, log_error = out.split([4, 1, 1, 4], dim=1)
        gate = gate.sigmoid()
        gate = self.gate_scale * ((gate - self.gate_floor) / (1.0 - self.gate_floor)).clamp_min(0.0)
        may_change = torch.maximum(contradiction, unknown_share(trust))
        error = FRESH_ERROR * log_error.clamp(*LOG_ERROR_RANGE).exp()
        return Correction(residual, gate, release.sigmoid() * may_change, error)


def tile_statistics(
    estimate: Tensor,
    detail: list[Tensor],
    guided: Tensor,
    fitted: Tensor,
    difference: Tensor,
    agreement: Tensor,
    trust: Tensor,
    contradiction: Tensor,
) -> Tensor:
    """(B, STATISTICS) of a tile: logarithms of the energy of its inputs, the estimate's spectrum, means of its maps."""

    def energy(image: Tensor) -> Tensor:
        return (image.float().square().mean((2, 3)) + LEAST_ENERGY).log() / 4.0 + 1.5

    values = []
    for stride in STRIDES_PX:
        values += [
            energy(estimate[..., stride:, :] - estimate[..., :-stride, :]),
            energy(estimate[..., stride:] - estimate[..., :-stride]),
        ]
    values += [energy(each) for each in (*detail, guided, fitted, difference)]
    maps = (agreement, (trust == 1).float(), unknown_share(trust), contradiction)
    return torch.cat([*values, *(each.float().mean((2, 3)) for each in maps)], dim=1)
