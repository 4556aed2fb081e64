"""The low-frequency constraint: a correction keeps its detail, its low frequencies pass only where a mask allows.

Stage 2 is trusted for broad colour, the SAR for structure. A Gaussian splits a correction into a low and a high
frequency part, and the low part is multiplied by ``low_freq_mask``: 0 keeps the estimate's broad colour to 1e-6, 1 lets
the whole correction through (a flood that the SAR shows and the estimate does not).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.blur import gaussian_blur


class LowFrequencyConstraint(nn.Module):
    """Multiplies the low frequencies of a correction, coarser than about ``4 * sigma`` pixels, by a mask."""

    def __init__(self, sigma: float = 4.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, correction: Tensor, low_freq_mask: Tensor) -> Tensor:
        """The constrained correction (B, C, H, W), given the mask (B, 1, H, W) in [0, 1]."""
        return correction + (low_freq_mask - 1.0) * self.low_pass(correction)

    def low_pass(self, image: Tensor) -> Tensor:
        """The low-frequency part of (B, C, H, W); large images are blurred at a quarter of their resolution."""
        if min(image.shape[-2:]) < 32:
            return gaussian_blur(image, self.sigma)
        low = gaussian_blur(F.avg_pool2d(image, 4), self.sigma / 4)
        return F.interpolate(low, size=image.shape[-2:], mode="bilinear")
