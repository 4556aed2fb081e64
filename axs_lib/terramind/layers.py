"""Layers of terratorch's diffusion U-Net that do the same in less time: same weights, same names, same results.

terratorch's U-Net lays channels first, and its attention flattens, transposes and copies around one-dimensional
convolutions. In go its modules, out come the same modules with channels last in memory, attention by PyTorch's
``scaled_dot_product_attention`` and pointwise convolutions as matrix products. State dicts keep their names and shapes,
so published weights load as before. What it gains is measured in ``docs/performance.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.terramind.winograd import WinogradConv2d


class PointwiseConv2d(nn.Conv2d):
    """A 1 x 1 convolution as a matrix product over the channels; on channels-last memory nothing is copied."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


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
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        joined = F.linear(tokens, self.qkv.weight[..., 0], self.qkv.bias)
        # Each head's query, key and value lie side by side.
        query, key, value = joined.unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        out = F.linear(mixed, self.proj_out.weight[..., 0], self.proj_out.bias)
        return x + out.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class FloatSequential(nn.Sequential):
    """Layers that stay in float32 under autocast: the U-Net's last ones, whose rounding would be the image's."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def speed_up(unet: Any) -> Any:
    """Replace the slow layers of terratorch's U-Net in place and lay its weights channels last; returns the U-Net."""
    from terratorch.models.backbones.terramind.tokenizer.models.unet.unet import (
        AttentionBlock,
        QKVAttentionLegacy,
    )

    for parent in list(unet.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AttentionBlock) and isinstance(child.attention, QKVAttentionLegacy):
                setattr(parent, name, SpatialAttention(child))
            elif type(child) is nn.Conv2d and child.kernel_size == (1, 1) and child.groups == 1:
                child.__class__ = PointwiseConv2d
            elif WinogradConv2d.fits(child):
                child.__class__ = WinogradConv2d
    unet.out.__class__ = FloatSequential
    return unet.to(memory_format=torch.channels_last)
