"""The grounding head: SAR, estimate and proposal at full resolution in, a residual and its gate out.

TerraMind's tokens cover 16 x 16 pixels and cannot carry edges. This small dense U-Net brings the SAR's structure to
pixels. It is given the backscatter, the estimate and its fine detail, the estimate as a local linear function of the
backscatter (``guided``), the proposal less the estimate, the trust map and the SAR inconsistency. Its last layer starts
at zero, so a fresh head changes nothing. What limits its output is in ``axs_lib.grounding.corrector``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from axs_lib.grounding.guided import guided_difference
from axs_lib.grounding.unet import DETAIL_SIGMAS_PX, UNet, fine_detail

INPUT_CHANNELS = 2 + 4 + 4 + 1 + 1 + 4 * len(DETAIL_SIGMAS_PX)
HALF_CHANNELS = 4 + 1  # inputs at half resolution
GUIDED_GAIN = 3.0  # brings the guided image's difference to about the strength of colour
OUTPUT_CHANNELS = 4 + 1 + 1 + 4
FRESH_ERROR = 0.1  # expected error of a fresh head in z-units
LOG_ERROR_RANGE = (-5.0, 4.0)


class HeadOutput(NamedTuple):
    """What the head predicts, before masks and constraint.

    Attributes:
        residual: (B, 4, H, W) in z-units of the optical bands.
        gate: (B, 1, H, W) in [0, 1].
        low_freq_mask: (B, 1, H, W) in [0, 1], where the head would let broad colour change.
        error: standard error of the corrected image, (B, 4, H, W) in z-units, above 0.
    """

    residual: Tensor
    gate: Tensor
    low_freq_mask: Tensor
    error: Tensor


class GroundingHead(nn.Module):
    """The U-Net of the learned correction.

    Args:
        widths: channels at half, quarter, eighth and sixteenth resolution.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.body = UNet(INPUT_CHANNELS, OUTPUT_CHANNELS, widths, half_channels=HALF_CHANNELS)

    @property
    def untrained(self) -> bool:
        """Whether the last layer is still at its zero initialisation."""
        return not bool(self.body.out.weight.any())

    def forward(
        self, s1: Tensor, estimate: Tensor, proposal: Tensor, trust: Tensor, sar_inconsistency: Tensor
    ) -> HeadOutput:
        """Residual, gate, mask and error.

        Args:
            s1: (B, 2, H, W) in z-units; H and W multiples of 16.
            estimate: opt_v2 (B, 4, H, W) in z-units.
            proposal: TerraMind's image (B, 4, H, W) in z-units.
            trust: (B, 1, H, W), values of ``axs_lib.checks.Trust``.
            sar_inconsistency: (B, 1, H, W) in [0, 1].
        """
        guided, explained = guided_difference(s1, estimate, trust)  # (B, 4, H/2, W/2), (B, 1, H/2, W/2)
        inputs = [s1, estimate, proposal - estimate, trust, sar_inconsistency, *fine_detail(estimate)]
        half = torch.cat([GUIDED_GAIN * guided, explained], dim=1)
        out = self.body(torch.cat(inputs, dim=1), half).float()  # (B, 10, H, W)
        residual, gate, mask, log_error = out.split([4, 1, 1, 4], dim=1)
        error = FRESH_ERROR * log_error.clamp(*LOG_ERROR_RANGE).exp()
        return HeadOutput(residual, gate.sigmoid(), mask.sigmoid(), error)
