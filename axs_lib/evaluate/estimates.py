"""The main scenario: an estimate is grounded, and opt_v2 and opt_v3 are compared with the truth beside controls.

In: tiles with the estimate that ``axs evaluate --opt-v2-source`` chose; of the pipeline, its own opt_v1 and opt_v2
are measured, too. Out: per tile the figures of ``axs_lib.metrics.stage3_metrics``, and of every control of
``CONTROL_LABELS`` those of ``compute_metrics`` of an image in the place of opt_v3.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor

from axs_lib.bands import OPTICAL_MEAN
from axs_lib.checks import Trust
from axs_lib.data.pairs import QUALITY_OK
from axs_lib.errors import counted
from axs_lib.evaluate.evaluator import Scenario, TileFigures
from axs_lib.evaluate.models import EvaluatedModel
from axs_lib.evaluate.sources import EvaluationTile, fitted, water_on_land
from axs_lib.evaluate.tables import over_tiles, percent, rich_table, share, shown_figure
from axs_lib.metrics import METRIC_KEYS, SAR_KEY, compute_metrics, improvement, stage3_metrics

if TYPE_CHECKING:
    from axs_lib.evaluate.plain import PlainModel
    from axs_lib.stage3_tm_ground import Stage3GroundingModel

OPT_V3 = "opt_v3"
CONTROL_LABELS = {
    "sar_swapped": "another tile's SAR",
    "proposal_swapped": "another tile's proposal",  # not where it corrects by the difference of two proposals
    "sar_withheld": "SAR withheld",
    "no_sar": "retrained without SAR",  # given the mean backscatter everywhere
    "plain": "one plain U-Net",
    "mean_colour": "mean colour",  # of nano's training tiles
    "tile_mean": "tile's true mean colour",  # an oracle that knows place and season, and nothing else
    "no_date": "date and place withheld",
    "no_date_v2": "opt_v2, date and place withheld",
}
ERRORS = ("mse", "mae")
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
# Share of a tile that is open water in the SAR and dry land in the truth, beyond which the two show another day.
INCONSISTENT_SHARE = 0.05
NAME_WIDTH = 22


@dataclass(frozen=True, eq=False)
class Estimates(Scenario):
    """The estimate grounded, with the controls that were asked for."""

    controls: bool = False  # also measure those that need no further model
    ensemble_size: int = 1  # of the ensemble whose mean opt_v3 is; the controls are of one
    no_sar: Stage3GroundingModel | None = None  # retrained without SAR
    plain: PlainModel | None = None

    name: ClassVar[str] = ""

    def measure(self, tiles: Sequence[EvaluationTile], model: EvaluatedModel) -> Iterable[TileFigures]:
        estimates = [tile.estimate(model.source) for tile in tiles]
        s1, opt_v2 = torch.stack([tile.s1 for tile in tiles]), torch.stack([image for image, _ in estimates])
        clock = time.perf_counter()
        images = model.run(s1, opt_v2, [tile.record.metadata for tile in tiles], ensemble_size=self.ensemble_size)
        seconds = (time.perf_counter() - clock) / len(tiles)
        others = self._controls(tiles, s1, images.opt_v2, model)
        for index, (tile, (_, source)) in enumerate(zip(tiles, estimates, strict=True)):
            figures = {OPT_V3: stage3_metrics(images.opt_v3[index], images.opt_v2[index], tile.truth, s1=tile.s1)}
            if images.opt_v1 is not None:
                first = compute_metrics(images.opt_v1[index], tile.truth, s1=tile.s1)
                figures[OPT_V3] |= {f"{key}_v1": value for key, value in first.items()}
            for key, other in others.items():
                figures[key] = compute_metrics(other[index], tile.truth, s1=tile.s1)
            facts = {
                **{key: getattr(tile.record, key) for key in ("level", "height", "width")},
                "opt_v2_source": source,
                "seconds": round(seconds, 4),
                "nfe": images.nfe,
                "sar_water_on_land": round(water_on_land(tile.s1, tile.truth), 4),
            }
            if "sar_swapped" in others:
                facts["donor"] = model.donors[tile.record.name].name
            yield TileFigures(tile.record, figures, facts)

    def _controls(
        self, tiles: Sequence[EvaluationTile], s1: Tensor, opt_v2: Tensor, model: EvaluatedModel
    ) -> dict[str, Tensor]:
        """The image (B,4,H,W) of every control."""
        images: dict[str, Tensor] = {}
        trust = torch.full_like(opt_v2[:, :1], Trust.SAR_ONLY) if model.is_pipeline else None
        if self.controls:
            if model.donors:
                others = [(model.donor(tile), tile.size) for tile in tiles]
                swapped = torch.stack([fitted(other.s1, size) for other, size in others])
                swapped = swapped.masked_fill(s1.isnan(), torch.nan)
                images["sar_swapped"] = model.ground(swapped, opt_v2, trust=trust).opt_v3
                if model.takes_proposals:
                    proposals = torch.stack([fitted(_proposal(other, model), size) for other, size in others])
                    images["proposal_swapped"] = model.ground(s1, opt_v2, trust=trust, proposal=proposals).opt_v3
            images["sar_withheld"] = model.ground(s1, opt_v2, trust=trust, use_sar=False).opt_v3
        if self.no_sar is not None:
            images["no_sar"] = model.without_sar(self.no_sar, s1, opt_v2, trust)
        if self.plain is not None:
            images["plain"] = model.predict(self.plain, s1, opt_v2)
        if self.controls:
            truth = torch.stack([tile.truth for tile in tiles])
            images["mean_colour"] = torch.tensor(OPTICAL_MEAN)[None, :, None, None].expand_as(truth)
            images["tile_mean"] = truth.nanmean((2, 3), keepdim=True).expand_as(truth)
            if model.is_pipeline and model.dated:
                undated = model.run(s1, opt_v2, [{} for _ in tiles])
                images |= {"no_date": undated.opt_v3, "no_date_v2": undated.opt_v2}
        return images

    def to_json(self, tiles: Sequence[TileFigures], left_out: Sequence[str]) -> dict[str, Any]:
        """Where opt_v2 came from, how long it took, the figures over all tiles, and those of every tile.

        ``opt_v2_source`` number of tiles by source; ``opt_v2_preset`` of simulated errors; ``control_models`` what
        ``no_sar`` and ``plain`` are; ``nfe`` evaluations counted; ``ensemble_size``; ``seconds_per_tile``
        median, without the controls; ``units``; ``tiles`` a list with ``win``, ``metrics``, ``donor`` and the
        controls of each.

        ``summary`` holds ``ok`` and, with ``--quality all``, ``all``:

        - ``tiles``, ``opt_v2_source``; ``wins`` share of tiles where opt_v3 has the smaller MSE;
        - ``worst_tile_%`` largest increase of a tile's MSE; ``improvement_quartiles_%`` over the tiles;
        - ``improvement_of_mean_%`` of ``mse`` and ``mae``: 100 (v2 - v3) / v2 of the means, the figure to quote;
        - ``mean``, ``median`` of every figure of ``stage3_metrics``, of the pipeline also with suffix ``_v1``;
        - ``sar_inconsistent_tiles`` whose SAR shows water on land of the truth, another day; ``sar_consistent`` the
          others; - each control under its key: ``mean``, ``improvement_of_mean_%`` over opt_v2,
          ``v3_improvement_over_it_%``, ``wins_over`` share of tiles where opt_v3 has the smaller MSE; of ``no_sar``
          also ``sar_worth_%``.
        """
        sources = _sources(tiles)
        parts = {"ok": [tile for tile in tiles if tile.record.quality == QUALITY_OK]}
        if len(parts["ok"]) < len(tiles):
            parts["all"] = list(tiles)
        described: dict[str, dict[str, str]] = {}
        if self.no_sar is not None:
            described["no_sar"] = dict(self.no_sar.provenance)
        if self.plain is not None:
            described["plain"] = {"inputs": self.plain.inputs}
        return {
            "opt_v2_source": sources,
            "opt_v2_preset": "test" if "degraded" in sources else None,
            "control_models": described,
            "nfe": max(tile.facts["nfe"] for tile in tiles),
            "ensemble_size": self.ensemble_size,
            "seconds_per_tile": statistics.median(tile.facts["seconds"] for tile in tiles),
            "units": "mse and mae in reflectance (DN / 10000); sam in degrees; psnr in dB",
            "summary": {name: _summary(part) for name, part in parts.items() if part},
            "tiles": [
                {
                    **tile.named(),
                    **tile.facts,
                    "win": _win(tile),
                    "metrics": tile.figures[OPT_V3],
                    **{key: each for key, each in tile.figures.items() if key != OPT_V3},
                }
                for tile in tiles
            ],
        }

    def tables(self, outcome: dict[str, Any], caption: str) -> list[Table]:
        caption += f" · nfe {outcome['nfe']} · {outcome['seconds_per_tile']:.2f} s a tile"
        parts = outcome["summary"].items()
        return [
            *(_metrics_table(name, part, caption) for name, part in parts),
            *(_control_table(name, part) for name, part in parts if _controls_in(part)),
        ]


def _proposal(tile: EvaluationTile, model: EvaluatedModel) -> Tensor:
    """What Stage 3 draws for a tile by itself, (4,H,W) DN."""
    s1, opt_v2 = tile.s1[None], tile.estimate(model.source)[0][None]
    if not model.is_pipeline:
        proposal = model.ground(s1, opt_v2).proposal
    else:  # the pipeline does not hand its proposal out
        opt_v2 = model.run(s1, opt_v2, [tile.record.metadata]).opt_v2
        proposal = model.ground(s1, opt_v2, trust=torch.full_like(opt_v2[:, :1], Trust.SAR_ONLY)).proposal
    assert proposal is not None
    return proposal[0]


def _sources(tiles: Sequence[TileFigures]) -> dict[str, int]:
    return dict(Counter(tile.facts["opt_v2_source"] for tile in tiles))


def _win(tile: TileFigures) -> bool:
    """Whether opt_v3 has the smaller MSE."""
    return tile.figures[OPT_V3]["mse_v3"] < tile.figures[OPT_V3]["mse_v2"]


def _summary(tiles: Sequence[TileFigures]) -> dict[str, Any]:
    metrics = [tile.figures[OPT_V3] for tile in tiles]
    gains = [each["mse_improvement_%"] for each in metrics]
    quartiles = statistics.quantiles(gains, n=4, method="inclusive") if len(gains) > 1 else gains * 3
    summary: dict[str, Any] = {
        "opt_v2_source": _sources(tiles),
        "improvement_quartiles_%": quartiles,
        "mean": over_tiles(metrics),
        "median": over_tiles(metrics, statistics.median),
        **_headline(tiles),
    }
    # SAR and truth plainly show the place on different days: there grounding has to look wrong.
    if consistent := sar_consistent(tiles):
        summary["sar_inconsistent_tiles"] = [tile.record.name for tile in tiles if tile not in consistent]
        summary["sar_consistent"] = _headline(consistent)
    for key in CONTROL_LABELS:
        if controlled := [tile for tile in tiles if key in tile.figures]:
            summary[key] = _control_summary(key, controlled)
    return summary


def sar_consistent(tiles: Sequence[TileFigures]) -> list[TileFigures]:
    """The tiles whose SAR and truth agree about water, where those are some and not all, else none."""
    agreeing = [tile for tile in tiles if tile.facts["sar_water_on_land"] <= INCONSISTENT_SHARE]
    return agreeing if len(agreeing) < len(tiles) else []


def _headline(tiles: Sequence[TileFigures]) -> dict[str, Any]:
    mean = over_tiles([tile.figures[OPT_V3] for tile in tiles])
    return {
        "tiles": len(tiles),
        "wins": sum(map(_win, tiles)) / len(tiles),
        "worst_tile_%": -min(tile.figures[OPT_V3]["mse_improvement_%"] for tile in tiles),
        "improvement_of_mean_%": {key: improvement(mean[f"{key}_v2"], mean[f"{key}_v3"]) for key in ERRORS},
    }


def _control_summary(key: str, tiles: Sequence[TileFigures]) -> dict[str, Any]:
    """Means of a control's metrics, its improvement over opt_v2, and how opt_v3 stands to it."""
    mean, own = (over_tiles([tile.figures[each] for tile in tiles]) for each in (key, OPT_V3))
    entry: dict[str, Any] = {
        "tiles": len(tiles),
        "mean": mean,
        "improvement_of_mean_%": {error: improvement(own[f"{error}_v2"], mean[error]) for error in ERRORS},
        "v3_improvement_over_it_%": {error: improvement(mean[error], own[f"{error}_v3"]) for error in ERRORS},
        "wins_over": sum(tile.figures[OPT_V3]["mse_v3"] < tile.figures[key]["mse"] for tile in tiles) / len(tiles),
    }
    if key == "no_sar":
        entry["sar_worth_%"] = improvement(own["mse_v2"], own["mse_v3"]) - entry["improvement_of_mean_%"]["mse"]
    return entry


def timesteps_rows(outcomes: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What more network evaluations cost and bring, of what ``Estimates.to_json`` returned by timesteps: a row each."""
    rows = []
    keys = [f"{key}_{suffix}" for key in TIMESTEPS_METRICS for suffix in ("v2", "v3")]
    for quality in next(iter(outcomes.values()))["summary"]:
        for timesteps, outcome in outcomes.items():
            figures = outcome["summary"][quality]
            row = {"quality": quality, "tiles": figures["tiles"], "timesteps": timesteps, "nfe": outcome["nfe"]}
            row |= {key: figures["mean"][key] for key in keys}
            row["mse_improvement_%"] = figures["improvement_of_mean_%"]["mse"]
            row["seconds_per_tile"] = outcome["seconds_per_tile"]
            rows.append(row)
    return rows


def timesteps_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of ``timesteps_rows`` as a rich table; the first line of a quality is opt_v2."""

    def cells(row: Mapping[str, Any], suffix: str, better: str, seconds: str) -> list[str]:
        mse, *others = (shown_figure(key, row[f"{key}_{suffix}"]) for key in TIMESTEPS_METRICS)
        return [mse, better, *others, seconds]

    lines = []
    for index, row in enumerate(rows):
        if index == 0 or rows[index - 1]["quality"] != row["quality"]:
            lines.append([f"(opt_v2, {row['quality']})", *cells(row, "v2", "", "")])
        seconds = f"{row['seconds_per_tile']:.2f}"
        lines.append([str(row["timesteps"]), *cells(row, "v3", percent(row["mse_improvement_%"]), seconds)])
    edges = ("sharp-\nness", "edges\ntruth", "edges\nSAR")
    return rich_table("Timesteps", ("opt_v3 after", "MSE", "better", "MAE", "SSIM", *edges, "s a tile"), lines)


def tile_table(outcome: Mapping[str, Any]) -> Table:
    """One line a tile, of what ``Estimates.to_json`` returned."""
    tiles = outcome["tiles"]
    extra = [key for key in ("quality", "opt_v2_source") if len({tile[key] for tile in tiles}) > 1]
    names = _suffixes(tiles[0]["metrics"])
    lines = []
    for tile in tiles:
        metrics, name = tile["metrics"], f"{tile['source']}/{tile['id']}"
        line = [name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}", *(tile[key] for key in extra)]
        line += [f"{1e4 * metrics[f'mse_{suffix}']:.2f}" for suffix in names]
        line += [percent(metrics["mse_improvement_%"])]
        lines.append(line + [shown_figure("ssim", metrics[f"ssim_{suffix}"]) for suffix in names])
    figures = (*(f"MSE {name}" for name in names), "better", *(f"SSIM {name}" for name in names))
    return rich_table("Per tile (MSE in 10⁻⁴ reflectance²)", ("tile", *extra, *figures), lines)


def _suffixes(metrics: Mapping[str, Any]) -> list[str]:
    """Of the images that were measured: ``v2`` and ``v3``, and of the pipeline ``v1``."""
    return [suffix for suffix in ("v1", "v2", "v3") if f"mse_{suffix}" in metrics]


def _metrics_table(name: str, part: dict[str, Any], caption: str) -> Table:
    mean, median = part["mean"], part["median"]
    names, last_two = _suffixes(mean), ("v2", "v3")
    lines = []
    for key in (*METRIC_KEYS, SAR_KEY):
        better = part["improvement_of_mean_%"]
        means = [shown_figure(key, mean[f"{key}_{suffix}"]) for suffix in names]
        medians = [shown_figure(key, median[f"{key}_{suffix}"]) for suffix in last_two]
        lines.append([METRIC_LABELS[key], *means, percent(better[key]) if key in better else "", *medians])
    headings = ["metric", *(f"opt_{each}\nmean" for each in names), "better", *(f"opt_{e}\nmedian" for e in last_two)]
    sources = ", ".join(f"{source} ({count})" for source, count in part["opt_v2_source"].items())
    return rich_table(_title(name, part), headings, lines, f"opt_v2 from: {sources} · {caption}\n{_summary_text(part)}")


def _summary_text(part: dict[str, Any]) -> str:
    """What the table has no column for."""
    mean = part["mean"]
    kinds = ", ".join(f"{key} {share(mean[key])}" for key in ("improved", "omitted", "hallucinated"))
    unchanged = round(mean["identity_collapse"] * part["tiles"])
    lines = [
        f"opt_v3 has the smaller MSE on {share(part['wins'])} of the tiles · copy ratio"
        f" {shown_figure('copy_ratio', mean['copy_ratio'])}",
        f"better by tile, quartiles: {', '.join(map(percent, part['improvement_quartiles_%']))} · worst tile:"
        f" {percent(part['worst_tile_%'], sign=-1)}",
        f"pixels: {kinds}" + (f" · OPT_V3 IS OPT_V2 UNCHANGED on {counted(unchanged, 'tile')}" if unchanged else ""),
    ]
    rest = part.get("sar_consistent")
    if rest is not None:
        lines.append(
            f"on {counted(len(part['sar_inconsistent_tiles']), 'tile')} the SAR shows water on land of the truth,"
            f" another day; better without them: {percent(rest['improvement_of_mean_%']['mse'])} · worst tile:"
            f" {percent(rest['worst_tile_%'], sign=-1)}"
        )
    return "\n".join(lines)


def _control_table(name: str, part: dict[str, Any]) -> Table:
    mean, better = part["mean"], part["improvement_of_mean_%"]
    rows = [("opt_v2", {key: mean[f"{key}_v2"] for key in ERRORS}, dict.fromkeys(ERRORS, 0.0), share(part["wins"]))]
    rows += [("opt_v3", {key: mean[f"{key}_v3"] for key in ERRORS}, better, "")]
    rows += [
        (CONTROL_LABELS[key], entry["mean"], entry["improvement_of_mean_%"], share(entry["wins_over"]))
        for key, entry in _controls_in(part).items()
    ]
    lines = [
        [label, *(shown_figure(key, means[key]) for key in ERRORS), *(percent(gains[key]) for key in ERRORS), wins]
        for label, means, gains, wins in rows
    ]
    worth = part.get("no_sar", {}).get("sar_worth_%")
    caption = "opt_v3 wins: share of tiles where its MSE is smaller than that of the line"
    if worth is not None:
        caption += f"\nwith SAR instead of without: {percent(worth)} of opt_v2's MSE"
    headings = ("", "MSE", "MAE", "MSE better\nthan opt_v2", "MAE better\nthan opt_v2", "opt_v3\nwins")
    return rich_table(f"Controls: {_title(name, part)}", headings, lines, caption)


def _controls_in(part: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {key: part[key] for key in CONTROL_LABELS if key in part}


def _title(name: str, part: Mapping[str, Any]) -> str:
    return f"{counted(part['tiles'], 'tile')}, quality {name}"
