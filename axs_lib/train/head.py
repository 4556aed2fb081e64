"""Train the grounding head: estimates of every kind, proposals of every quality, one head for all generators.

Tiles in memory are cropped, turned and varied, and each crop of a batch becomes an example of its own: an estimate of one
kind (``axs_lib.data.estimates``, only those of the split ``train``), clear pixels around clouds, what Stages 1 and 2 draw
from the SAR, or an estimate that misses a flood which the SAR shows; beside it a proposal (``axs_lib.data.proposals``):
the generator's own, drawn in the loop, an informed one, one that does not fit, or none; and the SAR, sometimes another
place's or none. Everything is drawn anew at every step, and a step is a function of (seed, step), so that a stopped run
goes on from its last checkpoint.

The loss counts what makes an estimate worse more than what makes it better: the aim is a gate that opens only where the
correction is likely right. Out comes ``grounding.safetensors``: the head by itself, which works in units of its own and
serves every generator.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axs_lib.bands import VALID_DN
from axs_lib.checks import ESTIMATE_TRUST, GUESS_TRUST
from axs_lib.data.clouds import cloud_trust
from axs_lib.data.estimates import kinds_of, make_estimate
from axs_lib.data.flood import simulate_flood
from axs_lib.data.pairs import PairRecord, load_pair
from axs_lib.data.proposals import TURNED_CHANCE, informed_proposal
from axs_lib.errors import InputError
from axs_lib.grounding.contradiction import contradiction, open_water
from axs_lib.grounding.gap import fit_to_observed, unknown_share
from axs_lib.grounding.head import OPTICAL_STATISTICS, SAR_STATISTICS, Correction, GroundingHead
from axs_lib.grounding.hold import LowFrequencyHold
from axs_lib.nodata import fill_nodata, pad_square, valid_pixels
from axs_lib.progress import track
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.stage2_prithvi_refine import build_prithvi_refiner
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.load import load_generator
from axs_lib.terramind.noise import sample_seeds
from axs_lib.terramind.sampler import build_schedule
from axs_lib.terramind.tiles import Sampling, draw_proposals
from axs_lib.terramind.weights import load_strict, read_metadata, read_state, sha256_file, substate
from axs_lib.train.examples import SAR_JITTER_DB, draw_gain, water_colour
from axs_lib.train.export import save_state
from axs_lib.train.loop import fit_module, training_records
from axs_lib.train.tasks import SEED_STRIDE, own_random

CHECKPOINT, CHAIN, FILE = "head.ckpt", "stage2.pt", "grounding.safetensors"
LOGGER = logging.getLogger(__name__)

ERROR_WEIGHT = 0.05  # of the expected error's likelihood beside the image's own loss
UNLIKELY = 16.0  # squared ratio of error to expected error beyond which a pixel counts no more
CONTRADICTED_WEIGHT = 8.0  # of a tile's mean SAR inconsistency, beside 1: smooth dark fields look like water
DONOR_WATER = 0.01  # of a tile at most, whose SAR is shown to another place
CALIBRATION_DB, SPECKLE_DB = 0.8, 1.4
GUESS_COMMON, GUESS_BAND = 0.15, 0.10  # brightness of an estimate from SAR alone, as fractions (1 std)
DATE_KNOWN = 0.7  # of the estimates from SAR alone, where the pair has one
CHAIN_DRAWS = 3  # estimates from SAR alone of each tile
SHIFTED_WEIGHT, SHIFTED_PX = 0.3, 2  # of a pair whose note names a shift over so many pixels
LIGHT_CHANCE = 0.3  # of an estimate to be of light strength
HARM_PX = 5  # px over which squared errors before and after are averaged before they are compared
LEAST_MSE = 1e-4  # (10 DN / 1000) squared
ROBUST = 2.0  # weighed squared error of a tile from which on it counts by its logarithm
DN_FLOOR = 6.0  # DN: a tile whose estimate is nearer to the truth counts as if it were so far
MODES = ("estimate", "gaps", "stage2", "flood")


@dataclass(frozen=True)
class HeadConfig:
    """One run; it is written into the header of its weights.

    Attributes:
        data: folder of pairs.
        out: run folder.
        variant: generator that draws the own proposals.
        checkpoint: its weights; default the packaged or published ones.
        start: weights whose head the training starts from: a grounding file, or a nano file; default a fresh head.
        colour: weights (4, 7) of Stage 2's seasonal colour in a file of ``torch.save``; default the packaged.
        test_groups: groups never seen.
        validation_groups: groups kept out for choices.
        qualities: tiles that are trained on.
        fitted_sources: sources whose tiles the generator may know by heart; the others are drawn ``fresh`` times as
            often where the generator takes part.
        fresh: see there.
        modes: share of the examples that are estimates, gaps, estimates from SAR alone, and missed floods.
        kinds: weight of kinds of estimates beside 1.
        proposals: share of the proposals that are own, informed, foreign and none.
        swapped: share of the examples beside another tile's SAR, and ``blind``, beside none.
        blind: see there.
        harm: weight of local harm, and ``relative``, of each tile's error relative to its estimate's.
        relative: see there.
        steps: optimiser steps.
        learning_rate: peak, after warm-up, before the cosine to zero.
        ema: decay of the averaged weights that are written.
        crop_sizes: sides of the crops in pixels, multiples of 32.
        batch_pixels: pixels of a batch.
        checkpoint_every: steps between checkpoints.
        seed: of every draw.
        threads: CPU threads; null leaves them.
    """

    data: str
    out: str = "runs/head"
    variant: str = "nano"
    checkpoint: str | None = None
    start: str | None = None
    colour: str | None = None
    test_groups: tuple[str, ...] = ()
    validation_groups: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ("ok", "open_water")
    fitted_sources: tuple[str, ...] = ()
    fresh: float = 3.0
    modes: tuple[float, ...] = (0.58, 0.25, 0.09, 0.08)
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {"truth": 2.0, "refiner": 5.0, "combined": 4.0, "gaussian_blur": 2.0}
    )
    proposals: tuple[float, ...] = (0.38, 0.42, 0.14, 0.06)
    swapped: float = 0.07
    blind: float = 0.09
    harm: float = 0.3
    relative: float = 0.03
    steps: int = 10000
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup: int = 100
    ema: float = 0.998
    crop_sizes: tuple[int, ...] = (64, 96, 96, 128)
    batch_pixels: int = 6 * 96 * 96
    checkpoint_every: int = 100
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class TrainingTile:
    """One pair in memory.

    Attributes:
        record: where it came from.
        s1: (2, H, W) in dB, and ``truth`` (4, H, W) in DN, no nodata.
        truth: see there.
        stage2: estimates from SAR alone, (n, 4, H, W) in DN, and the offsets (n, 2) in dB of the SAR they came from.
        offsets: see there.
        weight: how often it is drawn where the generator takes no part, and ``fresh_weight``, where it does.
        fresh_weight: see there.
        wet: whether its SAR shows open water.
    """

    record: PairRecord
    s1: Tensor
    truth: Tensor
    stage2: Tensor
    offsets: Tensor
    weight: float
    fresh_weight: float
    wet: bool


@dataclass
class Batch:
    """Examples of one size; images in dB and DN.

    Attributes:
        s1: (B, 2, H, W).
        estimate: (B, 4, H, W).
        proposal: (B, 4, H, W); that of ``own`` examples is drawn by the generator.
        trust: (B, 1, H, W).
        truth: (B, 4, H, W).
        own: (B,) bool.
        blind: (B,) bool, no SAR.
        names: what each example is, for the log.
    """

    s1: Tensor
    estimate: Tensor
    proposal: Tensor
    trust: Tensor
    truth: Tensor
    own: Tensor
    blind: Tensor
    names: list[str]


def train_head(config: HeadConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Run (or resume) a training and write ``grounding.safetensors`` into the run folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with own_random(config.seed):
        head = GroundingHead()
    if config.start:
        load_head(head, Path(config.start))
    generator = load_generator(config.variant, checkpoint=config.checkpoint).requires_grad_(False).eval()
    tiles = load_tiles(config, generator, out / CHAIN, progress=progress)
    sampler = ExampleSampler(config, tiles)
    corrector = Corrector(head)
    log = _Log(out / "log.jsonl", config.checkpoint_every)

    def loss_of(step: int) -> Tensor:
        random = torch.Generator().manual_seed(config.seed * SEED_STRIDE + step)
        batch = sampler.batch(random)
        draw_own(batch, generator, random)
        loss, ratios = loss_of_batch(corrector, batch, harm=config.harm, relative=config.relative)
        log.add(step, float(loss.detach()), batch.names, ratios)
        return loss

    def package(averaged: nn.Module, step: int) -> Path:
        return save_head(averaged, out / FILE, config, step)

    return fit_module(
        config, head, loss_of, package, checkpoint=out / CHECKPOINT, resume=resume, progress=progress
    )


# -- weights ------------------------------------------------------------------------------------------------------


def load_head(head: GroundingHead, path: Path) -> None:
    """Load a grounding file, or the head of an earlier nano file: what that head lacked starts at zero."""
    state = read_state(path)
    if any(name.startswith("head.") for name in state):
        state = substate(state, "head.")
    own = head.state_dict()
    stem = state["body.stem.weight"]
    if stem.shape[1] != own["body.stem.weight"].shape[1]:  # 20 channels at full and 5 at half resolution
        full, half = 4 * 20, 5
        wider = torch.zeros_like(own["body.stem.weight"])
        wider[:, :full] = stem[:, :full]
        wider[:, -9 : -9 + half] = stem[:, full:]
        state = own | state | {"body.stem.weight": wider}
    load_strict(head, {name: value.float() for name, value in state.items()}, what=f"the head of {path}")


def save_head(head: nn.Module, path: Path, config: HeadConfig, step: int) -> Path:
    """Write the head by itself, with the run in the header."""
    settings = {
        key: value for key, value in asdict(config).items() if key not in ("data", "out", "checkpoint", "start")
    }
    header = {"kind": "grounding_head", "head_config": json.dumps(settings)}
    if config.start:
        start = Path(config.start)
        step += int(read_metadata(start).get("head_steps", 0))
        header["head_start"] = sha256_file(start)
    header["head_steps"] = str(step)
    save_state(path, dict(head.state_dict()), header)
    return path


# -- tiles --------------------------------------------------------------------------------------------------------


def load_tiles(
    config: HeadConfig, generator: TerraMindGenerator, path: Path, *, progress: bool = False
) -> list[TrainingTile]:
    """The training pairs with what Stages 1 and 2 draw of them, which is kept in ``path`` for the next start."""
    records = training_records(config)
    kept: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True) if path.exists() else {}
    stage1 = Stage1Model(generator, timesteps=1).eval()
    stage2 = build_prithvi_refiner(variant="nano")
    if config.colour:
        stage2.colour.weight.data.copy_(torch.load(config.colour, weights_only=True))
    groups: dict[str, int] = defaultdict(int)
    for record in records:
        groups[record.group] += 1
    tiles = []
    for number, record in track(enumerate(records), "tiles", enabled=progress, total=len(records)):
        pair = load_pair(record)
        s1, truth = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
        valid = valid_pixels(s1, truth)
        s1, truth = fill_nodata(s1, valid), fill_nodata(truth, valid)
        if record.name not in kept:
            random = torch.Generator().manual_seed(config.seed * SEED_STRIDE + number)
            offsets = SAR_JITTER_DB * torch.randn(CHAIN_DRAWS, 2, generator=random)
            known = torch.rand(CHAIN_DRAWS, generator=random) < DATE_KNOWN
            with torch.no_grad():
                drawn = stage2(
                    stage1.generate(s1 + offsets[..., None, None]).image,
                    [record.metadata if each else None for each in known.tolist()],
                )
            kept[record.name] = {"stage2": drawn.round().to(torch.int16), "offsets": offsets}
        with torch.no_grad():
            inconsistent = float(contradiction(s1, truth).mean())
        weight = min(record.height, record.width) * groups[record.group] ** -0.35
        weight *= 1.0 + CONTRADICTED_WEIGHT * inconsistent
        weight *= SHIFTED_WEIGHT if shifted(record.note) else 1.0
        weight *= 1.0 if record.quality == "ok" else 0.4
        fitted = record.source in config.fitted_sources
        tiles.append(
            TrainingTile(
                record,
                s1[0],
                truth[0],
                kept[record.name]["stage2"],
                kept[record.name]["offsets"],
                weight,
                weight * (1.0 if fitted else config.fresh),
                float(open_water(s1).mean()) >= DONOR_WATER,
            )
        )
    torch.save(kept, path)
    if not tiles:
        raise InputError(f"{config.data} has no pair to train on outside the groups that are kept out")
    return tiles


def shifted(note: str) -> bool:
    """Whether a pair's note names a shift of SAR against optical over 2 px that its correlation makes likely."""
    found = re.search(r"shift (-?\d+),(-?\d+) c=([\d.]+)", note)
    if not found:
        return False
    return max(abs(int(found[1])), abs(int(found[2]))) > SHIFTED_PX and float(found[3]) > 0.12


# -- examples -----------------------------------------------------------------------------------------------------


class ExampleSampler:
    """Batches of examples, each crop another.

    Args:
        config: shares and sizes.
        tiles: the training pairs.
    """

    def __init__(self, config: HeadConfig, tiles: Sequence[TrainingTile]) -> None:
        self.config = config
        self.tiles = tiles
        self.kinds = [name for name in kinds_of("train", without_needs=True)]
        self.kind_weights = torch.tensor([float(config.kinds.get(name, 1.0)) for name in self.kinds])
        self.sides = torch.tensor([min(tile.truth.shape[-2:]) for tile in tiles])
        self.weights = torch.tensor([tile.weight for tile in tiles])
        self.fresh_weights = torch.tensor([tile.fresh_weight for tile in tiles])
        self.dry = torch.tensor([not tile.wet for tile in tiles])

    def batch(self, random: torch.Generator) -> Batch:
        """One batch; everything is drawn from ``random``."""
        sizes = self.config.crop_sizes
        size = sizes[int(torch.randint(len(sizes), (), generator=random))]
        count = max(1, self.config.batch_pixels // size**2)
        parts = [self._example(size, random) for _ in range(count)]
        names, images = [part[0] for part in parts], [part[1] for part in parts]
        layers = [torch.cat([pad_square(image[index], size) for image in images]) for index in range(5)]
        simulated = torch.tensor(["informed" in name or "foreign" in name for name in names])
        if bool(simulated.any()):  # so far what they are made of
            layers[2][simulated] = informed_proposal(layers[2][simulated], generator=random)
        return Batch(
            *layers,
            own=torch.tensor(["own" in name for name in names]),
            blind=torch.tensor(["blind" in name for name in names]),
            names=names,
        )

    def _example(self, size: int, random: torch.Generator) -> tuple[str, list[Tensor]]:
        """Its name, and s1, estimate, proposal, trust and truth (1, C, h, w) of ``size`` px or a little less."""
        config = self.config

        def share(shares: Sequence[float]) -> int:
            return int(torch.multinomial(torch.tensor(shares), 1, generator=random))

        def uniform() -> float:
            return float(torch.rand((), generator=random))

        mode = MODES[share(config.modes)]
        proposal_kind = ("own", "informed", "foreign", "none")[share(config.proposals)]
        generated = mode == "stage2" or proposal_kind == "own"
        tile = self.tiles[self._draw_tile(size, random, self.fresh_weights if generated else self.weights)]
        place = _Place.draw(tile.truth, size, random)
        s1, truth = place.of(tile.s1), place.of(tile.truth)

        # 1. Another calibration of the SAR, more speckle, another brightness of the ground.
        if mode != "stage2":
            s1 = s1 + CALIBRATION_DB * torch.randn(1, 2, 1, 1, generator=random)
        gain = draw_gain(1, random)
        truth = (truth * gain).clamp(*VALID_DN)

        # 2. The estimate.
        trust = torch.full_like(truth[:, :1], ESTIMATE_TRUST)
        name = mode
        if mode == "gaps":
            trust = cloud_trust(1, *truth.shape[-2:], generator=random)
            estimate = fill_nodata(truth, trust > 0, fallback=truth.mean((2, 3), keepdim=True))
        elif mode == "stage2":
            chosen = int(torch.randint(len(tile.stage2), (), generator=random))
            trust = torch.full_like(trust, GUESS_TRUST)
            s1 = s1 + tile.offsets[chosen][None, :, None, None]
            estimate = place.of(tile.stage2[chosen].float()) * gain
            estimate = estimate * draw_gain(1, random, GUESS_COMMON, GUESS_BAND)
        else:
            kind = "refiner" if mode == "flood" else self.kinds[share(self.kind_weights.tolist())]
            strength = uniform() * (0.3 if uniform() < LIGHT_CHANCE else 1.0)
            estimate = make_estimate(kind, truth, generator=random, strength=strength).round()
            name = kind if mode == "estimate" else mode
        s1 = s1 + SPECKLE_DB * uniform() * torch.randn(s1.shape, generator=random)
        if mode == "flood":
            s1, water = simulate_flood(s1, generator=random)
            truth = torch.where(water, water_colour(truth, random), truth)
        estimate = estimate.clamp(*VALID_DN)

        # 3. What the proposal is made of.
        if proposal_kind == "informed":
            proposal = truth
        elif proposal_kind == "foreign":
            turned = uniform() < TURNED_CHANCE
            proposal = truth.flip((2, 3)) if turned else self._elsewhere(tile, size, random)
        else:
            proposal = estimate

        # 4. Another tile's SAR, or none.
        chance = uniform()
        if mode in ("estimate", "gaps") and chance < config.swapped:
            donor = self.tiles[self._draw_tile(size, random, self.weights * self.dry, other=tile.record.group)]
            s1 = _fitted(_Place.draw(donor.truth, size, random).of(donor.s1), truth)
            proposal_kind += " swapped"
        elif mode in ("estimate", "gaps") and chance < config.swapped + config.blind:
            proposal_kind += " blind"
        return f"{name} {proposal_kind}", [s1, estimate, proposal, trust, truth]

    def _elsewhere(self, tile: TrainingTile, size: int, random: torch.Generator) -> Tensor:
        other = self.tiles[self._draw_tile(size, random, self.weights, other=tile.record.group)]
        like = torch.empty(1, 4, *(min(size, side) for side in tile.truth.shape[-2:]))
        return _fitted(_Place.draw(other.truth, size, random).of(other.truth), like)

    def _draw_tile(
        self, size: int, random: torch.Generator, weights: Tensor, other: str | None = None
    ) -> int:
        """Index of a tile that is large enough (a little less is padded), of another group than ``other``."""
        large = self.sides >= size - (8 if size >= 128 else 0)
        if other is not None:
            large = large & torch.tensor([tile.record.group != other for tile in self.tiles])
        return int(torch.multinomial(weights * large, 1, generator=random))


@dataclass(frozen=True)
class _Place:
    """Where a crop lies in its tile, and how it is turned."""

    rows: slice
    columns: slice
    quarters: int
    mirrored: bool

    @classmethod
    def draw(cls, image: Tensor, size: int, random: torch.Generator) -> _Place:
        def draw(high: int) -> int:
            return int(torch.randint(high, (), generator=random))

        height, width = image.shape[-2:]
        rows, columns = min(size, height), min(size, width)
        top, left = draw(height - rows + 1), draw(width - columns + 1)
        return cls(slice(top, top + rows), slice(left, left + columns), draw(4), bool(draw(2)))

    def of(self, image: Tensor) -> Tensor:
        """(1, C, h, w) of (C, H, W)."""
        crop = image[:, self.rows, self.columns].rot90(self.quarters, (1, 2))
        return (crop.flip(2) if self.mirrored else crop)[None]


def _fitted(image: Tensor, like: Tensor) -> Tensor:
    """Padded or cut to the height and width of ``like``."""
    height, width = like.shape[-2:]
    side = max(height, width)
    return pad_square(image, side)[..., :height, :width]


# -- the step -----------------------------------------------------------------------------------------------------


class Corrector(nn.Module):
    """The head and what surrounds it in Stage 3: units, low-frequency constraint, observed pixels.

    Args:
        head: of the corrections.
    """

    def __init__(self, head: GroundingHead) -> None:
        super().__init__()
        self.head = head
        self.hold = LowFrequencyHold()
        for name, statistics in (("sar", SAR_STATISTICS), ("optical", OPTICAL_STATISTICS)):
            for part, values in zip(("mean", "std"), statistics, strict=True):
                self.register_buffer(f"{name}_{part}", torch.tensor(values)[:, None, None])

    def forward(
        self, s1: Tensor, estimate: Tensor, proposal: Tensor, trust: Tensor, blind: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The change and the expected error, (B, 4, H, W) in DN.

        Args:
            s1: (B, 2, H, W) in dB, no nodata; H, W multiples of 16.
            estimate: (B, 4, H, W) in DN.
            proposal: (B, 4, H, W) in DN.
            trust: (B, 1, H, W).
            blind: (B,) bool, where the SAR is not used.
        """
        seen = ~blind[:, None, None, None]
        z1 = (s1 - self.sar_mean) / self.sar_std * seen
        z, p = ((image - self.optical_mean) / self.optical_std for image in (estimate, proposal))
        with torch.no_grad():
            inconsistent = contradiction(s1, estimate) * seen
            water = open_water(s1) * seen
        correction: Correction = self.head(z1, z, p, trust, inconsistent)
        unknown = unknown_share(trust)
        release = torch.maximum(correction.release * torch.maximum(water, unknown), unknown)
        change = torch.cat(
            [
                fit_to_observed(one, each)
                for one, each in zip(
                    (correction.gate * self.hold(correction.residual, release)).split(1), trust.split(1), strict=True
                )
            ]
        )
        assert correction.error is not None
        return change * self.optical_std, correction.error * self.optical_std


@torch.no_grad()
def draw_own(batch: Batch, generator: TerraMindGenerator, random: torch.Generator) -> None:
    """Put the generator's one-step proposals where a batch has its own."""
    for blind in (False, True):
        chosen = (batch.own & (batch.blind == blind)).nonzero()[:, 0]
        if not len(chosen):
            continue
        optical = generator.optical.to_z(batch.estimate[chosen])
        conditions = {"optical": optical} if blind else {"s1": generator.sar.to_z(batch.s1[chosen]), "optical": optical}
        seeds = sample_seeds(0, len(chosen), generator=random)
        size = (optical.shape[-2], optical.shape[-1])
        drawn = draw_proposals(
            generator,
            [generator.logits(conditions)],
            size,
            build_schedule("ddim", 1, 1.0),
            Sampling(),
            seeds,
            torch.zeros((len(chosen), 2), dtype=torch.int64),
        )
        batch.proposal[chosen] = generator.optical.from_z(next(drawn)[0])


def loss_of_batch(
    corrector: Corrector, batch: Batch, *, harm: float, relative: float
) -> tuple[Tensor, list[tuple[float, float]]]:
    """The loss, and of each example the mean squared error before and after in DN squared."""
    change, expected = corrector(batch.s1, batch.estimate, batch.proposal, batch.trust, batch.blind)
    image = batch.estimate + change

    # What each tile's error costs beside the root of what its estimate began with; a tile that is far off counts less
    # and less, so that one flood of another day does not make up a step.
    error = (image - batch.truth) / 1000.0
    with torch.no_grad():
        began = ((batch.estimate - batch.truth) / 1000.0).square().mean((1, 2, 3)).clamp_min(LEAST_MSE)
        weight = (began * began.mean()).rsqrt()
    squared = error.square().mean((1, 2, 3)) * weight
    balanced = _by_logarithm(squared).mean() + 0.3 * (error.abs().mean((1, 2, 3)) * weight.sqrt()).mean()

    # Harm counts more than gain: locally, and of a tile relative to what its estimate began with.
    after, before = ((each - batch.truth).square().mean(1, keepdim=True) for each in (image, batch.estimate))
    with torch.no_grad():
        began = before.mean((1, 2, 3))
        weight = (began.clamp_min(100.0) * began.mean().clamp_min(100.0)).rsqrt()
    pad = HARM_PX // 2
    local = F.avg_pool2d(after - before, HARM_PX, stride=2, padding=pad, count_include_pad=False).relu()
    harmed = _by_logarithm(local.mean((1, 2, 3)) * weight).mean()
    ratio = after.mean((1, 2, 3)) / (began + DN_FLOOR**2)
    start = began / (began + DN_FLOOR**2)
    worse = (ratio - start).relu()
    ratios = _by_logarithm(ratio + worse).mean()

    unknown = batch.trust < 1
    apart = ((image.detach() - batch.truth) / expected).square().clamp_max(UNLIKELY)
    std = corrector.optical_std
    unlikely = ((0.5 * apart + (expected / std).log()) * unknown).mean()
    loss = balanced + harm * harmed + relative * ratios + ERROR_WEIGHT * unlikely
    pairs = list(zip(began.tolist(), after.detach().mean((1, 2, 3)).tolist(), strict=True))
    return loss, pairs


def _by_logarithm(cost: Tensor) -> Tensor:
    """Costs that count by their logarithm from ``ROBUST`` on."""
    return torch.where(cost > ROBUST, ROBUST * (1.0 + (cost / ROBUST).clamp_min(1.0).log()), cost)


class _Log:
    """Mean loss, and by kind of example the change of the mean squared error, a line of JSON every so many steps."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self._clear()

    def _clear(self) -> None:
        self.losses: list[float] = []
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def add(self, step: int, loss: float, names: list[str], ratios: list[tuple[float, float]]) -> None:
        self.losses.append(loss)
        for name, (before, after) in zip(names, ratios, strict=True):
            for key in _keys(name):
                for index, value in enumerate((before, after, 1.0)):
                    self.sums[key][index] += value
        if (step + 1) % self.every == 0:
            change = {
                key: round(100 * (after / max(before, 1.0) - 1), 1) if key != "truth" else round((after / n) ** 0.5, 1)
                for key, (before, after, n) in sorted(self.sums.items())
            }
            line: dict[str, Any] = {"step": step + 1, "loss": sum(self.losses) / len(self.losses), "change": change}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._clear()


def _keys(name: str) -> Iterator[str]:
    kind, proposal, *rest = name.split()
    yield kind
    if kind == "gaps":
        yield f"gaps {proposal}"
    elif kind != "truth":
        yield f"proposal {proposal}"
    yield from rest
