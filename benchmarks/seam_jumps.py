"""Measure seams: how far an image jumps where a model tile begins or ends, against everywhere else.

In: an image and the grid it was tiled with; best the change that a model made, since that has no edges of the ground.
Out: ``SeamJumps``, mean absolute differences of neighbouring pixels, on lines that are tile borders, on all others, and
on those others that lie on the network's own grid: a token covers 16 px, and an image may jump a little from one to the
next, on tile borders as anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from axs_lib.errors import InputError
from axs_lib.io.formats import FloatArray
from axs_lib.tilegrid import TileGrid

TOKEN_PX = 16


@dataclass(frozen=True)
class SeamJumps:
    """Mean absolute differences of neighbouring pixels, in the image's unit.

    Attributes:
        across: over all tile borders.
        inside: over all other lines.
        inside_tokens: over the other lines at multiples of 16 px, where one token ends and the next begins.
        worst_across: of the border where it is largest.
        worst_inside: of the other line where it is largest.
    """

    across: float
    inside: float
    inside_tokens: float
    worst_across: float
    worst_inside: float

    @property
    def ratio_tokens(self) -> float:
        """Jump across borders over jump between tokens inside tiles; at most 1 where borders add nothing."""
        return self.across / self.inside_tokens

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
    across, inside, tokens = [], [], []
    for axis in (1, 2):
        jumps = np.abs(np.diff(image, axis=axis))
        lines = np.nanmean(jumps, axis=(0, 3 - axis))  # one mean a line; line i lies before pixel i + 1
        border = np.zeros(len(lines), dtype=bool)
        border[[edge - 1 for edge in borders(grid, image.shape[axis])]] = True
        between = (np.arange(len(lines)) + 1) % TOKEN_PX == 0
        across.append(lines[border])
        inside.append(lines[~border])
        tokens.append(lines[between & ~border])
    far, near, step = np.concatenate(across), np.concatenate(inside), np.concatenate(tokens)
    if not far.size:
        raise InputError(
            f"an image of {image.shape[1]}x{image.shape[2]} px is one tile of {grid.side} px; expected a larger one"
        )
    at_tokens = step.mean() if step.size else np.nan
    return SeamJumps(*(float(value) for value in (far.mean(), near.mean(), at_tokens, far.max(), near.max())))
