"""The tile grid covers every pixel, is anchored to the origin, and its blending weights sum to one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axs_lib.errors import InputError
from axs_lib.tilegrid import Mosaic, TileGrid

GRID = TileGrid(side=32, overlap=8)


@given(height=st.integers(8, 150), width=st.integers(8, 150))
def test_constant_tiles_blend_to_a_constant(height: int, width: int) -> None:
    image = torch.full((1, 2, height, width), 3.0)
    mosaic, total = Mosaic(image, GRID, 4), torch.zeros(height, width)
    for tiles in mosaic.batches():
        mosaic.add(tiles, same=tiles.of(image))
        for tile in tiles.tiles:
            tile.of(total).add_(GRID.weights(tile, height, width))
    assert (mosaic.result()["same"] - 3.0).abs().max() < 1e-5
    assert (total - 1.0).abs().max() < 1e-4


@given(length=st.integers(8, 500))
def test_starts_are_multiples_of_the_stride_and_each_tile_adds_pixels(length: int) -> None:
    starts = GRID.starts(length)
    assert starts == [i * GRID.stride for i in range(len(starts))]
    assert starts[-1] + GRID.side >= length
    for earlier, later in itertools.pairwise(starts):
        assert min(later + GRID.side, length) > earlier + GRID.side


def coordinates(batch: int, height: int, width: int) -> torch.Tensor:
    """An image whose pixels say where they are, and in which sample."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).float().repeat(batch, 1, 1, 1)
    image[:, 2] += torch.arange(batch)[:, None, None]
    return image


@pytest.mark.parametrize("size", [(8, 8), (64, 200), (256, 256), (257, 30), (300, 500)])
def test_tiles_come_back_in_place(size: tuple[int, int]) -> None:
    image = coordinates(2, *size)
    mosaic, counts = Mosaic(image, TileGrid(256), 3), []
    corners = torch.tensor([[0, 0], [2**40, -5]])
    for tiles in mosaic.batches():
        cut = tiles.of(image)
        assert max(cut.shape[-2:]) <= 256 and len(cut) <= 3
        sample, place = cut[:, 2, 0, 0].long(), cut[:, :2, 0, 0].long()
        assert torch.equal(tiles.samples, sample)
        assert torch.equal(tiles.origins(corners), place + corners[sample])
        mosaic.add(tiles, same=cut, double=2 * cut[:, :1])
        counts.append(len(cut))
    assert max(counts) > 1, "tiles of one shape go together"
    blended = mosaic.result()
    torch.testing.assert_close(blended["same"], image, atol=0 if max(size) <= 256 else 1e-3, rtol=0)
    torch.testing.assert_close(blended["double"], 2 * image[:, :1], atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("sizes", [(64, 64), (7, 0), ("x", 0), (64, -1), (64, 1.5)])
def test_tiles_that_cannot_lie_are_refused(sizes: Any) -> None:
    with pytest.raises(InputError, match=r"tiles is .*; expected an integer"):
        TileGrid(*sizes)
