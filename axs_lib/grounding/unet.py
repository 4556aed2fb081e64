"""A small U-Net that is fast on a CPU as well as on a GPU: the body of the plain baselines.

In go channels at full resolution, out come channels at full resolution. All convolutions work from half resolution down
(pixels are folded into channels on entry and unfolded on exit), are dense and lie in memory channels last, which is
what keeps a processor's matrix units busy. There is no normalisation: no pixel depends on a far one's statistics. The
last layer starts at zero, so the output of a fresh network is 0.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.blur import gaussian_blur

DETAIL_SIGMAS_PX = (1.0, 2.5)
DETAIL_GAINS = (20.0, 8.0)  # bring detail to about the strength of colour, so that it is learned as fast
BRANCH_SCALE = 0.2  # of a block's second convolution at birth: depth starts near identity


def fine_detail(estimate: Tensor) -> list[Tensor]:
    """Two bands of fine detail of an image in z-units, amplified to the strength of its colour."""
    details, coarser = [], estimate
    for sigma, gain in zip(DETAIL_SIGMAS_PX, DETAIL_GAINS, strict=True):
        blurred = gaussian_blur(estimate, sigma)
        details.append((coarser - blurred) * gain)
        coarser = blurred
    return details


class ConvBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(BRANCH_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class UNet(nn.Module):
    """U-Net over half, quarter, eighth and sixteenth resolution.

    Args:
        in_channels: of the input (B, in_channels, H, W); H and W multiples of 16.
        out_channels: of the output (B, out_channels, H, W).
        widths: channels of the levels.
        half_channels: of a second input (B, half_channels, H/2, W/2), for what is smooth.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...] = (32, 64, 96, 128),
        *,
        half_channels: int = 0,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels * 4 + half_channels, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(ConvBlock(width) for width in widths)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.ups = nn.ModuleList(nn.Conv2d(b, a * 4, 1) for a, b in itertools.pairwise(widths))
        self.decoders = nn.ModuleList(ConvBlock(width) for width in widths[:-1])
        self.out = nn.Conv2d(widths[0], out_channels * 4, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, half: Tensor | None = None) -> Tensor:
        """(B, out_channels, H, W) of (B, in_channels, H, W) and, where there is one, the second input."""
        layout = torch.channels_last  # from the start: a fold of channels-first memory takes longer
        x = F.pixel_unshuffle(x.contiguous(memory_format=layout), 2)
        x = x if half is None else torch.cat([x, half.contiguous(memory_format=layout)], dim=1)
        x = self.stem(x.contiguous(memory_format=layout))
        skips = []
        for level, encoder in enumerate(self.encoders):
            if level:
                x = self.downs[level - 1](x)
            x = encoder(x)
            skips.append(x)
        for level in reversed(range(len(self.decoders))):
            x = self.decoders[level](skips[level] + F.pixel_shuffle(self.ups[level](x), 2))
        return F.pixel_shuffle(self.out(F.silu(x)), 2)
