"""Kinds of estimates: what Stage 3 makes of estimates that were made in many ways, most of all of kinds it never met.

Every truth is turned into an estimate of each kind of ``axs_lib.data.estimates``, and grounded; a kind that needs an
image of another date counts where the folder has one. The median over the kinds whose ``split`` is ``report`` is the
figure to quote. Draws depend on nothing but the names of kind and tile.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.data.estimates import KINDS, make_estimate
from axs_lib.errors import counted
from axs_lib.evaluate.estimates import sar_consistent
from axs_lib.evaluate.evaluator import Figures, Scenario, TileFigures
from axs_lib.evaluate.models import EvaluatedModel
from axs_lib.evaluate.sources import EvaluationTile, generator_of, water_on_land
from axs_lib.evaluate.tables import over_tiles, percent, rich_table, share
from axs_lib.metrics import improvement
from axs_lib.nodata import valid_pixels

REPORT = "report"
SPLITS = {"train": "trained on", "choose": "left out, used for choices", REPORT: "left out"}
SAME_DN = 10.0  # RMSE of an estimate that is as good as the truth: its relative change tells nothing


@dataclass(frozen=True, eq=False)
class EstimateKinds(Scenario):
    """An estimate of every kind of every tile; Stage 3 by itself, also of the pipeline."""

    name: ClassVar[str] = "damages"

    def measure(self, tiles: Sequence[EvaluationTile], model: EvaluatedModel) -> Iterable[TileFigures]:
        figures: list[dict[str, Figures]] = [{} for _ in tiles]
        others = [model.other_date(tile) for tile in tiles]
        for kind in KINDS:
            made = {}
            for index, (tile, other) in enumerate(zip(tiles, others, strict=True)):
                estimate = estimate_of(kind, tile.truth, tile.record.name, None if other is None else other.truth)
                if estimate is not None:
                    made[index] = estimate
            if not made:
                continue
            opt_v2 = torch.stack(list(made.values()))
            images = model.ground(torch.stack([tiles[index].s1 for index in made]), opt_v2)
            for place, index in enumerate(made):
                sigma = None if images.uncertainty is None else images.uncertainty[place]
                figures[index][kind] = measure_kind(opt_v2[place], images.opt_v3[place], tiles[index].truth, sigma)
        for tile, of_tile in zip(tiles, figures, strict=True):
            yield TileFigures(tile.record, of_tile, {"sar_water_on_land": water_on_land(tile.s1, tile.truth)})

    def to_json(self, tiles: Sequence[TileFigures], left_out: Sequence[str]) -> dict[str, Any]:
        """The errors of every kind of estimate.

        ``tiles`` how many; ``all_tiles`` with ``tiles``, ``summary`` (see ``summary_of``) and ``rows``;
        ``sar_consistent`` the same without the tiles whose SAR shows another day; ``per_tile`` the errors of each
        kind. A row: ``kind``; ``split``; ``tiles``; ``rmse_v2``, ``rmse_v3``, ``rms_change`` (reflectance);
        ``mse_change_%``, ``mae_change_%`` of the means, below zero is better; ``wins``, ``worst_tile_%`` over the tiles
        whose opt_v2 is wrong; ``spread_skill`` by band.
        """
        parts = {"all_tiles": tiles, "sar_consistent": sar_consistent(tiles)}
        outcome: dict[str, Any] = {"tiles": len(tiles)}
        for name, part in ((name, part) for name, part in parts.items() if part):
            rows = [_row(kind, part) for kind in KINDS if any(kind in tile.figures for tile in part)]
            outcome[name] = {"tiles": len(part), "summary": summary_of(rows), "rows": rows}
        outcome["per_tile"] = [{**tile.named(), "kinds": tile.figures} for tile in tiles]
        return outcome

    def tables(self, outcome: dict[str, Any], caption: str) -> list[Table]:
        titles = {"all_tiles": "", "sar_consistent": " whose SAR and truth agree about water"}
        return [_table(outcome[key], title, caption) for key, title in titles.items() if key in outcome]


def estimate_of(kind: str, truth: Tensor, tile: str, older: Tensor | None = None) -> Tensor | None:
    """The estimate (4, H, W) of a kind for a tile, by both names; None where an older image is needed."""
    if KINDS[kind].make is None and older is None:
        return None
    given = None if older is None else older[None]
    return make_estimate(kind, truth[None], generator=generator_of(f"{kind} {tile}"), given=given)[0]


def measure_kind(opt_v2: Tensor, opt_v3: Tensor, truth: Tensor, sigma: Tensor | None) -> Figures:
    """Errors of one tile before and after, in reflectance; all inputs (4, H, W) in DN, NaN = nodata.

    ``change`` is mean squared; of each band ``error_B`` is opt_v3's MSE, ``predicted_B`` the mean predicted variance.
    """
    keep = valid_pixels(truth[None], opt_v3[None])[0, 0]
    before, after, real = (image[:, keep].double() / DN_PER_REFLECTANCE for image in (opt_v2, opt_v3, truth))
    squared = (after - real).square().mean(1)
    spread = torch.full((4,), math.nan) if sigma is None else (sigma[:, keep] / DN_PER_REFLECTANCE).square().mean(1)
    wrong = {"v2": before - real, "v3": after - real}
    return {
        **{f"mse_{key}": float(error.square().mean()) for key, error in wrong.items()},
        **{f"mae_{key}": float(error.abs().mean()) for key, error in wrong.items()},
        "change": float((after - before).square().mean()),
        **{f"error_{band}": float(value) for band, value in zip(OPTICAL_BANDS, squared, strict=True)},
        **{f"predicted_{band}": float(value) for band, value in zip(OPTICAL_BANDS, spread, strict=True)},
    }


def summary_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What to quote of the rows of ``to_json`` of split ``report``, and the worst tile of all kinds, or None."""
    known = [row for row in rows if row["split"] == REPORT and row["mse_change_%"] is not None]
    changes = {row["kind"]: row["mse_change_%"] for row in known}
    tiles = {row["kind"]: row["worst_tile_%"] for row in rows if row["worst_tile_%"] is not None}
    worst = max(changes, key=lambda kind: changes[kind], default=None)
    worst_tile = max(tiles, key=lambda kind: tiles[kind], default=None)
    return {
        "kinds": len(changes),
        "median_mse_change_%": statistics.median(changes.values()) if changes else None,
        "worst_kind": worst,
        "worst_kind_mse_change_%": changes.get(worst),
        "worst_tile_%": tiles.get(worst_tile),
        "worst_tile_kind": worst_tile,
    }


def summary_text(summary: dict[str, Any]) -> str:
    """``summary_of`` in words."""
    return (
        f"{summary['kinds']} kinds left out of training: median MSE change {percent(summary['median_mse_change_%'])},"
        f" worst kind {percent(summary['worst_kind_mse_change_%'])} ({summary['worst_kind']}); worst tile of all kinds"
        f" {percent(summary['worst_tile_%'])} ({summary['worst_tile_kind']})"
    )


def _row(kind: str, tiles: Sequence[TileFigures]) -> dict[str, Any]:
    of_tiles = [tile.figures[kind] for tile in tiles if kind in tile.figures]
    mean = over_tiles(of_tiles)
    least = (SAME_DN / DN_PER_REFLECTANCE) ** 2
    ratios = [each["mse_v3"] / each["mse_v2"] for each in of_tiles if each["mse_v2"] > least]
    wrong = mean["mse_v2"] > least
    return {
        "kind": kind,
        "split": KINDS[kind].split,
        "tiles": len(of_tiles),
        "rmse_v2": mean["mse_v2"] ** 0.5,
        "rmse_v3": mean["mse_v3"] ** 0.5,
        "rms_change": mean["change"] ** 0.5,
        "mse_change_%": -improvement(mean["mse_v2"], mean["mse_v3"]) if wrong else None,
        "mae_change_%": -improvement(mean["mae_v2"], mean["mae_v3"]) if wrong else None,
        "wins": statistics.fmean(ratio < 1 for ratio in ratios) if ratios else None,
        "worst_tile_%": 100 * (max(ratios) - 1) if ratios else None,
        "spread_skill": {
            band: math.sqrt(mean[f"predicted_{band}"] / mean[f"error_{band}"]) if mean[f"error_{band}"] > 0 else None
            for band in OPTICAL_BANDS
        },
    }


def cells_of(row: dict[str, Any]) -> list[str]:
    """A row for people: kind, RMSE of opt_v2 and opt_v3 in DN, changes of MSE and MAE, tiles better, worst tile."""
    return [
        row["kind"],
        *(f"{DN_PER_REFLECTANCE * row[key]:.0f}" for key in ("rmse_v2", "rmse_v3")),
        percent(row["mse_change_%"]),
        percent(row["mae_change_%"]),
        share(row["wins"]),
        percent(row["worst_tile_%"], 0),
    ]


def _table(part: dict[str, Any], title: str, caption: str) -> Table:
    rows = [[row["kind"], row["split"], *cells_of(row)[1:]] for row in part["rows"]]
    splits = " · ".join(f"{split}: {words}" for split, words in SPLITS.items())
    note = (
        f"{caption}\nRMSE in DN (reflectance x 10000) · change: below zero is better · better and worst tile: where"
        f" opt_v2 is over {SAME_DN:g} DN off\n{splits}\n{summary_text(part['summary'])}"
    )
    changes = ("MSE\nchange", "MAE\nchange", "tiles\nbetter", "worst\ntile")
    headings = ("kind", "split", "RMSE\nopt_v2", "RMSE\nopt_v3", *changes)
    return rich_table(f"Estimates of every kind: {counted(part['tiles'], 'tile')}{title}", headings, rows, note)
