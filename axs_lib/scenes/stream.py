"""Run a network over the tiles of a scene by rows, in memory that depends on its width alone, reading ahead.

Tiles are added up in row-major order, to the same bits as with the whole scene in memory. One thread reads ahead while
the network computes.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from axs_lib.io.formats import FloatArray
from axs_lib.io.warp import Readable
from axs_lib.tilegrid import Tile, TileGrid, batches_of_one_shape

WINDOW_ROWS = 256
PREFETCHED = 1  # windows read, or rows to be written, that may wait

# Tiles of one shape [(n, C, h, w) a source] and where they lie -> layers (n, K, h, w), NaN = nodata.
TileFunction = Callable[[list[Tensor], list[Tile]], Tensor]

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Rows:
    """Finished rows of a scene."""

    top: int  # index of the first
    layers: FloatArray  # (K, n, W), NaN where no tile has data
    inputs: list[FloatArray]  # the same rows of each source, (C, n, W)


RowsFunction = Callable[[Rows], FloatArray]  # rows of what the network made -> rows of the layers


def tile_count(grid: TileGrid, height: int, width: int) -> int:
    """Tiles of a scene."""
    return len(grid.starts(height)) * len(grid.starts(width))


def prefetch(name: str, job: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made, None, None]:
    """What a job makes of each item, in order; a thread of this name does it while the caller is at work."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix=name) as thread:
        for item in items:
            waiting.append(thread.submit(job, item))
            if len(waiting) > PREFETCHED:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def stream_tiles(
    sources: Sequence[Readable],
    network: TileFunction,
    layers: int,
    grid: TileGrid,
    *,
    batch_size: int,
    window_rows: int = WINDOW_ROWS,
    wanted: Callable[[list[FloatArray]], bool] = lambda tiles: True,
    advance: Callable[[int], None] = lambda tiles: None,
) -> Generator[Rows, None, None]:
    """Blend what a network makes of the tiles of a scene, whose rows come from top to bottom.

    ``network`` is called with tiles of one shape and one row of tiles, ``batch_size`` at once, and returns this many
    ``layers``; no result depends on ``window_rows``, which are read at once. ``wanted`` says whether a tile
    [(C, h, w) a source] has anything to compute; where not, its pixels are nodata. ``advance`` is told of tiles done.
    """
    height, width = sources[0].grid.size
    starts = grid.starts(height)

    def read(window: Tile) -> list[FloatArray]:
        return [source.read(window) for source in sources]

    with closing(prefetch("axs-read", read, sources[0].grid.strips(window_rows))) as windows:
        first, band = 0, next(windows)  # rows in memory: of each source, from row `first` on
        total = torch.zeros(layers, min(grid.side, height), width)
        weight = torch.zeros(total.shape[1:])
        for top, following in itertools.zip_longest(starts, starts[1:], fillvalue=height):
            bottom = min(top + grid.side, height)
            while first + band[0].shape[1] < bottom:
                band = [np.concatenate(pair, axis=1) for pair in zip(band, next(windows), strict=True)]
            band = [rows[:, top - first :] for rows in band]
            first = top

            # 1. The tiles of this row, in batches of one shape; those without data are left out.
            tiles = [Tile(top, left, bottom, min(left + grid.side, width)) for left in grid.starts(width)]
            views = {tile: [tile.moved(-top, 0).of(rows) for rows in band] for tile in tiles}
            needed = [tile for tile in tiles if wanted(views[tile])]
            advance(len(tiles) - len(needed))
            for batch in batches_of_one_shape(needed, lambda tile: tile.shape, batch_size):
                images = [torch.from_numpy(np.stack(each)) for each in zip(*(views[t] for t in batch), strict=True)]
                values = network(images, batch).float().cpu()

                # 2. Blended into the band, whose first row is the scene's row `top`.
                for tile, value in zip(batch, values, strict=True):
                    ramp, place = grid.weights(tile, height, width), tile.moved(-top, 0)
                    place.of(total).add_(value * ramp)
                    place.of(weight).add_(ramp)
                advance(len(batch))

            # 3. Rows that no later tile reaches are finished; the others move up.
            done = following - top
            yield Rows(top, (total[:, :done] / weight[:done]).numpy(), [rows[:, :done] for rows in band])
            total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], dim=1)
            weight = torch.cat([weight[done:], torch.zeros_like(weight[:done])])


def stream_stack(
    sources: Sequence[Readable], network: TileFunction, count: int, *, batch_size: int, advance: Callable[[int], None]
) -> Generator[Rows, None, None]:
    """As ``stream_tiles``, of ``count`` tiles that lie one under another, each seen whole and by itself."""
    height, width = sources[0].grid.height // count, sources[0].grid.width
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        rows = Tile(start * height, 0, stop * height, width)
        inputs = [source.read(rows) for source in sources]
        images = [torch.from_numpy(np.stack(np.split(data, stop - start, axis=1))) for data in inputs]
        values = network(images, [Tile(0, 0, height, width)] * (stop - start)).float().cpu()
        yield Rows(rows.top, np.concatenate(list(values.numpy()), axis=1), inputs)
        advance(stop - start)
