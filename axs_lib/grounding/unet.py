"""A small U-Net that is fast on a CPU as well as on a GPU: the body of the plain baselines.

All convolutions work from half resolution down (pixels are folded into channels on entry and unfolded on exit), are
dense and lie in memory channels last, which keeps a processor's matrix units busy. There is no normalisation; only with
``statistics`` does a pixel depend on means over the tile. A fresh network's output is 0.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.blur import detail_bands
from axs_lib.fresh import zeroed

DETAIL_SIGMAS_PX = (1.0, 2.5)
DETAIL_GAINS = (20.0, 8.0)  # bring detail to about the strength of colour, so that it is learned as fast
BRANCH_SCALE = 0.2  # of a block's second convolution at birth: depth starts near identity


def fine_detail(estimate: Tensor) -> list[Tensor]:
    """Two bands of fine detail of an image in z-units, amplified to the strength of its colour."""
    return [gain * detail for gain, detail in zip(DETAIL_GAINS, detail_bands(estimate, DETAIL_SIGMAS_PX), strict=True)]


class ConvBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(BRANCH_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.silu(self.first(F.silu(x)), inplace=True)).add_(x)


class Context(nn.Module):
    """FiLM (Perez et al. 2018): scales and shifts of the decoder and offsets of the output, from tile statistics."""

    def __init__(self, widths: tuple[int, ...], statistics: int, out_channels: int, hidden: int = 96) -> None:
        super().__init__()
        self.sizes = [2 * width for width in widths[:-1]]
        self.first = nn.Linear(statistics, hidden)
        self.norm = nn.LayerNorm(hidden)  # without it the units die: none was alive after some thousand steps
        self.second = nn.Linear(hidden, hidden)
        self.last = zeroed(nn.Linear(hidden, sum(self.sizes) + out_channels))

    def forward(self, statistics: Tensor) -> tuple[list[Tensor], Tensor]:
        """For each decoder (B, 2 * width) scales and shifts, and (B, out_channels)."""
        hidden = F.silu(self.norm(self.first(statistics)))
        hidden = hidden + F.silu(self.second(hidden))
        *modulations, offsets = self.last(hidden).split([*self.sizes, self.last.out_features - sum(self.sizes)], dim=1)
        return modulations, offsets


class UNet(nn.Module):
    """U-Net over half, quarter, eighth and sixteenth resolution; H and W are multiples of 16.

    ``half_channels`` are those of a second input (B, half_channels, H/2, W/2), for what is smooth; ``statistics`` the
    values of a third (B, statistics), for what is known of the whole tile, with which there is a ``Context``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...] = (32, 64, 96, 128),
        *,
        half_channels: int = 0,
        statistics: int = 0,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels * 4 + half_channels, widths[0], 3, padding=1)  # only its weights
        self.encoders = nn.ModuleList(ConvBlock(width) for width in widths)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.ups = nn.ModuleList(nn.Conv2d(b, a * 4, 1) for a, b in itertools.pairwise(widths))
        self.decoders = nn.ModuleList(ConvBlock(width) for width in widths[:-1])
        self.out = zeroed(nn.Conv2d(widths[0], out_channels * 4, 3, padding=1))
        self.context = Context(widths, statistics, out_channels) if statistics else None
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, half: Tensor | None = None, statistics: Tensor | None = None) -> Tensor:
        """(B, out_channels, H, W) of (B, in_channels, H, W) and, where there are, the second and third input."""
        if self.context is None:
            return self._decode(self._encode(x, half), [])
        assert statistics is not None
        modulations, offsets = self.context(statistics)
        return self._decode(self._encode(x, half), modulations) + offsets[..., None, None]

    def _encode(self, x: Tensor, half: Tensor | None) -> list[Tensor]:
        """Features of every level, finest first."""
        # Channels last, memory is folded pixel by pixel, several times as fast as by channel, as the stem has it.
        x = x.movedim(1, -1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3).movedim(-1, 1)
        of_pixels, of_half = self.stem.weight.tensor_split([x.shape[1]], dim=1)
        kernel = torch.cat([of_pixels.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2), of_half], dim=1)
        x = x if half is None else torch.cat([x, half.contiguous(memory_format=torch.channels_last)], dim=1)
        skips = [self.encoders[0](F.conv2d(x, kernel, self.stem.bias, padding=1))]
        for down, encoder in zip(self.downs, self.encoders[1:], strict=True):
            skips.append(encoder(down(skips[-1])))
        return skips

    def _decode(self, skips: list[Tensor], modulations: list[Tensor]) -> Tensor:
        x = skips[-1]
        for level in reversed(range(len(self.decoders))):
            x = F.pixel_shuffle(self.ups[level](x), 2).add_(skips[level])
            if modulations:
                scale, shift = modulations[level][..., None, None].chunk(2, dim=1)
                x = (x * (1.0 + scale)).add_(shift)
            x = self.decoders[level](x)
        return F.pixel_shuffle(self.out(F.silu(x, inplace=True)), 2)
