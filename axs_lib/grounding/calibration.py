"""Calibration: one scale a band and number of evaluations, from predicted standard deviation to that of the error.

Fitted by ``experiments/calibrate.py`` and kept as JSON in the header of the weights (``HEADER_KEY``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.errors import InputError, WeightsError

HEADER_KEY = "calibration"


@dataclass(frozen=True)
class Calibration:
    """For each number of network evaluations one scale above 0 a band, in the order of ``OPTICAL_BANDS``."""

    scales: Mapping[int, tuple[float, ...]]

    def __post_init__(self) -> None:
        if not self.scales:
            raise InputError("a calibration without scales; expected those of at least one number of evaluations")
        for nfe, values in self.scales.items():
            if nfe < 0 or len(values) != len(OPTICAL_BANDS) or not all(0 < v < math.inf for v in values):
                raise InputError(
                    f"the scales of {nfe} evaluations are {values}; expected {len(OPTICAL_BANDS)} numbers above 0"
                )

    def scale(self, nfe: int) -> Tensor:
        """Scales (4,), those of the nearest number of evaluations that was fitted; of two, the smaller number's."""
        nearest = min(self.scales, key=lambda fitted: (abs(fitted - nfe), fitted))
        return torch.tensor(self.scales[nearest], dtype=torch.float32)

    def to_header(self) -> dict[str, str]:
        """The entry for the header of a weights file."""
        named = {str(n): dict(zip(OPTICAL_BANDS, self.scales[n], strict=True)) for n in sorted(self.scales)}
        return {HEADER_KEY: json.dumps(named)}

    @classmethod
    def from_header(cls, header: Mapping[str, str]) -> Calibration | None:
        """The calibration in the header of a weights file; ``None`` where it has none."""
        if HEADER_KEY not in header:
            return None
        try:
            named = json.loads(header[HEADER_KEY])
            return cls({int(n): tuple(float(by[band]) for band in OPTICAL_BANDS) for n, by in named.items()})
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise WeightsError(
                f"the calibration in the weights' header is not readable ({type(error).__name__}: {error}); write it"
                " again with experiments/calibrate.py"
            ) from None
