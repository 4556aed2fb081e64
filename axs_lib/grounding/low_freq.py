"""The low-frequency constraint: a correction keeps its detail, its low frequencies pass only where a mask allows.

Stage 2 is trusted for broad colour, the SAR for structure. A Gaussian splits a correction into a low and a high
frequency part, and the low part is multiplied by ``low_freq_mask``: 0 keeps the estimate's broad colour to 1e-6, 1 lets
the whole correction through (a flood that the SAR shows and the estimate does not).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from axs_lib.blur import gaussian_blur

SIGMA_PX = 4.0  # of the Gaussian: what is coarser than about four of it is low-frequency


def constrain_low_frequencies(correction: Tensor, low_freq_mask: Tensor) -> Tensor:
    """The constrained correction (B, C, H, W), given the mask (B, 1, H, W) in [0, 1]."""
    if min(correction.shape[-2:]) < 32:
        low = gaussian_blur(correction, SIGMA_PX)
    else:  # at a quarter of the resolution
        low = gaussian_blur(F.avg_pool2d(correction, 4), SIGMA_PX / 4)
        low = F.interpolate(low, size=correction.shape[-2:], mode="bilinear")
    return correction + (low_freq_mask - 1.0) * low
