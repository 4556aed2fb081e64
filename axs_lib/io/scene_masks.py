"""The mask of a scene, read by windows: what ``axs_lib.io.masks`` says of a whole image, said of its parts.

In: a mask file of any grid and what its values mean. Out: a ``Source`` of one band, the trust map in 0..1, on the
scene's grid. Where the mask has no data the image is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.masks import (
    MASK_KINDS,
    SCL_CLASSES,
    SCL_DROPPED,
    grow_unknown,
    mask_kind,
    mask_trust,
    scl_numbers,
    scl_trust,
)
from axs_lib.io.raster import FloatArray, listed
from axs_lib.io.source import TRUST, PathLike, grid_of, opened
from axs_lib.io.warp import TOLERANCE_PX
from axs_lib.tilegrid import Tile

CHUNK_ROWS = 1024


@dataclass(frozen=True)
class MaskFile:
    """A mask and how to read it; the options are those of ``axs_lib.io.masks.read_mask``.

    Attributes:
        path: a raster of one band.
        kind: ``auto``, ``boolean``, ``trust`` or ``scl``.
        invert: 1 means unknown.
        drop: SCL classes that count as unknown; None for ``SCL_DROPPED``.
        buffer: pixels of the scene by which what is unknown grows.
    """

    path: PathLike
    kind: str = "auto"
    invert: bool = False
    drop: Iterable[str | int] | None = None
    buffer: int = 0


class MaskSource:
    """The trust map that a mask gives.

    Args:
        mask: the file.
        grid: of the scene; a mask on another grid is brought there by nearest neighbour.
        stack: closes the file.

    Raises:
        InputError: the mask cannot be read, lies elsewhere, or its values are not what its kind says.
    """

    def __init__(self, mask: MaskFile, grid: SceneGrid, stack: ExitStack) -> None:
        self.grid, self.label = grid, f"mask {mask.path}"
        self.bands: tuple[str, ...] = TRUST
        self.tags: Mapping[str, str] = {}
        self._mask, self._path = mask, Path(mask.path)
        if mask.buffer < 0 or mask.kind not in MASK_KINDS:
            raise InputError(
                f"the buffer of the mask is {mask.buffer} px and its kind {mask.kind!r}; expected 0 or more and one of"
                f" {listed(MASK_KINDS)}"
            )
        dataset = stack.enter_context(opened(mask.path))
        if dataset.count != 1:
            raise InputError(f"the mask {mask.path} has {dataset.count} bands; expected one")
        self._nodata = dataset.nodata or None  # 0 is unknown already, or clear in an inverted mask
        self._dataset = _on_grid(dataset, grid, self._nodata, self.label, stack)
        named = f"{self._path.stem} {dataset.descriptions[0] or ''}".replace("_", " ")
        self.kind = mask.kind if mask.kind != "auto" else mask_kind(self._values_found(), named, self._path)
        if self.kind == "scl" and mask.invert:
            raise InputError(
                f"{self.label} is a scene classification, which has no inverse; name classes to drop"
            )
        if self.kind != "scl" and mask.drop is not None:
            raise InputError(f"{self.label} was taken for a {self.kind} mask, which has no classes to drop")
        self._dropped = scl_numbers(SCL_DROPPED if mask.drop is None else mask.drop)

    @property
    def provenance(self) -> dict[str, str]:
        """How the mask was read, for file tags."""
        mask = self._mask
        tags = {
            "AXS_MASK": self._path.name,
            "AXS_MASK_KIND": self.kind,
            "AXS_MASK_BUFFER": str(mask.buffer),
        }
        if self.kind == "scl":
            return tags | {"AXS_MASK_DROP": ",".join(SCL_CLASSES[number] for number in self._dropped)}
        return tags | {"AXS_MASK_INVERT": str(mask.invert)}

    def read(self, window: Tile) -> FloatArray:
        """(1, h, w) in [0, 1] of a window."""
        reach = self._mask.buffer
        height, width = self.grid.size
        wide = Tile(
            max(window.top - reach, 0),
            max(window.left - reach, 0),
            min(window.bottom + reach, height),
            min(window.right + reach, width),
        )
        values = self._values(wide)[None]
        if self.kind == "scl":
            trust = scl_trust(values, self._dropped, source=self.label)
        else:
            trust = mask_trust(values, self.kind, self._mask.invert, self._path)
        grown = grow_unknown(trust[:, None], reach)[0]
        top, left = window.top - wide.top, window.left - wide.left
        return grown[:, top : top + window.shape[0], left : left + window.shape[1]]

    def _values(self, window: Tile) -> FloatArray:
        part = ((window.top, window.bottom), (window.left, window.right))
        values: FloatArray = self._dataset.read(1, window=part).astype(np.float32)
        if self._nodata is not None:
            values[values == self._nodata] = np.nan
        return values

    def _values_found(self) -> FloatArray:
        """Every value of the mask, once."""
        found: FloatArray = np.empty(0, dtype=np.float32)
        height, width = self.grid.size
        for top in range(0, height, CHUNK_ROWS):
            rows = self._values(Tile(top, 0, min(top + CHUNK_ROWS, height), width))
            found = np.union1d(found, rows[~np.isnan(rows)])
        if not found.size:
            raise InputError(
                f"{self.label} has no data on the scene's grid ({self.grid}); expected one that covers it"
            )
        return found


def _on_grid(dataset: Any, grid: SceneGrid, nodata: float | None, label: str, stack: ExitStack) -> Any:
    """The dataset, or a view of it on the grid, NaN outside."""
    from rasterio.crs import CRS
    from rasterio.enums import Resampling
    from rasterio.transform import Affine
    from rasterio.vrt import WarpedVRT

    own = grid_of(dataset)
    if own.same_as(grid):
        return dataset
    if own.crs is None or own.transform is None or grid.crs is None or grid.transform is None:
        raise InputError(
            f"the {label} is {own} and the scene {grid}; expected one size, or a georeference on both so that the mask"
            " can be brought onto the scene's grid"
        )
    if not _covers(own, grid):
        raise InputError(
            f"the {label} ({own}) does not cover the scene ({grid}); expected one that covers it all"
        )
    return stack.enter_context(
        WarpedVRT(
            dataset,
            crs=CRS.from_wkt(grid.crs),
            transform=Affine(*grid.transform),
            width=grid.width,
            height=grid.height,
            resampling=Resampling.nearest,
            src_nodata=nodata,
            nodata=np.nan,
            dtype="float32",
            tolerance=TOLERANCE_PX,
        )
    )


def _covers(mask: SceneGrid, grid: SceneGrid) -> bool:
    """Whether the middles of the grid's outermost pixels, at 21 places a side, lie in the mask."""
    from rasterio.errors import RasterioError
    from rasterio.transform import Affine
    from rasterio.warp import transform

    assert mask.transform is not None and grid.transform is not None
    down, across = (np.linspace(0.5, length - 0.5, 21) for length in grid.size)
    rim = [(x, y) for y in down for x in across if y in (down[0], down[-1]) or x in (across[0], across[-1])]
    places = [Affine(*grid.transform) * point for point in rim]
    try:
        xs, ys = transform(grid.crs, mask.crs, [x for x, _ in places], [y for _, y in places])[:2]
    except RasterioError:  # the scene lies outside of the mask's projection
        return False
    pixels = [~Affine(*mask.transform) * point for point in zip(xs, ys, strict=True)]
    return all(0 <= column <= mask.width and 0 <= row <= mask.height for column, row in pixels)
