"""Train the grounding head: estimates of many kinds, proposals of many qualities, one head for every generator.

The head starts as the packaged one, or the one beside a checkpoint. Every step makes its examples anew
(``axs_lib.train.head_examples``), a function of (seed, step), so that a stopped run goes on from its last checkpoint; the
generator draws its own proposals within the step. The loss counts harm more than gain, in places and over whole tiles, so
that the gate opens only where a correction is likely right. Out comes a folder with the new head, which ``--adapter`` and
``axs_lib.adapters.load_adapter`` take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.data.pairs import PairRecord, list_pairs
from axs_lib.grounding.corrector import GroundingCorrector, GroundingTiles
from axs_lib.grounding.head import GroundingHead
from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.grounding.sar_inconsistency import sar_inconsistency
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.stage2_prithvi_refine import build_prithvi_refiner
from axs_lib.stage3_tm_ground import Stage3GroundingModel, build_stage3_model
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.noise import gaussian_field
from axs_lib.terramind.sampler import build_schedule
from axs_lib.terramind.weights import load_strict, read_metadata, read_state, sha256_file, write_state
from axs_lib.train.config import LoopConfig
from axs_lib.train.head_examples import ExampleSampler, FromSar, Metadata, Shares, load_tiles
from axs_lib.train.trainer import SEED_STRIDE, ByStep, ModuleTask, fit, own_random

FROM_SAR = "from_sar.pt"
FRESH = "fresh"
ERROR_WEIGHT = 0.05  # of the expected error's likelihood beside the image's own loss
UNLIKELY = 16.0  # squared ratio of error to expected error beyond which a pixel counts no more
SCALE_DN = 1000.0
LEAST_MSE = 1e-4  # (10 DN / SCALE_DN) squared
ROBUST = 2.0  # cost of a tile from which on it counts by its logarithm: one flood of another day is not all of a step
HARM_PX = 5  # px over which squared errors before and after are averaged before they are compared
FLOOR_DN = 6.0  # a tile whose estimate is nearer to the truth counts as if it were so far


@dataclass(frozen=True, kw_only=True)
class HeadConfig(LoopConfig):
    """The grounding head beside a frozen generator; variants nano and terramind_v1_tiny, _small, _base, _large.

    Attributes:
        data: folder of pairs.
        variant: of the generator that draws the own proposals.
        checkpoint: weights of the generator instead of the variant's own: a file or folder.
        revision: Hub revision of the variant's own weights.
        s1_product: ``S1GRD`` or ``S1RTC``.
        start: head to start from: a file, or ``fresh``; default the packaged one, or the one beside ``checkpoint``.
        test_groups: groups never seen.
        validation_groups: groups kept out for choices.
        qualities: tiles that are trained on.
        shares: what the examples are.
        harm: weight of what becomes worse within a tile.
        relative: weight of each tile's error relative to its estimate's.
        use_sar: False trains the control that meets mean backscatter everywhere, as ``axs evaluate`` runs it.
        crop_sizes: sides of the crops in pixels, multiples of 32.
        batch_pixels: pixels of a batch.
    """

    data: str
    out: str = "runs/head"
    variant: str = "nano"
    checkpoint: str | None = None
    revision: str | None = None
    s1_product: Literal["S1GRD", "S1RTC"] = "S1GRD"
    start: str | None = None
    test_groups: tuple[str, ...] = ()
    validation_groups: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ("ok", "open_water")
    shares: Shares = field(
        default_factory=lambda: Shares(
            kinds={"truth": 2.0, "refiner": 5.0, "combined": 4.0, "gaussian_blur": 2.0}
        )
    )
    harm: float = 0.3
    relative: float = 0.03
    use_sar: bool = True
    steps: int = 9000
    learning_rate: float = 1.5e-3
    warmup: int = 100
    check_every: int = 100
    crop_sizes: tuple[int, ...] = (64, 96, 96, 128)
    batch_pixels: int = 6 * 96 * 96


def train_head(config: HeadConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Train a head, or go on where a stopped run left off.

    Args:
        config: the run.
        resume: continue from the run folder's checkpoint where it is there.
        progress: show progress bars.

    Returns:
        The folder of the head's weights.

    Raises:
        InputError: data that cannot be used, or a configuration that makes no sense.
        WeightsError: weights to start from that cannot be had, or a checkpoint of another run.
        OutputError: the disk refuses; the previous checkpoint is intact.
    """
    model = build_stage3_model(
        timesteps=1,
        variant=config.variant,
        checkpoint=config.checkpoint,
        revision=config.revision,
        s1_product=config.s1_product,
        correction_mode="learned",
    )
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    tiles = load_tiles(
        training_records(config),
        _stages_1_and_2(model),
        out / FROM_SAR,
        shares=config.shares,
        seed=config.seed,
        progress=progress,
    )
    sampler = ExampleSampler(tiles, config.shares, config.crop_sizes, config.batch_pixels)
    _start_head(config, model.corrector)

    def make_batch(step: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(config.seed * SEED_STRIDE + step)
        batch = sampler.batch(random)
        seeds = torch.randint(2**62, (len(batch.own),), generator=random)
        if not config.use_sar:
            batch.blind[:] = True
        return {key: value for key, value in vars(batch).items() if key != "names"} | {"seeds": seeds}

    task = ModuleTask(config, "head", model, partial(_loss, config, model), partial(_write, config, model))
    return fit(task, ByStep(make_batch), resume=resume, progress=progress)


def training_records(config: HeadConfig) -> list[PairRecord]:
    """The pairs of the folder that may be trained on."""
    held_out = {*config.test_groups, *config.validation_groups}
    return [
        record
        for record in list_pairs(config.data, quality="all")
        if record.quality in config.qualities and record.group not in held_out
    ]


def _start_head(config: HeadConfig, corrector: GroundingCorrector) -> None:
    """Put the head that the training starts from into a corrector, and make it all that is trained."""
    if config.start == FRESH:
        with own_random(config.seed):
            corrector.head = GroundingHead()
    elif config.start is not None:
        load_strict(corrector, read_state(config.start), what=f"the grounding head ({config.start})")
    corrector.calibration = None  # it was that of the head before
    corrector.requires_grad_(True)


def _stages_1_and_2(model: Stage3GroundingModel) -> FromSar:
    """Stage 1 with the model's own generator and the packaged Stage 2, one time step."""
    stage1 = Stage1Model(model.terramind_generator, timesteps=1).eval()
    stage2 = build_prithvi_refiner(variant="nano")

    def from_sar(s1: Tensor, metadata: list[Metadata | None]) -> Tensor:
        image: Tensor = stage2(stage1.generate(s1).image, metadata)
        return image

    return from_sar


# -- a step -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def own_proposals(
    generator: TerraMindGenerator, s1: Tensor | None, estimate: Tensor, seeds: Tensor
) -> Tensor:
    """The generator's one-step proposals (B, 4, H, W) in DN.

    Args:
        generator: conditional generator.
        s1: (B, 2, H, W) in dB; ``None`` leaves the SAR out.
        estimate: (B, 4, H, W) in DN.
        seeds: (B,) int64.
    """
    conditions = {} if s1 is None else {"s1": generator.sar.to_z(s1)}
    conditions["optical"] = generator.optical.to_z(estimate)
    size = (estimate.shape[-2], estimate.shape[-1])
    codes = generator.codes(generator.logits(conditions), size)
    noise = gaussian_field(seeds, (generator.image_channels, *size))
    channels = generator.decode(codes, noise, build_schedule("ddim", 1))
    return generator.optical.from_z(generator.optical.select(channels))


def with_own_proposals(generator: TerraMindGenerator, batch: Mapping[str, Tensor]) -> Tensor:
    """The proposals (B, 4, H, W) of a batch in DN, the generator's where they are to be its own."""
    proposal = batch["proposal"].clone()
    for blind in (False, True):
        chosen = (batch["own"] & (batch["blind"] == blind)).nonzero()[:, 0]
        if len(chosen):
            s1 = None if blind else batch["s1"][chosen]
            proposal[chosen] = own_proposals(generator, s1, batch["estimate"][chosen], batch["seeds"][chosen])
    return proposal


def _loss(config: HeadConfig, model: Stage3GroundingModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Error of opt_v3, harm, and how unlikely the error was by the head's prediction."""
    estimate, trust, truth = batch["estimate"], batch["trust"], batch["truth"]
    proposal = with_own_proposals(model.terramind_generator, batch)
    seen = ~batch["blind"][:, None, None, None]
    with torch.no_grad():
        s1 = torch.where(seen, batch["s1"], model.corrector.s1_mean)
        tiles = GroundingTiles(s1, estimate, trust, sar_inconsistency(s1, estimate) * seen)
    correction = model.corrector(tiles, proposal)
    image = estimate + correction.change

    # What each tile's error costs, beside the root of what its estimate began with: a plain mean would be ruled by the
    # few tiles of highest contrast, a mean of ratios by those that are nearly right.
    error, began = (image - truth) / SCALE_DN, (estimate - truth) / SCALE_DN
    after, before = error.square().mean(1, keepdim=True), began.square().mean(1, keepdim=True)
    start = before.mean((1, 2, 3))
    least = start.clamp_min(LEAST_MSE)
    weight = (least * least.mean()).rsqrt()
    squared = _robust(after.mean((1, 2, 3)) * weight).mean()
    absolute = (error.abs().mean((1, 2, 3)) * weight.sqrt()).mean()

    # Harm: where squared errors averaged over a few pixels became larger, and tiles that became worse.
    grown = F.avg_pool2d(after - before, HARM_PX, 2, HARM_PX // 2, count_include_pad=False).relu()
    harm = _robust(grown.mean((1, 2, 3)) * weight).mean()
    floor = (FLOOR_DN / SCALE_DN) ** 2
    ratio = after.mean((1, 2, 3)) / (start + floor)
    relative = _robust(ratio + (ratio - start / (start + floor)).relu()).mean()

    # The predicted error, where something is predicted.
    assert correction.error is not None
    std = model.corrector.optical_std
    unknown = trust < 1
    predicted = torch.where(unknown, correction.error / std, 1.0)
    apart = ((image.detach() - truth) / std / predicted).square().clamp_max(UNLIKELY)
    unlikely = ((0.5 * apart + predicted.log()) * unknown).mean()
    return (
        squared + 0.3 * absolute + config.harm * harm + config.relative * relative + ERROR_WEIGHT * unlikely
    )


def _robust(cost: Tensor) -> Tensor:
    """Costs that count by their logarithm from ``ROBUST`` on."""
    return torch.where(cost > ROBUST, ROBUST * (1.0 + (cost / ROBUST).clamp_min(1.0).log()), cost)


def _write(config: HeadConfig, model: Stage3GroundingModel, step: int) -> Path:
    """Write the head with the run's settings in its header; returns the folder."""
    unsaid = ("data", "out", "checkpoint", "start")
    settings: dict[str, Any] = {key: value for key, value in asdict(config).items() if key not in unsaid}
    header = {"variant": config.variant, "head_config": json.dumps(settings)}
    if config.start not in (None, FRESH):
        step += int(read_metadata(config.start).get("head_steps", 0))
        header["head_start"] = sha256_file(config.start)
    folder = Path(config.out) / "weights"
    header["head_steps"] = str(step)
    write_state(folder / CORRECTOR_FILE, model.corrector.state_dict(), header, half=True, overwrite=True)
    return folder
