"""Streaming gives what blending the whole scene in memory gives, however it is read, batched or interrupted."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from axs_lib.io.grid import SceneGrid
from axs_lib.scenes.stream import stream_tiles, tile_count
from axs_lib.tilegrid import Tile, TileGrid

from .conftest import GRID, blend


@dataclass
class ArrayRows:
    """A source in memory."""

    data: np.ndarray
    bands: tuple[str, ...] = ("VV",)
    tags: Mapping[str, str] = field(default_factory=dict)
    label: str = "array"

    @property
    def grid(self) -> SceneGrid:
        return SceneGrid(*self.data.shape[-2:])

    def read(self, window: Tile) -> np.ndarray:
        return self.data[:, window.top : window.bottom, window.left : window.right]


def network(images: list[Tensor], tiles: list[Tile]) -> Tensor:
    """A pixel and the highest of its tile: blending matters, and no sum depends on the batch."""
    assert all(image.shape[-2:] == tile.shape for image in images for tile in tiles)
    image = images[0]
    return torch.cat([image, image.amax(dim=(1, 2, 3), keepdim=True).expand_as(image)], dim=1)


def streamed(data: np.ndarray, grid: TileGrid, window_rows: int, batch_size: int) -> np.ndarray:
    source = ArrayRows(data)
    rows = list(stream_tiles([source], network, 2, grid, window_rows=window_rows, batch_size=batch_size))
    assert [r.top for r in rows] == [0, *np.cumsum([r.layers.shape[1] for r in rows])[:-1]]
    for r in rows:
        np.testing.assert_array_equal(r.inputs[0], data[:, r.top : r.top + r.layers.shape[1]])
    return np.concatenate([r.layers for r in rows], axis=1)


@pytest.mark.parametrize("size", [(8, 9), (64, 64), (65, 200), (150, 64), (200, 150), (113, 112)])
@pytest.mark.parametrize(("window_rows", "batch_size"), [(50, 3), (1, 1), (1000, 100)])
def test_the_same_bits_as_in_memory_whatever_the_windows_and_batches(
    size: tuple[int, int], window_rows: int, batch_size: int
) -> None:
    data = np.random.default_rng(sum(size)).normal(size=(1, *size)).astype("float32")
    for grid in (GRID, TileGrid(side=64, overlap=44)):  # tiles that overlap by more than half
        whole = blend(grid, size, lambda tile: network([tile.of(torch.from_numpy(data))[None]], [tile])[0])
        np.testing.assert_array_equal(streamed(data, grid, window_rows, batch_size), whole.numpy())


def test_tiles_without_data_are_left_out_and_are_nodata() -> None:
    data = np.ones((1, 200, 150), dtype="float32")
    data[:, :90] = np.nan
    seen: list[Tile] = []
    done: list[int] = []

    def remembering(images: list[Tensor], tiles: list[Tile]) -> Tensor:
        seen.extend(tiles)
        return images[0].repeat(1, 2, 1, 1)

    how = {"batch_size": 2, "wanted": lambda images: bool(np.isfinite(images[0]).any()), "advance": done.append}
    rows = stream_tiles([ArrayRows(data)], remembering, 2, GRID, **how)
    result = np.concatenate([r.layers for r in rows], axis=1)
    assert {tile.top for tile in seen} == {48, 96, 144}
    assert sum(done) == tile_count(GRID, 200, 150) == 12 and len(seen) == 9
    np.testing.assert_array_equal(np.isnan(result[:1]), np.isnan(data))


def test_an_error_of_the_reader_arrives_and_its_thread_ends() -> None:
    class Broken(ArrayRows):
        def read(self, window: Tile) -> np.ndarray:
            if window.top >= 100:
                raise OSError("the disk is gone")
            return super().read(window)

    with pytest.raises(OSError, match="the disk is gone"):
        list(stream_tiles([Broken(np.ones((1, 300, 64)))], network, 2, GRID, batch_size=1, window_rows=10))
    assert not [t for t in threading.enumerate() if t.name.startswith("axs-read")]


def test_memory_does_not_depend_on_the_height() -> None:
    @dataclass
    class Endless(ArrayRows):
        height: int = 0

        @property
        def grid(self) -> SceneGrid:
            return SceneGrid(self.height, 200)

        def read(self, window: Tile) -> np.ndarray:
            return np.ones((1, *window.shape), dtype="float32")

    def peak(height: int) -> int:
        tracemalloc.start()
        try:
            source = Endless(np.empty(0), height=height)
            for _ in stream_tiles([source], network, 2, GRID, batch_size=4, window_rows=64):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(4000) < 1.2 * peak(500)
