"""Damage test: does Stage 3 leave a good estimate alone, and what does it do to damage of other kinds?

In: a Stage 3 model and a folder of real pairs. Every truth is damaged in each way of ``DAMAGES``, one thing at a time,
the first of them none at all, and grounded as an estimate. Out: a ``DamageReport`` with a row for each: how far from
the truth the image was before and after. Random draws depend on nothing but the tile's name.
"""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.bands import DN_PER_REFLECTANCE, VALID_DN
from axs_lib.data.pairs import PairRecord, Quality, load_pair
from axs_lib.evaluate.evaluator import water_on_land
from axs_lib.evaluate.models import Grounder, WholePipeline, ground, stage3_of
from axs_lib.evaluate.report import CONTRADICTED_SHARE, finite_only
from axs_lib.evaluate.sources import EvaluationTile, batches_of_one_size, select_pairs
from axs_lib.grounding.low_freq import gaussian_blur
from axs_lib.nodata import fill_nodata, valid_pixels
from axs_lib.progress import track

if TYPE_CHECKING:
    from rich.table import Table

FWHM_PER_SIGMA_PX = 23.548  # metres of full width at half maximum for one pixel (10 m) of standard deviation

Damage = Callable[[Tensor, torch.Generator], Tensor]  # truth (1, 4, H, W) in DN -> estimate


def _blurred(metres: float) -> Damage:
    return lambda truth, random: gaussian_blur(truth, metres / FWHM_PER_SIGMA_PX)


def _noisy(level: float) -> Damage:
    return lambda truth, random: truth + level * torch.randn(truth.shape, generator=random)


def _coarse(factor: int, mode: str) -> Damage:
    def apply(truth: Tensor, random: torch.Generator) -> Tensor:
        height, width = truth.shape[-2:]
        size = (-(-height // factor), -(-width // factor))
        return F.interpolate(F.interpolate(truth, size=size, mode="area"), size=(height, width), mode=mode)

    return apply


def _striped(truth: Tensor, random: torch.Generator) -> Tensor:
    return truth + 30.0 * torch.randn((1, truth.shape[1], 1, truth.shape[-1]), generator=random)


def _sharpened(truth: Tensor, random: torch.Generator) -> Tensor:
    return truth + 0.5 * (truth - gaussian_blur(truth, 1.0))


DAMAGES: dict[str, Damage] = {
    "none": lambda truth, random: truth,
    "blur 10 m": _blurred(10),
    "blur 20 m": _blurred(20),
    "blur 30 m": _blurred(30),
    "blur 60 m": _blurred(60),
    "blur 100 m": _blurred(100),
    "20 m pixels, nearest": _coarse(2, "nearest"),
    "20 m pixels, bicubic": _coarse(2, "bicubic"),
    "60 m pixels, bilinear": _coarse(6, "bilinear"),
    "noise 20 DN": _noisy(20),
    "noise 50 DN": _noisy(50),
    "noise 150 DN": _noisy(150),
    "stripes 30 DN": _striped,
    "sharpened": _sharpened,
    "8 % brighter": lambda truth, random: 1.08 * truth,
    "100 DN brighter": lambda truth, random: truth + 100.0,
    "1 px aside": lambda truth, random: F.pad(truth, (1, 0, 0, 0), mode="replicate")[..., :-1],
}


@dataclass(frozen=True)
class DamagedTile:
    """Mean squared errors of one tile, reflectance squared.

    Attributes:
        record: the tile.
        before: by damage, of the estimate from the truth.
        after: of opt_v3 from the truth.
        changed: of opt_v3 from the estimate.
        contradicted: whether the SAR shows water on land of the truth (``TileResult.contradicted``).
    """

    record: PairRecord
    before: dict[str, float]
    after: dict[str, float]
    changed: dict[str, float]
    contradicted: bool = False


@dataclass(frozen=True)
class DamageReport:
    """The outcome of a damage test.

    Attributes:
        tiles: one result a tile.
        timesteps: network evaluations.
        seed: of the model's noise.
    """

    tiles: list[DamagedTile]
    timesteps: int
    seed: int

    def rows(self, *, contradicted: bool = True) -> list[dict[str, Any]]:
        """A row for each damage; see ``docs/evaluate.md``.

        Args:
            contradicted: with the tiles whose SAR shows another day than the truth.
        """
        tiles = [tile for tile in self.tiles if contradicted or not tile.contradicted]
        return [_row(name, tiles) for name in DAMAGES] if tiles else []

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types; see ``docs/evaluate.md``."""
        report = {
            "tiles": len(self.tiles),
            "timesteps": self.timesteps,
            "seed": self.seed,
            "rows": self.rows(),
            "without_contradicted": self.rows(contradicted=False),
        }
        finite: dict[str, Any] = finite_only(report)
        return finite

    def tables(self) -> list[Table]:
        """A rich table, errors in DN, and another where the SAR contradicts some tiles but not all."""
        agreeing = sum(not tile.contradicted for tile in self.tiles)
        tables = [self._table(f"{len(self.tiles)} tiles", self.rows())]
        if 0 < agreeing < len(self.tiles):
            title = f"the {agreeing} tiles whose SAR and truth agree about water"
            tables.append(self._table(title, self.rows(contradicted=False)))
        return tables

    def _table(self, title: str, rows: list[dict[str, Any]]) -> Table:
        from rich.table import Table

        table = Table(
            title=f"Estimates with one damage: {title}",
            caption=f"{self.timesteps} timesteps · seed {self.seed} · RMSE in DN (reflectance x 10000)",
            header_style="bold",
            box=None,
            pad_edge=False,
        )
        table.add_column("damage", no_wrap=True)
        for heading in ("opt_v2", "opt_v3", "changed by", "MSE", "better", "worst tile"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            errors = [f"{DN_PER_REFLECTANCE * row[key]:.0f}" for key in ("rmse_v2", "rmse_v3", "rms_change")]
            shares = ["", "", ""]
            if row["wins"] is not None:
                shares = [
                    f"{-row['mse_improvement_of_mean_%']:+.0f} %",
                    f"{100 * row['wins']:.0f} %",
                    f"{row['worst_tile_%']:+.0f} %",
                ]
            table.add_row(row["damage"], *errors, *shares)
        return table


def _row(name: str, tiles: Sequence[DamagedTile]) -> dict[str, Any]:
    before, after, changed = (
        [getattr(tile, part)[name] for tile in tiles] for part in ("before", "after", "changed")
    )
    mean_before, mean_after = statistics.fmean(before), statistics.fmean(after)
    ratios = [new / old for old, new in zip(before, after, strict=True) if old > 0]
    return {
        "damage": name,
        "rmse_v2": mean_before**0.5,
        "rmse_v3": mean_after**0.5,
        "rms_change": statistics.fmean(changed) ** 0.5,
        "mse_improvement_of_mean_%": 100 * (1 - mean_after / mean_before) if mean_before else None,
        "wins": statistics.fmean(ratio < 1 for ratio in ratios) if ratios else None,
        "worst_tile_%": 100 * (max(ratios) - 1) if ratios else None,
    }


def damage(truth: Tensor, name: str, tile: str) -> Tensor:
    """The estimate (4, H, W) in whole DN that a damage makes of a truth (4, H, W), no nodata; by the tile's name."""
    random = torch.Generator().manual_seed(zlib.crc32(f"{name} {tile}".encode()))
    return DAMAGES[name](truth[None], random)[0].round().clamp(*VALID_DN)


def evaluate_damages(
    model: Grounder | WholePipeline,
    folder: str | Path,
    *,
    timesteps: int | None = None,
    quality: Quality = "ok",
    groups: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 8,
    force: bool = False,
    progress: bool = False,
) -> DamageReport:
    """Damage every tile of a folder in every way and see what Stage 3 makes of it.

    Args:
        model: Stage 3, or a pipeline, of which Stage 3 is tested.
        folder: NPZ pairs.
        timesteps: network evaluations; default the model's.
        quality: ``"ok"`` or ``"all"``.
        groups: only these groups.
        seed: of the model's noise.
        batch_size: tiles of one size the model sees at once.
        force: do not refuse values that look like another unit.
        progress: show a bar on the error stream.

    Raises:
        InputError: as ``evaluate_folder``.
    """
    stage3 = stage3_of(model)
    steps = stage3.timesteps if timesteps is None else timesteps
    records = select_pairs(folder, quality, groups)
    with torch.no_grad():
        results = _damage_tiles(stage3, records, steps, seed, batch_size, force)
        tiles = list(track(results, "damages", enabled=progress, total=len(records)))
    return DamageReport(tiles, steps, seed)


def _damage_tiles(
    stage3: Grounder, records: list[PairRecord], timesteps: int, seed: int, batch_size: int, force: bool
) -> Iterator[DamagedTile]:
    """The result of every tile."""
    for chunk in batches_of_one_size(records, batch_size):
        tiles = [EvaluationTile(load_pair(each), "degraded", force=force) for each in chunk]
        s1 = torch.stack([tile.s1 for tile in tiles])
        truth = torch.stack([tile.truth for tile in tiles])
        valid = valid_pixels(truth)
        whole = fill_nodata(truth, valid)
        parts: list[dict[str, list[float]]] = [{}, {}, {}]
        for name in DAMAGES:
            opt_v2 = torch.stack(
                [damage(image, name, tile.record.name) for image, tile in zip(whole, tiles, strict=True)]
            )
            opt_v3 = ground(stage3, s1, opt_v2, timesteps, seed).image.cpu()
            pairs = ((opt_v2, whole), (opt_v3, whole), (opt_v3, opt_v2))
            for part, (image, other) in zip(parts, pairs, strict=True):
                part[name] = _mean_squares(image, other, valid)
        for index, tile in enumerate(tiles):
            before, after, changed = (
                {name: errors[index] for name, errors in part.items()} for part in parts
            )
            contradicted = water_on_land(tile) > CONTRADICTED_SHARE
            yield DamagedTile(tile.record, before, after, changed, contradicted)


def _mean_squares(image: Tensor, other: Tensor, valid: Tensor) -> list[float]:
    """Mean squared difference of each tile over its valid pixels, reflectance squared."""
    valid = (valid & image.isfinite().all(1, keepdim=True)).expand_as(image)
    squares = torch.where(valid, (image - other) / DN_PER_REFLECTANCE, 0.0).square()
    means: list[float] = (squares.sum((1, 2, 3)) / valid.sum((1, 2, 3)).clamp_min(1)).tolist()
    return means
