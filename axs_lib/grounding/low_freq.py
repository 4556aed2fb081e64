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
    """Multiplies the low frequencies of a correction by a mask.

    Args:
        sigma: Gaussian scale in pixels; structure coarser than about ``4 * sigma`` counts as low frequency.
    """

    def __init__(self, sigma: float = 4.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, correction: Tensor, low_freq_mask: Tensor) -> Tensor:
        """The constrained correction.

        Args:
            correction: (B, C, H, W), any unit.
            low_freq_mask: (B, 1, H, W) in [0, 1].
        """
        return correction + (low_freq_mask - 1.0) * self.low_pass(correction)

    def low_pass(self, image: Tensor) -> Tensor:
        """The low-frequency part of (B, C, H, W).

        The image is reduced by area averaging before the blur and enlarged after, as no detail survives anyway.
        """
        factor = 4 if min(image.shape[-2:]) >= 32 else 1
        reduced = F.avg_pool2d(image, factor) if factor > 1 else image
        low = gaussian_blur(reduced, self.sigma / factor)
        if factor > 1:
            low = F.interpolate(low, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return low
