"""The tile grid: where the network looks, anchored to the image's own pixel grid, and how tiles blend.

Tiles of ``side`` pixels start at multiples of ``stride`` from the image's origin, never from its end, so the same
pixel lies in the same tiles whether a scene is read whole, in windows or cut out along the grid. Neighbours overlap
by ``side - stride`` and are blended with a separable ramp whose weights sum to one after normalisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from axs_lib.checks import MIN_SIDE, check_count

Item = TypeVar("Item")
Image = TypeVar("Image", Tensor, np.ndarray[Any, Any])


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image: rows ``top:bottom``, columns ``left:right``."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.bottom - self.top, self.right - self.left

    def of(self, image: Image) -> Image:
        """The tile's view of an array or tensor (..., H, W)."""
        return image[..., self.top : self.bottom, self.left : self.right]

    def moved(self, rows: int, columns: int) -> Tile:
        """The tile so many rows further down and columns to the right."""
        return Tile(self.top + rows, self.left + columns, self.bottom + rows, self.right + columns)

    def grown(self, margin: int, limits: Tile) -> Tile:
        """The tile with so many pixels around it, cut to the limits."""
        top, left = max(limits.top, self.top - margin), max(limits.left, self.left - margin)
        return Tile(top, left, min(limits.bottom, self.bottom + margin), min(limits.right, self.right + margin))


@dataclass(frozen=True)
class TileGrid:
    """Tiles over an image, of ``side`` pixels, of which neighbours share ``overlap``."""

    side: int = 256
    overlap: int = 64

    def __post_init__(self) -> None:
        check_count("the side of the tiles", self.side, MIN_SIDE)
        check_count("the overlap of the tiles", self.overlap, 0, self.side - 1)

    @property
    def stride(self) -> int:
        """Distance between tile origins."""
        return self.side - self.overlap

    def starts(self, length: int) -> list[int]:
        """Tile origins along an axis of ``length`` pixels; a last tile adds at least one new pixel."""
        return [0, *range(self.stride, max(self.stride, length - self.overlap), self.stride)]

    def tiles(self, height: int, width: int) -> Iterator[Tile]:
        """Tiles in row-major order, cropped to the image."""
        for top in self.starts(height):
            for left in self.starts(width):
                yield Tile(top, left, min(top + self.side, height), min(left + self.side, width))

    def weights(self, tile: Tile, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
        """Blending weights (h, w) of a tile: ramps over overlaps with a neighbour, one elsewhere, never zero."""
        rows = self._ramp(tile.top, tile.bottom, height, device)
        columns = self._ramp(tile.left, tile.right, width, device)
        return rows[:, None] * columns[None, :]

    def _ramp(self, start: int, stop: int, length: int, device: torch.device | str) -> Tensor:
        position = torch.arange(stop - start, dtype=torch.float32, device=device) + 0.5
        weight = torch.ones_like(position)
        if start > 0:
            weight = torch.minimum(weight, position / self.overlap)
        if start + self.stride < length - self.overlap:  # a neighbour follows
            weight = torch.minimum(weight, (self.side - position) / self.overlap)
        return weight.clamp_min(1e-6)


def batches_of_one_shape(items: Iterable[Item], shape: Callable[[Item], object], size: int) -> Iterator[list[Item]]:
    """Neighbouring items of one shape, up to ``size`` at a time."""
    for _, run in itertools.groupby(items, shape):
        alike = list(run)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


@dataclass(frozen=True)
class TileBatch:
    """Tiles of one shape: the image (n,) int64 out of a batch that each is cut from, and where it lies there."""

    samples: Tensor
    tiles: Sequence[Tile]

    def of(self, images: Tensor) -> Tensor:
        """The tiles (n, C, h, w) of images (B, C, H, W)."""
        return torch.stack([tile.of(images[i]) for i, tile in zip(self.samples, self.tiles, strict=True)])

    def origins(self, corners: Tensor) -> Tensor:
        """Scene coordinates (n, 2) int64 of the tiles, from those of the images (B, 2)."""
        return corners[self.samples] + corners.new_tensor([[tile.top, tile.left] for tile in self.tiles])


class Mosaic:
    """Cuts images (B, C, H, W) into the tiles of a grid, ``batch_size`` at once, and blends what they become."""

    def __init__(self, images: Tensor, grid: TileGrid, batch_size: int) -> None:
        self.images, self.grid, self.batch_size = images, grid, batch_size
        self._sums: dict[str, Tensor] = {}  # of weighted values, and last of the weights, (B, C + 1, H, W)

    def batches(self) -> Iterator[TileBatch]:
        """All tiles, those of one shape together."""
        jobs = [(i, tile) for i in range(len(self.images)) for tile in self.grid.tiles(*self.images.shape[-2:])]
        jobs.sort(key=lambda job: job[1].shape)
        for batch in batches_of_one_shape(jobs, lambda job: job[1].shape, self.batch_size):
            samples, tiles = zip(*batch, strict=True)
            yield TileBatch(torch.tensor(samples, device=self.images.device), tiles)

    def add(self, batch: TileBatch, **layers: Tensor) -> None:
        """Add what was made of a batch of tiles: named layers (n, C, h, w)."""
        height, width = self.images.shape[-2:]
        for name, values in layers.items():
            values = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
            if name not in self._sums:
                self._sums[name] = values.new_zeros(len(self.images), values.shape[1], height, width)
            for sample, tile, value in zip(batch.samples.tolist(), batch.tiles, values, strict=True):
                weights = self.grid.weights(tile, height, width, values.device)
                tile.of(self._sums[name][sample]).add_(value * weights)

    def result(self) -> dict[str, Tensor]:
        """The blended layers (B, C, H, W) by name."""
        return {name: sums[:, :-1] / sums[:, -1:] for name, sums in self._sums.items()}
