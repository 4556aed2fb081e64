"""Train the grounding head beside a frozen generator of any variant, on pairs of one's own.

The head starts as the packaged one, or the one beside a checkpoint. First a pool is drawn: every training tile in
several examples (``axs_lib.train.examples``: degraded estimates, estimates that miss a flood, clear pixels around
clouds; ``chain``, what Stages 1 and 2 draw from the SAR alone; and degraded estimates beside another tile's SAR, or
none, from which the head learns to look whether a SAR image fits before it follows it), each with the proposal that
the generator makes of it as it does in use. Then the head learns on turned, mirrored and varied crops of the pool, so
that no generator runs in the loop. Out comes a folder with the new head, which ``--adapter`` and
``axs_lib.adapters.load_adapter`` take. Steps are functions of (seed, step), and a stopped run goes on from its last
checkpoint.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from axs_lib.checks import Trust
from axs_lib.data.pairs import PairRecord, list_pairs, load_pair
from axs_lib.errors import InputError
from axs_lib.grounding.corrector import GroundingCorrector, GroundingTiles
from axs_lib.grounding.head import GroundingHead
from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.grounding.sar_inconsistency import open_water
from axs_lib.io.atomic import atomic_write
from axs_lib.nodata import fill_nodata, valid_pixels
from axs_lib.progress import track
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.stage2_prithvi_refine import build_prithvi_refiner
from axs_lib.stage3_tm_ground import GroundingControls, Stage3GroundingModel, build_stage3_model
from axs_lib.terramind.adapters import OpticalAdapter
from axs_lib.terramind.weights import load_strict, read_metadata, read_state, sha256_file, write_state
from axs_lib.train.config import LoopConfig
from axs_lib.train.examples import SAR_JITTER_DB, Examples, Kind, augment, draw_gain, make_examples
from axs_lib.train.trainer import SEED_STRIDE, ByStep, ModuleTask, fit, own_random

POOL = "pool.pt"
FRESH = "fresh"
HeadKind = Literal[Kind, "chain", "swapped", "blind"]
Metadata = Mapping[str, str | float]
# Stages 1 and 2 of nano: SAR in dB, and what is known of each image's date and place, to opt_v2 in DN
Chain = Callable[[Tensor, list[Metadata | None]], Tensor]
# Layers of a pool entry, in z-units where they are images, and how many channels each has.
LAYERS = {"s1": 2, "estimate": 4, "proposal": 4, "trust": 1, "sar_inconsistency": 1, "truth": 4}
ERROR_WEIGHT = 0.05  # of the expected error's likelihood beside the image's own loss
UNLIKELY = 16.0  # squared ratio of error to expected error beyond which a pixel says nothing more
# Smooth dark fields look like water to the SAR, so that dry tiles which the SAR contradicts are drawn more often.
CONTRADICTED_WEIGHT = 8.0  # of a tile's mean sar_inconsistency, beside 1
DONOR_WATER = 0.01  # of a tile at most: what swapped examples must not teach is to overlook a flood
# What differs from crop to crop beside what differs from example to example, in z-units: the SAR's calibration (one
# standard deviation, each band) and its speckle (up to this standard deviation).
CALIBRATION, SPECKLE = 0.15, 0.25
# Brightness of a guess, all bands and each, as fractions (1 standard deviation). On training tiles Stages 1 and 2 know
# the colour better than elsewhere; what is to be learned is how little a guess of it is worth.
GUESS_COMMON, GUESS_BAND = 0.15, 0.10
DATE_KNOWN = 0.7  # of the guesses, where the pair has one


@dataclass(frozen=True, kw_only=True)
class HeadConfig(LoopConfig):
    """The grounding head beside a frozen generator; variants nano and terramind_v1_tiny, _small, _base, _large.

    Attributes:
        data: folder of pairs.
        variant: of the generator that draws the proposals.
        checkpoint: weights of the generator instead of the variant's own: a file or folder.
        revision: Hub revision of the variant's own weights.
        s1_product: ``S1GRD`` or ``S1RTC``.
        start: head to start from: a file, or ``fresh``; default the packaged one, or the one beside ``checkpoint``.
        test_groups: groups never seen.
        validation_groups: groups kept out for choices.
        qualities: tiles that are trained on.
        draws: examples of each kind that the pool holds of every tile.
        kinds: kinds of examples, taken in turn, a batch each.
        use_sar: False trains the control that meets mean backscatter everywhere, as ``axs evaluate`` runs it.
        crop_sizes: sides of the crops in pixels, multiples of 16.
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
    draws: Mapping[HeadKind, int] = field(
        default_factory=lambda: {
            "degraded": 6,
            "light": 8,
            "swapped": 2,
            "blind": 2,
            "gaps": 3,
            "flood": 2,
            "chain": 3,
        }
    )
    kinds: tuple[HeadKind, ...] = (
        "degraded",
        "light",
        "chain",
        "degraded",
        "light",
        "gaps",
        "degraded",
        "light",
        "swapped",
        "chain",
        "degraded",
        "light",
        "flood",
        "blind",
    )
    use_sar: bool = True
    steps: int = 5000
    learning_rate: float = 2e-3
    warmup: int = 50
    check_every: int = 100
    crop_sizes: tuple[int, ...] = (64, 96, 112)
    batch_pixels: int = 8 * 96 * 96


def train_head(config: HeadConfig, *, resume: bool = True, progress: bool = True) -> Path:
    """Train a head, or go on where a stopped run left off.

    Args:
        config: the run.
        resume: continue from the run folder's checkpoint and pool where they are there.
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
    pool = _load_pool(config, model, out / POOL, resume=resume, progress=progress)
    _start_head(config, model.corrector)
    chances = {kind: torch.tensor([_chance(entry) for entry in entries]) for kind, entries in pool.items()}
    optical = copy.deepcopy(model.terramind_generator.optical)  # the model's own may go to another device

    def make_batch(step: int) -> dict[str, Tensor]:
        kind = config.kinds[step % len(config.kinds)]
        random = torch.Generator().manual_seed(config.seed * SEED_STRIDE + step)
        crops = draw_crops(pool[kind], chances[kind], config.crop_sizes, config.batch_pixels, random)
        return vary(crops, optical, random, guess=kind == "chain")

    task = ModuleTask(config, "head", model, partial(_loss, model), partial(_write, config, model))
    return fit(task, ByStep(make_batch), resume=resume, progress=progress)


def _start_head(config: HeadConfig, corrector: GroundingCorrector) -> None:
    """Put the head that the training starts from into a corrector, and make it all that is trained."""
    if config.start == FRESH:
        with own_random(config.seed):
            corrector.head = GroundingHead()
    elif config.start is not None:
        load_strict(corrector, read_state(config.start), what=f"the grounding head ({config.start})")
    corrector.calibration = None  # it was that of the head before
    corrector.requires_grad_(True)


def training_records(config: HeadConfig) -> list[PairRecord]:
    """The pairs of the folder that may be trained on."""
    held_out = {*config.test_groups, *config.validation_groups}
    return [
        record
        for record in list_pairs(config.data, quality="all")
        if record.quality in config.qualities and record.group not in held_out
    ]


def balanced_loss(image: Tensor, before: Tensor, truth: Tensor) -> Tensor:
    """Squared and absolute error, each tile's weighed by the root of what its estimate began with.

    A plain mean would be ruled by the few tiles of highest contrast, a mean of ratios by those that are nearly right.

    Args:
        image: the result (B, 4, H, W) in DN.
        before: the estimate it started from.
        truth: what it should be.
    """
    scale = 1000.0
    error = (image - truth) / scale
    with torch.no_grad():
        began = ((before - truth) / scale).square().mean((1, 2, 3)).clamp_min(1e-4)
        weight = (began * began.mean()).rsqrt()
    squared = (error.square().mean((1, 2, 3)) * weight).mean()
    absolute = (error.abs().mean((1, 2, 3)) * weight.sqrt()).mean()
    return squared + 0.3 * absolute


def _loss(model: Stage3GroundingModel, crops: Mapping[str, Tensor]) -> Tensor:
    """Error of opt_v3, and how unlikely that error was by the head's own word."""
    optical = model.terramind_generator.optical
    tiles = GroundingTiles(
        model.terramind_generator.sar.from_z(crops["s1"]),
        optical.from_z(crops["estimate"]),
        crops["trust"],
        crops["sar_inconsistency"],
    )
    correction = model.corrector(tiles, optical.from_z(crops["proposal"]))
    truth = optical.from_z(crops["truth"])
    assert correction.error is not None
    predicted = torch.where(tiles.trust < 1, correction.error / optical.std, 1.0)
    error = (tiles.estimate + correction.change - truth).detach() / optical.std
    ratio = (error / predicted).square().clamp_max(UNLIKELY)
    unlikely = ((0.5 * ratio + predicted.log()) * (tiles.trust < 1)).mean()
    images = (tiles.estimate + correction.change, tiles.estimate, truth)
    return balanced_loss(*images) + ERROR_WEIGHT * unlikely


# -- the pool -----------------------------------------------------------------------------------------------------


def _load_pool(
    config: HeadConfig, model: Stage3GroundingModel, path: Path, *, resume: bool, progress: bool
) -> dict[str, list[Tensor]]:
    """The pool of an earlier start of this run, or a new one, which is kept for the next.

    Raises:
        InputError: the run folder's pool was drawn with other settings.
    """
    names = ("variant", "checkpoint", "revision", "s1_product", "qualities", "draws", "use_sar", "seed")
    drawn_by = {key: getattr(config, key) for key in names}
    settings = json.dumps(drawn_by | {"held_out": sorted({*config.test_groups, *config.validation_groups})})
    pool: dict[str, list[Tensor]]
    if resume and path.exists():
        kept = torch.load(path, weights_only=True)
        if kept["settings"] != settings:
            raise InputError(
                f"{path} was drawn with other settings ({kept['settings']}); expected {settings}: choose another"
                " --out, or --restart"
            )
        pool = kept["pool"]
        return pool
    records = training_records(config)
    pool = {kind: [] for kind in config.draws}
    chain = _build_chain(model) if "chain" in config.draws else None
    donors = _load_donors(records) if "swapped" in config.draws else {}
    for number, record in track(enumerate(records), "pool", enabled=progress, total=len(records)):
        random = torch.Generator().manual_seed(config.seed * SEED_STRIDE + number)
        for kind, count in config.draws.items():
            others = [
                s1 for group, s1 in donors.get((record.height, record.width), ()) if group != record.group
            ]
            if kind == "swapped" and not others:
                continue
            pool[kind] += draw_examples(
                model, record, kind, count, random, chain=chain, donors=others, use_sar=config.use_sar
            )
    with atomic_write(path, overwrite=True) as temporary:
        torch.save({"settings": settings, "pool": pool}, temporary)
    return pool


def _load_donors(records: Sequence[PairRecord]) -> dict[tuple[int, int], list[tuple[str, Tensor]]]:
    """By size, the group and filled SAR (2, H, W) of every tile without open water."""
    donors: dict[tuple[int, int], list[tuple[str, Tensor]]] = {}
    for record in records:
        s1 = torch.as_tensor(load_pair(record).s1)[None].float()
        s1 = fill_nodata(s1, valid_pixels(s1))
        if float(open_water(s1).mean()) < DONOR_WATER:
            donors.setdefault((record.height, record.width), []).append((record.group, s1[0]))
    return donors


def _build_chain(model: Stage3GroundingModel) -> Chain:
    """Stage 1 with the model's own generator and the packaged Stage 2, one time step."""
    stage1 = Stage1Model(model.terramind_generator, timesteps=1).eval()
    stage2 = build_prithvi_refiner(variant="nano")
    return lambda s1, metadata: stage2(stage1.generate(s1).image, metadata)


@torch.no_grad()
def draw_examples(
    model: Stage3GroundingModel,
    record: PairRecord,
    kind: HeadKind,
    count: int,
    random: torch.Generator,
    *,
    chain: Chain | None = None,
    donors: Sequence[Tensor] = (),
    use_sar: bool = True,
) -> list[Tensor]:
    """``count`` examples of one tile with their one-step proposals, each (16, H, W) as ``LAYERS``.

    Args:
        model: its generator draws the proposals.
        record: the tile.
        kind: of the examples.
        count: how many.
        random: of every draw.
        chain: Stages 1 and 2, for ``chain``.
        donors: SAR images (2, H, W) of other places, for ``swapped``.
        use_sar: False shows mean backscatter in every example.
    """
    generator = model.terramind_generator
    pair = load_pair(record)
    sar, optical = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
    valid = valid_pixels(sar, optical)
    shape = (count, -1, -1, -1)
    s1, truth = fill_nodata(sar, valid).expand(shape), fill_nodata(optical, valid).expand(shape)
    if kind == "chain":  # what the light was like, SAR cannot tell, so that brightness is not drawn
        assert chain is not None
        s1 = s1 + torch.randn(count, 2, 1, 1, generator=random) * SAR_JITTER_DB
        known = torch.rand(count, generator=random) < DATE_KNOWN
        metadata = [record.metadata if each else None for each in known.tolist()]
        examples = Examples(s1, chain(s1, metadata), torch.full_like(s1[:, :1], Trust.SAR_ONLY), truth)
    else:
        base: Kind = "degraded" if kind == "swapped" or kind == "blind" else kind
        examples = make_examples(base, *augment(s1, truth, random), random)
    s1 = examples.s1
    if kind == "swapped":
        chosen = torch.randint(len(donors), (count,), generator=random).tolist()
        s1, _ = augment(torch.stack([donors[index] for index in chosen]), truth, random)
    if not use_sar:
        s1 = generator.sar.mean.expand_as(s1)
    use_sar = kind != "blind"
    tiles = model.prepare(s1, examples.estimate, examples.trust, use_sar=use_sar)
    controls = GroundingControls(use_sar=use_sar)
    proposal = model.ground(
        s1, examples.estimate, 1, seed=random, trust=examples.trust, controls=controls
    ).proposal
    height, width = truth.shape[-2:]
    z_s1, z_estimate = generator.sar.to_z(tiles.s1), generator.optical.to_z(tiles.estimate)
    layers = [z_s1, z_estimate, generator.optical.to_z(proposal), tiles.trust, tiles.sar_inconsistency]
    shown = [layer[..., :height, :width] for layer in layers]
    return list(torch.cat([*shown, generator.optical.to_z(examples.truth)], dim=1))


def _chance(entry: Tensor) -> float:
    """How often an entry of the pool is drawn: with its side, and with how much the SAR contradicts its estimate."""
    sar_inconsistency = entry.split(list(LAYERS.values()))[list(LAYERS).index("sar_inconsistency")]
    return min(entry.shape[-2:]) * (1.0 + CONTRADICTED_WEIGHT * float(sar_inconsistency.mean()))


def draw_crops(
    pool: Sequence[Tensor],
    chance: Tensor,
    crop_sizes: Sequence[int],
    batch_pixels: int,
    random: torch.Generator,
) -> dict[str, Tensor]:
    """Turned and mirrored square crops of one size, by layer.

    Args:
        pool: entries (16, H, W).
        chance: (N,) how often each is drawn where it is large enough, up to a factor.
        crop_sizes: one is drawn for the batch.
        batch_pixels: pixels of the batch.
        random: of every draw.

    Raises:
        InputError: no entry of the pool is large enough.
    """
    sides = torch.tensor([min(entry.shape[-2:]) for entry in pool] or [0])
    sizes = [size for size in crop_sizes if size <= int(sides.max())]
    if not sizes:
        raise InputError(
            f"the largest tile of the pool is {int(sides.max())} px; expected at least {min(crop_sizes)} px"
        )

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=random))

    size = sizes[draw(len(sizes))]
    large = torch.where(sides >= size, chance, 0.0)
    chosen = torch.multinomial(large, max(1, batch_pixels // size**2), replacement=True, generator=random)
    crops = []
    for index in chosen.tolist():
        entry = pool[index]
        top, left = draw(entry.shape[-2] - size + 1), draw(entry.shape[-1] - size + 1)
        crop = entry[:, top : top + size, left : left + size].rot90(draw(4), (1, 2))
        crops.append(crop.flip(2) if draw(2) else crop)
    layers = torch.stack(crops).split(list(LAYERS.values()), dim=1)
    return dict(zip(LAYERS, layers, strict=True))


def vary(
    crops: Mapping[str, Tensor], optical: OpticalAdapter, random: torch.Generator, *, guess: bool
) -> dict[str, Tensor]:
    """The crops with another SAR calibration, more speckle, and another brightness.

    Args:
        crops: layers in z-units; a SAR that is 0 everywhere, which stands for none, stays so.
        optical: between z-units and DN.
        random: of every draw.
        guess: whether the estimate is one from SAR alone: then it becomes brighter or darker by itself, else estimate,
            proposal and truth together.
    """
    s1 = crops["s1"]
    count = len(s1)
    offset = CALIBRATION * torch.randn(count, 2, 1, 1, generator=random)
    level = SPECKLE * torch.rand(count, 1, 1, 1, generator=random)
    noise = level * torch.randn(s1.shape, generator=random)
    varied = dict(crops) | {"s1": torch.where((s1 != 0).any(), s1 + offset + noise, s1)}
    gain = draw_gain(count, random, GUESS_COMMON, GUESS_BAND) if guess else draw_gain(count, random)
    for name in ("estimate", "proposal") if guess else ("estimate", "proposal", "truth"):
        varied[name] = optical.to_z(optical.from_z(crops[name]) * gain)
    return varied


def _write(config: HeadConfig, model: Stage3GroundingModel, step: int) -> Path:
    """Write the head with the run's settings in its header; returns the folder."""
    unsaid = ("data", "out", "checkpoint", "start")
    settings = {key: value for key, value in asdict(config).items() if key not in unsaid}
    header = {"variant": config.variant, "head_config": json.dumps(settings)}
    if config.start not in (None, FRESH):
        step += int(read_metadata(config.start).get("head_steps", 0))
        header["head_start"] = sha256_file(config.start)
    folder = Path(config.out) / "weights"
    header["head_steps"] = str(step)
    write_state(folder / CORRECTOR_FILE, model.corrector.state_dict(), header, half=True, overwrite=True)
    return folder
