"""Single bright or dark pixels, such as hot pixels and glints, which would stand for a whole tile in its statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from axs_lib.nodata import spread

RADIUS_PX = 1  # what is smaller than a square of this radius may be a spike
STANDS_OUT = 30.0  # times the mean over the tile
LEAST = 4.0  # z-units, which hardly any ground is, bright roofs included


def without_spikes(image: Tensor, known: Tensor) -> Tensor:
    """(B, 4, H, W), z-scored, with its surroundings in place of what stands out far beside the ``known`` pixels."""
    count = known.sum((2, 3), keepdim=True).clamp_min(1)
    for sign in (1.0, -1.0):
        bright = sign * image
        surroundings = spread(-spread(-bright, RADIUS_PX), RADIUS_PX)  # what is bright and small is gone
        above = bright - surroundings
        most = STANDS_OUT * (above * known).sum((2, 3), keepdim=True) / count
        image = sign * torch.where(above > most.clamp_min(LEAST), surroundings, bright)
    return image
