"""The tile grid: where the network looks, anchored to the image's own pixel grid, and how tiles blend.

Tiles of ``side`` pixels start at multiples of ``stride`` from the image's origin, never from its end, so the same
pixel lies in the same tiles whether a scene is read whole, in windows or cut out along the grid. Neighbours overlap
by ``side - stride`` and are blended with a separable ramp whose weights sum to one after normalisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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

    def of(self, image: Tensor) -> Tensor:
        """The tile's view of (..., H, W)."""
        return image[..., self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class TileGrid:
    """Tiles over an image.

    Args:
        side: tile side in pixels.
        overlap: pixels shared by neighbours, less than ``side``.
    """

    side: int = 256
    overlap: int = 64

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


class Blender:
    """Accumulates weighted tiles into whole images.

    Args:
        grid: the tile grid.
        height: image height.
        width: image width.
    """

    def __init__(self, grid: TileGrid, height: int, width: int) -> None:
        self.grid, self.height, self.width = grid, height, width
        self._sum: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, tile: Tile, values: Tensor) -> None:
        """Add one tile's values (C, h, w)."""
        if self._sum is None or self._weight is None:
            self._sum = values.new_zeros(values.shape[0], self.height, self.width)
            self._weight = values.new_zeros(self.height, self.width)
        weights = self.grid.weights(tile, self.height, self.width, values.device)
        tile.of(self._sum).add_(values * weights)
        tile.of(self._weight).add_(weights)

    def result(self) -> Tensor:
        """The blended image (C, H, W)."""
        assert self._sum is not None and self._weight is not None, "no tile was added"
        return self._sum / self._weight


@dataclass(frozen=True)
class TileBatch:
    """Tiles of one shape out of a batch of images.

    Attributes:
        samples: (n,) int64, the image that each tile is cut from.
        tiles: where it lies in that image.
    """

    samples: Tensor
    tiles: Sequence[Tile]

    def of(self, images: Tensor) -> Tensor:
        """The tiles (n, C, h, w) of images (B, C, H, W)."""
        return torch.stack([tile.of(images[i]) for i, tile in zip(self.samples, self.tiles, strict=True)])

    def origins(self, origin: tuple[int, int] | Tensor) -> Tensor:
        """Scene coordinates (n, 2) int64 of the tiles, from those of the images: one pair or (B, 2)."""
        corners = torch.as_tensor(origin, dtype=torch.int64, device=self.samples.device)
        places = corners.new_tensor([[tile.top, tile.left] for tile in self.tiles])
        return (corners if corners.ndim == 1 else corners[self.samples]) + places


class Mosaic:
    """Cuts a batch of images into tiles, and blends what is made of the tiles.

    Args:
        batch: number of images.
        height: of each, in pixels.
        width: of each, in pixels.
        side: largest tile.
        batch_size: tiles that are handed out at once.
        device: of the images.
    """

    def __init__(
        self, batch: int, height: int, width: int, *, side: int, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self.grid, self.size, self.batch, self.batch_size = TileGrid(side), (height, width), batch, batch_size
        self.device = torch.device(device)
        self._blenders: dict[str, list[Blender]] = {}

    def batches(self) -> Iterator[TileBatch]:
        """All tiles, those of one shape together."""
        jobs = [(i, tile) for i in range(self.batch) for tile in self.grid.tiles(*self.size)]
        jobs.sort(key=lambda job: job[1].shape)
        for _, alike in itertools.groupby(jobs, key=lambda job: job[1].shape):
            same = list(alike)
            for start in range(0, len(same), self.batch_size):
                samples, tiles = zip(*same[start : start + self.batch_size], strict=True)
                yield TileBatch(torch.tensor(samples, device=self.device), tiles)

    def add(self, batch: TileBatch, **layers: Tensor) -> None:
        """Add what was made of a batch of tiles: named layers (n, C, h, w)."""
        for name, values in layers.items():
            blenders = self._blenders.setdefault(name, [Blender(self.grid, *self.size) for _ in range(self.batch)])
            for sample, tile, value in zip(batch.samples.tolist(), batch.tiles, values, strict=True):
                blenders[sample].add(tile, value)

    def result(self) -> dict[str, Tensor]:
        """The blended layers (B, C, H, W) by name."""
        return {
            name: torch.stack([blender.result() for blender in blenders]) for name, blenders in self._blenders.items()
        }
