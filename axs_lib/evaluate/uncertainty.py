"""Does the predicted standard deviation of opt_v3 mean what it says? Figures of calibration, sharpness and ranking.

In: for every pixel the predicted standard deviation (``Stage3Output.uncertainty``) and the error of opt_v3, both (N,4)
in reflectance, one column a band of ``OPTICAL_BANDS``. Out: ``uncertainty_figures``, a dictionary of

============ =========== ============================================================================================
key          unit        meaning
============ =========== ============================================================================================
spread_skill 1           RMS of the predicted deviation over the RMSE: 1 is calibrated, below is overconfident. Of a
                         bare ensemble of M members it is multiplied by sqrt((M + 1) / M), because the mean of M
                         members errs by that much more than they spread (Fortin et al. 2014)
uce          reflectance mean over bins of |observed RMSE - predicted RMSE|, weighted by pixels (Laves et al. 2020, in
                         standard deviations); bins are deciles of the predicted deviation
auce         1           mean over confidence levels of |share of errors inside the central Gaussian interval - level|
                         (Gustafsson et al. 2020): 0 is calibrated, 0.5 the worst
retention    reflectance [share dropped, MSE of the rest]: pixels are dropped from the least certain on, by the mean
             ^2          predicted variance of their bands
crps         reflectance continuous ranked probability score of a Gaussian around opt_v3 with the predicted deviation
                         (Gneiting and Raftery 2007); of a deviation of 0 it is the absolute error
reliability  reflectance [predicted RMSE, observed RMSE] of each bin, from the most certain to the least
============ =========== ============================================================================================

All but ``retention`` are by band. ``measure_uncertainty`` takes the pairs of a folder through a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.data.pairs import Quality, load_pair
from axs_lib.errors import InputError
from axs_lib.evaluate.models import Grounder, WholePipeline, run, stage3_of
from axs_lib.evaluate.report import finite_only, percent
from axs_lib.evaluate.sources import EvaluationTile, OptV2Source, batches_of_one_size, select_pairs
from axs_lib.progress import track

if TYPE_CHECKING:
    from rich.table import Table

BINS = 10
DROPPED = (0.0, 0.05, *(tenth / 10 for tenth in range(1, 10)))
CALIBRATED = "AXS_CALIBRATION"
"""Key of a model's provenance that says that its deviations are calibrated: they already stand for the whole error."""


# -- the figures --------------------------------------------------------------------------------------------------


def uncertainty_figures(predicted: Tensor, error: Tensor, *, members: int | None = None) -> dict[str, Any]:
    """Every figure of the module's table.

    Args:
        predicted: (N,4) standard deviations, in reflectance.
        error: (N,4) opt_v3 minus truth, in reflectance.
        members: of a bare ensemble, whose spread the deviation is; ``None`` where it stands for the whole error.

    Raises:
        InputError: other shapes, no pixel, a negative or undefined deviation.
    """
    if predicted.shape != error.shape or predicted.ndim != 2 or predicted.shape[1] != len(OPTICAL_BANDS):
        raise InputError(
            f"predicted has shape {tuple(predicted.shape)} and error {tuple(error.shape)}; expected (N,4) twice, a row"
            " a pixel"
        )
    if len(predicted) == 0 or not bool((predicted >= 0).all()) or not bool(error.isfinite().all()):
        raise InputError(
            f"{len(predicted)} pixels were given; expected at least one, deviations from 0 and finite errors: leave"
            " out nodata"
        )
    predicted, error = predicted.double(), error.double()
    by_band = zip(OPTICAL_BANDS, predicted.T.contiguous(), error.T.contiguous(), strict=True)
    columns = {band: (sigma, wrong) for band, sigma, wrong in by_band}
    bins = {band: reliability_bins(*column) for band, column in columns.items()}
    return {
        "spread_skill": {band: spread_skill(*column, members) for band, column in columns.items()},
        "uce": {band: _uce(bins[band]) for band in columns},
        "auce": {band: auce(*column) for band, column in columns.items()},
        "retention": retention_curve(predicted, error),
        "crps": {band: gaussian_crps(*column) for band, column in columns.items()},
        "reliability": {band: [[seen, found] for _, seen, found in bins[band]] for band in columns},
    }


def spread_skill(predicted: Tensor, error: Tensor, members: int | None = None) -> float:
    """RMS of the deviations over the RMSE, both (N,); infinite where there is no error, NaN where there is neither.

    >>> spread_skill(torch.tensor([2.0, 2.0]), torch.tensor([-2.0, 2.0]))
    1.0
    >>> round(spread_skill(torch.tensor([2.0, 2.0]), torch.tensor([-2.0, 2.0]), members=4), 4)
    1.118
    """
    factor = 1.0 if members is None else math.sqrt((members + 1) / members)
    return factor * float(predicted.square().mean().sqrt() / error.square().mean().sqrt())


def reliability_bins(predicted: Tensor, error: Tensor, bins: int = BINS) -> list[tuple[int, float, float]]:
    """Pixels, predicted RMSE and observed RMSE of each bin of equal share; equal deviations share a bin.

    Args:
        predicted: (N,) standard deviations.
        error: (N,).
        bins: at most so many.
    """
    edges = _quantiles(predicted, [i / bins for i in range(1, bins)]).unique()
    which = torch.bucketize(predicted, edges, right=True)
    count = torch.bincount(which, minlength=len(edges) + 1)
    seen, found = (
        torch.bincount(which, weights=values.square(), minlength=len(edges) + 1)
        for values in (predicted, error)
    )
    return [
        (int(n), math.sqrt(float(p / n)), math.sqrt(float(o / n)))
        for n, p, o in zip(count, seen, found, strict=True)
        if n
    ]


def _uce(bins: Sequence[tuple[int, float, float]]) -> float:
    total = sum(count for count, _, _ in bins)
    return sum(count * abs(found - seen) for count, seen, found in bins) / total


def auce(predicted: Tensor, error: Tensor, levels: int = 99) -> float:
    """Mean over confidence levels of |share of errors inside the central Gaussian interval - level|.

    Args:
        predicted: (N,) standard deviations.
        error: (N,).
        levels: of confidence, evenly between 0 and 1.
    """
    # The level whose interval just reaches the error; without a deviation 0 or 1.
    needed = torch.special.erf(
        (error.abs() / predicted / math.sqrt(2.0)).nan_to_num(nan=0.0, posinf=math.inf)
    )
    level = torch.arange(1, levels + 1, dtype=needed.dtype) / (levels + 1)
    inside = torch.searchsorted(needed.sort().values, level, right=True) / len(needed)
    return float((inside - level).abs().mean())


def gaussian_crps(predicted: Tensor, error: Tensor) -> float:
    """Mean CRPS of Gaussians with these deviations around estimates with these errors, both (N,).

    >>> gaussian_crps(torch.zeros(2), torch.tensor([-3.0, 1.0]))
    2.0
    """
    z = error / predicted.clamp_min(torch.finfo(predicted.dtype).tiny)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    score = error * torch.special.erf(z / math.sqrt(2.0)) + predicted * (2 * density - 1 / math.sqrt(math.pi))
    return float(score.mean())


def retention_curve(
    predicted: Tensor, error: Tensor, dropped: Sequence[float] = DROPPED
) -> list[list[float]]:
    """[share dropped, MSE of the pixels that are left], the least certain dropped first.

    Pixels with equal certainty are dropped alike, so a deviation that says nothing gives a flat curve.

    Args:
        predicted: (N,4) standard deviations; a pixel's certainty is the mean of its variances.
        error: (N,4).
        dropped: shares, from 0 to below 1.
    """
    variance, squared = predicted.square().mean(1), error.square().mean(1)
    levels, which = variance.unique(return_inverse=True)  # ascending: what is kept comes first
    count = torch.bincount(which, minlength=len(levels)).double()
    total = torch.bincount(which, weights=squared.double(), minlength=len(levels))
    kept, sums = (torch.cat([torch.zeros(1, dtype=torch.double), x.cumsum(0)]) for x in (count, total))
    wanted = torch.tensor([(1.0 - share) * len(variance) for share in dropped], dtype=torch.double)
    upper = torch.searchsorted(kept, wanted).clamp(1, len(kept) - 1)
    part = (wanted - kept[upper - 1]) / count[upper - 1]
    left = sums[upper - 1] + part * total[upper - 1]
    return [[share, value] for share, value in zip(dropped, (left / wanted).tolist(), strict=True)]


def _quantiles(values: Tensor, levels: Sequence[float]) -> Tensor:
    """Values below which these shares lie; torch's own refuses more than 16 million values."""
    ordered = values.sort().values
    at = [min(int(level * len(ordered)), len(ordered) - 1) for level in levels]
    return ordered[at]


# -- a folder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Predicted deviations and errors over the valid pixels of a folder.

    Attributes:
        predicted: (N,4) standard deviations in reflectance.
        error: (N,4) opt_v3 minus truth in reflectance.
        tiles: how many.
        nfe: network evaluations of a denoising run; of the pipeline, of both together.
        members: of the ensemble where the deviations are its bare spread; ``None`` where they are calibrated.
    """

    predicted: Tensor
    error: Tensor
    tiles: int
    nfe: int
    members: int | None


@dataclass(frozen=True)
class UncertaintyReport:
    """Figures of ``uncertainty_figures`` over a folder, and what they were measured on."""

    figures: dict[str, Any]
    tiles: int
    pixels: int
    ensemble_size: int
    calibrated: bool

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON types; what is not finite is null."""
        figures: dict[str, Any] = finite_only(self.figures)
        return figures

    def tables(self) -> list[Table]:
        """By band, and the retention curve."""
        from rich.table import Table

        kind = "calibrated" if self.calibrated else "spread of the ensemble alone"
        by_band = Table(
            title=f"Uncertainty: {self.tiles} tiles, {self.pixels} pixels, ensemble of {self.ensemble_size}, {kind}",
            caption="spread-skill: 1 is calibrated, below is overconfident · others: less is better",
            header_style="bold",
        )
        by_band.add_column("band")
        for heading in ("spread-skill", "UCE (reflectance)", "AUCE", "CRPS (reflectance)"):
            by_band.add_column(heading, justify="right")
        for band in OPTICAL_BANDS:
            spread, uce, area, crps = (self.figures[k][band] for k in ("spread_skill", "uce", "auce", "crps"))
            by_band.add_row(band, f"{spread:.3f}", f"{uce:.5f}", f"{area:.3f}", f"{crps:.5f}")
        curve = Table(title="Least certain pixels dropped", header_style="bold")
        curve.add_column("share")
        for heading in ("MSE", "better"):
            curve.add_column(heading, justify="right")
        whole = self.figures["retention"][0][1]
        for share, mse in self.figures["retention"]:
            gain = percent(100 * (1 - mse / whole)) if whole > 0 else "-"
            curve.add_row(f"{100 * share:.0f} %", f"{mse:.6f}", gain)
        return [by_band, curve]


def evaluate_uncertainty(
    model: Grounder | WholePipeline,
    folder: str | Path,
    *,
    ensemble_size: int = 4,
    **options: Any,
) -> UncertaintyReport:
    """Measure the uncertainty map of a model on a folder of pairs.

    Args:
        model: Stage 3, or the pipeline.
        folder: NPZ pairs, see ``axs_lib.data.pairs``.
        ensemble_size: members that are averaged.
        **options: of ``measure_uncertainty``.

    Raises:
        InputError: as ``measure_uncertainty``.
    """
    measured = measure_uncertainty(model, folder, ensemble_size=ensemble_size, **options)
    return UncertaintyReport(
        figures=uncertainty_figures(measured.predicted, measured.error, members=measured.members),
        tiles=measured.tiles,
        pixels=len(measured.error),
        ensemble_size=ensemble_size,
        calibrated=measured.members is None,
    )


@torch.no_grad()
def measure_uncertainty(
    model: Grounder | WholePipeline,
    folder: str | Path,
    *,
    timesteps: int | None = None,
    ensemble_size: int = 4,
    opt_v2_source: OptV2Source = "file",
    quality: Quality = "ok",
    groups: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 8,
    force: bool = False,
    progress: bool = False,
) -> Measured:
    """Predicted deviation and error of every valid pixel of a folder; 32 bytes of memory a pixel.

    Args:
        model: Stage 3, or the pipeline (then ``opt_v2_source`` is ``stage2``).
        folder: NPZ pairs, see ``axs_lib.data.pairs``.
        timesteps: network evaluations; default those of the Stage 3 model.
        ensemble_size: members that are averaged.
        opt_v2_source: what is grounded.
        quality: ``"ok"`` or ``"all"``.
        groups: only these groups.
        seed: of the model's noise.
        batch_size: tiles of one size the model sees at once.
        force: do not refuse values that look like another unit.
        progress: show a bar on the error stream.

    Raises:
        InputError: no pairs, a broken pair, no pixel that counts, or a model that gives no uncertainty.
    """
    records = select_pairs(folder, quality, groups, opt_v2_source)
    stage3 = stage3_of(model)
    steps = stage3.timesteps if timesteps is None else timesteps
    predicted: list[Tensor] = []
    errors: list[Tensor] = []
    nfe = 0
    chunks = list(batches_of_one_size(records, batch_size))
    for chunk in track(chunks, "uncertainty", enabled=progress):
        tiles = [EvaluationTile(load_pair(record), opt_v2_source, force=force) for record in chunk]
        images = run(
            model,
            torch.stack([tile.s1 for tile in tiles]),
            torch.stack([tile.opt_v2 for tile in tiles]),
            [tile.record.metadata for tile in tiles],
            steps,
            seed,
            ensemble_size=ensemble_size,
        )
        if images.uncertainty is None:
            raise InputError(
                f"the model gives no uncertainty with an ensemble of {ensemble_size}: use 4 (--ensemble-size 4), or"
                " weights whose head predicts its own error"
            )
        nfe = max(nfe, images.nfe)
        error = images.opt_v3 - torch.stack([tile.truth for tile in tiles])
        sigma = images.uncertainty
        keep = (~(error.isnan() | sigma.isnan())).all(1)
        for kept, values in ((predicted, sigma), (errors, error)):
            kept.append(values.permute(0, 2, 3, 1)[keep].float() / DN_PER_REFLECTANCE)
    if not any(len(values) for values in errors):
        raise InputError(f"no pixel of {folder} counts: every one is nodata in an image or in the truth")
    # The pipeline runs Stage 3 once a member and gives the spread of its whole runs.
    calibrated = isinstance(model, Grounder) and CALIBRATED in model.provenance
    return Measured(
        predicted=torch.cat(predicted),
        error=torch.cat(errors),
        tiles=len(records),
        nfe=nfe,
        members=None if calibrated or ensemble_size < 2 else ensemble_size,
    )
