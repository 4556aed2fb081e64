"""Flood test: does a flood that the SAR shows and opt_v2 does not come through, and does the rest stay dry?

In: a Stage 3 model and a folder of real pairs. Each tile of mostly dry land (NDWI of the truth over 0 on at most 2 % of
its pixels) is flooded in its SAR by ``axs_lib.data.flood``, from a seed that depends on nothing but the tile's name;
opt_v2 stays the simulated estimate without the flood. Stage 3 grounds it twice, with the flooded and with the real SAR.
Out: a ``FloodReport`` of what changed inside the flood and, beyond ``MARGIN`` px from it, outside.

Water is where NDWI = (B03 - B08) / (B03 + B08) is over 0 (McFeeters, 1996).
"""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.data import flood as simulation
from axs_lib.data.pairs import PairRecord, Quality, load_pair
from axs_lib.errors import InputError
from axs_lib.evaluate.models import Grounder, WholePipeline, ground, stage3_of
from axs_lib.evaluate.report import finite_only
from axs_lib.evaluate.sources import EvaluationTile, batches_of_one_size, select_pairs
from axs_lib.nodata import valid_pixels
from axs_lib.progress import track

if TYPE_CHECKING:
    from rich.table import Table

WATER_NDWI = 0.0
MOST_WATER = 0.02  # share of a dry tile
WATER_NIR = 300.0  # DN; the NIR of a pixel has fallen where it is nearer to this than to opt_v2's
MARGIN = 8  # px from the flood to what counts as outside
CAME_THROUGH = 0.5  # share of the flood that must turn to water
KEYS = ("water_v2", "water_v3", "turned_to_water", "nir_fell", "ndwi_change", "nir_change")


@dataclass(frozen=True)
class FloodedTile:
    """Figures of one tile; see ``measure_flood`` for those of a dictionary.

    Attributes:
        record: the tile.
        flooded_share: of its pixels.
        inside: the flood.
        outside: what lies beyond the margin.
        inside_without: the same pixels as ``inside``, grounded with the real SAR: what would have changed anyway.
        outside_without: the same pixels as ``outside``, grounded with the real SAR.
    """

    record: PairRecord
    flooded_share: float
    inside: dict[str, float]
    outside: dict[str, float]
    inside_without: dict[str, float]
    outside_without: dict[str, float]


@dataclass(frozen=True)
class FloodReport:
    """The outcome of a flood test.

    Attributes:
        tiles: one result a dry tile.
        left_out: tiles with water of their own.
        timesteps: network evaluations.
        seed: of the model's noise.
    """

    tiles: list[FloodedTile]
    left_out: int
    timesteps: int
    seed: int

    def summary(self) -> dict[str, Any]:
        """Means over the tiles, and ``came_through``: share of tiles where half of the flood turned to water."""
        parts = ("inside", "outside", "inside_without", "outside_without")
        came = sum(tile.inside["turned_to_water"] >= CAME_THROUGH for tile in self.tiles)
        return {
            "came_through": came / len(self.tiles),
            "flooded_share": statistics.fmean(tile.flooded_share for tile in self.tiles),
            **{part: _mean([getattr(tile, part) for tile in self.tiles]) for part in parts},
        }

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types; see ``docs/evaluate.md``."""
        report = {
            "tiles": len(self.tiles),
            "left_out": self.left_out,
            "opt_v2_source": "degraded",
            "timesteps": self.timesteps,
            "seed": self.seed,
            "water_ndwi": WATER_NDWI,
            "water_nir": WATER_NIR / DN_PER_REFLECTANCE,
            "margin_px": MARGIN,
            **self.summary(),
            "per_tile": [
                {
                    "id": tile.record.id,
                    "source": tile.record.source,
                    "group": tile.record.group,
                    "flooded_share": tile.flooded_share,
                    "inside": tile.inside,
                    "outside": tile.outside,
                }
                for tile in self.tiles
            ],
        }
        finite: dict[str, Any] = finite_only(report)
        return finite

    def tables(self) -> list[Table]:
        """One rich table."""
        from rich.table import Table

        summary = self.summary()
        table = Table(
            title=f"Flood in the SAR alone: {len(self.tiles)} dry tiles ({self.left_out} with water left out)",
            caption=(
                f"{self.timesteps} timesteps · seed {self.seed} · water: NDWI over {WATER_NDWI:g} ·"
                f" outside: from {MARGIN} px on\n"
                f"on {100 * summary['came_through']:.0f} % of the tiles half of the flood or more turned to water"
            ),
            header_style="bold",
            box=None,
            pad_edge=False,
        )
        table.add_column("", no_wrap=True)
        headings = (
            "water\nopt_v2",
            "water\nopt_v3",
            "turned\nto water",
            "NIR\nfell",
            "NDWI\nchange",
            "NIR\nchange",
        )
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for part, label in (
            ("inside", "in the flood"),
            ("outside", "outside"),
            ("inside_without", "same place, real SAR"),
            ("outside_without", "outside, real SAR"),
        ):
            figures = summary[part]
            shares = [f"{100 * figures[key]:.1f} %" for key in KEYS[:4]]
            table.add_row(label, *shares, *(f"{figures[key]:+.3f}" for key in KEYS[4:]))
        return [table]


def simulate_flood(s1: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The flood of a tile, the same wherever and whenever it is evaluated.

    Args:
        s1: (2, H, W) dB.
        name: of the tile.

    Returns:
        The flooded SAR (2, H, W) and the flood (1, H, W) bool.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"flood {name}".encode()))
    flooded, mask = simulation.simulate_flood(s1[None], generator)
    return flooded[0], mask[0]


def ndwi(image: Tensor) -> Tensor:
    """(..., 1, H, W) of an image (..., 4, H, W) in any unit proportional to reflectance; NaN stays NaN."""
    green, nir = (image.select(-3, OPTICAL_BANDS.index(band)).unsqueeze(-3) for band in ("B03", "B08"))
    return (green - nir) / (green + nir).clamp_min(1e-6)


def is_dry(truth: Tensor) -> bool:
    """Whether a truth (4, H, W) shows water on at most ``MOST_WATER`` of its valid pixels."""
    index = ndwi(truth)
    seen = index[~index.isnan()]
    return bool(seen.numel()) and float((seen > WATER_NDWI).float().mean()) <= MOST_WATER


def outside_of(flood: Tensor, margin: int = MARGIN) -> Tensor:
    """(B, 1, H, W) bool: further than ``margin`` px from the flood."""
    near = F.max_pool2d(flood.float(), 2 * margin + 1, stride=1, padding=margin)
    return near == 0


def measure_flood(opt_v2: Tensor, opt_v3: Tensor, area: Tensor) -> dict[str, float]:
    """What Stage 3 made of an area.

    Args:
        opt_v2: (4, H, W) DN, without the flood.
        opt_v3: (4, H, W) DN.
        area: (1, H, W) bool; pixels that are NaN in either image do not count.

    Returns:
        ``water_v2`` and ``water_v3``, shares of the area that are water; ``turned_to_water``, the share of what was
        none; ``nir_fell``, the share of pixels whose B08 is nearer to that of water (``WATER_NIR``) than to opt_v2's,
        of those where opt_v2's is over twice that of water; ``ndwi_change`` and ``nir_change`` (reflectance), the mean
        of opt_v3 - opt_v2. NaN where no pixel counts.
    """
    keep = (area & valid_pixels(opt_v2[None], opt_v3[None])[0])[0]
    index_v2, index_v3 = (ndwi(image)[0][keep] for image in (opt_v2, opt_v3))
    nir_v2, nir_v3 = (image[OPTICAL_BANDS.index("B08")][keep] for image in (opt_v2, opt_v3))
    water_v2, water_v3 = index_v2 > WATER_NDWI, index_v3 > WATER_NDWI
    bright = nir_v2 > 2 * WATER_NIR
    fell = nir_v3 < (nir_v2 + WATER_NIR) / 2
    figures = {
        "water_v2": water_v2.float(),
        "water_v3": water_v3.float(),
        "turned_to_water": water_v3[~water_v2].float(),
        "nir_fell": fell[bright].float(),
        "ndwi_change": index_v3 - index_v2,
        "nir_change": (nir_v3 - nir_v2) / DN_PER_REFLECTANCE,
    }
    return {key: float(values.mean()) for key, values in figures.items()}


def evaluate_flood(
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
) -> FloodReport:
    """Flood every dry tile of a folder in its SAR and see what Stage 3 makes of it.

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
        InputError: as ``evaluate_folder``, or no tile is dry.
    """
    stage3 = stage3_of(model)
    steps = stage3.timesteps if timesteps is None else timesteps
    records = select_pairs(folder, quality, groups)
    tiles: list[FloodedTile] = []
    with torch.no_grad():
        for result in track(
            _flood_tiles(stage3, records, steps, seed, batch_size, force),
            "flood",
            enabled=progress,
            total=len(records),
        ):
            if result is not None:
                tiles.append(result)
    if not tiles:
        raise InputError(
            f"none of the {len(records)} tiles is dry land (NDWI over {WATER_NDWI:g} on at most"
            f" {100 * MOST_WATER:g} % of the pixels); the flood test needs at least one: choose other --groups"
        )
    return FloodReport(tiles, len(records) - len(tiles), steps, seed)


def _flood_tiles(
    stage3: Grounder, records: list[PairRecord], timesteps: int, seed: int, batch_size: int, force: bool
) -> Iterator[FloodedTile | None]:
    """The result of every tile, ``None`` where it is not dry."""
    for chunk in batches_of_one_size(records, batch_size):
        loaded = [EvaluationTile(load_pair(each), "degraded", force=force) for each in chunk]
        tiles = [tile for tile in loaded if is_dry(tile.truth)]
        yield from [None] * (len(loaded) - len(tiles))
        if not tiles:
            continue
        pairs = [simulate_flood(tile.s1, tile.record.name) for tile in tiles]
        opt_v2 = torch.stack([tile.opt_v2 for tile in tiles])
        floods = torch.stack([flood for _, flood in pairs])
        beyond = outside_of(floods)
        flooded, real = (
            ground(stage3, torch.stack(sar), opt_v2, timesteps, seed).image.cpu()
            for sar in ([sar for sar, _ in pairs], [tile.s1 for tile in tiles])
        )
        for index, tile in enumerate(tiles):
            yield FloodedTile(
                tile.record,
                float(floods[index].float().mean()),
                inside=measure_flood(opt_v2[index], flooded[index], floods[index]),
                outside=measure_flood(opt_v2[index], flooded[index], beyond[index]),
                inside_without=measure_flood(opt_v2[index], real[index], floods[index]),
                outside_without=measure_flood(opt_v2[index], real[index], beyond[index]),
            )


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the tiles where it is defined."""
    return {key: float(torch.tensor([row[key] for row in rows]).nanmean()) for key in KEYS}
