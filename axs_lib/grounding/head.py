"""The grounding head: SAR, estimate and proposal at full resolution in, a bounded correction out.

TerraMind's tokens cover 16 x 16 pixels and cannot carry edges. This small U-Net of depthwise-separable blocks brings
the SAR's structure to pixels: it sees the backscatter, the estimate, how the proposal differs from it, where the
estimate is trusted and where the SAR contradicts it, and answers with a residual, a gate (how much of it to use) and
a release map (where its broad colour may pass the low-frequency hold). Its last layer starts at zero, so a fresh
head changes nothing.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_CHANNELS = 2 + 4 + 4 + 1 + 1


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


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W), so that no pixel's result depends on a far one's statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SeparableBlock(nn.Module):
    """Residual block: depthwise 5 x 5, channel norm, pointwise expansion, GELU, pointwise projection."""

    def __init__(self, channels: int, expansion: int = 2) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = ChannelNorm(channels)
        self.expand = nn.Conv2d(channels, channels * expansion, 1)
        self.project = nn.Conv2d(channels * expansion, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(F.gelu(self.expand(self.norm(self.spatial(x)))))


class GroundingHead(nn.Module):
    """U-Net over half, quarter, eighth and sixteenth resolution with a full-resolution tail.

    Args:
        width: channels at half resolution; deeper levels are 1.5, 2 and 2 times as wide.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        widths = [width, width * 3 // 2, width * 2, width * 2]
        self.stem = nn.Conv2d(INPUT_CHANNELS * 4, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(nn.Sequential(*[SeparableBlock(w) for _ in range(2)]) for w in widths)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(widths))
        self.decoders = nn.ModuleList(
            nn.Sequential(*[SeparableBlock(w) for _ in range(2)]) for w in widths[:-1]
        )
        self.expand = nn.Conv2d(widths[0], 16 * 4, 1)
        self.tail = nn.Sequential(nn.Conv2d(16 + INPUT_CHANNELS, 16, 3, padding=1), nn.GELU())
        self.out = nn.Conv2d(16, 4 + 1 + 1, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    @property
    def untrained(self) -> bool:
        """Whether the last layer is still at its zero initialisation."""
        return not bool(self.out.weight.any())

    def forward(
        self, s1: Tensor, estimate: Tensor, proposal: Tensor, trust: Tensor, contradiction: Tensor
    ) -> Correction:
        """The correction.

        Args:
            s1: (B, 2, H, W) z-units; H and W multiples of 16.
            estimate: opt_v2 (B, 4, H, W) in z-units.
            proposal: TerraMind's image (B, 4, H, W) in z-units.
            trust: (B, 1, H, W), 1 where opt_v2 says something, 0 where it is unknown.
            contradiction: (B, 1, H, W) from ``contradiction``.
        """
        inputs = torch.cat([s1, estimate, proposal - estimate, trust, contradiction], dim=1)
        x = self.stem(F.pixel_unshuffle(inputs, 2))
        skips = []
        for level, encoder in enumerate(self.encoders):
            if level:
                x = self.downs[level - 1](x)
            x = encoder(x)
            skips.append(x)
        for level in reversed(range(len(self.decoders))):
            x = skips[level] + F.interpolate(self.ups[level](x), scale_factor=2, mode="nearest")
            x = self.decoders[level](x)
        full = F.pixel_shuffle(self.expand(x), 2)
        out = self.out(self.tail(torch.cat([full, inputs], dim=1))).float()
        return Correction(out[:, :4], out[:, 4:5].sigmoid(), out[:, 5:6].sigmoid())
