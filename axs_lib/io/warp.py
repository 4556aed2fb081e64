"""Bring SAR in dB onto the optical grid: linear power is resampled, and dB taken again.

Where both are one lattice of pixels the values come as they are, cropped or surrounded by nodata. Otherwise the part
that is needed is written once, window by window, as linear power to a temporary file, from which GDAL warps any window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from axs_lib.errors import InputError
from axs_lib.io.formats import FloatArray
from axs_lib.io.grid import SceneGrid
from axs_lib.tilegrid import Tile

NEAR_SEAM = 179  # degrees
MARGIN_PX = 16  # source pixels kept around what the target covers
COARSER = 0.75  # target pixels a source pixel, below which the kernel widens to average the source


class Readable(Protocol):
    """Bands on a grid that can be read by windows, by one thread at a time; the label is for messages."""

    grid: SceneGrid
    bands: tuple[str, ...]
    label: str

    def read(self, window: Tile) -> FloatArray:
        """(C, h, w) of a window that lies inside the grid, NaN where there is no data."""


@dataclass
class DerivedSource:
    """What is read in another way than by the source that it is made of."""

    grid: SceneGrid
    bands: tuple[str, ...]
    label: str
    read: Callable[[Tile], FloatArray]


def to_grid(
    source: Readable, grid: SceneGrid, stack: ExitStack, work: Callable[[], Path], *, same_grid: bool = False
) -> Readable:
    """A SAR source in dB on another grid; ``work`` gives a folder for a temporary file of 8 bytes a source pixel.

    Raises InputError: they do not meet, or one does not say where it lies, and not ``same_grid`` and of one size.
    """
    if not (source.grid.located and grid.located):
        if source.grid.size != grid.size:
            raise InputError(
                f"{source.label} is {source.grid} and the optical grid is {grid}; expected one size, or a georeference"
                " on both so that the SAR can be warped: geocode it first"
            )
        lone = source.grid.missing_place_note(grid)
        if not same_grid and (lone or grid.offset_in(source.grid) != (0, 0)):
            apart = "only one of them says where it lies" if lone else "no CRS is named"
            raise InputError(
                f"{source.label} is {source.grid} and the optical grid is {grid}: {apart}, so that they may be"
                " kilometres apart. Geocode what has no CRS; or, if both are known to have one grid, give --same-grid"
                " (same_grid=True)"
            )
        return source
    offset = grid.offset_in(source.grid)
    if offset == (0, 0) and source.grid.size == grid.size:
        return source
    if offset is None:
        needed = _overlap(source.grid, grid)
    else:
        there = grid.whole.moved(*offset)
        needed = _cut(source.grid, there.top, there.left, there.bottom, there.right)
    if needed is None:
        raise InputError(f"{source.label} ({source.grid}) does not meet the optical grid ({grid}); give SAR from there")
    read = _warped(source, needed, grid, stack, work) if offset is None else partial(_read_shifted, source, offset)
    return DerivedSource(grid, source.bands, source.label, read)


def _read_shifted(source: Readable, offset: tuple[int, int], window: Tile) -> FloatArray:
    """A window of another part of a source's own pixel lattice, from this (row, column) on; NaN outside of it."""
    there = window.moved(*offset)
    inside = _cut(source.grid, there.top, there.left, there.bottom, there.right)
    data = np.full((len(source.bands), *window.shape), np.nan, dtype=np.float32)
    if inside is not None:
        inside.moved(-there.top, -there.left).of(data)[:] = source.read(inside)
    return data


def _warped(
    source: Readable, needed: Tile, grid: SceneGrid, stack: ExitStack, work: Callable[[], Path]
) -> Callable[[Tile], FloatArray]:
    """Reads SAR in dB, resampled in linear power, from a temporary file of the part that is needed."""
    path, part = work() / "sar_power.tif", source.grid.part(needed)
    with part.new_tiff(path, len(source.bands), "float32", np.nan, 256) as file:
        for rows in part.strips():
            db = source.read(rows.moved(needed.top, needed.left))
            power = np.power(np.float32(10), db / np.float32(10))
            file.write(power, window=((rows.top, rows.bottom), (0, part.width)))
    written = stack.enter_context(rasterio.open(path))
    across, down = _kernel_scale(source.grid, grid)
    view = warped_view(written, grid, "bilinear", src_nodata=np.nan, XSCALE=across, YSCALE=down)
    opened: Any = stack.enter_context(view)
    return lambda window: to_db(opened.read(window=((window.top, window.bottom), (window.left, window.right))))


def warped_view(dataset: Any, grid: SceneGrid, resampling: str, **more: Any) -> Any:
    """An open rasterio dataset on another grid, NaN where it has no data.

    What makes a pixel independent of the window it is read in: coordinates are exact for every pixel (``tolerance``;
    at 1e-6 a cut scene differs by 5e-6 dB, and GDAL crashes on 0); nodata takes no part in any interpolation; and the
    scale of a kernel is given (``XSCALE``, ``YSCALE``), which GDAL would choose window by window.
    """
    crs, (left, _, right, _) = dataset.crs, dataset.bounds
    if crs.is_geographic and max(abs(left), abs(right)) >= NEAR_SEAM:  # longitudes go on beyond 180 degrees
        crs = CRS.from_string(f"{crs.to_proj4()} +lon_wrap={(left + right) / 2}")
    return WarpedVRT(
        dataset,
        src_crs=crs,
        crs=CRS.from_wkt(grid.crs),
        transform=grid.affine,
        width=grid.width,
        height=grid.height,
        resampling=Resampling[resampling],
        nodata=np.nan,
        tolerance=1e-9,
        **more,
    )


def to_db(power: FloatArray) -> FloatArray:
    """dB of linear power, NaN where there is none."""
    return np.float32(10) * np.log10(np.where(power > 0, power, np.float32(np.nan)))


def _overlap(source: SceneGrid, grid: SceneGrid) -> Tile | None:
    """The source window that a grid in another CRS or lattice covers, or None."""
    fine, coarse = np.linspace(0, 1, 101), np.linspace(0, 1, 9)
    points = {(x, y) for x in fine for y in (0, 1)} | {(x, y) for x in (0, 1) for y in fine}
    points |= {(x, y) for x in coarse for y in coarse}
    found = grid.points_in(source, [(x * grid.width, y * grid.height) for x, y in points])
    if found is None:  # the grid lies outside of the source's projection
        return None
    columns, rows = (each[np.isfinite(found[0]) & np.isfinite(found[1])] for each in found)
    if not rows.size:
        return None
    return _cut(source, rows.min(), columns.min(), rows.max(), columns.max(), MARGIN_PX)


def _cut(source: SceneGrid, top: float, left: float, bottom: float, right: float, margin: int = 0) -> Tile | None:
    """A window in whole pixels with a margin, cut to the source; None where it lies outside."""
    if top >= source.height or left >= source.width or bottom <= 0 or right <= 0:
        return None
    whole = Tile(math.floor(top), math.floor(left), math.ceil(bottom), math.ceil(right))
    return whole.grown(margin, source.whole)


def _kernel_scale(source: SceneGrid, grid: SceneGrid) -> tuple[float, float]:
    """Target pixels a source pixel, across and down: 1 unless the target is markedly coarser."""
    x, y = grid.width / 2, grid.height / 2
    here, right, below = zip(*grid.points_in(source, [(x, y), (x + 1, y), (x, y + 1)]), strict=True)
    across, down = (1 / max(math.dist(here, there), 1e-9) for there in (right, below))
    return across if across < COARSER else 1.0, down if down < COARSER else 1.0
