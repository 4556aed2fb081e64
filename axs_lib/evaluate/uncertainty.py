"""Does the predicted standard deviation of opt_v3 mean what it says? Figures of calibration, sharpness and ranking.

In: for every pixel the predicted standard deviation (``Stage3Output.uncertainty``) and the error of opt_v3, both (N,4)
in reflectance, one column a band of ``OPTICAL_BANDS``. ``Uncertainty`` is the scenario that pools all tiles' pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.errors import InputError, counted
from axs_lib.evaluate.evaluator import Scenario, TileFigures
from axs_lib.evaluate.models import EvaluatedModel
from axs_lib.evaluate.sources import EvaluationTile
from axs_lib.evaluate.tables import percent, rich_table

BINS, LEVELS = 10, 99  # of reliability, of equal share; of confidence
DROPPED = (0.0, 0.05, *(tenth / 10 for tenth in range(1, 10)))
CALIBRATED = "AXS_CALIBRATION"
"""Key of a model's provenance that says that its deviations are calibrated: they already stand for the whole error."""


def uncertainty_figures(predicted: Tensor, error: Tensor, *, members: int | None = None) -> dict[str, Any]:
    """Every figure of standard deviations and errors (N,4) in reflectance, all but ``retention`` by band.

    ``spread_skill``, ``auce``, ``retention``, ``crps`` and ``reliability`` are those of the functions below; ``uce``
    is the mean over ``reliability_bins`` of |observed RMSE - predicted RMSE|, weighted by pixels (Laves et al. 2020).
    ``members`` are those of a bare ensemble; ``None`` where the deviation stands for the whole error. ``InputError``
    for other shapes, no pixel, a negative or undefined deviation.
    """
    if predicted.shape != error.shape or predicted.ndim != 2 or predicted.shape[1] != len(OPTICAL_BANDS):
        raise InputError(
            f"predicted has shape {tuple(predicted.shape)} and error {tuple(error.shape)}; expected (N,4) twice"
        )
    if len(predicted) == 0 or not bool((predicted >= 0).all()) or not bool(error.isfinite().all()):
        raise InputError(
            f"{len(predicted)} pixels were given; expected at least one, deviations from 0 and finite errors: leave"
            " out nodata"
        )
    predicted, error = predicted.double(), error.double()
    columns = dict(zip(OPTICAL_BANDS, zip(predicted.T.contiguous(), error.T.contiguous(), strict=True), strict=True))
    bins = {band: reliability_bins(*column) for band, column in columns.items()}
    return {
        "spread_skill": {band: spread_skill(*column, members) for band, column in columns.items()},
        "uce": {
            band: sum(count * abs(found - seen) for count, seen, found in each) / len(error)
            for band, each in bins.items()
        },
        "auce": {band: auce(*column) for band, column in columns.items()},
        "retention": retention_curve(predicted, error),
        "crps": {band: gaussian_crps(*column) for band, column in columns.items()},
        "reliability": {band: [[seen, found] for _, seen, found in bins[band]] for band in columns},
    }


def spread_skill(predicted: Tensor, error: Tensor, members: int | None = None) -> float:
    """RMS of the deviations over the RMSE, both (N,): 1 is calibrated, below is overconfident.

    Of a bare ensemble it is multiplied by sqrt((M + 1) / M), because the mean of M ``members`` errs by that much more
    than they spread (Fortin et al. 2014). Infinite where there is no error, NaN where there is neither.
    """
    factor = 1.0 if members is None else math.sqrt((members + 1) / members)
    return factor * float(predicted.square().mean().sqrt() / error.square().mean().sqrt())


def reliability_bins(predicted: Tensor, error: Tensor) -> list[tuple[int, float, float]]:
    """Pixels, predicted RMSE and observed RMSE of each bin of equal share, both (N,); equal deviations share a bin."""
    edges = predicted.sort().values[[len(predicted) * i // BINS for i in range(1, BINS)]].unique()
    which = torch.bucketize(predicted, edges, right=True)
    count = torch.bincount(which, minlength=len(edges) + 1)
    seen, found = (torch.bincount(which, x.square(), minlength=len(edges) + 1) for x in (predicted, error))
    columns = zip(count.tolist(), (seen / count).sqrt().tolist(), (found / count).sqrt().tolist(), strict=True)
    return [row for row in columns if row[0]]


def auce(predicted: Tensor, error: Tensor) -> float:
    """Mean over confidence levels of |share of errors in the central Gaussian interval - level|, both (N,).

    0 is calibrated, 0.5 the worst (Gustafsson et al. 2020).
    """
    # The level whose interval just reaches the error; without a deviation 0 or 1.
    needed = torch.special.erf((error.abs() / predicted / math.sqrt(2.0)).nan_to_num(nan=0.0, posinf=math.inf))
    level = torch.arange(1, LEVELS + 1, dtype=needed.dtype) / (LEVELS + 1)
    inside = torch.searchsorted(needed.sort().values, level, right=True) / len(needed)
    return float((inside - level).abs().mean())


def gaussian_crps(predicted: Tensor, error: Tensor) -> float:
    """Mean CRPS (Gneiting and Raftery 2007) of Gaussians with these deviations and estimates' errors, both (N,)."""
    z = error / predicted.clamp_min(torch.finfo(predicted.dtype).tiny)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    score = error * torch.special.erf(z / math.sqrt(2.0)) + predicted * (2 * density - 1 / math.sqrt(math.pi))
    return float(score.mean())


def retention_curve(predicted: Tensor, error: Tensor) -> list[list[float]]:
    """[share dropped, MSE of the pixels that are left] of deviations and errors (N,4), the least certain dropped first.

    Pixels with equal mean variance are dropped alike, so a deviation that says nothing gives a flat curve.
    """
    variance, squared = predicted.square().mean(1), error.square().mean(1)
    levels, which = variance.unique(return_inverse=True)  # ascending: what is kept comes first
    count = torch.bincount(which, minlength=len(levels)).double()
    total = torch.bincount(which, weights=squared.double(), minlength=len(levels))
    kept, sums = (torch.cat([torch.zeros(1, dtype=torch.double), x.cumsum(0)]) for x in (count, total))
    wanted = torch.tensor([(1.0 - share) * len(variance) for share in DROPPED], dtype=torch.double)
    upper = torch.searchsorted(kept, wanted).clamp(1, len(kept) - 1)
    part = (wanted - kept[upper - 1]) / count[upper - 1]
    left = sums[upper - 1] + part * total[upper - 1]
    return [[share, value] for share, value in zip(DROPPED, (left / wanted).tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class Uncertainty(Scenario):
    """The main scenario's estimates grounded with an ensemble, whose uncertainty map is held against the errors."""

    ensemble_size: int = 4

    name: ClassVar[str] = "uncertainty"
    needs: ClassVar[str] = "tile with a valid pixel"

    def measure(self, tiles: Sequence[EvaluationTile], model: EvaluatedModel) -> Iterable[TileFigures]:
        """Of each tile as facts: ``predicted`` and ``error`` (N,4) in reflectance, and ``members``."""
        s1 = torch.stack([tile.s1 for tile in tiles])
        opt_v2 = torch.stack([tile.estimate(model.source)[0] for tile in tiles])
        images = model.run(s1, opt_v2, [tile.record.metadata for tile in tiles], ensemble_size=self.ensemble_size)
        if images.uncertainty is None:
            raise InputError(
                f"the model gives no uncertainty with an ensemble of {self.ensemble_size}: use 4"
                " (--uncertainty-members 4), or weights whose head predicts its own error"
            )
        # The pipeline runs Stage 3 once a member and gives the spread of its whole runs.
        calibrated = not model.is_pipeline and CALIBRATED in model.wrapped.provenance
        members = None if calibrated or self.ensemble_size < 2 else self.ensemble_size
        for tile, opt_v3, sigma in zip(tiles, images.opt_v3, images.uncertainty, strict=True):
            error = opt_v3 - tile.truth
            keep = (~(error.isnan() | sigma.isnan())).all(0)
            predicted, error = (values[:, keep].T.float() / DN_PER_REFLECTANCE for values in (sigma, error))
            facts = {"predicted": predicted, "error": error, "members": members, "nfe": images.nfe}
            yield TileFigures(tile.record, {}, facts, "" if keep.any() else "no valid pixel")

    def to_json(self, tiles: Sequence[TileFigures], left_out: Sequence[str]) -> dict[str, Any]:
        predicted, error = (torch.cat([tile.facts[key] for tile in tiles]) for key in ("predicted", "error"))
        members = tiles[0].facts["members"]
        return {
            "tiles": len(tiles),
            "pixels": len(error),
            "ensemble_size": self.ensemble_size,
            "calibrated": members is None,
            **uncertainty_figures(predicted, error, members=members),
        }

    def tables(self, outcome: dict[str, Any], caption: str) -> list[Table]:
        title = (
            f"Uncertainty: {counted(outcome['tiles'], 'tile')}, {counted(outcome['pixels'], 'pixel')}, ensemble of"
            f" {outcome['ensemble_size']}, {'calibrated' if outcome['calibrated'] else 'spread of the ensemble alone'}"
        )
        keys = {"spread_skill": 3, "uce": 5, "auce": 3, "crps": 5}
        rows = [
            [band, *("-" if (v := outcome[key][band]) is None else f"{v:.{digits}f}" for key, digits in keys.items())]
            for band in OPTICAL_BANDS
        ]
        note = "spread-skill: 1 is calibrated, below is overconfident · others: less is better"
        headings = ("band", "spread-skill", "UCE (reflectance)", "AUCE", "CRPS (reflectance)")
        whole = outcome["retention"][0][1]
        kept = [
            [f"{100 * dropped:.0f} %", f"{mse:.6f}", percent(100 * (1 - mse / whole)) if whole > 0 else "-"]
            for dropped, mse in outcome["retention"]
        ]
        return [
            rich_table(title, headings, rows, note),
            rich_table("Error of the rest", ("least certain\npixels dropped", "MSE", "better"), kept),
        ]
