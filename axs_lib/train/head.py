"""Train the grounding head: estimates of every kind, proposals of every quality, one head for all generators.

Tiles are cropped, rotated and varied; each crop of a batch is an example of its own: an estimate (kinds of the split
``train``; clouds' surroundings; from SAR alone; or one that misses a flood), a proposal (the generator's own, informed,
misleading or none) and the SAR. A step is a function of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from axs_lib.bands import OPTICAL_MEAN, VALID_DN
from axs_lib.blur import gaussian_blur
from axs_lib.checks import Trust
from axs_lib.data.clouds import cloud_trust
from axs_lib.data.estimates import kinds_of, make_estimate
from axs_lib.data.flood import simulate_flood
from axs_lib.data.pairs import PairRecord, check_groups, list_pairs, load_pair
from axs_lib.data.proposals import ROTATED_CHANCE, informed_proposal
from axs_lib.errors import InputError, WeightsError, listed
from axs_lib.evaluate.sources import fitted
from axs_lib.grounding.corrector import GroundingCorrector, GroundingTiles
from axs_lib.grounding.head import GroundingHead
from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.grounding.sar_inconsistency import ndwi, open_water, sar_inconsistency
from axs_lib.hub import source_header
from axs_lib.io.atomic import atomic_write, write_torch
from axs_lib.io.files import check_regular
from axs_lib.io.safe import dark_level, warn_of_offset
from axs_lib.nodata import fill_nodata, pad_square, valid_pixels
from axs_lib.progress import track
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.stage2_prithvi_refine import build_prithvi_refiner
from axs_lib.stage3_tm_ground import Stage3GroundingModel, build_stage3_model
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.noise import gaussian_field, sample_seeds
from axs_lib.terramind.sampler import build_schedule
from axs_lib.terramind.weights import groups_in, load_strict, read_metadata, read_state, sha256_file, write_state
from axs_lib.train.config import LoopConfig
from axs_lib.train.readers.batches import draw
from axs_lib.train.trainer import SEED_STRIDE, ByStep, ModuleTask, check_start, fit, own_random

STAGE2, FRESH = "stage2.pt", "fresh"

FILTER_WEIGHT = 0.3  # of the error that the tile's filter leaves by itself
ERROR_WEIGHT = 0.05  # of the expected error's likelihood beside the image's own loss
WATER_WEIGHT = 0.1  # of the cross-entropy of water that an estimate lacks
UNLIKELY = 16.0  # squared ratio of error to expected error beyond which a pixel counts no more
INCONSISTENT_WEIGHT = 4.0  # of a tile's mean SAR inconsistency, beside 1: smooth dark fields look like water
DONOR_WATER = 0.01  # of a tile at most, whose SAR is shown to another place
CALIBRATION_DB, SPECKLE_DB = 0.8, 1.4
STAGE2_CALIBRATION_DB = 0.5  # of the SAR that estimates from SAR alone are made of
GAIN_COMMON, GAIN_BAND = 0.10, 0.04  # standard deviations of the brightness of the ground, as fractions
SAR_ONLY_COMMON, SAR_ONLY_BAND = 0.15, 0.10  # brightness of an estimate from SAR alone, as fractions (1 std)
DATE_KNOWN = 0.7  # of the estimates from SAR alone, where the pair has one
STAGE2_DRAWS = 3  # estimates from SAR alone of each tile
SHIFTED_WEIGHT, SHIFTED_PX = 0.3, 2  # of a pair whose note names a shift over so many pixels
LIGHT_CHANCE = 0.3  # of an estimate to be of light strength
CONTRAST_CHANCE, CONTRAST = 0.5, 0.35  # of the ground's colours about their mean (1 std of the logarithm)
ZOOM_CHANCE, MOST_ZOOM = 0.35, 1.6  # of a crop to be seen from farther away
PARTLY_UNKNOWN, MOSTLY_UNKNOWN, MOSTLY_UNKNOWN_CHANCE = (0.1, 0.7), (0.7, 0.99), 0.25  # shares of a tile with gaps
DRY_CHANCE = 0.45  # of a simulated flood to be dark dry ground, which the optical image does not change for
# VV of such ground and how far VH lies below it, dB: smooth, and with VH at the sensor's noise. A third kind is the
# ground that is there, 4 to 8 dB darker.
DRY_GROUND = (((-19.0, -14.0), (5.0, 8.5)), ((-25.0, -18.5), (2.5, 6.0)))
LEAST_MSE = 1e-4  # (10 DN / 1000) squared
ROBUST = 2.0  # weighed squared error of a tile from which on it counts by its logarithm
DN_FLOOR = 6.0  # DN: a tile whose estimate is nearer to the truth counts as if it were so far
# Reflectance of open water from clear to laden with sediment, B02 B03 B04 B08, as ranges in DN; drawn together.
WATER_LOW, WATER_HIGH = (200.0, 250.0, 150.0, 80.0), (900.0, 1200.0, 1200.0, 600.0)
MODES = ("estimate", "gaps", "stage2", "flood")
PROPOSALS = ("own", "informed", "foreign", "none")


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
        fitted_sources: sources that the generator was trained on. Its proposals for the tiles of others are more like
            those in use, so that where it draws these are drawn ``unfitted_weight`` times as often.
        unfitted_weight: see there.
        modes: share of the examples that are estimates, gaps, estimates from SAR alone, and missed floods.
        kinds: weight of kinds of estimates beside 1.
        proposals: share of the proposals that are own, informed, foreign and none.
        swapped: share of the examples beside another tile's SAR.
        blind: share of the examples without SAR.
        fit_filter: whether the tile's filter is trained, too (``experiments.nano.tile_filter`` fits one by itself).
        use_sar: False trains the control that meets mean backscatter everywhere, as ``axs evaluate`` runs it.
        relative: weight of each tile's error relative to its estimate's in the loss.
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
    fitted_sources: tuple[str, ...] = ()
    unfitted_weight: float = 3.0
    modes: tuple[float, ...] = (0.64, 0.19, 0.09, 0.08)
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {"refiner": 9.0, "combined": 5.0, "white_noise": 3.0, "gaussian_blur": 2.0}
    )
    proposals: tuple[float, ...] = (0.55, 0.26, 0.12, 0.07)
    swapped: float = 0.07
    blind: float = 0.09
    fit_filter: bool = True
    use_sar: bool = True
    relative: float = 0.02
    steps: int = 10000
    learning_rate: float = 1e-3
    warmup: int = 100
    check_every: int = 100
    crop_sizes: tuple[int, ...] = (64, 96, 96, 128)
    batch_pixels: int = 6 * 96 * 96

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = any(side < 32 or side % 32 for side in self.crop_sizes or (0,))
        if wrong or min(self.kinds.values(), default=0.0) < 0:
            raise InputError(f"crop_sizes is {self.crop_sizes}, kinds {self.kinds}; expected multiples of 32, and 0 up")
        for name, names in (("modes", MODES), ("proposals", PROPOSALS)):
            shares = getattr(self, name)
            if len(shares) != len(names) or min(shares) < 0 or not 0 < sum(shares) < math.inf:
                raise InputError(f"{name} is {shares}; expected shares of {listed(names)} from 0 on")


@dataclass(frozen=True)
class TrainingTile:
    """One pair in memory; images in dB and DN, no nodata."""

    record: PairRecord
    s1: Tensor  # (2, H, W)
    truth: Tensor  # (4, H, W)
    stage2: Tensor  # (n, 4, H, W), estimates from SAR alone
    offsets: Tensor  # (n, 2) in dB, of the SAR that they came from
    weight: float  # how often it is drawn
    wet: bool  # whether its SAR shows open water


@dataclass
class HeadBatch:
    """Examples of one size; images in dB and DN."""

    s1: Tensor  # (B, 2, H, W)
    estimate: Tensor  # (B, 4, H, W)
    proposal: Tensor  # (B, 4, H, W); that of ``own`` examples is drawn by the generator
    trust: Tensor  # (B, 1, H, W)
    truth: Tensor  # (B, 4, H, W)
    own: Tensor  # (B,) bool, the generator draws the proposal
    blind: Tensor  # (B,) bool, no SAR
    noise: Tensor  # (B,) int64, seeds of the generator's noise


def train_head(config: HeadConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Train a head, or with ``resume`` go on where a stopped run left off, and return the folder of its weights.

    Raises InputError: data or a configuration that cannot be used; WeightsError: weights to start from that cannot be
    had; and what ``fit`` raises.
    """
    check_start(config)
    model = model_of(config)
    start = _start_head(config, model.corrector)
    tiles = load_tiles(config, model.terramind_generator, Path(config.out) / STAGE2, progress=progress)
    sampler = ExampleSampler(config, tiles)
    batches = ByStep(lambda step: sampler.batch(torch.Generator().manual_seed(config.seed * SEED_STRIDE + step)))

    trained_on = groups_in(start, ["train"]) | {tile.record.group for tile in tiles}
    chosen_on = (groups_in(start, ["validation"]) | set(config.validation_groups)) - trained_on
    groups = {"train_groups": json.dumps(sorted(trained_on)), "validation_groups": json.dumps(sorted(chosen_on))}
    task = ModuleTask(config, "head", model, partial(_loss, model, config), partial(_write, config, model, groups))
    return fit(task, batches, resume=resume, progress=progress)


def model_of(config: HeadConfig) -> Stage3GroundingModel:
    """The generator of a configuration with its head."""
    given = {name: getattr(config, name) for name in ("variant", "checkpoint", "revision", "s1_product")}
    return build_stage3_model(timesteps=1, correction_mode="learned", **given)


def _start_head(config: HeadConfig, corrector: GroundingCorrector) -> Mapping[str, str]:
    """Put the head that the training starts from into a corrector, all that is trained; the header of its file."""
    header = source_header(corrector.weights)
    if config.start == FRESH:
        if not config.fit_filter:
            raise InputError("fit_filter is False and start 'fresh'; expected a head whose filter is fitted")
        header, packaged = {}, corrector.head
        with own_random(config.seed):
            corrector.head = GroundingHead()
        corrector.head.filter.mean, corrector.head.filter.scale = packaged.filter.mean, packaged.filter.scale
        corrector.head.levelled = packaged.levelled
    elif config.start is not None:
        load_strict(corrector, read_state(config.start), what=f"the grounding head ({config.start})")
        header = read_metadata(config.start)
    # Calibration and floors were chosen for the head before; what is below a floor has no gradient.
    corrector.calibration = None
    corrector.head.gate_floor.zero_()
    corrector.requires_grad_(True).train()
    if config.fit_filter:
        corrector.head.filter_floor.zero_()
    else:
        corrector.head.filter.requires_grad_(False)
    return header


def _write(config: HeadConfig, model: Stage3GroundingModel, groups: Mapping[str, str], step: int) -> Path:
    """Write the head with the run's settings and the groups trained on in its header; returns the folder."""
    left_out = ("data", "out", "checkpoint", "start")
    settings = {key: value for key, value in asdict(config).items() if key not in left_out}
    header = {"variant": config.variant, "head_config": json.dumps(settings), **groups}
    if config.start not in (None, FRESH):
        step += int(read_metadata(str(config.start)).get("head_steps", 0))
        header["head_start"] = sha256_file(str(config.start))
    folder = Path(config.out) / "weights"
    header["head_steps"] = str(step)
    write_state(folder / CORRECTOR_FILE, model.corrector.state_dict(), header, half=True, overwrite=True)
    return folder


@torch.no_grad()
def load_tiles(
    config: HeadConfig, generator: TerraMindGenerator, path: Path, *, progress: bool = False
) -> list[TrainingTile]:
    """Training pairs with estimates from SAR alone, kept in ``path``; InputError: an unknown group, or no pair left."""
    listed_pairs = list_pairs(config.data, quality="all")
    held_out = {*config.test_groups, *config.validation_groups}
    check_groups(config.data, listed_pairs, held_out)
    records = [each for each in listed_pairs if each.quality in config.qualities and each.group not in held_out]
    if not records:
        raise InputError(f"{config.data} has no pair to train on outside the groups that are held out")
    stage1 = Stage1Model(generator, timesteps=1).eval()
    stage2 = build_prithvi_refiner(variant="nano")
    hashes = [{} if part.weights is None else dict(part.weights.sha256) for part in (generator, stage2)]
    drawn_with = [*hashes, config.s1_product, config.seed, STAGE2_DRAWS]
    stored = _stored(path, drawn_with)
    groups = Counter(record.group for record in records)
    tiles, dark = [], dict[str, float]()
    for number, record in track(enumerate(records), "tiles", enabled=progress, total=len(records)):
        pair = load_pair(record)
        dark[f"{record.path}: s2"] = dark_level(pair.s2)
        content = hashlib.sha256(pair.s1.tobytes() + pair.s2.tobytes() + str(record.metadata).encode())
        key = f"{record.name} {content.hexdigest()}"
        s1, truth = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
        valid = valid_pixels(s1, truth)
        s1, truth = fill_nodata(s1, valid), fill_nodata(truth, valid)
        if key not in stored:
            random = torch.Generator().manual_seed(config.seed * SEED_STRIDE + number)
            offsets = STAGE2_CALIBRATION_DB * torch.randn(STAGE2_DRAWS, 2, generator=random)
            dated = torch.rand(STAGE2_DRAWS, generator=random) < DATE_KNOWN
            known = [record.metadata if each else None for each in dated.tolist()]
            images = stage2(stage1.generate(s1 + offsets[..., None, None]).image, known)
            stored[key] = {"stage2": images.round().to(torch.int16), "offsets": offsets}
        weight = min(record.height, record.width) * groups[record.group] ** -0.35
        weight *= 1.0 + INCONSISTENT_WEIGHT * float(sar_inconsistency(s1, truth).mean())
        weight *= SHIFTED_WEIGHT if shifted(record.note) else 1.0
        weight *= 1.0 if record.quality == "ok" else 0.4
        wet = float(open_water(s1).mean()) >= DONOR_WATER
        tiles.append(TrainingTile(record, s1[0], truth[0], **stored[key], weight=weight, wet=wet))
    warn_of_offset(dark, "1000 taken off in the file")
    with atomic_write(path, overwrite=True) as temporary:
        write_torch(temporary, {"drawn_with": drawn_with, "tiles": stored})
    return tiles


def _stored(path: Path, drawn_with: list[Any]) -> dict[str, dict[str, Tensor]]:
    """The estimates of an earlier start, by name and content of the pairs; none of other weights or settings."""
    if not os.path.lexists(path):
        return {}
    try:
        stored = torch.load(check_regular(path), weights_only=True)
        if stored["drawn_with"] != drawn_with:
            return {}
        return dict(stored["tiles"])
    except Exception as error:  # torch raises half a dozen kinds for a damaged archive
        raise WeightsError(
            f"{path} holds no estimates of Stage 2 that can be read ({type(error).__name__}); delete it, to make them"
        ) from error


def shifted(note: str) -> bool:
    """Whether a pair's note names a shift of SAR against optical over 2 px that its correlation makes likely."""
    found = re.search(r"shift (-?\d+),(-?\d+) c=([\d.]+)", note)
    if not found:
        return False
    return max(abs(int(found[1])), abs(int(found[2]))) > SHIFTED_PX and float(found[3]) > 0.12


class ExampleSampler:
    """Batches of examples, each crop another."""

    def __init__(self, config: HeadConfig, tiles: Sequence[TrainingTile]) -> None:
        self.config = config
        self.tiles = tiles
        self.kinds = kinds_of("train")
        self.kind_weights = torch.tensor([float(config.kinds.get(name, 1.0)) for name in self.kinds])
        self.sides = torch.tensor([min(tile.truth.shape[-2:]) for tile in tiles])
        self.weights = torch.tensor([tile.weight for tile in tiles])
        rarer = [1.0 if tile.record.source in config.fitted_sources else config.unfitted_weight for tile in tiles]
        self.generator_weights = torch.tensor([t.weight * share for t, share in zip(tiles, rarer, strict=True)])
        self.dry_weights = self.weights * torch.tensor([not tile.wet for tile in tiles])

    def batch(self, random: torch.Generator) -> HeadBatch:
        """One batch; everything is drawn from ``random``."""
        sizes = self.config.crop_sizes
        size = sizes[draw(random, len(sizes))]
        count = max(1, self.config.batch_pixels // size**2)
        examples = [self._example(size, random) for _ in range(count)]
        kinds = [kind for kind, _ in examples]
        s1, estimate, proposal, trust, truth = (
            torch.cat([pad_square(image, size) for image in layer])
            for layer in zip(*(images for _, images in examples), strict=True)
        )
        simulated = torch.tensor(["informed" in kind or "foreign" in kind for kind in kinds])
        if bool(simulated.any()):  # so far what they are made of
            proposal[simulated] = informed_proposal(proposal[simulated], generator=random)
        blind = torch.tensor(["blind" in kind or not self.config.use_sar for kind in kinds])
        own = torch.tensor(["own" in kind for kind in kinds])
        noise = sample_seeds(random, count)
        return HeadBatch(s1, estimate, proposal, trust, truth, own, blind, noise)

    def _example(self, size: int, random: torch.Generator) -> tuple[str, list[Tensor]]:
        """The proposal's kind and what became of the SAR; s1, estimate, proposal, trust and truth (1, C, h, w)."""
        config = self.config

        def share(shares: Sequence[float]) -> int:
            return int(torch.multinomial(torch.tensor(shares).float(), 1, generator=random))

        def uniform() -> float:
            return float(torch.rand((), generator=random))

        mode = MODES[share(config.modes)]
        proposal_kind = PROPOSALS[share(config.proposals)]
        generated = mode == "stage2" or proposal_kind == "own"
        tile, crop = self._draw(size, random, self.generator_weights if generated else self.weights)
        s1, truth = crop(tile.s1), crop(tile.truth)

        # 1. Another calibration of the SAR, more speckle, another brightness and contrast of the ground.
        if mode != "stage2":
            s1 = s1 + CALIBRATION_DB * torch.randn(1, 2, 1, 1, generator=random)
        gain, middle = draw_gain(1, random), truth.mean((2, 3), keepdim=True)
        contrast = math.exp(CONTRAST * float(torch.randn((), generator=random))) if uniform() < CONTRAST_CHANCE else 1.0

        def lit(image: Tensor) -> Tensor:
            return (middle + contrast * (image - middle)) * gain

        truth = lit(truth).clamp(*VALID_DN)

        # 2. The estimate.
        trust = torch.full_like(truth[:, :1], Trust.ESTIMATE)
        if mode == "gaps":
            cover = MOSTLY_UNKNOWN if uniform() < MOSTLY_UNKNOWN_CHANCE else PARTLY_UNKNOWN
            trust = cloud_trust(1, *truth.shape[-2:], generator=random, cover=cover)
            estimate = fill_nodata(truth, trust > 0, fallback=torch.tensor(OPTICAL_MEAN)[:, None, None])
        elif mode == "stage2":
            chosen = int(torch.randint(len(tile.stage2), (), generator=random))
            trust = torch.full_like(trust, Trust.SAR_ONLY)
            s1 = s1 + tile.offsets[chosen][None, :, None, None]
            estimate = lit(crop(tile.stage2[chosen].float()))
            estimate = estimate * draw_gain(1, random, SAR_ONLY_COMMON, SAR_ONLY_BAND)
        else:
            kind = "refiner" if mode == "flood" else self.kinds[share(self.kind_weights.tolist())]
            strength = uniform() * (0.3 if uniform() < LIGHT_CHANCE else 1.0)
            estimate = make_estimate(kind, truth, generator=random, strength=strength).round()
        s1 = s1 + SPECKLE_DB * uniform() * torch.randn(s1.shape, generator=random)
        if mode == "flood":
            if uniform() < DRY_CHANCE:
                s1 = _with_dry_ground(s1, random)
            else:
                s1, water = simulate_flood(s1, random)
                truth = torch.where(water, water_colour(truth, random), truth)
        estimate = estimate.clamp(*VALID_DN)

        # 3. What the proposal is made of.
        proposal = truth if proposal_kind == "informed" else estimate
        if proposal_kind == "foreign":
            if uniform() < ROTATED_CHANCE:
                proposal = truth.flip((2, 3))
            else:
                other, crop = self._draw(size, random, self.weights, other_than=tile.record.group)
                proposal = fitted(crop(other.truth)[0], truth.shape[-2:])[None]

        # 4. Another tile's SAR, or none.
        chance = uniform()
        if mode in ("estimate", "gaps") and chance < config.swapped:
            donor, crop = self._draw(size, random, self.dry_weights, other_than=tile.record.group)
            s1 = fitted(crop(donor.s1)[0], truth.shape[-2:])[None]
        elif mode in ("estimate", "gaps") and chance < config.swapped + config.blind:
            proposal_kind += " blind"
        return proposal_kind, [s1, estimate, proposal, trust, truth]

    def _draw(
        self, size: int, random: torch.Generator, weights: Tensor, other_than: str | None = None
    ) -> tuple[TrainingTile, Callable[[Tensor], Tensor]]:
        """A tile that is large enough (a little less is padded), of another group; how to crop, turn and zoom it."""
        suits = self.sides >= size - (8 if size >= 128 else 0)
        if other_than is not None:
            suits = suits & torch.tensor([tile.record.group != other_than for tile in self.tiles])
        chances = weights * suits
        if not (bool(chances.any()) and bool((chances >= 0).all())):
            raise InputError(f"no pair of {size} px, of another group than {other_than}, is drawn; change crop_sizes")
        tile = self.tiles[int(torch.multinomial(chances, 1, generator=random))]
        height, width = tile.truth.shape[-2:]
        zoom = 1.0
        if float(torch.rand((), generator=random)) < ZOOM_CHANCE:
            zoom += (MOST_ZOOM - 1.0) * float(torch.rand((), generator=random))
        reach = max(size, min(round(zoom * size), height, width))
        rows, columns = min(reach, height), min(reach, width)
        top, left = draw(random, height - rows + 1), draw(random, width - columns + 1)
        quarters, mirrored = draw(random, 4), bool(draw(random, 2))

        def crop(image: Tensor) -> Tensor:  # (C, H, W) -> (1, C, h, w)
            part = image[:, top : top + rows, left : left + columns].rot90(quarters, (1, 2))
            part = (part.flip(2) if mirrored else part)[None]
            return F.interpolate(part, (size, size), mode="bilinear", antialias=True) if reach > size else part

        return tile, crop


def _with_dry_ground(s1: Tensor, random: torch.Generator) -> Tensor:
    """The SAR with a patch of dry ground that is dark to it."""
    kind = draw(random, len(DRY_GROUND) + 1)
    if kind < len(DRY_GROUND):
        vv, vh_below_vv = DRY_GROUND[kind]
        return simulate_flood(s1, random, vv=vv, vh_below_vv=vh_below_vv)[0]
    darker = 4.0 + 4.0 * float(torch.rand((), generator=random))
    return s1 - darker * gaussian_blur(simulate_flood(s1, random)[1].float(), 0.7)


def draw_gain(count: int, random: torch.Generator, common: float = GAIN_COMMON, band: float = GAIN_BAND) -> Tensor:
    """(count, 4, 1, 1): how much brighter each crop is, in all bands and in each (standard deviations)."""
    return torch.exp(
        torch.randn(count, 1, 1, 1, generator=random) * common + torch.randn(count, 4, 1, 1, generator=random) * band
    )


def water_colour(like: Tensor, random: torch.Generator) -> Tensor:
    """One colour of open water for each crop, with faint noise: (B, 4, H, W) in DN."""
    low, high = (torch.tensor(v)[:, None, None] for v in (WATER_LOW, WATER_HIGH))
    share = torch.rand(len(like), 1, 1, 1, generator=random)
    own = torch.rand(len(like), 4, 1, 1, generator=random)
    level = low + (high - low) * (0.7 * share + 0.3 * own)
    return (level * (1 + 0.04 * torch.randn(like.shape, generator=random))).clamp(*VALID_DN)


@torch.no_grad()
def own_proposals(batch: HeadBatch, generator: TerraMindGenerator) -> Tensor:
    """The proposals (B, 4, H, W) in DN, the generator's own one-step images where a batch has its own."""
    proposal, optical = batch.proposal.clone(), generator.optical
    size = (proposal.shape[-2], proposal.shape[-1])
    for blind in batch.blind[batch.own].unique().tolist():
        chosen = (batch.own & (batch.blind == blind)).nonzero()[:, 0]
        conditions = {} if blind else {"s1": generator.sar.to_z(batch.s1[chosen])}
        conditions["optical"] = optical.to_z(batch.estimate[chosen])
        noise = gaussian_field(batch.noise[chosen], (optical.channels, *size))
        codes = generator.codes(generator.logits(conditions), size)
        decoded = generator.decode(codes, noise, build_schedule("ddim", 1))
        proposal[chosen] = optical.from_z(optical.select(decoded))
    return proposal


def _loss(model: Stage3GroundingModel, config: HeadConfig, batch: HeadBatch) -> Tensor:
    batch.proposal = own_proposals(batch, model.terramind_generator)
    return loss_of_batch(model.corrector, batch, relative=config.relative)


def tiles_of(corrector: GroundingCorrector, batch: HeadBatch) -> GroundingTiles:
    """A batch as the corrector takes it: mean backscatter, consistent with everything, where there is no SAR."""
    blind = batch.blind[:, None, None, None]
    with torch.no_grad():
        inconsistency = sar_inconsistency(batch.s1, batch.estimate).masked_fill(blind, 0.0)
    s1 = torch.where(blind, corrector.s1_mean, batch.s1)
    return GroundingTiles(s1, batch.estimate, batch.trust, inconsistency)


def loss_of_batch(corrector: GroundingCorrector, batch: HeadBatch, *, relative: float) -> Tensor:
    """The loss: error of opt_v3, of the filter alone, relative to opt_v2's, likelihood of the expected error, water."""
    tiles = tiles_of(corrector, batch)
    correction = corrector(tiles, batch.proposal)
    assert correction.error is not None
    image = batch.estimate + correction.change
    unknown = batch.trust < 1
    predicted = torch.where(unknown, correction.error, corrector.optical_std)

    # What each tile's error costs beside the root of what its estimate began with; a tile that is far off counts less
    # and less, so that one flood of another day does not make up a step.
    error = (image - batch.truth) / 1000.0
    with torch.no_grad():
        began = ((batch.estimate - batch.truth) / 1000.0).square().mean((1, 2, 3)).clamp_min(LEAST_MSE)
        weight = (began * began.mean()).rsqrt()
    squared = error.square().mean((1, 2, 3)) * weight
    balanced = by_logarithm(squared).mean() + 0.3 * (error.abs().mean((1, 2, 3)) * weight.sqrt()).mean()

    # The tile's filter is to be right by itself, so that the gate opens for what it cannot do.
    assert correction.filtered is not None
    sharp = (batch.estimate + correction.filtered - batch.truth) / 1000.0
    guessed = (batch.trust > 0) & unknown
    filtering = by_logarithm((sharp * guessed).square().mean((1, 2, 3)) * weight).mean()

    # Harm to a whole tile counts twice, relative to what its estimate began with.
    after, before = ((each - batch.truth).square().mean((1, 2, 3)) for each in (image, batch.estimate))
    ratio = after / (before + DN_FLOOR**2)
    worse = (ratio - before / (before + DN_FLOOR**2)).relu()
    ratios = by_logarithm(ratio + worse).mean()

    apart = ((image.detach() - batch.truth) / predicted).square().clamp_max(UNLIKELY)
    unlikely = ((0.5 * apart + (predicted / corrector.optical_std).log()) * unknown).mean()

    # Whether the head knows water that the estimate lacks; the image's error does not tell where it is refused anyway.
    assert correction.missed_water is not None
    missed = (ndwi(batch.truth) > 0) & (ndwi(batch.estimate) <= 0)
    likelihood = torch.where(missed, correction.missed_water, 1.0 - correction.missed_water).clamp_min(1e-4)
    counts = (batch.trust > 0) * (0.2 + open_water(tiles.s1))
    water = -(counts * likelihood.log()).mean() / counts.mean().clamp_min(1e-3)

    return balanced + FILTER_WEIGHT * filtering + relative * ratios + ERROR_WEIGHT * unlikely + WATER_WEIGHT * water


def by_logarithm(cost: Tensor) -> Tensor:
    """Costs that count by their logarithm from ``ROBUST`` on."""
    return torch.where(cost > ROBUST, ROBUST * (1.0 + (cost / ROBUST).clamp_min(1.0).log()), cost)
