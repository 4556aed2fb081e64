"""The grounding head: SAR, estimate and proposal at full resolution in, a bounded correction out.

TerraMind's tokens cover 16 x 16 pixels and cannot carry edges. This small dense U-Net brings the SAR's structure to
pixels: it sees the backscatter, the estimate and its fine detail, what the SAR says of the estimate by the estimate's
own rules (``guided``), how the proposal differs from it, where the estimate was observed and where the SAR contradicts
it, and answers with a residual, a gate (how much of it to use), a release
map (where its broad colour may pass the low-frequency hold) and the error it expects of itself. Its last layer starts
at zero, so a fresh head changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from axs_lib.grounding.gap import unknown_share
from axs_lib.grounding.guided import guided_difference
from axs_lib.grounding.orientation import turn_back
from axs_lib.grounding.unet import DETAIL_SIGMAS_PX, UNet, fine_detail

INPUT_CHANNELS = 2 + 4 + 4 + 1 + 1 + 4 * len(DETAIL_SIGMAS_PX)
HALF_CHANNELS = 4 + 1  # inputs at half resolution
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
        self.body = UNet(INPUT_CHANNELS, OUTPUT_CHANNELS, widths, half_channels=HALF_CHANNELS)

    @property
    def untrained(self) -> bool:
        """Whether the last layer is still at its zero initialisation."""
        return not bool(self.body.out.weight.any())

    def forward(
        self, s1: Tensor, estimate: Tensor, proposal: Tensor, trust: Tensor, sar_inconsistency: Tensor
    ) -> Correction:
        """The correction.

        Broad colour is released only where the SAR contradicts the estimate or nothing is known of it.

        Args:
            s1: (B, 2, H, W) z-units; H and W multiples of 16.
            estimate: opt_v2 (B, 4, H, W) in z-units.
            proposal: TerraMind's image (B, 4, H, W) in z-units.
            trust: (B, 1, H, W), 1 where opt_v2 was observed, 0 where it is unknown, 0.5 where it is an estimate.
            sar_inconsistency: (B, 1, H, W) from ``sar_inconsistency``.
        """
        guided, explained = guided_difference(s1, estimate, trust)
        inputs = [s1, estimate, proposal - estimate, trust, sar_inconsistency, *fine_detail(estimate)]
        half = torch.cat([GUIDED_GAIN * guided, explained], dim=1)
        out = self.body(torch.cat(inputs, dim=1), half).float()
        residual, gate, release, log_error = out.split([4, 1, 1, 4], dim=1)
        may_change = torch.maximum(sar_inconsistency, unknown_share(trust))
        error = FRESH_ERROR * log_error.clamp(*LOG_ERROR_RANGE).exp()
        return Correction(residual, gate.sigmoid(), release.sigmoid() * may_change, error)
