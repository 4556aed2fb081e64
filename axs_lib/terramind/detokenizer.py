"""TerraMind's detokenizer: a U-Net that predicts the clean image from a noisy one, the time step and the codes.

Layers and names of weights are those of terratorch's ``PatchedUNetCondCat`` (Dhariwal and Nichol 2021,
arXiv:2105.05233); a test holds the outputs to terratorch's, which is slower and imports diffusers, transformers and
peft.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.fresh import zeroed
from axs_lib.terramind.winograd import WinogradConv2d

PATCH = 4  # side in pixels of the patches that the image enters and leaves in
GROUPS = 32  # of every normalisation
COARSE = 2  # level from which on an image has few pixels
NORM_PIXELS = 1024  # of an image below which groups of few channels are normalised faster channels first
SUM_PIXELS = 64  # of an image from which on an upsampling sums its taps
TAP_SUMS = ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 1.0))  # second pixel's 2 taps, first pixel's


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 whatever the precision of its input (B, C, H, W), which its output keeps."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":  # on which the kernel itself computes in float32
            return super().forward(x.float()).to(x.dtype)
        slow = 1 < self.num_channels // GROUPS < 8 and x.shape[-2] * x.shape[-1] < NORM_PIXELS  # channels last
        return super().forward(x.contiguous() if slow else x)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with the time step's embedding between them; ``coarse`` where an image has few pixels."""

    def __init__(self, channels: int, embedding: int, out_channels: int, coarse: bool) -> None:
        super().__init__()
        self.coarse = coarse and WinogradConv2d.gains(channels, out_channels)
        self.in_layers = nn.Sequential(GroupNorm(channels), nn.SiLU(inplace=True), conv3x3(channels, out_channels))
        self.emb_layers = nn.Sequential(nn.Identity(), nn.Linear(embedding, out_channels))  # of the activated embedding
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels), nn.SiLU(inplace=True), nn.Identity(), zeroed(conv3x3(out_channels, out_channels))
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        first: Any = self.in_layers[-1]
        if self.coarse and x.device.type == "cpu" and not first.tile_side(x):
            x = x.contiguous()  # few pixels read channels first faster
        h = self.in_layers(x)
        h += self.emb_layers(emb)[..., None, None].to(h.dtype)
        out: Tensor = self.out_layers(h)
        out += self.skip_connection(x)
        return out


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of (B, C, H, W), with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        # Kept as convolutions of one tap, as which the published weights are stored.
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # (B, H*W, C)
        query, key, value = F.linear(tokens, self.qkv.weight[..., 0], self.qkv.bias).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out = F.linear(mixed, self.proj_out.weight[..., 0], self.proj_out.bias)
        return out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2).add_(x)


class Upsample(nn.Sequential):
    """Twice the resolution, by repetition and a convolution.

    On a CPU, where Winograd's filtering is not taken, each of the four pixels that one becomes is a convolution of the
    image as it was by 2 x 2 sums of the taps: 4/9 of the multiplications.
    """

    def __init__(self, channels: int) -> None:
        repeat = nn.Upsample(scale_factor=2.0, mode="nearest")
        super().__init__(OrderedDict(repeat=repeat, conv=conv3x3(channels, channels)))

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self.conv
        winograd = isinstance(conv, WinogradConv2d) and conv.tile_side(x) > 0
        if winograd or x.device.type != "cpu" or x.shape[-2] * x.shape[-1] < SUM_PIXELS:
            return super().forward(x)
        sums = conv.weight.new_tensor(TAP_SUMS)
        sums = torch.kron(sums, sums).view(2, 2, 2, 2, 9).transpose(1, 2).flatten(0, 3)  # (pixel, tap: 16, 9)
        taps = sums @ conv.weight.permute(0, 2, 3, 1).flatten(1, 2)  # (K, 16, C)
        kernel = taps.view(-1, 2, 2, x.shape[1]).permute(0, 3, 1, 2)  # (K*4, C, 2, 2)
        return F.pixel_shuffle(F.conv2d(x, kernel, conv.bias.repeat_interleave(4), padding=1), 2)[..., 1:-1, 1:-1]


class Block(nn.Sequential):
    """Layers one after the other; a residual block also gets the time step's embedding (B, E) or (1, E)."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class Detokenizer(nn.Module):
    """The network that predicts the clean image.

    ``width`` is a multiple of 32, the channels of the first level; the resolution halves from level to level. On the
    way up a level has one residual block more than on the way down. ``attention`` names levels by how many times
    smaller than the first they are.
    """

    def __init__(
        self,
        channels: int,
        code_channels: int,
        *,
        width: int = 256,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        residual_blocks: int = 3,
        attention: Sequence[int] = (4, 8),
    ) -> None:
        super().__init__()
        self.channels = channels
        self.width = width
        embedding = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        now = width * multipliers[0]
        self.input_blocks = nn.ModuleList([Block(conv3x3(channels * PATCH**2 + code_channels, now))])
        skips = [now]

        def level(entering: int, leaving: int, depth: int) -> list[nn.Module]:
            block = ResidualBlock(entering, embedding, leaving, depth >= COARSE)
            return [block, SpatialAttention(leaving)] if 2**depth in attention else [block]

        widths = [width * multiplier for multiplier in multipliers]
        for depth, leaving in enumerate(widths):
            for _ in range(residual_blocks):
                self.input_blocks.append(Block(*level(now, leaving, depth)))
                now = leaving
                skips.append(now)
            if depth < len(widths) - 1:
                halve = nn.Conv2d(now, now, 3, stride=2, padding=1)
                self.input_blocks.append(Block(nn.Sequential(OrderedDict(op=halve))))
                skips.append(now)
        self.middle_block = Block(
            ResidualBlock(now, embedding, now, True), SpatialAttention(now), ResidualBlock(now, embedding, now, True)
        )
        self.output_blocks = nn.ModuleList()
        for depth, leaving in reversed(list(enumerate(widths))):
            for number in range(residual_blocks + 1):
                layers = level(now + skips.pop(), leaving, depth)
                now = leaving
                if depth > 0 and number == residual_blocks:
                    layers.append(Upsample(now))
                self.output_blocks.append(Block(*layers))
        self.out = nn.Sequential(GroupNorm(now), nn.SiLU(inplace=True), zeroed(conv3x3(now, channels * PATCH**2)))
        self.to(memory_format=torch.channels_last)
        for block in self.modules():
            if isinstance(block, ResidualBlock) and block.coarse:
                block.to(memory_format=torch.contiguous_format)

    def forward(self, image: Tensor, timesteps: Tensor, codes: Tensor) -> Tensor:
        """The clean image (B, C, H, W), float32, of a noisy one, time steps (B,) or (1,) and codes (B, D, h, w)."""
        emb = F.silu(self.time_embed(timestep_embedding(timesteps, self.width)))  # (B, E) or (1, E)
        h = F.pixel_unshuffle(image, PATCH)  # (B, C*16, H/4, W/4)
        h = torch.cat([h, F.interpolate(codes, h.shape[-2:], mode="nearest")], dim=1)
        h = h.contiguous(memory_format=torch.channels_last)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        with torch.autocast(h.device.type, enabled=False):  # the last layers' rounding would be the image's
            return F.pixel_shuffle(self.out(h.float()), PATCH)


def conv3x3(channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the image's size: Winograd's where it is wide enough to gain."""
    if WinogradConv2d.gains(channels, out_channels):
        return WinogradConv2d(channels, out_channels)
    return nn.Conv2d(channels, out_channels, 3, padding=1)


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Cosines and sines of time steps (B,) at ``width / 2`` frequencies: (B, width)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angle = timesteps[:, None].float() * torch.exp(-math.log(10_000) / half * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
