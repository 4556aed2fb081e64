"""Training examples of the grounding head: pairs in memory, and batches in which every crop is another example.

In: pair records; out: ``ExampleBatch`` in dB and DN. A crop becomes an estimate of one kind (``axs_lib.data.estimates``, only
kinds of the split ``train``), clear pixels around clouds, what Stages 1 and 2 draw from the SAR, or an estimate that misses
a flood which the SAR shows. Beside it stands a proposal (``axs_lib.data.proposals``): the generator's own, which the
training step draws, an informed one, one that does not fit, or none; and the SAR, sometimes another place's or none.
Everything is drawn from one ``torch.Generator``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from axs_lib.bands import VALID_DN
from axs_lib.checks import Trust
from axs_lib.data.clouds import cloud_trust
from axs_lib.data.estimates import kinds_of, make_estimate
from axs_lib.data.flood import simulate_flood
from axs_lib.data.pairs import PairRecord, load_pair
from axs_lib.data.proposals import TURNED_CHANCE, informed_proposal
from axs_lib.errors import InputError
from axs_lib.grounding.sar_inconsistency import open_water, sar_inconsistency
from axs_lib.io.atomic import atomic_write
from axs_lib.nodata import fill_nodata, pad_square, valid_pixels
from axs_lib.progress import track
from axs_lib.train.examples import SAR_JITTER_DB, draw_gain, water_colour
from axs_lib.train.trainer import SEED_STRIDE

Metadata = Mapping[str, str | float]
# Stages 1 and 2: SAR in dB, and what is known of each image's date and place, to opt_v2 in DN
FromSar = Callable[[Tensor, list[Metadata | None]], Tensor]

INCONSISTENT_WEIGHT = 8.0  # of a tile's mean SAR inconsistency, beside 1: smooth dark fields look like water
DONOR_WATER = 0.01  # of a tile at most, whose SAR is shown to another place
CALIBRATION_DB, SPECKLE_DB = 0.8, 1.4
GUESS_COMMON, GUESS_BAND = 0.15, 0.10  # brightness of an estimate from SAR alone, as fractions (1 std)
DATE_KNOWN = 0.7  # of the estimates from SAR alone, where the pair has one
DRAWS = 3  # estimates from SAR alone of each tile
SHIFTED_WEIGHT, SHIFTED_PX, LIKELY = 0.3, 2, 0.12  # of a pair whose note names a shift over so many pixels
OTHER_QUALITY_WEIGHT = 0.4
LIGHT_CHANCE = 0.3  # of an estimate to be of light strength
PADDED_PX = 8  # a tile may be so much smaller than a crop of 128 px, as it is in use
MODES = ("estimate", "gaps", "stage2", "flood")
PROPOSALS = ("own", "informed", "foreign", "none")


@dataclass(frozen=True)
class Shares:
    """What the examples are.

    Attributes:
        modes: share of the examples of each of ``MODES``.
        kinds: weight of kinds of estimates beside 1.
        proposals: share of each of ``PROPOSALS``.
        swapped: share of estimates and gaps beside another tile's SAR.
        blind: share of them beside none.
        fitted_sources: sources whose pairs the generator was trained on.
        fresh: how much oftener the others are drawn where the generator takes part: what it makes of places that it
            knows is better than it will be elsewhere.
    """

    modes: tuple[float, ...] = (0.58, 0.25, 0.09, 0.08)
    kinds: Mapping[str, float] | None = None
    proposals: tuple[float, ...] = (0.38, 0.42, 0.14, 0.06)
    swapped: float = 0.07
    blind: float = 0.09
    fitted_sources: tuple[str, ...] = ()
    fresh: float = 3.0


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
class ExampleBatch:
    """Examples of one size; images in dB and DN.

    Attributes:
        s1: (B, 2, H, W).
        estimate: (B, 4, H, W).
        proposal: (B, 4, H, W); that of ``own`` examples is drawn by the generator.
        trust: (B, 1, H, W).
        truth: (B, 4, H, W).
        own: (B,) bool, whether the proposal is yet to be drawn by the generator.
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


def load_tiles(
    records: Sequence[PairRecord],
    from_sar: FromSar,
    path: Path,
    *,
    shares: Shares,
    seed: int,
    progress: bool = False,
) -> list[TrainingTile]:
    """The training pairs with what Stages 1 and 2 draw of them.

    Args:
        records: the pairs.
        from_sar: Stages 1 and 2.
        path: where their estimates are kept for the next start.
        shares: of the examples.
        seed: of the draws.
        progress: show a bar.
    """
    kept: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True) if path.exists() else {}
    groups = Counter(record.group for record in records)
    tiles = []
    for number, record in track(enumerate(records), "tiles", enabled=progress, total=len(records)):
        pair = load_pair(record)
        s1, truth = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
        valid = valid_pixels(s1, truth)
        s1, truth = fill_nodata(s1, valid), fill_nodata(truth, valid)
        if record.name not in kept:
            random = torch.Generator().manual_seed(seed * SEED_STRIDE + number)
            offsets = SAR_JITTER_DB * torch.randn(DRAWS, 2, generator=random)
            known = torch.rand(DRAWS, generator=random) < DATE_KNOWN
            with torch.no_grad():
                drawn = from_sar(
                    s1 + offsets[..., None, None],
                    [record.metadata if each else None for each in known.tolist()],
                )
            kept[record.name] = {"stage2": drawn.round().to(torch.int16), "offsets": offsets}
        with torch.no_grad():
            inconsistent = float(sar_inconsistency(s1, truth).mean())
        weight = min(record.height, record.width) * groups[record.group] ** -0.35
        weight *= 1.0 + INCONSISTENT_WEIGHT * inconsistent
        weight *= SHIFTED_WEIGHT if shifted(record.note) else 1.0
        weight *= 1.0 if record.quality in ("ok", "") else OTHER_QUALITY_WEIGHT
        fitted = record.source in shares.fitted_sources
        tiles.append(
            TrainingTile(
                record,
                s1[0],
                truth[0],
                kept[record.name]["stage2"],
                kept[record.name]["offsets"],
                weight,
                weight * (1.0 if fitted else shares.fresh),
                float(open_water(s1).mean()) >= DONOR_WATER,
            )
        )
    with atomic_write(path, overwrite=True) as temporary:
        torch.save(kept, temporary)
    return tiles


def shifted(note: str) -> bool:
    """Whether a pair's note names a shift of SAR against optical over 2 px that its correlation makes likely."""
    found = re.search(r"shift (-?\d+),(-?\d+) c=([\d.]+)", note)
    if not found:
        return False
    return max(abs(int(found[1])), abs(int(found[2]))) > SHIFTED_PX and float(found[3]) > LIKELY


# -- examples -----------------------------------------------------------------------------------------------------


class ExampleSampler:
    """Batches of examples, each crop another.

    Args:
        tiles: the training pairs.
        shares: of the examples.
        crop_sizes: sides of the crops in pixels, multiples of 32.
        batch_pixels: pixels of a batch.

    Raises:
        InputError: no tile is large enough.
    """

    def __init__(
        self, tiles: Sequence[TrainingTile], shares: Shares, crop_sizes: Sequence[int], batch_pixels: int
    ) -> None:
        self.tiles = tiles
        self.shares = shares
        self.batch_pixels = batch_pixels
        self.kinds = kinds_of("train", without_needs=True)
        weights = shares.kinds or {}
        self.kind_weights = torch.tensor([float(weights.get(name, 1.0)) for name in self.kinds])
        self.sides = torch.tensor([min(tile.truth.shape[-2:]) for tile in tiles])
        self.weights = torch.tensor([tile.weight for tile in tiles])
        self.fresh_weights = torch.tensor([tile.fresh_weight for tile in tiles])
        self.dry = torch.tensor([not tile.wet for tile in tiles])
        self.groups = [tile.record.group for tile in tiles]
        self.crop_sizes = [size for size in crop_sizes if bool(self._large_enough(size).any())]
        if not self.crop_sizes:
            raise InputError(
                f"the largest of {len(tiles)} tiles is {int(self.sides.max()) if len(tiles) else 0} px; expected at least"
                f" {min(crop_sizes)} px"
            )

    def batch(self, random: torch.Generator) -> ExampleBatch:
        """One batch; everything is drawn from ``random``."""
        sizes = self.crop_sizes
        size = sizes[int(torch.randint(len(sizes), (), generator=random))]
        count = max(1, self.batch_pixels // size**2)
        parts = [self._example(size, random) for _ in range(count)]
        names, images = [part[0] for part in parts], [part[1] for part in parts]
        layers = [torch.cat([pad_square(image[index], size) for image in images]) for index in range(5)]
        simulated = torch.tensor(["informed" in name or "foreign" in name for name in names])
        if bool(simulated.any()):  # so far what they are made of
            layers[2][simulated] = informed_proposal(layers[2][simulated], generator=random)
        s1, estimate, proposal, trust, truth = layers
        return ExampleBatch(
            s1,
            estimate,
            proposal,
            trust,
            truth,
            own=torch.tensor(["own" in name for name in names]),
            blind=torch.tensor(["blind" in name for name in names]),
            names=names,
        )

    def _example(self, size: int, random: torch.Generator) -> tuple[str, list[Tensor]]:
        """Its name, and s1, estimate, proposal, trust and truth (1, C, h, w) of ``size`` px or a little less."""
        config = self.shares

        def share(shares: Sequence[float]) -> int:
            return int(torch.multinomial(torch.tensor(shares), 1, generator=random))

        def uniform() -> float:
            return float(torch.rand((), generator=random))

        mode = MODES[share(config.modes)]
        proposal_kind = PROPOSALS[share(config.proposals)]
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
        trust = torch.full_like(truth[:, :1], Trust.ESTIMATE)
        name = mode
        if mode == "gaps":
            trust = cloud_trust(1, *truth.shape[-2:], generator=random)
            estimate = fill_nodata(truth, trust > 0, fallback=truth.mean((2, 3), keepdim=True))
        elif mode == "stage2":
            chosen = int(torch.randint(len(tile.stage2), (), generator=random))
            trust = torch.full_like(trust, Trust.SAR_ONLY)
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
            donor = self.tiles[
                self._draw_tile(size, random, self.weights * self.dry, other=tile.record.group)
            ]
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
        large = self._large_enough(size)
        if other is not None:
            elsewhere = large & torch.tensor([group != other for group in self.groups])
            large = elsewhere if bool((weights * elsewhere).any()) else large
        if not bool((weights * large).any()):
            weights = self.weights
        return int(torch.multinomial(weights * large, 1, generator=random))

    def _large_enough(self, size: int) -> Tensor:
        return self.sides >= size - (PADDED_PX if size >= 128 else 0)


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
