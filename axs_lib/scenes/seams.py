"""Measure seams: how far an image jumps where a model tile begins or ends, against everywhere else.

In: an image and the grid it was tiled with; best the change that a model made, since that has no edges of the ground.
Out: ``SeamJumps``, mean absolute differences of neighbouring pixels, on lines that are tile borders and on all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from axs_lib.data.raster import FloatArray
from axs_lib.errors import InputError
from axs_lib.tilegrid import TileGrid


@dataclass(frozen=True)
class SeamJumps:
    """Mean absolute differences of neighbouring pixels, in the image's unit.

    Attributes:
        across: over all tile borders.
        inside: over all other lines.
        worst_across: of the border where it is largest.
        worst_inside: of the other line where it is largest.
    """

    across: float
    inside: float
    worst_across: float
    worst_inside: float

    @property
    def ratio(self) -> float:
        """Jump across borders over jump inside tiles; about 1 where there are no seams."""
        return self.across / self.inside


def borders(grid: TileGrid, length: int) -> list[int]:
    """Positions along an axis at which a tile begins or ends inside the image, the first pixel of its far side."""
    starts = grid.starts(length)
    edges = {*starts[1:], *(start + grid.side for start in starts[:-1])}
    return sorted(edge for edge in edges if 0 < edge < length)


def seam_jumps(image: FloatArray, grid: TileGrid) -> SeamJumps:
    """Jumps of an image (C, H, W) down and across; NaN takes no part.

    Raises:
        InputError: no tile border lies inside the image.
    """
    across, inside = [], []
    for axis in (1, 2):
        jumps = np.abs(np.diff(image, axis=axis))
        lines = np.nanmean(jumps, axis=(0, 3 - axis))  # one mean a line; line i lies before pixel i + 1
        border = np.zeros(len(lines), dtype=bool)
        border[[edge - 1 for edge in borders(grid, image.shape[axis])]] = True
        across.append(lines[border])
        inside.append(lines[~border])
    far, near = np.concatenate(across), np.concatenate(inside)
    if not far.size:
        raise InputError(
            f"an image of {image.shape[1]}x{image.shape[2]} px is one tile of {grid.side} px; expected a larger one"
        )
    return SeamJumps(*(float(value) for value in (far.mean(), near.mean(), far.max(), near.max())))
