"""Gaps: where opt_v2 was observed it stays, where it is unknown the correction meets it smoothly.

The trust map holds how each pixel of opt_v2 came to be (``axs_lib.checks.Trust``). A correction acts fully up to
estimates, fades out from there to 1, and is 0 where opt_v2 was observed. What the network would have changed at
observed pixels is its error there; inside a gap that error is taken off near the border, so that both sides meet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from axs_lib.blur import gaussian_blur
from axs_lib.checks import Trust

FEATHER_PX = 3.0  # Gaussian scale over which the error at the border is taken off


def unknown_share(trust: Tensor) -> Tensor:
    """1 where opt_v2 is unknown, 0 from an estimate on."""
    return (1.0 - trust / Trust.ESTIMATE).clamp_min(0.0)


def estimate_share(trust: Tensor) -> Tensor:
    """How much of a correction acts: 1 up to an estimate, falling to 0 where opt_v2 was observed."""
    return ((1.0 - trust) / (1.0 - Trust.ESTIMATE)).clamp_max(1.0)


def fit_to_observed(change: Tensor, trust: Tensor) -> Tensor:
    """A change (B, C, H, W) that is exactly 0 where ``trust`` (B, 1, H, W) is 1 and continuous at the gaps' borders."""
    fade = estimate_share(trust)
    observed = (trust == 1).to(change.dtype)
    if not bool(observed.any()):
        return change * fade
    share = gaussian_blur(observed, FEATHER_PX)
    error = gaussian_blur(change * observed, FEATHER_PX) / share.clamp_min(1e-6)
    near = (2.0 * share).clamp_max(1.0)  # about 1 at a straight border, 0 far inside
    fitted = change - near * error * unknown_share(trust)
    return torch.where(trust == 1, torch.zeros_like(change), fitted * fade)
