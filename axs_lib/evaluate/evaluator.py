"""The evaluation loop: run a model once over a folder of real pairs, and measure it in every scenario."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.table import Table

from axs_lib.checks import check_count
from axs_lib.data.pairs import PairRecord, Quality
from axs_lib.errors import InputError, counted
from axs_lib.evaluate import sources
from axs_lib.evaluate.models import EvaluatedModel
from axs_lib.evaluate.sources import EvaluationTile, OptV2Source
from axs_lib.evaluate.tables import finite_only
from axs_lib.io.safe import dark_level, warn_of_offset
from axs_lib.progress import track
from axs_lib.tilegrid import batches_of_one_shape

if TYPE_CHECKING:
    from axs_lib.pipeline import Pipeline
    from axs_lib.stage3_tm_ground import Stage3GroundingModel

Figures = dict[str, float]


@dataclass(frozen=True)
class TileFigures:
    """What was measured of one tile in one scenario."""

    record: PairRecord
    figures: dict[str, Figures] = field(default_factory=dict)  # by image, method or part of the tile
    facts: dict[str, Any] = field(default_factory=dict)  # what else is to be known of it
    left_out: str = ""  # why it does not count, empty where it does

    def named(self) -> dict[str, Any]:
        """Where it comes from, for the JSON."""
        return {key: getattr(self.record, key) for key in ("id", "source", "group", "quality")}


class Scenario(ABC):
    """One way to measure a model. It holds settings only, so that it may be used again."""

    name: ClassVar[str]  # its key in the JSON; what has an empty one stands at the top
    needs: ClassVar[str] = "tile"  # what it needs of the folder, for the error where there is none

    @abstractmethod
    def measure(self, tiles: Sequence[EvaluationTile], model: EvaluatedModel) -> Iterable[TileFigures]:
        """Run the model on tiles of one size and measure each."""

    @abstractmethod
    def to_json(self, tiles: Sequence[TileFigures], left_out: Sequence[str]) -> dict[str, Any]:
        """The outcome of all tiles that count, and of those left out ``source/id: why``."""

    @abstractmethod
    def tables(self, outcome: dict[str, Any], caption: str) -> list[Table]:
        """What ``to_json`` returned, for people; ``caption`` says how the model was run."""


@dataclass(frozen=True)
class Report:
    """The outcome of an evaluation: see ``to_json``."""

    run: dict[str, Any]  # what was measured, and how
    tiles: dict[Scenario, list[TileFigures]]  # in the order of the folder
    left_out: dict[Scenario, list[str]]  # ``source/id: why``

    def outcome(self, scenario: Scenario) -> dict[str, Any]:
        """What came of one scenario, as plain JSON types; a figure that is not finite is null."""
        return finite_only(scenario.to_json(self.tiles[scenario], self.left_out[scenario]))

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types.

        ``data`` the folder, ``quality`` ok or all, ``model`` version, variant, weights and their SHA-256,
        ``timesteps`` asked for, ``seed`` of the noise, ``device``, ``seconds`` of everything. What
        ``Estimates.to_json`` returns stands beside them, and the other scenarios' outcomes under ``flood``,
        ``damages``, ``gaps`` and ``uncertainty``. The command adds ``groups_of_training``: groups of the tiles that
        the weights were trained or chosen on.
        """
        report = dict(self.run)
        for scenario in self.tiles:
            outcome = self.outcome(scenario)
            report |= {scenario.name: outcome} if scenario.name else outcome
        return report

    def tables(self) -> list[Table]:
        """Rich tables of every scenario."""
        caption = f"{counted(self.run['timesteps'], 'timestep')} · seed {self.run['seed']} · {self.run['device']}"
        return [table for each in self.tiles for table in each.tables(self.outcome(each), caption)]


def evaluate(
    model: Stage3GroundingModel | Pipeline,
    folder: str | Path,
    scenarios: Sequence[Scenario],
    *,
    timesteps: int | None = None,
    source: OptV2Source = "file",
    quality: Quality = "ok",
    groups: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 8,
    force: bool = False,
    progress: bool = False,
) -> Report:
    """Measure a model on the NPZ pairs of a folder, see ``axs_lib.data.pairs``.

    Of the pipeline every estimate is made from the SAR and the pair's metadata. ``timesteps`` are those of Stage 3,
    of the pipeline also of Stage 1; by default the model's own. ``seed`` is that of the model's noise: what is
    simulated depends on the tile's name alone. The model sees ``batch_size`` tiles of one size at once. ``force``
    accepts values that look like another unit. Raises InputError: no pairs, an unknown group, a source that the model
    cannot have, a pair that is broken or in another unit (it is named), or a scenario for which no tile counts.
    """
    started = time.perf_counter()
    check_count("batch_size", batch_size)
    records = sources.select_pairs(folder, quality, groups, source)
    stage3: Any = getattr(model, "stage3", model)
    steps = stage3.timesteps if timesteps is None else timesteps
    donors, other_dates = sources.find_donors(records), sources.find_other_dates(records)
    dated = any(record.metadata for record in records)
    evaluated = EvaluatedModel(model, steps, seed, source, donors, other_dates, dated, force)
    if evaluated.is_pipeline != (source == "stage2"):
        raise InputError(
            f"opt_v2_source is {source!r} for {'the pipeline' if evaluated.is_pipeline else 'Stage 3 alone'}; the"
            " pipeline makes its own opt_v2 ('stage2'), Stage 3 alone takes 'file', 'degraded' or 'cloudy'"
        )
    results: dict[Scenario, list[TileFigures]] = {scenario: [] for scenario in scenarios}
    by_size = sorted(records, key=lambda record: record.size)
    batches = list(batches_of_one_shape(by_size, lambda record: record.size, batch_size))
    dark: dict[str, float] = {}
    with torch.no_grad():
        for batch in track(batches, "evaluate", enabled=progress):
            tiles = [sources.read_tile(record, force=force) for record in batch]
            for tile in tiles:
                dark[f"{tile.record.path}: s2"] = dark_level(tile.truth)
                if tile.opt_v2 is not None and source == "file":
                    dark[f"{tile.record.path}: opt_v2"] = dark_level(tile.opt_v2)
            for scenario, found in results.items():
                found += scenario.measure(tiles, evaluated)
    warn_of_offset(dark, "1000 taken off in the file")
    order = {record.name: place for place, record in enumerate(records)}
    left_out = {}
    for scenario, found in results.items():
        found.sort(key=lambda tile: order[tile.record.name])
        left_out[scenario] = [f"{tile.record.name}: {tile.left_out}" for tile in found if tile.left_out]
        results[scenario] = [tile for tile in found if not tile.left_out]
        if not results[scenario]:
            raise InputError(
                f"of {counted(len(records), 'tile')} of {folder} none is a {scenario.needs}, which --{scenario.name}"
                f" needs; choose other --groups ({'; '.join(left_out[scenario][:3])})"
            )
    run: dict[str, Any] = {"data": str(folder), "quality": quality, "model": dict(model.provenance)}
    gpu, threads = model.device.type == "cuda", counted(torch.get_num_threads(), "thread")
    device = torch.cuda.get_device_name(model.device) if gpu else f"{model.device.type} ({threads})"
    run |= {"timesteps": evaluated.timesteps, "seed": seed, "device": device}
    run["seconds"] = round(time.perf_counter() - started, 2)
    return Report(run, results, left_out)
