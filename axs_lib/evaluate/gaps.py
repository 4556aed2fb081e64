"""Gap scenario: how gaps are filled, inside and at their border, with proposals of every quality and simpler ways.

Every pair is filled twice where it can be. ``simulated``: the clear truth with the cloud shapes of ``cloud_trust``,
whose seed depends on nothing but the tile's name. ``cloudy``: where a pair carries a really cloudy image, that image,
clear where ``cloudy_trust`` says so; its clear pixels are of another day than the truth. A method is handed the image
with NaN inside the gaps and never sees what is there, but for the simulated proposals that are made of the truth. Other
proposals are left out where the model corrects by the difference of two. The border is what of a gap lies within 3 px
of clear pixels. A tile without gaps or without clear pixels is left out and named.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor

from axs_lib.bands import DN_PER_REFLECTANCE
from axs_lib.data.clouds import cloud_trust, cloudy_trust
from axs_lib.data.proposals import informed_proposal
from axs_lib.errors import counted
from axs_lib.evaluate.evaluator import Figures, Scenario, TileFigures
from axs_lib.evaluate.models import EvaluatedModel
from axs_lib.evaluate.sources import EvaluationTile, fitted, generator_of
from axs_lib.evaluate.tables import over_tiles, percent, rich_table, share, shown_figure
from axs_lib.metrics import compute_metrics, improvement
from axs_lib.nodata import fill_nodata, spread, valid_pixels

if TYPE_CHECKING:
    from axs_lib.evaluate.plain import PlainModel
    from axs_lib.stage3_tm_ground import Stage3GroundingModel

STAGE3 = "stage3"
SIMULATED, CLOUDY = "simulated", "cloudy"
BORDER = 3  # px
ERRORS = ("mse", "mae", "mse_border", "mae_border")
STRUCTURE = ("ssim", "edge_truth", "sharpness")
LABELS = {
    STAGE3: "Stage 3",
    "informed": "informed proposal",  # simulated, of a good generator
    "truth_proposal": "truth as proposal",  # the most that a generator can bring
    "proposal_swapped": "another tile's proposal",
    "no_proposal": "no proposal",  # the relaxed filling, which says nothing new
    "sar_withheld": "SAR withheld",
    "no_sar": "trained without SAR",
    "plain": "plain U-Net",
    "smooth": "smooth (pull-push)",  # each pixel from the finest level of a pyramid that knows a clear neighbour
    "relaxed": "relaxed filling",  # the same, relaxed at every level: what Stage 3 begins with
    "mean": "mean colour",  # of the tile's clear pixels
}


@dataclass(frozen=True, eq=False)
class Gaps(Scenario):
    """Simulated gaps in every tile, and the real ones of cloudy images; Stage 3 by itself, also of the pipeline."""

    no_sar: Stage3GroundingModel | PlainModel | None = None  # trained without SAR, on the measured model's device
    plain: PlainModel | None = None  # with SAR

    name: ClassVar[str] = "gaps"
    needs: ClassVar[str] = "tile with a gap and clear pixels"

    def measure(self, tiles: Sequence[EvaluationTile], model: EvaluatedModel) -> Iterable[TileFigures]:
        gaps = []
        for gap in (gap for tile in tiles for gap in gaps_of(tile)):
            if gap.inside.any() and gap.clear.any():
                gaps.append(gap)
            else:
                missing = "clear pixels" if gap.inside.any() else "gaps"
                yield TileFigures(gap.tile.record, left_out=f"no {missing} ({gap.gaps})")
        if not gaps:
            return
        filled = self._fill(gaps, model)
        for index, gap in enumerate(gaps):
            figures = {method: measure_gap(images[index], gap) for method, images in filled.items()}
            yield TileFigures(gap.tile.record, figures, {"gaps": gap.gaps, "unknown": float(gap.inside.float().mean())})

    def _fill(self, gaps: Sequence[Gap], model: EvaluatedModel) -> dict[str, Tensor]:
        """The image (B,4,H,W) of every method."""
        s1, truth = (torch.stack([getattr(gap.tile, key) for gap in gaps]) for key in ("s1", "truth"))
        image, trust = (torch.stack([getattr(gap, key) for gap in gaps]) for key in ("image", "trust"))
        relaxed, smooth = (fill_nodata(image, valid_pixels(image), **steps) for steps in ({}, {"steps": 0}))
        proposals = {}
        if model.takes_proposals:
            filled_truth = fill_nodata(truth, valid_pixels(truth))
            drawn = [
                informed_proposal(one[None], generator=generator_of(f"proposal {gap.tile.record.name}"))
                for one, gap in zip(filled_truth, gaps, strict=True)
            ]
            proposals = {"informed": torch.cat(drawn), "truth_proposal": filled_truth}
            if model.donors:
                swapped = []
                for gap in gaps:
                    other = next(gaps_of(model.donor(gap.tile)))  # in that one's own simulated gap
                    drawn_there = model.ground(other.tile.s1[None], other.image[None], trust=other.trust[None]).proposal
                    assert drawn_there is not None
                    swapped.append(fitted(drawn_there[0], gap.tile.size))
                proposals["proposal_swapped"] = torch.stack(swapped)
            proposals["no_proposal"] = relaxed
        filled = {STAGE3: model.ground(s1, image, trust=trust).opt_v3}
        for key, proposal in proposals.items():
            filled[key] = model.ground(s1, image, trust=trust, proposal=proposal).opt_v3
        filled["sar_withheld"] = model.ground(s1, image, trust=trust, use_sar=False).opt_v3
        if self.no_sar is not None:
            filled["no_sar"] = model.without_sar(self.no_sar, s1, image, trust)
        if self.plain is not None:
            filled["plain"] = model.predict(self.plain, s1, image, trust)
        filled |= {"smooth": smooth, "relaxed": relaxed}
        filled["mean"] = torch.where(valid_pixels(image), image, image.nanmean(dim=(-2, -1), keepdim=True))
        return filled

    def to_json(self, tiles: Sequence[TileFigures], left_out: Sequence[str]) -> dict[str, Any]:
        """The errors inside the gaps, by method.

        ``units``, ``border_px``, ``skipped`` (tiles without a gap, and why), ``tiles``, and ``summary`` with
        ``simulated`` and, where there are any, ``cloudy``: ``tiles``; ``unknown`` mean share of the pixels inside
        gaps; ``changed_where_clear`` greatest change of a clear pixel by Stage 3 in DN, which is 0; ``mean`` and
        ``median`` by method of ``mse``, ``mae``, ``ssim`` inside, and of ``mse_border`` and ``mae_border`` near clear
        pixels; ``improvement_of_mean_%`` and ``wins`` of Stage 3 by other method; ``better_than_smooth_%`` by method.
        """
        parts = {name: [tile for tile in tiles if tile.facts["gaps"] == name] for name in (SIMULATED, CLOUDY)}
        return {
            "units": "mse and mae in reflectance (DN / 10000); changed in DN",
            "border_px": BORDER,
            "summary": {name: _summary(part) for name, part in parts.items() if part},
            "skipped": list(left_out),
            "tiles": [
                {**tile.named(), **tile.facts, "methods": tile.figures} for part in parts.values() for tile in part
            ],
        }

    def tables(self, outcome: dict[str, Any], caption: str) -> list[Table]:
        return [_table(name, part, caption) for name, part in outcome["summary"].items()]


@dataclass(frozen=True)
class Gap:
    """A tile with gaps: ``image`` (4,H,W) DN is NaN where ``trust`` (1,H,W) is 0, and clear where that is 1."""

    gaps: str  # ``simulated`` or ``cloudy``
    tile: EvaluationTile
    image: Tensor
    trust: Tensor

    @property
    def inside(self) -> Tensor:
        """Pixels to fill (1,H,W) bool: in the gap, where neither SAR nor truth is nodata."""
        return valid_pixels(self.tile.s1[None], self.tile.truth[None])[0] & (self.trust == 0)

    @property
    def clear(self) -> Tensor:
        """Pixels to keep (1,H,W) bool."""
        return valid_pixels(self.tile.s1[None], self.tile.truth[None], self.image[None])[0] & (self.trust == 1)


def gaps_of(tile: EvaluationTile) -> Iterator[Gap]:
    """The tile with simulated gaps, and with its real ones where it has a cloudy image."""
    trust = simulated_trust(tile.truth, tile.record.name)
    yield Gap(SIMULATED, tile, tile.truth.masked_fill(trust == 0, torch.nan), trust)
    if tile.s2_cloudy is not None:
        trust = cloudy_trust(tile.truth, tile.s2_cloudy)
        yield Gap(CLOUDY, tile, tile.s2_cloudy.masked_fill(trust == 0, torch.nan), trust)


def simulated_trust(truth: Tensor, name: str) -> Tensor:
    """The simulated clouds (1,H,W) of a tile, never all of it."""
    generator = generator_of(name)
    while True:
        trust = cloud_trust(1, *truth.shape[-2:], generator=generator)[0]
        if 0 < trust.mean() < 1:
            return trust


def measure_gap(image: Tensor, gap: Gap) -> Figures:
    """Figures of one filled image (4,H,W): see ``Gaps.to_json``; of one with pixels left unfilled, infinite errors."""
    inside, clear = gap.inside, gap.clear
    changed = float((image - gap.image).abs()[:, clear[0]].nan_to_num(math.inf).max())
    if not image[:, inside[0]].isfinite().all():
        return {**dict.fromkeys(ERRORS, math.inf), **dict.fromkeys(STRUCTURE, math.nan), "changed": changed}
    border = inside & (spread(clear[None].float(), BORDER)[0] > 0)
    whole = compute_metrics(image, gap.tile.truth, mask=inside)
    error = (image - gap.tile.truth)[:, border[0]] / DN_PER_REFLECTANCE
    return {
        **{key: whole[key] for key in ("mse", "mae", *STRUCTURE)},
        "mse_border": float(error.square().mean()),  # NaN without a border
        "mae_border": float(error.abs().mean()),
        "changed": changed,
    }


def _summary(tiles: Sequence[TileFigures]) -> dict[str, Any]:
    names = list(tiles[0].figures)
    figures = {name: [tile.figures[name] for tile in tiles] for name in names}
    mean = {name: over_tiles(rows) for name, rows in figures.items()}
    return {
        "tiles": len(tiles),
        "unknown": statistics.fmean(tile.facts["unknown"] for tile in tiles),
        "changed_where_clear": max(tile.figures[STAGE3]["changed"] for tile in tiles),
        "mean": mean,
        "median": {name: over_tiles(rows, statistics.median) for name, rows in figures.items()},
        "improvement_of_mean_%": {
            name: {key: improvement(mean[name][key], mean[STAGE3][key]) for key in ERRORS} for name in names[1:]
        },
        "better_than_smooth_%": {
            name: improvement(mean["smooth"]["mse"], mean[name]["mse"]) for name in names if name != "smooth"
        },
        "wins": {
            name: statistics.fmean(tile.figures[STAGE3]["mse"] < tile.figures[name]["mse"] for tile in tiles)
            for name in names[1:]
        },
    }


def _table(name: str, part: dict[str, Any], caption: str) -> Table:
    rows = [
        [
            LABELS[method],
            *("-" if mean[key] is None else f"{1e4 * mean[key]:.2f}" for key in ("mse", "mse_border")),
            shown_figure("mae", mean["mae"]),
            "-" if mean["ssim"] is None else f"{mean['ssim']:.2f}",
            percent(part["better_than_smooth_%"].get(method)),
            "" if method == STAGE3 else share(part["wins"][method]),
        ]
        for method, mean in part["mean"].items()
    ]
    title = f"{name.capitalize()} gaps: {counted(part['tiles'], 'tile')}, {share(part['unknown'])} of their pixels"
    caption += f" · the greatest change of a clear pixel by Stage 3: {part['changed_where_clear']:g} DN"
    headings = (*("filled by", "MSE\n10⁻⁴", "MSE at\nborder", "MAE", "SSIM"), *("better\nthan smooth", "Stage 3\nwins"))
    return rich_table(title, headings, rows, caption)
