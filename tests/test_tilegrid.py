"""The tile grid covers every pixel, is anchored to the origin, and its blending weights sum to one."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from axs_lib.tilegrid import Blender, TileGrid

GRID = TileGrid(side=32, overlap=8)


@given(height=st.integers(8, 150), width=st.integers(8, 150))
def test_constant_tiles_blend_to_a_constant(height: int, width: int) -> None:
    blender = Blender(GRID, height, width)
    total = torch.zeros(height, width)
    for tile in GRID.tiles(height, width):
        blender.add(tile, torch.full((2, *tile.shape), 3.0))
        tile.of(total).add_(GRID.weights(tile, height, width))
    assert (blender.result() - 3.0).abs().max() < 1e-5
    assert (total - 1.0).abs().max() < 1e-4


@given(length=st.integers(8, 500))
def test_starts_are_multiples_of_the_stride_and_each_tile_adds_pixels(length: int) -> None:
    starts = GRID.starts(length)
    assert starts == [i * GRID.stride for i in range(len(starts))]
    assert starts[-1] + GRID.side >= length
    for earlier, later in itertools.pairwise(starts):
        assert min(later + GRID.side, length) > earlier + GRID.side


def test_a_cut_along_the_grid_has_the_same_tiles() -> None:
    whole = {(t.top - GRID.stride, t.left) for t in GRID.tiles(200, 64) if t.top >= GRID.stride}
    cut = {(t.top, t.left) for t in GRID.tiles(200 - GRID.stride, 64)}
    assert cut == whole


def test_zero_stays_exactly_zero() -> None:
    blender = Blender(GRID, 80, 80)
    for tile in GRID.tiles(80, 80):
        blender.add(tile, torch.zeros(1, *tile.shape))
    assert not blender.result().any()
