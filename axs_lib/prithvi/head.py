"""The refinement head: the image and Prithvi's features in, a correction of every pixel out.

Features are brought up from the token grid over quarter and half to full resolution; at each step the image itself
joins in and blocks of ConvNeXt (timm's) work on both. The last layer starts at zero, so a fresh head changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.fresh import zeroed

# At full, half and quarter resolution.
WIDTHS, MLP_RATIOS = (16, 48, 96), (2.0, 2.0, 4.0)
BLOCKS = 2


class RefinementHead(nn.Module):
    """ConvNeXt decoder over so many (``taps``) maps of token features of ``dim`` channels."""

    def __init__(self, dim: int, taps: int) -> None:
        super().__init__()
        from timm.layers import LayerNorm2d
        from timm.models.convnext import ConvNeXtBlock

        full, half, quarter = WIDTHS
        bands = len(OPTICAL_BANDS)
        self.norms = nn.ModuleList(LayerNorm2d(dim) for _ in range(taps))
        self.join = nn.Conv2d(dim * taps, quarter, 1)
        self.context = ConvNeXtBlock(quarter, ls_init_value=None)
        stems = nn.Conv2d(bands, full, 3, padding=1), nn.Conv2d(bands * 4, half, 3, padding=1)
        self.stems = nn.ModuleList([*stems, nn.Conv2d(bands * 16, quarter, 1)])
        self.stages = nn.ModuleList(
            nn.Sequential(*[ConvNeXtBlock(width, mlp_ratio=ratio, ls_init_value=None) for _ in range(BLOCKS)])
            for width, ratio in zip(WIDTHS, MLP_RATIOS, strict=True)
        )
        self.ups = nn.ModuleList([nn.Conv2d(half, full, 1), nn.Conv2d(quarter, half, 1)])
        self.norm = LayerNorm2d(full)
        self.out = zeroed(nn.Conv2d(full, bands, 3, padding=1))

    @property
    def untrained(self) -> bool:
        """Whether the last layer is still at its zero initialisation."""
        return not any(bool(parameter.any()) for parameter in self.out.parameters())

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> Tensor:
        """The correction (B, 4, H, W) of an image in z-units, H and W multiples of 4; features (B, dim, h, w)."""
        joined = torch.cat([norm(each) for norm, each in zip(self.norms, features, strict=True)], dim=1)
        x = _resize(self.context(self.join(joined)), image.shape[-2] // 4) + self.stems[2](F.pixel_unshuffle(image, 4))
        x = self.stages[2](x)
        x = _resize(self.ups[1](x), image.shape[-2] // 2) + self.stems[1](F.pixel_unshuffle(image, 2))
        x = self.stages[1](x)
        x = _resize(self.ups[0](x), image.shape[-2]) + self.stems[0](image)
        x = self.stages[0](x)
        return self.out(self.norm(x)).float()


def _resize(image: Tensor, height: int) -> Tensor:
    """Bilinear to a height, the width in proportion."""
    size = (height, image.shape[-1] * height // image.shape[-2])
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)
