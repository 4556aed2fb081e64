"""The grounding head: SAR, estimate and proposal at full resolution in, a bounded correction out.

TerraMind's tokens cover 16 x 16 pixels and cannot carry edges. This small U-Net brings the SAR's structure to pixels:
it sees the backscatter, the estimate and its fine detail, how the proposal differs from it, where the estimate was
observed and where the SAR contradicts it, and answers with a residual, a gate (how much of it to use) and a release
map (where its broad colour may pass the low-frequency hold). Its last layer starts at zero, so a fresh head changes
nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from axs_lib.grounding.hold import gaussian_blur
from axs_lib.grounding.unet import UNet

DETAIL_SIGMAS_PX = (1.0, 2.5)
DETAIL_GAINS = (
    20.0,
    8.0,
)  # detail is a twentieth as strong as colour; on one scale it is learned many times faster
INPUT_CHANNELS = 2 + 4 + 4 + 1 + 1 + 4 * len(DETAIL_SIGMAS_PX)
OUTPUT_CHANNELS = 4 + 1 + 1


class Correction(NamedTuple):
    """What a way to correct proposes, before the hold.

    Attributes:
        residual: (B, 4, H, W) in z-units of the optical bands.
        gate: (B, 1, H, W) in [0, 1].
        release: (B, 1, H, W) in [0, 1].
    """

    residual: Tensor
    gate: Tensor
    release: Tensor


def fine_detail(estimate: Tensor) -> list[Tensor]:
    """Two bands of fine detail of an image in z-units, amplified to the strength of its colour."""
    details, coarser = [], estimate
    for sigma, gain in zip(DETAIL_SIGMAS_PX, DETAIL_GAINS, strict=True):
        blurred = gaussian_blur(estimate, sigma)
        details.append((coarser - blurred) * gain)
        coarser = blurred
    return details


class GroundingHead(nn.Module):
    """The U-Net of the learned correction.

    Args:
        widths: channels at half, quarter, eighth and sixteenth resolution.
    """

    def __init__(self, widths: tuple[int, ...] = (40, 64, 112, 128)) -> None:
        super().__init__()
        self.body = UNet(INPUT_CHANNELS, OUTPUT_CHANNELS, widths)

    @property
    def untrained(self) -> bool:
        """Whether the last layer is still at its zero initialisation."""
        return self.body.untrained

    @property
    def out(self) -> nn.Conv2d:
        """The last layer: four sub-pixel channels for each of residual (4), gate and release."""
        return self.body.out

    def forward(
        self, s1: Tensor, estimate: Tensor, proposal: Tensor, trust: Tensor, contradiction: Tensor
    ) -> Correction:
        """The correction.

        Args:
            s1: (B, 2, H, W) z-units; H and W multiples of 16.
            estimate: opt_v2 (B, 4, H, W) in z-units.
            proposal: TerraMind's image (B, 4, H, W) in z-units.
            trust: (B, 1, H, W), 1 where opt_v2 was observed, 0 where unknown, in between where it is an estimate.
            contradiction: (B, 1, H, W) from ``contradiction``.
        """
        inputs = [s1, estimate, proposal - estimate, trust, contradiction, *fine_detail(estimate)]
        out = self.body(torch.cat(inputs, dim=1)).float()
        return Correction(out[:, :4], out[:, 4:5].sigmoid(), out[:, 5:6].sigmoid())
