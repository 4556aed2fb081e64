"""Evaluate a Stage 3 model on a folder of real pairs: per tile, in the mean and in the median, opt_v2 beside opt_v3.

In: a model with ``ground`` and ``provenance``, and a folder of NPZ pairs (see ``axs_lib.data.pairs``). Where a pair
carries its own ``opt_v2`` that is grounded (``opt_v2_source`` is ``file``); elsewhere Stage 2 is simulated from the
truth with ``degrade(..., preset="test")`` and a seed that depends on nothing but the tile's name (``degraded``), so all
models meet the same estimates. The whole pipeline may stand in the place of the model: it gets the SAR and the pair's
metadata, and its own opt_v1 and opt_v2 are measured beside opt_v3 (``stage2``). Out: a ``Report``. A pair that cannot
be read stops the evaluation: a figure over the tiles that happened to load would be another figure.
"""

from __future__ import annotations

import math
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from axs_lib.checks import check_pair
from axs_lib.data.degrade import degrade
from axs_lib.data.pairs import QUALITY_OK, Pair, PairRecord, Quality, list_pairs, load_pair
from axs_lib.errors import InputError
from axs_lib.metrics import METRIC_KEYS, SAR_KEY, compute_metrics, improvement, stage3_metrics
from axs_lib.progress import track

if TYPE_CHECKING:
    from rich.table import Table

NAME_WIDTH = 22
STAGE2 = "stage2"  # source of an opt_v2 that the pipeline made
METRIC_LABELS = {
    "mse": "MSE (reflectance²)",
    "mae": "MAE (reflectance)",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "sam": "spectral angle (°)",
    "ergas": "ERGAS (%)",
    "ndvi": "NDVI error",
    "ndwi": "NDWI error",
    "edge_truth": "edges, with truth",
    "edge_sar": "edges, with SAR",
    "sharpness": "sharpness (truth = 1)",
}


@runtime_checkable
class Grounder(Protocol):
    """What the evaluation needs of a model; ``Stage3GroundingModel`` has it."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """Version, variant, weights and their hash."""

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""

    @property
    def timesteps(self) -> int:
        """Default number of network evaluations."""

    def ground(self, s1: Tensor, opt_v2: Tensor, timesteps: int | None = None, *, seed: int = 0) -> Any:
        """Return an object with ``image`` (B,4,H,W) and ``nfe``."""


class WholePipeline(Protocol):
    """What the evaluation needs of a pipeline; ``Pipeline`` has it."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """Version, variants, weights and their hashes."""

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""

    @property
    def stage3(self) -> Grounder:
        """The last stage, whose number of network evaluations is the default."""

    def __call__(
        self, s1: Tensor, metadata: Any = None, timesteps: int | None = None, *, seed: int = 0
    ) -> Any:
        """Return an object with ``opt_v1``, ``opt_v2``, ``opt_v3`` (B,4,H,W) and ``nfe`` of Stages 1 and 3."""


@dataclass(frozen=True)
class TileResult:
    """Figures of one tile.

    Attributes:
        record: the tile.
        opt_v2_source: ``file``, ``degraded`` or ``stage2``.
        seconds: time in the model (its share of the batch it ran in).
        nfe: network evaluations of its denoising run; of the pipeline, of both runs together.
        metrics: as of ``axs_lib.metrics.stage3_metrics`` with SAR; of the pipeline, with the figures of opt_v1 too
            (suffix ``_v1``).
        sar_swapped: with controls, the metrics of opt_v3 made with another tile's SAR (no suffix), and ``donor``, that
            tile's name; ``None`` without controls.
    """

    record: PairRecord
    opt_v2_source: str
    seconds: float
    nfe: int
    metrics: dict[str, float]
    sar_swapped: dict[str, float | str] | None = None

    @property
    def win(self) -> bool:
        """Whether opt_v3 has the smaller MSE."""
        return self.metrics["mse_v3"] < self.metrics["mse_v2"]


@dataclass(frozen=True)
class Report:
    """The outcome of an evaluation.

    Attributes:
        data: the folder.
        quality: ``ok`` or ``all``.
        tiles: one result a tile.
        provenance: what the model is (version, variant, weights, hash).
        timesteps: network evaluations asked for, and ``nfe``, those counted.
        seed: of the model's noise.
        device: where it ran.
        seconds: wall time of everything, metrics and reading included.
    """

    data: str
    quality: str
    tiles: list[TileResult]
    provenance: dict[str, str]
    timesteps: int
    nfe: int
    seed: int
    device: str
    seconds: float

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the images that were measured: ``v2`` and ``v3``, and of the pipeline ``v1``."""
        return tuple(suffix for suffix in ("v1", "v2", "v3") if f"mse_{suffix}" in self.tiles[0].metrics)

    def opt_v2_sources(self) -> dict[str, int]:
        """How many tiles had their estimate from where."""
        return _sources(self.tiles)

    def seconds_per_tile(self) -> float:
        """Median time in the model."""
        return statistics.median(tile.seconds for tile in self.tiles)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Figures over the tiles of quality ``ok`` and, where others were evaluated too, over ``all``.

        Each holds ``tiles``, ``opt_v2_source`` (tiles by source), ``wins`` (share of tiles where opt_v3 has the smaller
        MSE), ``mean`` and ``median`` of every metric over the tiles (tiles where it is undefined left out), and
        ``improvement_of_mean_%``, 100 (v2 - v3) / v2 of the mean MSE and MAE; with controls also ``sar_swapped``:
        ``tiles``, ``mean``, ``improvement_of_mean_%`` and ``wins_over``, the share of tiles where the tile's own SAR
        gave the smaller MSE.
        """
        parts = {"ok": [tile for tile in self.tiles if tile.record.quality == QUALITY_OK]}
        if self.quality == "all":
            parts["all"] = self.tiles
        return {name: _summarise(tiles) for name, tiles in parts.items() if tiles}

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types; a figure that is not finite (PSNR of an exact copy) is null.

        Keys: ``data``, ``quality``, ``opt_v2_source`` (tiles by source), ``opt_v2_preset`` (of ``degrade``, if used),
        ``model`` (provenance), ``timesteps``, ``nfe``, ``seed``, ``device``, ``seconds``, ``seconds_per_tile``,
        ``units``, ``summary`` (see ``summary``), and ``tiles``: for each ``id``, ``source``, ``group``, ``quality``,
        ``level``, ``height``, ``width``, ``opt_v2_source``, ``seconds``, ``win``, ``metrics``, and with controls
        ``sar_swapped``.
        """
        tiles = []
        for tile in self.tiles:
            record = tile.record
            entry: dict[str, Any] = {
                "id": record.id,
                "source": record.source,
                "group": record.group,
                "quality": record.quality,
                "level": record.level,
                "height": record.height,
                "width": record.width,
                "opt_v2_source": tile.opt_v2_source,
                "seconds": round(tile.seconds, 4),
                "win": tile.win,
                "metrics": tile.metrics,
            }
            if tile.sar_swapped is not None:
                entry["sar_swapped"] = tile.sar_swapped
            tiles.append(entry)
        sources = self.opt_v2_sources()
        report = {
            "data": self.data,
            "quality": self.quality,
            "opt_v2_source": sources,
            "opt_v2_preset": "test" if "degraded" in sources else None,
            "model": dict(self.provenance),
            "timesteps": self.timesteps,
            "nfe": self.nfe,
            "seed": self.seed,
            "device": self.device,
            "seconds": round(self.seconds, 2),
            "seconds_per_tile": round(self.seconds_per_tile(), 4),
            "units": "mse and mae in reflectance (DN / 10000); sam in degrees; psnr in dB",
            "summary": self.summary(),
            "tiles": tiles,
        }
        finite: dict[str, Any] = _finite(report)
        return finite

    def tables(self) -> list[Table]:
        """One rich table for each quality: mean and median of opt_v2 and opt_v3 (of the pipeline's opt_v1 the mean)."""
        return [self._table(name, figures) for name, figures in self.summary().items()]

    def table(self) -> Table:
        """The rich table over everything that was asked for."""
        return self.tables()[-1]

    def tile_table(self) -> Table:
        """One line a tile."""
        from rich.table import Table

        table = Table(
            title="Per tile (MSE in 10⁻⁴ reflectance²)", header_style="bold", box=None, pad_edge=False
        )
        mixed = len(self.opt_v2_sources()) > 1
        for heading in (
            "tile",
            *(["quality"] if self.quality == "all" else []),
            *(["opt_v2"] if mixed else []),
        ):
            table.add_column(heading, no_wrap=True)
        names = self.suffixes
        for heading in (*(f"MSE {name}" for name in names), "better", *(f"SSIM {name}" for name in names)):
            table.add_column(heading, justify="right", no_wrap=True)
        for tile in self.tiles:
            m = tile.metrics
            table.add_row(
                _shorten(tile.record.name),
                *([tile.record.quality] if self.quality == "all" else []),
                *([tile.opt_v2_source] if mixed else []),
                *(f"{m[f'mse_{suffix}'] * 1e4:.2f}" for suffix in names),
                _percent(m["mse_improvement_%"]),
                *(_figure("ssim", m[f"ssim_{suffix}"]) for suffix in names),
            )
        return table

    def _table(self, name: str, figures: dict[str, Any]) -> Table:
        from rich.table import Table

        sources = ", ".join(f"{source} ({count})" for source, count in figures["opt_v2_source"].items())
        copied = _figure("copy_ratio", figures["mean"]["copy_ratio"])
        caption = (
            f"opt_v2 from: {sources} · {self.timesteps} timesteps (nfe {self.nfe}) · seed {self.seed} ·"
            f" {self.seconds_per_tile():.2f} s a tile on {self.device}\n"
            f"opt_v3 has the smaller MSE on {100 * figures['wins']:.0f} % of the tiles · copy ratio {copied}"
        )
        swapped = figures.get("sar_swapped")
        if swapped:
            caption += (
                f"\nwith another tile's SAR: MSE {_percent(swapped['improvement_of_mean_%']['mse'])},"
                f" and the tile's own SAR is better on {100 * swapped['wins_over']:.0f} % of the tiles"
            )
        tiles = "tile" if figures["tiles"] == 1 else "tiles"
        table = Table(
            title=f"{figures['tiles']} {tiles}, quality {name}", caption=caption, header_style="bold"
        )
        names, last_two = self.suffixes, self.suffixes[-2:]
        between = " "
        if len(names) > 2:  # to fit 80 columns; without the median of opt_v1
            table.box, table.pad_edge, between = None, False, "\n"
        table.add_column("metric", no_wrap=True)
        for suffix in names:
            table.add_column(f"opt_{suffix}{between}mean", justify="right")
        table.add_column("better", justify="right", no_wrap=True)
        for suffix in last_two:
            table.add_column(f"opt_{suffix}{between}median", justify="right")
        for key in (*METRIC_KEYS, SAR_KEY):
            mean, median = figures["mean"], figures["median"]
            better = figures["improvement_of_mean_%"].get(key)
            table.add_row(
                METRIC_LABELS[key],
                *(_figure(key, mean[f"{key}_{suffix}"]) for suffix in names),
                "" if better is None else _percent(better),
                *(_figure(key, median[f"{key}_{suffix}"]) for suffix in last_two),
            )
        return table


def evaluate_folder(
    model: Grounder | WholePipeline,
    folder: str | Path,
    *,
    timesteps: int | None = None,
    quality: Quality = "ok",
    groups: Sequence[str] | None = None,
    seed: int = 0,
    controls: bool = False,
    batch_size: int = 8,
    force: bool = False,
    progress: bool = False,
) -> Report:
    """Ground every pair of a folder and compare opt_v2 and opt_v3 with the truth.

    Args:
        model: the Stage 3 model, or the pipeline: then every image is made from the SAR and the pair's metadata, also
            where the pair carries an opt_v2.
        folder: NPZ pairs, see ``axs_lib.data.pairs``.
        timesteps: network evaluations, of the pipeline those of Stage 1 and of Stage 3; default those of the Stage 3
            model.
        quality: ``"ok"`` or ``"all"``.
        groups: only these groups, e.g. those the model was not trained on.
        seed: of the model's noise.
        controls: also ground each tile with another tile's SAR, of another group where there is one: what is gained
            with it owes nothing to the SAR's content.
        batch_size: tiles of one size the model sees at once.
        force: do not refuse values that look like another unit.
        progress: show a bar on the error stream.

    Raises:
        InputError: no pairs, an unknown group, or a pair that is broken or in another unit; the message names it.
    """
    started = time.perf_counter()
    records = _select(list_pairs(folder, quality), groups)
    if timesteps is None:
        timesteps = (model if isinstance(model, Grounder) else model.stage3).timesteps
    results: dict[str, TileResult] = {}
    with torch.no_grad():
        work = _evaluate(model, records, timesteps, seed, controls, batch_size, force)
        for result in track(work, "evaluate", enabled=progress, total=len(records)):
            results[result.record.name] = result
    tiles = [results[record.name] for record in records]
    return Report(
        data=str(folder),
        quality=quality,
        tiles=tiles,
        provenance=dict(model.provenance),
        timesteps=timesteps,
        nfe=max(tile.nfe for tile in tiles),
        seed=seed,
        device=_device_name(model.device),
        seconds=time.perf_counter() - started,
    )


def simulated_estimate(truth: Tensor, name: str) -> Tensor:
    """The simulated Stage 2 estimate (4,H,W) of a tile: the same wherever and whenever it is evaluated."""
    return degrade(truth, seed=zlib.crc32(name.encode()), preset="test")


class _Tile:
    """A pair as tensors, with the estimate that will be grounded unless the pipeline makes its own."""

    def __init__(self, pair: Pair, force: bool, *, estimate: bool) -> None:
        self.record = pair.record
        self.s1 = torch.from_numpy(pair.s1)
        self.truth = torch.from_numpy(pair.s2)
        self.opt_v2_source = STAGE2 if not estimate else "degraded" if pair.opt_v2 is None else "file"
        try:
            check_pair(self.s1, self.truth, source="file", force=force)
            if not estimate:
                self.opt_v2 = torch.full_like(self.truth, torch.nan)
            elif pair.opt_v2 is None:
                self.opt_v2 = simulated_estimate(self.truth, pair.record.name)
            else:
                self.opt_v2 = torch.from_numpy(pair.opt_v2)
                check_pair(self.s1, self.opt_v2, source="file", force=force)
        except InputError as error:
            raise InputError(f"{pair.record.path}: {error}") from error


class _Images(NamedTuple):
    """What a model made of a batch, (B,4,H,W) each on the CPU, and the network evaluations it took."""

    opt_v1: Tensor | None
    opt_v2: Tensor
    opt_v3: Tensor
    nfe: int


def _evaluate(
    model: Grounder | WholePipeline,
    records: list[PairRecord],
    timesteps: int,
    seed: int,
    controls: bool,
    batch_size: int,
    force: bool,
) -> Iterator[TileResult]:
    """Ground the tiles batch by batch and measure each."""
    for chunk in _chunks(records, batch_size):
        tiles = [_Tile(load_pair(record), force, estimate=isinstance(model, Grounder)) for record in chunk]
        s1 = torch.stack([tile.s1 for tile in tiles])
        clock = time.perf_counter()
        images = _run(model, s1, tiles, timesteps, seed)
        seconds = (time.perf_counter() - clock) / len(tiles)
        donors = [_donor(records, tile.record) for tile in tiles if controls]
        swapped = None
        if controls and len(records) > 1:
            size = (s1.shape[-2], s1.shape[-1])
            others = torch.stack([_sar_of(donor, size) for donor in donors])
            others = others.masked_fill(torch.isnan(s1), torch.nan)
            swapped = _run(model, others, tiles, timesteps, seed).opt_v3
        for index, tile in enumerate(tiles):
            control: dict[str, float | str] | None = None
            if swapped is not None:
                control = {
                    **compute_metrics(swapped[index], tile.truth, s1=tile.s1),
                    "donor": donors[index].name,
                }
            metrics = stage3_metrics(images.opt_v3[index], images.opt_v2[index], tile.truth, s1=tile.s1)
            if images.opt_v1 is not None:
                first = compute_metrics(images.opt_v1[index], tile.truth, s1=tile.s1)
                metrics |= {f"{key}_v1": value for key, value in first.items()}
            yield TileResult(tile.record, tile.opt_v2_source, seconds, images.nfe, metrics, control)


def _run(
    model: Grounder | WholePipeline, s1: Tensor, tiles: Sequence[_Tile], timesteps: int, seed: int
) -> _Images:
    """Run a model on SAR (B,2,H,W) with the tiles' estimates, or the pipeline with their metadata."""
    if isinstance(model, Grounder):
        opt_v2 = torch.stack([tile.opt_v2 for tile in tiles])
        output = model.ground(s1.to(model.device), opt_v2.to(model.device), timesteps, seed=seed)
        return _Images(None, opt_v2, output.image.cpu(), int(output.nfe))
    metadata = [tile.record.metadata for tile in tiles]
    output = model(s1.to(model.device), metadata, timesteps, seed=seed)
    return _Images(output.opt_v1.cpu(), output.opt_v2.cpu(), output.opt_v3.cpu(), sum(output.nfe))


def _select(records: list[PairRecord], groups: Sequence[str] | None) -> list[PairRecord]:
    if groups is None:
        return records
    known = {record.group for record in records}
    unknown = sorted(set(groups) - known)
    if unknown or not groups:
        raise InputError(
            f"no tile of the groups {', '.join(unknown) or '(none given)'}; there are {', '.join(sorted(known))}."
        )
    return [record for record in records if record.group in set(groups)]


def _chunks(records: list[PairRecord], size: int) -> Iterator[list[PairRecord]]:
    """Batches of tiles of one size."""
    shapes = sorted({(record.height, record.width) for record in records})
    for shape in shapes:
        same = [record for record in records if (record.height, record.width) == shape]
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _donor(records: list[PairRecord], record: PairRecord) -> PairRecord:
    """The next tile in the list, of another group and the same size where there is one."""
    start = records.index(record)
    others = records[start + 1 :] + records[:start]

    def merit(other: PairRecord) -> tuple[bool, bool]:
        return other.group != record.group, (other.height, other.width) == (record.height, record.width)

    return max(others, key=merit, default=record)


def _sar_of(record: PairRecord, size: tuple[int, int]) -> Tensor:
    """Another tile's SAR (2,h,w), repeated or cropped to a size, nodata filled with the band's mean."""
    sar = load_pair(record).s1
    sar = np.where(np.isnan(sar), np.nanmean(sar, axis=(1, 2), keepdims=True), sar)
    rows, cols = (np.arange(want) % have for want, have in zip(size, sar.shape[1:], strict=True))
    return torch.from_numpy(np.ascontiguousarray(sar[:, rows][:, :, cols], dtype=np.float32))


def _sources(tiles: list[TileResult]) -> dict[str, int]:
    return dict(Counter(tile.opt_v2_source for tile in tiles))


def _summarise(tiles: list[TileResult]) -> dict[str, Any]:
    metrics = [tile.metrics for tile in tiles]
    mean = _over(metrics, statistics.fmean)
    summary: dict[str, Any] = {
        "tiles": len(tiles),
        "opt_v2_source": _sources(tiles),
        "wins": sum(tile.win for tile in tiles) / len(tiles),
        "mean": mean,
        "median": _over(metrics, statistics.median),
        "improvement_of_mean_%": {
            key: improvement(mean[f"{key}_v2"], mean[f"{key}_v3"]) for key in ("mse", "mae")
        },
    }
    controlled = [(tile, tile.sar_swapped) for tile in tiles if tile.sar_swapped is not None]
    if controlled:
        swapped = _over(
            [{k: v for k, v in control.items() if not isinstance(v, str)} for _, control in controlled],
            statistics.fmean,
        )
        own = _over([tile.metrics for tile, _ in controlled], statistics.fmean)
        summary["sar_swapped"] = {
            "tiles": len(controlled),
            "mean": swapped,
            "improvement_of_mean_%": {
                key: improvement(own[f"{key}_v2"], swapped[key]) for key in ("mse", "mae")
            },
            "wins_over": sum(tile.metrics["mse_v3"] < float(control["mse"]) for tile, control in controlled)
            / len(controlled),
        }
    return summary


def _over(rows: Sequence[Mapping[str, float]], average: Any) -> dict[str, float]:
    """Average each key over the rows where it is defined."""
    result = {}
    for key in rows[0]:
        values = [row[key] for row in rows if not math.isnan(row[key])]
        result[key] = float(average(values)) if values else math.nan
    return result


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shorten(name: str) -> str:
    """A name that fits a table: its tail tells tiles apart."""
    return name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"


def _figure(key: str, value: float) -> str:
    digits = {"mse": 6, "mae": 5, "psnr": 2, "sam": 2, "ergas": 1}.get(key, 3)
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:+.1f} %"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'s' if threads > 1 else ''})"
