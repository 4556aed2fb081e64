"""The outcome of an evaluation: figures of each tile, their summary, JSON for scripts and tables for people.

In: ``TileResult``, one a tile. Out: ``Report``; ``timesteps_rows`` compares reports of one model that differ in their
number of network evaluations. What every key of the JSON means is in ``docs/evaluate.md``.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from axs_lib.data.pairs import QUALITY_OK, PairRecord
from axs_lib.evaluate.controls import CONTROL_LABELS, NO_SAR
from axs_lib.metrics import METRIC_KEYS, SAR_KEY, improvement

if TYPE_CHECKING:
    from rich.table import Table

ERRORS = ("mse", "mae")
# Share of a tile that is open water to the SAR and dry land in the truth, beyond which the two show another day.
CONTRADICTED_SHARE = 0.05
NAME_WIDTH = 22
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
TIMESTEPS_METRICS = ("mse", "mae", "ssim", "sharpness", "edge_truth", "edge_sar")


@dataclass(frozen=True)
class TileResult:
    """Figures of one tile.

    Attributes:
        record: the tile.
        opt_v2_source: ``file``, ``degraded``, ``cloudy`` or ``stage2``.
        seconds: time in the model (its share of the batch it ran in).
        nfe: network evaluations of its denoising run; of the pipeline, of both runs together.
        metrics: as of ``axs_lib.metrics.stage3_metrics`` with SAR; of the pipeline, with the figures of opt_v1 too
            (suffix ``_v1``).
        controls: by key (see ``axs_lib.evaluate.controls``) the metrics of the image that stands in for opt_v3 (no
            suffix), and ``donor``, the name of the tile whose SAR or proposal was taken.
        sar_water_on_land: share of the valid pixels that are open water to the SAR and not to the truth.
    """

    record: PairRecord
    opt_v2_source: str
    seconds: float
    nfe: int
    metrics: dict[str, float]
    controls: dict[str, dict[str, float | str]] = field(default_factory=dict)
    sar_water_on_land: float = 0.0

    @property
    def contradicted(self) -> bool:
        """Whether SAR and truth plainly show the place on different days, so that grounding has to look wrong."""
        return self.sar_water_on_land > CONTRADICTED_SHARE

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
        control_models: what the models beside it are, by the key of their control.
        timesteps: network evaluations asked for, and ``nfe``, those counted.
        seed: of the model's noise.
        device: where it ran.
        seconds: wall time of everything, metrics and reading included.
        members: of the ensemble whose mean was measured.
    """

    data: str
    quality: str
    tiles: list[TileResult]
    provenance: dict[str, str]
    control_models: dict[str, dict[str, str]]
    timesteps: int
    nfe: int
    seed: int
    device: str
    seconds: float
    members: int = 1

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
        MSE), ``worst_tile_%`` (the largest increase of a tile's MSE), ``improvement_quartiles_%`` (of the tiles' MSE),
        ``mean`` and ``median`` of every metric over the tiles (tiles where it is undefined left out),
        ``improvement_of_mean_%``, 100 (v2 - v3) / v2 of the mean MSE and MAE, and the controls by their keys. Where the
        SAR of some tiles shows water on what is land in the truth, ``sar_contradicts_truth`` names them, and
        ``without_contradicted`` has ``tiles``, ``wins``, ``worst_tile_%`` and ``improvement_of_mean_%`` of the others.
        """
        parts = {"ok": [tile for tile in self.tiles if tile.record.quality == QUALITY_OK]}
        if self.quality == "all":
            parts["all"] = self.tiles
        return {name: _summarise(tiles) for name, tiles in parts.items() if tiles}

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types; a figure that is not finite (PSNR of an exact copy) is null."""
        tiles = [
            {
                "id": tile.record.id,
                "source": tile.record.source,
                "group": tile.record.group,
                "quality": tile.record.quality,
                "level": tile.record.level,
                "height": tile.record.height,
                "width": tile.record.width,
                "opt_v2_source": tile.opt_v2_source,
                "seconds": round(tile.seconds, 4),
                "win": tile.win,
                "sar_water_on_land": round(tile.sar_water_on_land, 4),
                "metrics": tile.metrics,
                **tile.controls,
            }
            for tile in self.tiles
        ]
        sources = self.opt_v2_sources()
        report = {
            "data": self.data,
            "quality": self.quality,
            "opt_v2_source": sources,
            "opt_v2_preset": "test" if "degraded" in sources else None,
            "model": dict(self.provenance),
            "control_models": self.control_models,
            "timesteps": self.timesteps,
            "nfe": self.nfe,
            "seed": self.seed,
            "members": self.members,
            "device": self.device,
            "seconds": round(self.seconds, 2),
            "seconds_per_tile": round(self.seconds_per_tile(), 4),
            "units": "mse and mae in reflectance (DN / 10000); sam in degrees; psnr in dB",
            "summary": self.summary(),
            "tiles": tiles,
        }
        finite: dict[str, Any] = finite_only(report)
        return finite

    def tables(self) -> list[Table]:
        """One rich table for each quality: mean and median of opt_v2 and opt_v3 (of the pipeline's opt_v1 the mean)."""
        return [self._table(name, figures) for name, figures in self.summary().items()]

    def control_tables(self) -> list[Table]:
        """One rich table for each quality with a line a control; none without controls."""
        summary = self.summary()
        return [_control_table(name, figures) for name, figures in summary.items() if _controls_in(figures)]

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
                percent(m["mse_improvement_%"]),
                *(shown_figure("ssim", m[f"ssim_{suffix}"]) for suffix in names),
            )
        return table

    def _table(self, name: str, figures: dict[str, Any]) -> Table:
        from rich.table import Table

        sources = ", ".join(f"{source} ({count})" for source, count in figures["opt_v2_source"].items())
        copied = shown_figure("copy_ratio", figures["mean"]["copy_ratio"])
        quartiles = ", ".join(percent(value) for value in figures["improvement_quartiles_%"])
        caption = (
            f"opt_v2 from: {sources} · {self.timesteps} timesteps (nfe {self.nfe}) · seed {self.seed} ·"
            f" {self.seconds_per_tile():.2f} s a tile on {self.device}\n"
            f"opt_v3 has the smaller MSE on {100 * figures['wins']:.0f} % of the tiles · copy ratio {copied}\n"
            f"better by tile, quartiles: {quartiles} · worst tile's MSE {percent(figures['worst_tile_%'])}\n"
            + _correctness(figures)
            + _agreement(figures)
        )
        table = Table(title=_title(name, figures), caption=caption, header_style="bold")
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
                *(shown_figure(key, mean[f"{key}_{suffix}"]) for suffix in names),
                "" if better is None else percent(better),
                *(shown_figure(key, median[f"{key}_{suffix}"]) for suffix in last_two),
            )
        return table


def timesteps_rows(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """What more network evaluations cost and bring: one row for each report and quality.

    Each holds ``quality``, ``tiles``, ``timesteps``, ``nfe``, ``mse_improvement_%``, ``seconds_per_tile`` and the means
    of MSE, MAE, SSIM, sharpness and edge agreement of opt_v2 (suffix ``_v2``) and opt_v3 (``_v3``).
    """
    rows = []
    for quality in reports[0].summary():
        for report in reports:
            figures = report.summary()[quality]
            means = {
                f"{key}_{suffix}": figures["mean"][f"{key}_{suffix}"]
                for key in TIMESTEPS_METRICS
                for suffix in ("v2", "v3")
            }
            rows.append(
                {
                    "quality": quality,
                    "tiles": figures["tiles"],
                    "timesteps": report.timesteps,
                    "nfe": report.nfe,
                    **means,
                    "mse_improvement_%": figures["improvement_of_mean_%"]["mse"],
                    "seconds_per_tile": round(report.seconds_per_tile(), 4),
                }
            )
    finite: list[dict[str, Any]] = finite_only(rows)
    return finite


def timesteps_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of ``timesteps_rows`` as a rich table; the first line of a quality is opt_v2."""
    from rich.table import Table

    table = Table(title="Timesteps", header_style="bold", box=None, pad_edge=False)
    table.add_column("opt_v3 after", no_wrap=True)
    headings = ("MSE", "better", "MAE", "SSIM", "sharp-\nness", "edges\ntruth", "edges\nSAR", "s a tile")
    for heading in headings:
        table.add_column(heading, justify="right")

    def cells(row: Mapping[str, Any], suffix: str) -> list[str]:
        return [shown_figure(key, row[f"{key}_{suffix}"]) for key in TIMESTEPS_METRICS]

    for index, row in enumerate(rows):
        if index == 0 or rows[index - 1]["quality"] != row["quality"]:
            mse, *others = cells(row, "v2")
            table.add_row(f"(opt_v2, {row['quality']})", mse, "", *others, "")
        mse, *others = cells(row, "v3")
        seconds = f"{row['seconds_per_tile']:.2f}"
        table.add_row(str(row["timesteps"]), mse, percent(row["mse_improvement_%"]), *others, seconds)
    return table


def finite_only(value: Any) -> Any:
    """Replace what JSON cannot hold by null."""
    if isinstance(value, dict):
        return {key: finite_only(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite_only(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(value: float | None) -> str:
    """A change for people; "-" where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:+.1f} %"


def _control_table(name: str, figures: dict[str, Any]) -> Table:
    from rich.table import Table

    caption = "opt_v3 wins: share of tiles where its MSE is smaller than the control's"
    worth = figures.get(NO_SAR, {}).get("sar_worth_%")
    if worth is not None:
        caption += (
            f"\nthe SAR is worth {percent(worth)} of opt_v2's MSE,"
            f" {percent(figures[NO_SAR]['sar_worth_of_no_sar_%'])} of that without SAR"
        )
    table = Table(
        title=f"Controls: {_title(name, figures)}",
        caption=caption,
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for heading in ("MSE", "MAE", "MSE better\nthan opt_v2", "MAE better\nthan opt_v2", "opt_v3\nwins"):
        table.add_column(heading, justify="right", no_wrap=True)
    better = figures["improvement_of_mean_%"]
    mean = {key: figures["mean"][f"{key}_v3"] for key in ERRORS}
    rows = [("opt_v3", mean, better, "")]
    rows += [
        (
            CONTROL_LABELS[key],
            entry["mean"],
            entry["improvement_of_mean_%"],
            f"{100 * entry['wins_over']:.0f} %",
        )
        for key, entry in _controls_in(figures).items()
    ]
    for label, means, gains, wins in rows:
        table.add_row(
            label,
            *(shown_figure(key, means[key]) for key in ERRORS),
            *(percent(gains[key]) for key in ERRORS),
            wins,
        )
    return table


def _controls_in(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {key: figures[key] for key in CONTROL_LABELS if key in figures}


def _correctness(figures: dict[str, Any]) -> str:
    mean = figures["mean"]
    kinds = ", ".join(f"{key} {100 * mean[key]:.0f} %" for key in ("improved", "omitted", "hallucinated"))
    collapsed = round(mean["identity_collapse"] * figures["tiles"])
    return f"pixels: {kinds}" + (f" · IDENTITY COLLAPSE on {collapsed} tiles" if collapsed else "")


def _agreement(figures: dict[str, Any]) -> str:
    rest = figures.get("without_contradicted")
    if rest is None:
        return ""
    return (
        f"\nthe SAR shows water on land of the truth, another day, on {len(figures['sar_contradicts_truth'])} of them;"
        f" without: MSE {percent(rest['improvement_of_mean_%']['mse'])} better, worst tile"
        f" {percent(rest['worst_tile_%'])}"
    )


def _title(name: str, figures: dict[str, Any]) -> str:
    return f"{figures['tiles']} {'tile' if figures['tiles'] == 1 else 'tiles'}, quality {name}"


def _sources(tiles: list[TileResult]) -> dict[str, int]:
    return dict(Counter(tile.opt_v2_source for tile in tiles))


def _summarise(tiles: list[TileResult]) -> dict[str, Any]:
    metrics = [tile.metrics for tile in tiles]
    summary: dict[str, Any] = {
        "opt_v2_source": _sources(tiles),
        "improvement_quartiles_%": _quartiles([tile.metrics["mse_improvement_%"] for tile in tiles]),
        "mean": over_tiles(metrics, statistics.fmean),
        "median": over_tiles(metrics, statistics.median),
        **_headline(tiles),
    }
    agreeing = [tile for tile in tiles if not tile.contradicted]
    if 0 < len(agreeing) < len(tiles):
        summary["sar_contradicts_truth"] = [tile.record.name for tile in tiles if tile.contradicted]
        summary["without_contradicted"] = _headline(agreeing)
    for key in CONTROL_LABELS:
        controlled = [tile for tile in tiles if key in tile.controls]
        if controlled:
            summary[key] = _summarise_control(key, controlled)
    return summary


def _headline(tiles: list[TileResult]) -> dict[str, Any]:
    mean = over_tiles([tile.metrics for tile in tiles], statistics.fmean)
    return {
        "tiles": len(tiles),
        "wins": sum(tile.win for tile in tiles) / len(tiles),
        "worst_tile_%": -min(tile.metrics["mse_improvement_%"] for tile in tiles),
        "improvement_of_mean_%": {key: improvement(mean[f"{key}_v2"], mean[f"{key}_v3"]) for key in ERRORS},
    }


def _summarise_control(key: str, tiles: list[TileResult]) -> dict[str, Any]:
    """Means of a control's metrics, its improvement over opt_v2, and how opt_v3 stands to it."""
    rows = [{k: v for k, v in tile.controls[key].items() if not isinstance(v, str)} for tile in tiles]
    mean, own = (
        over_tiles(rows, statistics.fmean),
        over_tiles([tile.metrics for tile in tiles], statistics.fmean),
    )
    wins = sum(tile.metrics["mse_v3"] < row["mse"] for tile, row in zip(tiles, rows, strict=True))
    entry: dict[str, Any] = {
        "tiles": len(tiles),
        "mean": mean,
        "improvement_of_mean_%": {error: improvement(own[f"{error}_v2"], mean[error]) for error in ERRORS},
        "v3_improvement_over_it_%": {error: improvement(mean[error], own[f"{error}_v3"]) for error in ERRORS},
        "wins_over": wins / len(tiles),
    }
    if key == NO_SAR:
        entry["sar_worth_%"] = (
            improvement(own["mse_v2"], own["mse_v3"]) - entry["improvement_of_mean_%"]["mse"]
        )
        entry["sar_worth_of_no_sar_%"] = entry["v3_improvement_over_it_%"]["mse"]
    return entry


def _quartiles(values: list[float]) -> list[float]:
    """25, 50 and 75 % of the values, interpolated."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def over_tiles(rows: Sequence[Mapping[str, float]], average: Any) -> dict[str, float]:
    """Average each key over the rows where it is defined."""
    result = {}
    for key in rows[0]:
        values = [row[key] for row in rows if not math.isnan(row[key])]
        result[key] = float(average(values)) if values else math.nan
    return result


def _shorten(name: str) -> str:
    """A name that fits a table: its tail tells tiles apart."""
    return name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"


def shown_figure(key: str, value: float | None) -> str:
    """A figure for people, with the digits its metric deserves; "-" where there is none."""
    digits = {"mse": 6, "mae": 5, "psnr": 2, "sam": 2, "ergas": 1}.get(key, 3)
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"
