"""How a stage runs the generator over images: fill and pad, cut into tiles, draw proposals, blend.

Stage 1 (SAR alone) and Stage 3 (SAR and estimate) differ in what they show the generator and in what they make of
its proposal. Everything between is here, once: in go images of any size from 8 px with NaN for nodata, out come
layers of the same size. Tiles lie on a grid anchored to the image, the noise is a function of seed and scene
coordinate, and a tile's result does not depend on its batch mates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from axs_lib.checks import check_count, check_number
from axs_lib.errors import InputError
from axs_lib.nodata import fill_nodata, pad_square
from axs_lib.precision import full_float32
from axs_lib.terramind.noise import gaussian_field, member_seeds, sample_seeds
from axs_lib.terramind.sampler import TRAIN_TIMESTEPS, add_noise
from axs_lib.tilegrid import Blender, Tile, TileGrid

if TYPE_CHECKING:
    from axs_lib.terramind.adapters import OpticalAdapter, SarAdapter
    from axs_lib.terramind.generator import GeneratorLayout, TerraMindGenerator
    from axs_lib.terramind.sampler import Schedule

TileNetwork = Callable[[list[Tensor], Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How proposals are drawn.

    Attributes:
        tokens: ``"soft"``, ``"argmax"`` or ``"sample"``.
        temperature: of soft and sampled tokens.
        ensemble_size: members drawn.
        batch_size: tiles the network sees at once; members of an ensemble share the batch where there is room.

    Raises:
        InputError: a size is no positive integer, or the temperature no positive number.
    """

    tokens: str = "soft"
    temperature: float = 1.0
    ensemble_size: int = 1
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_count("ensemble_size", self.ensemble_size)
        check_count("batch_size", self.batch_size)
        check_number(
            "temperature", self.temperature, 1e-6, 1e6, "a number above 0 (tokens='argmax' for the limit)"
        )


def network_side(layout: GeneratorLayout, height: int, width: int) -> int:
    """Side in pixels of the square the network sees for a tile."""
    longest = max(height, width, layout.min_side)
    return -(-longest // layout.multiple) * layout.multiple


def to_network(
    image: Tensor, valid: Tensor, side: int, adapter: SarAdapter | OpticalAdapter, *, standardize: bool
) -> Tensor:
    """A tile as the network sees it: nodata filled from neighbours, padded, in z-units.

    Args:
        image: (B, C, H, W) in dB or DN (z-units where not ``standardize``), NaN where invalid.
        valid: (B, 1, H, W) bool.
        side: from ``network_side``.
        adapter: of the image's modality.
        standardize: whether the image is to be z-scored.

    Returns:
        (B, C, side, side).
    """
    mean = adapter.from_z(torch.zeros_like(adapter.mean)) if standardize else 0.0
    padded = pad_square(fill_nodata(image, valid, fallback=mean), side)
    return adapter.to_z(padded) if standardize else padded


@full_float32()
def run_tiled(
    network: TileNetwork,
    images: Sequence[Tensor],
    seeds: Tensor,
    *,
    side: int,
    origin: tuple[int, int] | Tensor = (0, 0),
    batch_size: int = 8,
) -> Tensor:
    """Run a network over the tiles of a batch of images and blend what it returns.

    Args:
        network: called with the tiles of each image [(n, C, h, w), ...] of one shape, their seeds (n,) and the scene
            coordinates (n, 2) of their upper left pixels; returns layers (n, K, h, w).
        images: tensors (B, C, H, W) on one grid.
        seeds: (B,) int64.
        side: largest tile.
        origin: scene (row, column) of the images' upper left pixel, one for all or (B, 2) int64.
        batch_size: tiles the network sees at once.

    Returns:
        (B, K, H, W).
    """
    batch, _, height, width = images[0].shape
    corners = torch.as_tensor(origin, dtype=torch.int64, device=seeds.device).expand(batch, 2)
    grid = TileGrid(side=side)
    jobs = [(index, tile) for index in range(batch) for tile in grid.tiles(height, width)]
    jobs.sort(key=lambda job: job[1].shape)
    whole = len(jobs) == batch  # every image is one tile: nothing to blend
    results: list[Tensor] = []
    blenders = [Blender(grid, height, width) for _ in range(batch)]
    for group in _groups(jobs, batch_size):
        layers = network(
            [torch.stack([tile.of(image[index]) for index, tile in group]) for image in images],
            seeds[[index for index, _ in group]],
            torch.stack([corners[index] + corners.new_tensor([t.top, t.left]) for index, t in group]),
        )
        if whole:
            results.append(layers)
            continue
        for (index, tile), values in zip(group, layers, strict=True):
            blenders[index].add(tile, values)
    if whole:
        return torch.cat(results)
    return torch.stack([blender.result() for blender in blenders])


def _groups(jobs: list[tuple[int, Tile]], size: int) -> Iterator[list[tuple[int, Tile]]]:
    """Runs of at most ``size`` neighbouring jobs whose tiles have one shape."""
    group: list[tuple[int, Tile]] = []
    for job in jobs:
        if group and (len(group) == size or job[1].shape != group[0][1].shape):
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def draw_proposals(
    generator: TerraMindGenerator,
    logits: Sequence[Tensor],
    size: tuple[int, int],
    schedule: Schedule,
    sampling: Sampling,
    seeds: Tensor,
    origins: Tensor,
    *,
    start: Tensor | None = None,
) -> Iterator[list[Tensor]]:
    """For each ensemble member, the proposal of every conditioning.

    Args:
        generator: the conditional generator.
        logits: one (B, h*w, V) a conditioning; all are drawn from the same noise, in one batch.
        size: image height and width in pixels.
        schedule: the denoiser's, run in exactly ``schedule.nfe`` evaluations a member.
        sampling: tokens, temperature and ensemble size.
        seeds: (B,) int64.
        origins: (B, 2) scene coordinates.
        start: image in the network's channels to start from, where the schedule does not start from pure noise.

    Yields:
        One (B, 4, H, W) in z-units a conditioning.
    """
    passes = len(logits)
    at_once = max(1, sampling.batch_size // (passes * len(seeds)))  # members that fill the batch
    for first in range(0, sampling.ensemble_size, at_once):
        members = [
            member_seeds(seeds, member)
            for member in range(first, min(first + at_once, sampling.ensemble_size))
        ]
        codes = [
            generator.codes(
                each,
                size,
                tokens=sampling.tokens,
                temperature=sampling.temperature,
                seeds=member,
                origins=origins,
            )
            for member in members
            for each in logits
        ]
        noise = [
            gaussian_field(member, (generator.image_channels, *size), origins=origins).repeat(passes, 1, 1, 1)
            for member in members
        ]
        images = generator.decode(
            torch.cat(codes),
            torch.cat(noise),
            schedule.fresh(),
            start=None if start is None else start.repeat(passes * len(members), 1, 1, 1),
        )
        for member_images in images.chunk(len(members)):
            yield [generator.optical.select(image) for image in member_images.chunk(passes)]


def mean_and_spread(members: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over an ensemble; the deviation is zero for an ensemble of one."""
    stacked = torch.stack(list(members))
    spread = stacked.std(dim=0) if len(stacked) > 1 else torch.zeros_like(stacked[0])
    return stacked.mean(dim=0), spread


def check_training_size(layout: GeneratorLayout, image: Tensor) -> tuple[int, int]:
    """Height and width of a training image.

    Raises:
        InputError: it is larger than the network's tile.
    """
    height, width = image.shape[-2:]
    if max(height, width) > layout.max_side:
        raise InputError(
            f"training tiles are {height}x{width} px; expected at most {layout.max_side} px a side: train on crops"
        )
    return height, width


def training_start(clean: Tensor, *, training: bool, noised: bool = True) -> tuple[Tensor, Tensor]:
    """x_t (B, C, H, W) and t (B,) of the one denoiser evaluation of a differentiable pass.

    Args:
        clean: (B, C, H, W) in the network's channels, z-units.
        training: True draws steps and noise from torch's global generator, as dropout does, half of the steps at the
            pure-noise end, where every inference starts; False is that end with the noise of seed 0.
        noised: False keeps every step at the pure-noise end.
    """
    batch, device = len(clean), clean.device
    t = torch.full((batch,), TRAIN_TIMESTEPS - 1, device=device)
    if training and noised:
        t = torch.randint(TRAIN_TIMESTEPS, (batch,), device=device)
        t[torch.rand(batch, device=device) < 0.5] = TRAIN_TIMESTEPS - 1
    if training:
        noise = torch.randn(clean.shape, device=device)
    else:
        channels, height, width = clean.shape[1:]
        noise = gaussian_field(sample_seeds(0, batch, device=device), (channels, height, width))
    return add_noise(clean, noise, t), t
