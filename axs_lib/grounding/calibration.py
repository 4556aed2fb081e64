"""Calibration: what a predicted standard deviation must be multiplied by so that it stands for the error.

In go pairs of predicted deviations and errors on places kept out of training (``fit_scale``); out comes one scale a
band and number of network evaluations, kept as JSON in the header of the weights it belongs to (``HEADER_KEY``).
``experiments/calibrate.py`` fits and writes it; Stage 3 multiplies its uncertainty by ``Calibration.scale(nfe)``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.errors import InputError, WeightsError

HEADER_KEY = "calibration"


@dataclass(frozen=True)
class Calibration:
    """One scale for each band and number of network evaluations.

    Attributes:
        scales: for each number of evaluations the scales in the order of ``OPTICAL_BANDS``, all above 0.

    Raises:
        InputError: no scales, another number of bands, or a scale that is not a number above 0.
    """

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
        """Scales (4,), those of the nearest number of evaluations that was fitted; of two, the smaller number's.

        >>> calibration = Calibration({1: (2.0, 2.0, 2.0, 2.0), 10: (3.0, 3.0, 3.0, 3.0)})
        >>> calibration.scale(4).tolist()
        [2.0, 2.0, 2.0, 2.0]
        """
        nearest = min(self.scales, key=lambda fitted: (abs(fitted - nfe), fitted))
        return torch.tensor(self.scales[nearest], dtype=torch.float32)

    def to_header(self) -> dict[str, str]:
        """The entry for the header of a weights file."""
        named = {str(n): dict(zip(OPTICAL_BANDS, self.scales[n], strict=True)) for n in sorted(self.scales)}
        return {HEADER_KEY: json.dumps(named)}

    @classmethod
    def from_header(cls, header: Mapping[str, str]) -> Calibration | None:
        """The calibration in the header of a weights file; ``None`` where it has none.

        Raises:
            WeightsError: an entry that is not a calibration.
        """
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


def cautious_scale(scales: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """One scale a band for a new place, from the scales of measured places, each with the same weight.

    Few places leave the scale of a new one uncertain, and an uncertainty that is too small does more harm than one that
    is too large: the square of the scale is the mean of theirs plus its standard error.

    >>> cautious_scale([(1.0, 1.0, 1.0, 3.0), (1.0, 1.0, 1.0, 4.0)])  # squares 9 and 16: 12.5 and 3.5
    (1.0, 1.0, 1.0, 4.0)
    """
    squares = torch.tensor(scales, dtype=torch.float64).square()
    spread = squares.std(0) if len(squares) > 1 else torch.zeros_like(squares[0])
    return tuple((squares.mean(0) + spread / len(squares) ** 0.5).sqrt().tolist())


def fit_scale(predicted: Tensor, error: Tensor) -> tuple[float, ...]:
    """Scales that make the RMS of the deviations equal to the RMSE, band by band.

    Args:
        predicted: (N,4) standard deviations that are not calibrated, a row a pixel.
        error: (N,4), in the same unit.

    Raises:
        InputError: other shapes, no pixel, or a band without any deviation or any error.
    """
    bands = len(OPTICAL_BANDS)
    if predicted.shape != error.shape or predicted.ndim != 2 or predicted.shape[1] != bands or not len(error):
        raise InputError(
            f"predicted has shape {tuple(predicted.shape)} and error {tuple(error.shape)}; expected (N,{bands}) twice"
        )
    ratio = error.double().square().mean(0).sqrt() / predicted.double().square().mean(0).sqrt()
    if not bool(((ratio > 0) & ratio.isfinite()).all()):
        raise InputError(
            f"the errors over the deviations are {ratio.tolist()}; expected numbers above 0: a band without any"
            " deviation (an ensemble of one, without a head that predicts its error) cannot be calibrated"
        )
    return tuple(ratio.tolist())
