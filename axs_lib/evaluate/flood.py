"""Flood scenario: does a flood that the SAR shows and opt_v2 does not come through, and does the rest stay dry?

Each tile of mostly dry land is flooded in its SAR by ``axs_lib.data.flood``, from a seed that depends on nothing but
the tile's name; opt_v2 stays the simulated estimate without the flood. Stage 3 grounds it twice, with the flooded and
with the real SAR. Water is where NDWI is over 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.data.flood import simulate_flood
from axs_lib.errors import counted
from axs_lib.evaluate.estimates import sar_consistent
from axs_lib.evaluate.evaluator import Figures, Scenario, TileFigures
from axs_lib.evaluate.models import EvaluatedModel
from axs_lib.evaluate.sources import EvaluationTile, generator_of, simulated_estimate, water_on_land
from axs_lib.evaluate.tables import over_tiles, rich_table
from axs_lib.grounding.sar_inconsistency import ndwi
from axs_lib.nodata import spread, valid_pixels

WATER_NDWI = 0.0
MOST_WATER = 0.02  # share of a dry tile
WATER_NIR = 300.0  # DN; the NIR of a pixel has fallen where it is nearer to this than to opt_v2's
MARGIN = 8  # px from the flood to what counts as outside
CAME_THROUGH = 0.5  # share of the flood that must turn to water
PARTS = {
    "inside": "in the flood",
    "outside": "outside",
    "inside_without": "same place, real SAR",
    "outside_without": "outside, real SAR",
}


@dataclass(frozen=True, eq=False)
class Floods(Scenario):
    """Every dry tile flooded in its SAR; Stage 3 by itself, also of the pipeline."""

    name: ClassVar[str] = "flood"
    needs: ClassVar[str] = f"tile of dry land (NDWI over {WATER_NDWI:g} on up to {100 * MOST_WATER:g} % of its pixels)"

    def measure(self, tiles: Sequence[EvaluationTile], model: EvaluatedModel) -> Iterable[TileFigures]:
        yield from (TileFigures(tile.record, left_out="has water") for tile in tiles if not is_dry(tile.truth))
        tiles = [tile for tile in tiles if is_dry(tile.truth)]
        if not tiles:
            return
        floods = [simulate_flood(tile.s1[None], generator_of(f"flood {tile.record.name}")) for tile in tiles]
        flooded_s1, inside = (torch.cat(part) for part in zip(*floods, strict=True))
        dry = torch.stack([ndwi(tile.truth) <= WATER_NDWI for tile in tiles])
        outside = (spread(inside.float(), MARGIN) == 0) & dry
        opt_v2 = torch.stack([simulated_estimate(tile.truth, tile.record.name) for tile in tiles])
        flooded = model.ground(flooded_s1, opt_v2).opt_v3
        real = model.ground(torch.stack([tile.s1 for tile in tiles]), opt_v2).opt_v3
        for index, tile in enumerate(tiles):
            figures = {
                f"{part}{suffix}": measure_flood(opt_v2[index], opt_v3[index], area[index])
                for suffix, opt_v3 in (("", flooded), ("_without", real))
                for part, area in (("inside", inside), ("outside", outside))
            }
            facts = {
                "flooded_share": float(inside[index].float().mean()),
                "sar_water_on_land": water_on_land(tile.s1, tile.truth),
            }
            yield TileFigures(tile.record, figures, facts)

    def to_json(self, tiles: Sequence[TileFigures], left_out: Sequence[str]) -> dict[str, Any]:
        """What became of the floods.

        ``tiles`` dry ones; ``left_out`` how many are not; ``opt_v2_source``; ``water_ndwi``, ``water_nir``
        (reflectance), ``margin_px`` the thresholds; ``came_through`` share of tiles where at least half of the flood
        turned to water; ``flooded_share`` of the pixels; the figures of ``measure_flood`` under ``inside`` the flood
        and ``outside`` on dry land of the truth, with the real SAR under these names and ``_without``;
        ``sar_consistent`` the same of the tiles whose SAR and truth agree about water; ``per_tile``.
        """

        def of(tiles: Sequence[TileFigures]) -> dict[str, Any]:
            came = sum(tile.figures["inside"]["turned_to_water"] >= CAME_THROUGH for tile in tiles)
            return {
                "tiles": len(tiles),
                "came_through": came / len(tiles),
                "flooded_share": statistics.fmean(tile.facts["flooded_share"] for tile in tiles),
                **{part: over_tiles([tile.figures[part] for tile in tiles]) for part in PARTS},
            }

        consistent = sar_consistent(tiles)
        return {
            **of(tiles),
            **({"sar_consistent": of(consistent)} if consistent else {}),
            "left_out": len(left_out),
            "opt_v2_source": "degraded",
            "water_ndwi": WATER_NDWI,
            "water_nir": WATER_NIR / DN_PER_REFLECTANCE,
            "margin_px": MARGIN,
            "per_tile": [{**tile.named(), **tile.facts, **tile.figures} for tile in tiles],
        }

    def tables(self, outcome: dict[str, Any], caption: str) -> list[Table]:
        def cell(key: str, value: float | None) -> str:
            if value is None:
                return "-"
            return f"{value:+.3f}" if key.endswith("change") else f"{100 * value:.1f} %"

        rows = [[label, *(cell(key, value) for key, value in outcome[part].items())] for part, label in PARTS.items()]
        dry = counted(outcome["tiles"], "dry tile")
        title = f"Flood in the SAR alone: {dry} ({outcome['left_out']} with water left out)"
        caption += (
            f" · water: NDWI over {WATER_NDWI:g} · outside: dry land from {MARGIN} px on\non"
            f" {100 * outcome['came_through']:.0f} % of the tiles half of the flood or more turned to water"
        )
        if "sar_consistent" in outcome:
            agreeing = outcome["sar_consistent"]
            came, outside = agreeing["came_through"], agreeing["outside"]["turned_to_water"]
            caption += (
                f"\nSAR and truth agree about water on {counted(agreeing['tiles'], 'tile')}: {100 * came:.0f} %,"
                f" {100 * outside:.2f} % outside turned to water"
            )
        water = ("water\nopt_v2", "water\nopt_v3", "turned\nto water")
        headings = ("", *water, "NIR\nfell", "NDWI\nchange", "NIR\nchange")
        return [rich_table(title, headings, rows, caption)]


def is_dry(truth: Tensor) -> bool:
    """Whether a truth (4, H, W) shows water on at most ``MOST_WATER`` of its valid pixels."""
    index = ndwi(truth)
    valid = index[~index.isnan()]
    return bool(valid.numel()) and float((valid > WATER_NDWI).float().mean()) <= MOST_WATER


def measure_flood(opt_v2: Tensor, opt_v3: Tensor, area: Tensor) -> Figures:
    """What Stage 3 made of an area (1, H, W) bool of opt_v2, without the flood, and opt_v3, both (4, H, W) in DN.

    Returns: ``water_v2`` and ``water_v3``, shares of the area that are water; ``turned_to_water``, the share of what
    was none; ``nir_fell``, the share of pixels whose B08 is nearer to that of water (``WATER_NIR``) than to opt_v2's,
    of those where opt_v2's is over twice that of water; ``ndwi_change`` and ``nir_change`` (reflectance), the mean of
    opt_v3 - opt_v2. Pixels that are NaN in either image do not count; NaN where none does.
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
