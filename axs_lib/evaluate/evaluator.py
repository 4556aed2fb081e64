"""Evaluate a Stage 3 model on a folder of real pairs: per tile, in the mean and in the median, opt_v2 beside opt_v3.

In: a model with ``ground`` and ``provenance``, and a folder of NPZ pairs (see ``axs_lib.data.pairs``). What is grounded
is the pair's own opt_v2, a simulated one, or its cloudy image (``OptV2Source``). The whole pipeline may stand in the
place of the model: it gets the SAR and the pair's metadata, and its own opt_v1 and opt_v2 are measured beside opt_v3
(``stage2``). Out: a ``Report``, with the controls that were asked for. A pair that cannot be read stops the evaluation:
a figure over the tiles that happened to load would be another figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from axs_lib.bands import OPTICAL_BANDS
from axs_lib.data.pairs import PairRecord, Quality, load_pair
from axs_lib.errors import InputError
from axs_lib.evaluate.controls import (
    NO_DATE,
    NO_DATE_V2,
    PROPOSAL_SWAPPED,
    SAR_SWAPPED,
    ControlModels,
    control_images,
    find_donors,
    swapped_proposal_images,
)
from axs_lib.evaluate.models import Grounder, Images, WholePipeline, ground, last_stage, run, stage3_of
from axs_lib.evaluate.report import Report, TileResult
from axs_lib.evaluate.sources import EvaluationTile, OptV2Source, batches_of_one_size, select_pairs
from axs_lib.grounding.sar_inconsistency import open_water
from axs_lib.metrics import compute_metrics, stage3_metrics
from axs_lib.nodata import fill_nodata, valid_pixels
from axs_lib.progress import track


def evaluate_folder(
    model: Grounder | WholePipeline,
    folder: str | Path,
    *,
    timesteps: int | None = None,
    opt_v2_source: OptV2Source | None = None,
    quality: Quality = "ok",
    groups: Sequence[str] | None = None,
    seed: int = 0,
    members: int = 1,
    controls: bool = False,
    control_models: ControlModels | None = None,
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
        opt_v2_source: what is grounded; default ``file``, and ``stage2`` for the pipeline, which knows no other.
        quality: ``"ok"`` or ``"all"``.
        groups: only these groups, e.g. those the model was not trained on.
        seed: of the model's noise.
        members: of the ensemble whose mean opt_v3 is; the controls are of one.
        controls: also measure the controls that need no further model: another tile's SAR, another tile's proposal,
            and the constant colours. Every tile's estimate and proposal are then kept in memory.
        control_models: also measure these models.
        batch_size: tiles of one size the model sees at once.
        force: do not refuse values that look like another unit.
        progress: show a bar on the error stream.

    Raises:
        InputError: no pairs, an unknown group, a source that the model cannot have, or a pair that is broken or in
            another unit; the message names it.
    """
    started = time.perf_counter()
    source = _source_for(model, opt_v2_source)
    records = select_pairs(folder, quality, groups, source)
    evaluation = _Evaluation(
        model,
        records,
        source,
        timesteps=stage3_of(model).timesteps if timesteps is None else timesteps,
        seed=seed,
        members=members,
        controls=controls,
        control_models=control_models or ControlModels(),
        batch_size=batch_size,
        force=force,
    )
    with torch.no_grad():
        results: dict[str, TileResult] = {}
        for result in track(evaluation.measure(), "evaluate", enabled=progress, total=len(records)):
            results[result.record.name] = result
        for name, figures in evaluation.measure_swapped_proposals():
            result = results[name]
            results[name] = replace(result, controls=result.controls | {PROPOSAL_SWAPPED: figures})
    tiles = [results[record.name] for record in records]
    return Report(
        data=str(folder),
        quality=quality,
        tiles=tiles,
        provenance=dict(model.provenance),
        control_models=evaluation.control_models.described(),
        timesteps=evaluation.timesteps,
        nfe=max(tile.nfe for tile in tiles),
        seed=seed,
        members=members,
        device=device_name(model.device),
        seconds=time.perf_counter() - started,
    )


class _Evaluation:
    """One run over a folder; with controls it keeps what was grounded and proposed for the second pass."""

    def __init__(
        self,
        model: Grounder | WholePipeline,
        records: list[PairRecord],
        source: OptV2Source,
        *,
        timesteps: int,
        seed: int,
        members: int,
        controls: bool,
        control_models: ControlModels,
        batch_size: int,
        force: bool,
    ) -> None:
        self.model = model
        self.stage3 = last_stage(model)
        self.records = records
        self.source = source
        self.timesteps = timesteps
        self.seed = seed
        self.members = members
        self.controls = controls
        self.control_models = control_models
        self.batch_size = batch_size
        self.force = force
        self.donors = find_donors(records) if controls else {}
        self.grounded: dict[str, Tensor] = {}
        self.proposals: dict[str, Tensor] = {}

    def measure(self) -> Iterator[TileResult]:
        """Ground the tiles batch by batch and measure each, with every control but the swapped proposal."""
        for tiles in self._batches():
            clock = time.perf_counter()
            images = run(
                self.model,
                torch.stack([tile.s1 for tile in tiles]),
                torch.stack([tile.opt_v2 for tile in tiles]),
                [tile.record.metadata for tile in tiles],
                self.timesteps,
                self.seed,
                ensemble_size=self.members,
            )
            seconds = (time.perf_counter() - clock) / len(tiles)
            others = control_images(
                tiles,
                images.opt_v2,
                self.stage3,
                self.control_models,
                self.timesteps,
                self.seed,
                donors=self.donors,
                floors=self.controls,
            )
            others |= self._undated(tiles)
            if self.donors:
                self._keep(tiles, images)
            for index, tile in enumerate(tiles):
                figures = {key: self._control(key, tile, other[index]) for key, other in others.items()}
                yield TileResult(
                    tile.record,
                    tile.opt_v2_source,
                    seconds,
                    images.nfe,
                    _metrics(images, index, tile),
                    figures,
                    water_on_land(tile),
                )

    def measure_swapped_proposals(self) -> Iterator[tuple[str, dict[str, float | str]]]:
        """Second pass, over what the first has kept: each tile's name and figures with another tile's proposal.

        Nothing where there is no other tile, or the correction is no function of one proposal ("difference").
        """
        if not self.proposals or self.stage3.provenance.get("AXS_CORRECTION_MODE") == "difference":
            return
        for tiles in self._batches():
            opt_v2 = torch.stack([self.grounded[tile.record.name] for tile in tiles])
            images = swapped_proposal_images(
                tiles, opt_v2, self.proposals, self.stage3, self.timesteps, self.seed, donors=self.donors
            )
            for tile, image in zip(tiles, images, strict=True):
                yield tile.record.name, self._control(PROPOSAL_SWAPPED, tile, image)

    def _batches(self) -> Iterator[list[EvaluationTile]]:
        for chunk in batches_of_one_size(self.records, self.batch_size):
            yield [EvaluationTile(load_pair(record), self.source, force=self.force) for record in chunk]

    def _undated(self, tiles: list[EvaluationTile]) -> dict[str, Tensor]:
        """The pipeline's images where nothing is known of date and place, if anything was."""
        known = any(record.metadata for record in self.records)
        if isinstance(self.model, Grounder) or not (self.controls and known):
            return {}
        s1, opt_v2 = (torch.stack([getattr(tile, name) for tile in tiles]) for name in ("s1", "opt_v2"))
        images = run(self.model, s1, opt_v2, [{} for _ in tiles], self.timesteps, self.seed)
        return {NO_DATE: images.opt_v3, NO_DATE_V2: images.opt_v2}

    def _keep(self, tiles: list[EvaluationTile], images: Images) -> None:
        proposals = images.proposal
        if proposals is None:  # the pipeline does not hand it out
            s1 = torch.stack([tile.s1 for tile in tiles])
            proposals = ground(self.stage3, s1, images.opt_v2, self.timesteps, self.seed).proposal.cpu()
        for index, tile in enumerate(tiles):
            self.grounded[tile.record.name] = images.opt_v2[index]
            self.proposals[tile.record.name] = proposals[index]

    def _control(self, key: str, tile: EvaluationTile, image: Tensor) -> dict[str, float | str]:
        figures: dict[str, float | str] = {**compute_metrics(image, tile.truth, s1=tile.s1)}
        if key in (SAR_SWAPPED, PROPOSAL_SWAPPED):
            figures["donor"] = self.donors[tile.record.name].name
        return figures


def _metrics(images: Images, index: int, tile: EvaluationTile) -> dict[str, float]:
    metrics = stage3_metrics(images.opt_v3[index], images.opt_v2[index], tile.truth, s1=tile.s1)
    if images.opt_v1 is not None:
        first = compute_metrics(images.opt_v1[index], tile.truth, s1=tile.s1)
        metrics |= {f"{key}_v1": value for key, value in first.items()}
    return metrics


def water_on_land(tile: EvaluationTile) -> float:
    """Share of the valid pixels that are open water to the SAR and, by its NDWI, dry land in the truth."""
    valid = valid_pixels(tile.s1[None], tile.truth[None])
    if not bool(valid.any()):
        return 0.0
    truth = fill_nodata(tile.truth[None], valid)
    green, nir = truth[:, OPTICAL_BANDS.index("B03")], truth[:, OPTICAL_BANDS.index("B08")]
    wet = open_water(fill_nodata(tile.s1[None], valid))[:, 0] > 0.5
    return float((wet & (green < nir))[valid[:, 0]].float().mean())


def _source_for(model: Grounder | WholePipeline, source: OptV2Source | None) -> OptV2Source:
    pipeline = not isinstance(model, Grounder)
    wanted = source or ("stage2" if pipeline else "file")
    if pipeline != (wanted == "stage2"):
        raise InputError(
            f"opt_v2_source is {wanted!r} for {'the pipeline' if pipeline else 'Stage 3 alone'}; the pipeline makes its"
            " own opt_v2 ('stage2'), Stage 3 alone takes 'file', 'degraded' or 'cloudy'"
        )
    return wanted


def device_name(device: torch.device) -> str:
    """The device for people: the GPU's name, or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'s' if threads > 1 else ''})"
