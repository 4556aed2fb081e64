"""The season's colour: a linear function of pixel colour and time of year, added before Prithvi.

SAR hardly tells a meadow in June from one in October; the date does. It knows no other pixel, so it makes no seams, and
few enough numbers that a hundred tiles determine them. Without a date, and in the tropics, where the calendar year is
no season, it is zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.precision import exact_matmul
from axs_lib.prithvi.metadata import EncodedMetadata

TROPIC = 23.44  # degrees of latitude
DAYS = 365.25
REGRESSORS = 1 + len(OPTICAL_BANDS) + 2


class SeasonalColour(nn.Module):
    """A shift of colour by the season; a fresh one changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(OPTICAL_BANDS), REGRESSORS))

    @property
    def untrained(self) -> bool:
        """Whether it is still at its zero initialisation."""
        return not bool(self.weight.any())

    def forward(self, image: Tensor, metadata: EncodedMetadata) -> Tensor:
        """The shift (B, 4, H, W) of an image of that shape, in z-units, float32; 0 where the season is unknown."""
        return exact_matmul(self.weight, regressors(image.float(), metadata).flatten(2)).unflatten(2, image.shape[2:])


def regressors(image: Tensor, metadata: EncodedMetadata) -> Tensor:
    """(B, 7, H, W): one, the four bands, and the season on the year's circle; all 0 where the season is unknown."""
    known, cosine, sine = (part[:, None, None, None] for part in season(metadata))
    one = torch.ones_like(image[:, :1])
    return torch.cat([one, image, one * cosine, one * sine], dim=1) * known


def season(metadata: EncodedMetadata) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) each: 1 where the season is known, else 0; cosine and sine of the time of year, reversed in the south."""
    latitude = metadata.location[:, 0].nan_to_num(90.0)
    day = metadata.temporal[:, 1]
    known = (day.isfinite() & (latitude.abs() >= TROPIC)).float()
    angle = 2 * math.pi * day.nan_to_num() / DAYS
    hemisphere = known * latitude.sign()
    return known, hemisphere * angle.cos(), hemisphere * angle.sin()
