"""Evaluate how gaps are filled: error inside them and at their border, beside simpler ways to fill them.

In: a Stage 3 model and a folder of NPZ pairs (see ``axs_lib.data.pairs``). Every pair is filled twice where it can be.
``simulated``: the clear truth with the cloud shapes of ``cloud_trust``, whose seed depends on nothing but the tile's
name. ``cloudy``: where a pair carries a really cloudy image, that image, clear where ``cloudy_trust`` says so; its
clear pixels are of another day than the truth. A method is handed the image with NaN inside the gaps and never sees
what is there. Out: a ``GapReport``. The methods:

========== ============================================================================================
stage3     the model
no_sar     a model trained without SAR, where one is given: a plain U-Net that takes none, or a Stage 3
           model, which meets mean backscatter everywhere
plain      a plain U-Net with SAR, where one is given
smooth     pull-push: each pixel from the finest level of an image pyramid that knows a clear neighbour
telea      fast marching (Telea 2004) band by band with a radius of 8 px, by OpenCV
mean       the mean colour of the tile's clear pixels
========== ============================================================================================

Inside is where the map is 0 and neither SAR nor truth is nodata; the border is what of it lies within 3 px of clear
pixels. A tile without any of either, or without clear pixels, is left out and named.
"""

from __future__ import annotations

import math
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from axs_lib.bands import DN_PER_REFLECTANCE
from axs_lib.checks import check_pair
from axs_lib.data.clouds import cloud_trust, cloudy_trust, spread
from axs_lib.data.pairs import Pair, PairRecord, Quality, load_pair
from axs_lib.errors import InputError
from axs_lib.evaluate.controls import without_sar
from axs_lib.evaluate.evaluator import device_name
from axs_lib.evaluate.models import Grounder, Plain
from axs_lib.evaluate.report import finite_only, over_tiles, percent
from axs_lib.evaluate.sources import batches_of_one_size, select_pairs
from axs_lib.metrics import compute_metrics, improvement
from axs_lib.nodata import fill_nodata, valid_pixels
from axs_lib.progress import track

if TYPE_CHECKING:
    from rich.table import Table

    from axs_lib.stage3_tm_ground import Stage3GroundingModel

STAGE3 = "stage3"
SIMULATED, CLOUDY = "simulated", "cloudy"
BORDER = 3  # px
TELEA_RADIUS = 8  # px: a lower MSE than 3, and than Navier-Stokes with 3 or 8, on every sixth training pair
ERRORS = ("mse", "mae", "mse_border", "mae_border")
STRUCTURE = ("ssim", "edge_truth", "sharpness")
LABELS = {
    STAGE3: "Stage 3",
    "no_sar": "without SAR",
    "plain": "plain U-Net",
    "smooth": "smooth (pull-push)",
    "telea": "Telea (OpenCV)",
    "mean": "mean colour",
}

Fill = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GapTile:
    """Figures of one tile with one map.

    Attributes:
        record: the tile.
        gaps: ``simulated`` or ``cloudy``.
        unknown: share of the pixels inside gaps.
        methods: for each method ``mse``, ``mae`` (reflectance), ``ssim``, ``edge_truth`` and ``sharpness`` inside the
            gaps (see ``axs_lib.metrics``), ``mse_border`` and ``mae_border`` at their border, and ``changed``, the
            greatest change of a clear pixel in DN, which is 0 where a method keeps its promise.
    """

    record: PairRecord
    gaps: str
    unknown: float
    methods: dict[str, dict[str, float]]

    def win(self, other: str) -> bool:
        """Whether Stage 3 has the smaller MSE inside the gaps than this method."""
        return self.methods[STAGE3]["mse"] < self.methods[other]["mse"]


@dataclass(frozen=True)
class GapReport:
    """The outcome of an evaluation of gaps.

    Attributes:
        data: the folder.
        quality: ``ok`` or ``all``.
        tiles: one result for each tile and map.
        provenance: what the model is (version, variant, weights, hash).
        timesteps: network evaluations.
        seed: of the model's noise.
        device: where it ran.
        seconds: wall time of everything.
        skipped: what was left out, ``source/id (gaps): why``.
    """

    data: str
    quality: str
    tiles: list[GapTile]
    provenance: dict[str, str]
    timesteps: int
    seed: int
    device: str
    seconds: float
    skipped: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, dict[str, Any]]:
        """For ``simulated`` and, where there are any, ``cloudy`` gaps: figures over the tiles.

        Each holds ``tiles``, ``unknown`` (mean share of the pixels), ``changed_where_clear`` (the greatest change of a
        clear pixel by Stage 3, in DN), ``mean`` and ``median`` of every figure for each method, and for each method
        but Stage 3 ``improvement_of_mean_%`` (100 (other - stage3) / other of the mean MSE and MAE, inside and at the
        border) and ``wins`` (share of tiles where Stage 3 has the smaller MSE inside).
        """
        parts = {name: [tile for tile in self.tiles if tile.gaps == name] for name in (SIMULATED, CLOUDY)}
        return {name: _summarise(tiles) for name, tiles in parts.items() if tiles}

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types; a figure that is not finite is null.

        Keys: ``data``, ``quality``, ``model`` (provenance), ``timesteps``, ``seed``, ``device``, ``seconds``,
        ``units``, ``border_px``, ``summary`` (see ``summary``), ``skipped``, and ``tiles``: for each ``id``,
        ``source``, ``group``, ``quality``, ``gaps``, ``unknown`` and ``methods`` (see ``GapTile``).
        """
        tiles = [
            {
                "id": tile.record.id,
                "source": tile.record.source,
                "group": tile.record.group,
                "quality": tile.record.quality,
                "gaps": tile.gaps,
                "unknown": tile.unknown,
                "methods": tile.methods,
            }
            for tile in self.tiles
        ]
        report = {
            "data": self.data,
            "quality": self.quality,
            "model": dict(self.provenance),
            "timesteps": self.timesteps,
            "seed": self.seed,
            "device": self.device,
            "seconds": round(self.seconds, 2),
            "units": "mse and mae in reflectance (DN / 10000); changed in DN",
            "border_px": BORDER,
            "summary": self.summary(),
            "skipped": self.skipped,
            "tiles": tiles,
        }
        finite: dict[str, Any] = finite_only(report)
        return finite

    def tables(self) -> list[Table]:
        """One rich table for each kind of gaps, one line a method."""
        return [self._table(name, figures) for name, figures in self.summary().items()]

    def _table(self, name: str, figures: dict[str, Any]) -> Table:
        from rich.table import Table

        tiles = "tile" if figures["tiles"] == 1 else "tiles"
        caption = (
            f"{self.timesteps} timesteps · seed {self.seed} · {self.device} · the greatest change of a clear pixel by"
            f" Stage 3: {figures['changed_where_clear']:g} DN"
        )
        table = Table(
            title=f"{name.capitalize()} gaps: {figures['tiles']} {tiles},"
            f" {100 * figures['unknown']:.0f} % of their pixels",
            caption=caption,
            header_style="bold",
            box=None,
            pad_edge=False,
        )
        table.add_column("filled by", no_wrap=True)
        for heading in (
            "MSE\n10⁻⁴",
            "MSE at\nborder",
            "MAE",
            "SSIM",
            "edges",
            "Stage 3\nbetter by",
            "on %\ntiles",
        ):
            table.add_column(heading, justify="right", no_wrap=True)
        for method, mean in figures["mean"].items():
            rival = method != STAGE3
            table.add_row(
                LABELS[method],
                f"{1e4 * mean['mse']:.2f}",
                f"{1e4 * mean['mse_border']:.2f}",
                f"{mean['mae']:.4f}",
                f"{mean['ssim']:.2f}",
                f"{mean['edge_truth']:.2f}",
                percent(figures["improvement_of_mean_%"][method]["mse"]) if rival else "",
                f"{100 * figures['wins'][method]:.0f}" if rival else "",
            )
        return table


def evaluate_gaps(
    model: Grounder,
    folder: str | Path,
    *,
    groups: Sequence[str] | None = None,
    quality: Quality = "ok",
    timesteps: int = 1,
    seed: int = 0,
    no_sar: Stage3GroundingModel | Plain | None = None,
    plain: Plain | None = None,
    batch_size: int = 8,
    force: bool = False,
    progress: bool = False,
) -> GapReport:
    """Fill simulated gaps in every pair of a folder, and the real ones of cloudy images, and compare with the truth.

    Args:
        model: the Stage 3 model.
        folder: NPZ pairs, see ``axs_lib.data.pairs``.
        groups: only these groups, e.g. those the model was not trained on.
        quality: ``"ok"`` or ``"all"``.
        timesteps: network evaluations.
        seed: of the model's noise; the simulated clouds do not depend on it.
        no_sar: a model trained without SAR, on the device of ``model``.
        plain: a plain U-Net with SAR, on the device of ``model``.
        batch_size: tiles of one size the models see at once.
        force: do not refuse values that look like another unit.
        progress: show a bar on the error stream.

    Raises:
        InputError: no pairs, an unknown group, no pair with a gap, or a pair that is broken or in another unit.
    """
    started = time.perf_counter()
    records = select_pairs(folder, quality, groups)
    methods: dict[str, Fill] = {STAGE3: _stage3(model, timesteps, seed)}
    if no_sar is not None:
        methods["no_sar"] = _without_sar(no_sar, timesteps, seed, model.device)
    if plain is not None:
        methods["plain"] = _plain(plain, model.device)
    methods |= {"smooth": _smooth, "telea": _telea, "mean": _mean_colour}
    skipped: list[str] = []
    results: list[GapTile] = []
    chunks = list(batches_of_one_size(records, batch_size))
    with torch.no_grad():
        for chunk in track(chunks, "fill gaps", enabled=progress):
            results += _fill_chunk(chunk, methods, force, skipped)
    if not results:
        raise InputError(f"no tile of {folder} has a gap and clear pixels; left out: {'; '.join(skipped)}")
    order = {record.name: place for place, record in enumerate(records)}
    return GapReport(
        data=str(folder),
        quality=quality,
        tiles=sorted(results, key=lambda tile: (tile.gaps != SIMULATED, order[tile.record.name])),
        provenance=dict(model.provenance),
        timesteps=timesteps,
        seed=seed,
        device=device_name(model.device),
        seconds=time.perf_counter() - started,
        skipped=skipped,
    )


def simulated_trust(truth: Tensor, name: str) -> Tensor:
    """The simulated clouds (1,H,W) of a tile: the same wherever and whenever it is evaluated, never all of it."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    while True:
        trust = cloud_trust(1, *truth.shape[-2:], generator=generator)[0]
        if 0 < trust.mean() < 1:
            return trust


@dataclass(frozen=True)
class _Gap:
    """A tile with gaps: SAR, the image with NaN inside them, truth, and (1,H,W) maps."""

    record: PairRecord
    gaps: str
    s1: Tensor
    image: Tensor
    truth: Tensor
    trust: Tensor

    @property
    def valid(self) -> Tensor:
        """Where neither SAR nor truth is nodata."""
        return valid_pixels(self.s1[None], self.truth[None])[0]

    @property
    def inside(self) -> Tensor:
        """Pixels to fill, bool."""
        return self.valid & (self.trust == 0)

    @property
    def clear(self) -> Tensor:
        """Pixels to keep, bool."""
        return self.valid & (self.trust == 1) & self.image.isfinite().all(0)


def _gaps_of(pair: Pair, force: bool) -> Iterator[_Gap]:
    """The tile with simulated gaps, and with its real ones."""
    s1, truth = torch.from_numpy(pair.s1), torch.from_numpy(pair.s2)
    images = {SIMULATED: truth}
    if pair.s2_cloudy is not None:
        images[CLOUDY] = torch.from_numpy(pair.s2_cloudy)
    for name, image in images.items():
        try:
            check_pair(s1, image, source="file", force=force)
        except InputError as error:
            raise InputError(f"{pair.record.path}: {error}") from error
        simulated = name == SIMULATED
        trust = simulated_trust(truth, pair.record.name) if simulated else cloudy_trust(truth, image)
        yield _Gap(pair.record, name, s1, image.masked_fill(trust == 0, torch.nan), truth, trust)


def _fill_chunk(
    records: list[PairRecord], methods: Mapping[str, Fill], force: bool, skipped: list[str]
) -> Iterator[GapTile]:
    """Fill and measure tiles of one size."""
    gaps = []
    for record in records:
        for gap in _gaps_of(load_pair(record), force):
            if gap.inside.any() and gap.clear.any():
                gaps.append(gap)
            else:
                what = "clear pixels" if gap.inside.any() else "gaps"
                skipped.append(f"{record.name} ({gap.gaps}): no {what}")
    if not gaps:
        return
    s1, image = torch.stack([gap.s1 for gap in gaps]), torch.stack([gap.image for gap in gaps])
    trust = torch.stack([gap.trust for gap in gaps])
    filled = {name: fill(s1, image, trust).cpu() for name, fill in methods.items()}
    for index, gap in enumerate(gaps):
        yield GapTile(
            gap.record,
            gap.gaps,
            float(gap.inside.float().mean()),
            {name: _measure(images[index], gap) for name, images in filled.items()},
        )


def _measure(image: Tensor, gap: _Gap) -> dict[str, float]:
    """Figures of one filled image (4,H,W); where a pixel was left unfilled every error is infinite."""
    inside, clear = gap.inside, gap.clear
    changed = float((image - gap.image).abs()[:, clear[0]].nan_to_num(math.inf).max())
    if not image[:, inside[0]].isfinite().all():
        return {**dict.fromkeys(ERRORS, math.inf), **dict.fromkeys(STRUCTURE, math.nan), "changed": changed}
    border = inside & (spread(clear[None].float(), BORDER)[0] > 0)
    whole = compute_metrics(image, gap.truth, mask=inside)
    error = (image - gap.truth)[:, border[0]] / DN_PER_REFLECTANCE
    return {
        **{key: whole[key] for key in ("mse", "mae", *STRUCTURE)},
        "mse_border": float(error.square().mean()),  # NaN without a border
        "mae_border": float(error.abs().mean()),
        "changed": changed,
    }


def _stage3(model: Grounder, timesteps: int, seed: int) -> Fill:
    def fill(s1: Tensor, image: Tensor, trust: Tensor) -> Tensor:
        s1, image, trust = (each.to(model.device) for each in (s1, image, trust))
        filled: Tensor = model.ground(s1, image, timesteps, seed=seed, trust=trust).image
        return filled

    return fill


def _plain(model: Plain, device: torch.device) -> Fill:
    return lambda s1, image, trust: model.predict(s1.to(device), image.to(device), trust.to(device))


def _without_sar(
    model: Stage3GroundingModel | Plain, timesteps: int, seed: int, device: torch.device
) -> Fill:
    """A plain network that takes no SAR, or Stage 3 with mean backscatter everywhere."""
    if not isinstance(model, Grounder):
        return _plain(model, device)
    fill, mean = _stage3(model, timesteps, seed), model.terramind_generator.sar.mean.cpu()
    return lambda s1, image, trust: fill(without_sar(s1, mean), image, trust)


def _smooth(s1: Tensor, image: Tensor, trust: Tensor) -> Tensor:
    return fill_nodata(image, valid_pixels(image))


def _mean_colour(s1: Tensor, image: Tensor, trust: Tensor) -> Tensor:
    return torch.where(valid_pixels(image), image, image.nanmean(dim=(-2, -1), keepdim=True))


def _telea(s1: Tensor, image: Tensor, trust: Tensor) -> Tensor:
    import cv2

    filled = image.clone()
    for tile in filled:
        unknown = (~tile.isfinite().all(0)).numpy().astype(np.uint8)
        for band in tile:
            known = band.nan_to_num(
                0
            ).numpy()  # in DN: Telea's gradient term is about one unit, whatever the unit
            band.copy_(torch.from_numpy(cv2.inpaint(known, unknown, TELEA_RADIUS, cv2.INPAINT_TELEA)))
    return torch.where(valid_pixels(image), image, filled)


def _summarise(tiles: list[GapTile]) -> dict[str, Any]:
    names = list(tiles[0].methods)
    mean = {name: over_tiles([tile.methods[name] for tile in tiles], statistics.fmean) for name in names}
    own = mean[STAGE3]
    rivals = [name for name in names if name != STAGE3]
    return {
        "tiles": len(tiles),
        "unknown": statistics.fmean(tile.unknown for tile in tiles),
        "changed_where_clear": max(tile.methods[STAGE3]["changed"] for tile in tiles),
        "mean": mean,
        "median": {
            name: over_tiles([tile.methods[name] for tile in tiles], statistics.median) for name in names
        },
        "improvement_of_mean_%": {
            name: {key: improvement(mean[name][key], own[key]) for key in ERRORS} for name in rivals
        },
        "wins": {name: sum(tile.win(name) for tile in tiles) / len(tiles) for name in rivals},
    }
