"""Layers of terratorch's diffusion U-Net that do the same in less time: same weights, same names, same results.

terratorch's U-Net lays channels first, its attention flattens, transposes and copies around one-dimensional
convolutions, and its residual blocks go over the image once for every sum. In go its modules, out come the same modules
with channels last in memory, attention by PyTorch's ``scaled_dot_product_attention``, pointwise convolutions as matrix
products and sums left to the convolution before them. State dicts keep their names and shapes, so published weights
load as before. What it gains is measured in ``docs/performance.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.terramind.integers import IntegerLinear
from axs_lib.terramind.packed import PackedConv2d, add, linear
from axs_lib.terramind.winograd import WinogradConv2d


class PointwiseConv2d(nn.Conv2d):
    """A 1 x 1 convolution as a matrix product over the channels; on channels-last memory nothing is copied."""

    def forward(self, x: Tensor, shift: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """As ``PackedConv2d.forward``."""
        out = linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)
        return add(out, shift, onto)


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of (B, C, H, W), in place of terratorch's ``AttentionBlock``.

    Args:
        block: the block whose normalisation and projections are taken over.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm = block.norm
        self.qkv = block.qkv
        self.proj_out = block.proj_out
        self.num_heads: int = block.num_heads

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = normalised(x, self.norm).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        joined = projected(tokens, self.qkv)
        # Each head's query, key and value lie side by side.
        query, key, value = joined.unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        out = projected(mixed, self.proj_out)
        return x + out.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """In place of terratorch's ``ResBlock``: what is added to a convolution's result, the convolution adds.

    Args:
        block: the block whose layers are taken over; neither resamples nor scales by the embedding.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.in_layers = block.in_layers
        self.emb_layers = block.emb_layers
        self.out_layers = block.out_layers
        self.skip_connection = block.skip_connection

    @classmethod
    def fits(cls, block: Any) -> bool:
        """Whether a block of terratorch's is one that this class stands for."""
        return not (block.updown or block.use_scale_shift_norm)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W), given the time step's embedding, (B, E) or (1, E)."""
        norm, _, first = self.in_layers
        h, shift = silu(normalised(x, norm)), self.emb_layers(emb)
        if len(shift) == 1:
            h = first(h, shift[0])
        else:
            h = first(h)
            h = h + shift[..., None, None].to(h.dtype)
        norm, _, dropout, second = self.out_layers
        return second(dropout(silu(normalised(h, norm))), onto=self.skip_connection(x))


class BlockSequence(nn.Sequential):
    """In place of terratorch's ``TimestepEmbedSequential``: what has layers for the embedding gets it."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if hasattr(layer, "emb_layers") else layer(x)
        return x


class FloatSequential(nn.Sequential):
    """Layers that stay in float32 under autocast: the U-Net's last ones, whose rounding would be the image's."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def projected(tokens: Tensor, layer: nn.Conv1d | IntegerLinear) -> Tensor:
    """Tokens (B, N, C) through a convolution of one tap, or what stands in for it."""
    return layer(tokens) if isinstance(layer, IntegerLinear) else linear(tokens, layer.weight, layer.bias)


def normalised(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group normalisation in float32, of x's own precision in and out."""
    if x.device.type == "cpu":  # computes so by itself
        return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.group_norm(x.float(), norm.num_groups, norm.weight, norm.bias, norm.eps).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU of what nothing else needs."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def speed_up(unet: Any) -> Any:
    """Replace the slow layers of terratorch's U-Net in place and lay its weights channels last; returns the U-Net."""
    from terratorch.models.backbones.terramind.tokenizer.models.unet.unet import (
        AttentionBlock,
        QKVAttentionLegacy,
        ResBlock,
        TimestepEmbedSequential,
    )

    for parent in list(unet.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AttentionBlock) and isinstance(child.attention, QKVAttentionLegacy):
                setattr(parent, name, SpatialAttention(child))
            elif isinstance(child, ResBlock) and ResidualBlock.fits(child):
                setattr(parent, name, ResidualBlock(child))
            elif type(child) is TimestepEmbedSequential:
                child.__class__ = BlockSequence
            elif PackedConv2d.fits(child) and child.kernel_size == (1, 1) and child.stride == (1, 1):
                child.__class__ = PointwiseConv2d
            elif WinogradConv2d.fits(child):
                child.__class__ = WinogradConv2d
            elif PackedConv2d.fits(child):
                child.__class__ = PackedConv2d
    unet.out.__class__ = FloatSequential
    return unet.to(memory_format=torch.channels_last)
