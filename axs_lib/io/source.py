"""Where the pixels of a scene come from: raster files and ``xarray.DataArray``, read by windows.

In: any path that GDAL opens (one stack, or one file a band) or a DataArray, and the bands wanted. Out: a ``Source``
on a ``SceneGrid`` whose ``read`` gives any window as float32 in the library's band order and units, NaN where there
is no data. Infinite values, which ``log10(0)`` leaves in dB images, count as no data.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS, SAR_BANDS
from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.raster import FloatArray, band_name, listed
from axs_lib.io.stacks import (
    band_positions,
    ordered_bands,
    read_bands,
    stack_names,
    unnamed_bands,
    unreadable,
)
from axs_lib.tilegrid import Tile

if TYPE_CHECKING:
    from xarray import DataArray

    from axs_lib.io.cog import Layer

PathLike = str | os.PathLike[str]
Order = tuple[str, ...] | None
TRUST = ("trust",)  # the band of a trust map


class Source(Protocol):
    """Bands on a grid that can be read by windows, by one thread at a time.

    Attributes:
        grid: of the pixels.
        bands: names, in the order of what ``read`` returns.
        tags: the file's own metadata tags.
        label: the file or array, for messages.
    """

    grid: SceneGrid
    bands: tuple[str, ...]
    tags: Mapping[str, str]
    label: str

    def read(self, window: Tile) -> FloatArray:
        """(C, h, w) of a window that lies inside the grid, NaN where there is no data."""
        ...


class FileSource:
    """A stack of bands, or one file a band, that GDAL opens.

    Args:
        paths: of the files.
        wanted: ``SAR_BANDS``, ``OPTICAL_BANDS`` or ``TRUST``.
        order: names of the stack's bands (or of the files) in their order; overrides what the files say.
        stack: closes the files.

    Raises:
        InputError: a file is missing, unreadable or of the wrong band count, or the files differ in grid.
    """

    def __init__(
        self, paths: Sequence[PathLike], wanted: tuple[str, ...], order: Order, stack: ExitStack
    ) -> None:
        if not paths:
            raise InputError(f"no file is given for {listed(wanted)}; expected one stack, or one file a band")
        self.bands = wanted
        datasets = [stack.enter_context(opened(path)) for path in paths]
        self.label = os.fspath(paths[0]) + (f" (and {len(paths) - 1} more)" if len(paths) > 1 else "")
        self.grid = grid_of(datasets[0])
        self.tags: Mapping[str, str] = {
            k: str(v) for k, v in datasets[0].tags().items() if k != "AREA_OR_POINT"
        }
        self._parts = (
            [(datasets[0], _stack_indexes(datasets[0], Path(paths[0]), wanted, order), Path(paths[0]))]
            if len(paths) == 1
            else _band_parts(datasets, [Path(p) for p in paths], wanted, order)
        )
        for dataset, _, path in self._parts:
            if not grid_of(dataset).same_as(self.grid):
                raise InputError(
                    f"the grids of {paths[0]} and {path} differ: {self.grid} against {grid_of(dataset)}; expected one"
                    " grid for all bands: resample them first, for example with rio warp --like"
                )

    def read(self, window: Tile) -> FloatArray:
        """(C, h, w) of a window, NaN where there is no data."""
        part = (window.top, window.bottom), (window.left, window.right)
        read = [read_bands(d, indexes, path, self.bands, window=part) for d, indexes, path in self._parts]
        data = np.concatenate([bands for bands, _ in read])
        data[:, np.logical_and.reduce([blank for _, blank in read])] = np.nan
        return _finite(data)


class ArraySource:
    """An ``xarray.DataArray`` of one band or of a stack, with the georeference that rioxarray keeps.

    Args:
        array: (band, y, x) or (y, x); bands are named by the coordinate ``band`` or the attribute ``long_name``.
        wanted: as for ``FileSource``.
        order: as for ``FileSource``.

    Raises:
        InputError: axes or bands that cannot be.
    """

    def __init__(self, array: DataArray, wanted: tuple[str, ...], order: Order) -> None:
        import rioxarray  # noqa: F401  # gives arrays their georeference

        self.label = f"DataArray {array.name or ''}".strip()
        self.bands = wanted
        y, x = array.rio.y_dim, array.rio.x_dim
        bands = [dim for dim in array.dims if dim not in (y, x)]
        if len(bands) > 1:
            raise InputError(
                f"{self.label} has the axes {listed(array.dims)}; expected (band, y, x) or (y, x)"
            )
        stacked = array.transpose(*bands, y, x) if bands else array.expand_dims("band")
        label = Path(self.label)
        if order is not None:
            names: Sequence[str] = ordered_bands(order, len(stacked), label)
        else:
            names = _array_names(stacked, bands) or unnamed_bands(len(stacked), wanted, label)
        self._array = stacked.isel({stacked.dims[0]: band_positions(names, wanted, label)})
        self._axes = (y, x)
        self._nodata = array.rio.nodata
        self._scale = float(array.attrs.get("scale_factor", 1.0)), float(array.attrs.get("add_offset", 0.0))
        located = array.rio.crs is not None and array.sizes[x] > 1 and array.sizes[y] > 1
        self.grid = SceneGrid(
            array.sizes[y],
            array.sizes[x],
            array.rio.crs.to_wkt() if located else None,
            tuple(array.rio.transform())[:6] if located else None,
        )
        self.tags: Mapping[str, str] = {}

    def read(self, window: Tile) -> FloatArray:
        """(C, h, w) of a window, NaN where there is no data."""
        y, x = self._axes
        part = {y: slice(window.top, window.bottom), x: slice(window.left, window.right)}
        raw = np.asarray(self._array.isel(part).values)
        data: FloatArray = raw.astype(np.float32)
        if self._scale != (1.0, 0.0):
            scale, offset = self._scale
            unit = DN_PER_REFLECTANCE if self.bands == OPTICAL_BANDS else 1.0
            data = (raw.astype(np.float64) * (scale * unit) + offset * unit).astype(np.float32)
        if self._nodata is not None and np.isfinite(self._nodata):
            data[raw == self._nodata] = np.nan
        elif self.bands == OPTICAL_BANDS and raw.dtype.kind in "iu":
            data[:, (raw == 0).all(axis=0)] = np.nan  # nodata of Sentinel-2 products, declared or not
        return _finite(data)

    def dressed(self, data: FloatArray, layer: Layer) -> DataArray:
        """A result (C, H, W) as an array like this one: coordinates, CRS and attributes kept.

        Optical layers are integers with nodata 0 where this array holds integers; everything else is float32 with NaN.
        """
        template = (
            self._array if len(data) == len(self._array) else self._array.isel({self._array.dims[0]: [0]})
        )
        stored = layer.dtype == "uint16" and template.dtype.kind in "iu"
        result = template.copy(data=layer.encode(data) if stored else data)
        names = layer.bands
        if len(data) != len(self._array):  # the band's coordinate is that of another band
            result, names = result.isel({self._array.dims[0]: 0}, drop=True), names[:1]
        for key in ("scale_factor", "add_offset", "_FillValue"):
            result.attrs.pop(key, None)
        result.encoding = {}  # how the input was stored, which need not fit
        result.attrs |= {"long_name": names if len(names) > 1 else names[0], "units": layer.unit}
        if stored and self._scale != (1.0, 0.0):
            result.attrs |= {"scale_factor": layer.scale, "add_offset": 0.0}
        result.name = layer.name
        return result.rio.write_nodata(layer.nodata if stored else np.nan)


class ShiftedSource:
    """A source on another part of its own pixel lattice; outside it there is no data.

    Args:
        source: the pixels.
        grid: where they are wanted.
        offset: (row, column) in the source of the grid's upper left pixel.
    """

    def __init__(self, source: Source, grid: SceneGrid, offset: tuple[int, int]) -> None:
        self.grid, self.bands, self.tags, self.label = grid, source.bands, source.tags, source.label
        self._source, self._offset = source, offset

    def read(self, window: Tile) -> FloatArray:
        """(C, h, w) of a window, NaN where there is no data."""
        row, column = self._offset
        height, width = self._source.grid.size
        inside = Tile(
            _clip(window.top + row, height),
            _clip(window.left + column, width),
            _clip(window.bottom + row, height),
            _clip(window.right + column, width),
        )
        data = np.full((len(self.bands), *window.shape), np.nan, dtype=np.float32)
        if min(inside.shape) > 0:
            top, left = inside.top - row - window.top, inside.left - column - window.left
            height, width = inside.shape
            data[:, top : top + height, left : left + width] = self._source.read(inside)
        return data


def open_source(
    what: PathLike | Sequence[PathLike] | DataArray,
    wanted: tuple[str, ...],
    stack: ExitStack,
    order: Sequence[str] | None = None,
) -> Source:
    """Open files or wrap an array.

    Args:
        what: a path, paths or a DataArray.
        wanted: ``SAR_BANDS``, ``OPTICAL_BANDS`` or ``TRUST``.
        stack: closes what was opened.
        order: names of bands in their order; those that are not of the kind wanted are left out.

    Raises:
        InputError: it cannot be read, or lacks a band.
    """
    of_kind = [name for name in order or () if (name in SAR_BANDS) == (wanted == SAR_BANDS)]
    names = None if wanted == TRUST else tuple(of_kind) or None
    if isinstance(what, str | os.PathLike):
        return FileSource([what], wanted, names, stack)
    if isinstance(what, Sequence):
        return FileSource(what, wanted, names, stack)
    return ArraySource(what, wanted, names)


@contextmanager
def opened(path: PathLike) -> Iterator[Any]:
    """A rasterio dataset of anything that GDAL opens.

    Raises:
        InputError: it cannot be opened.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            dataset = rasterio.open(os.fspath(path))
        except (RasterioError, OSError) as error:
            raise InputError(unreadable(Path(path), "a raster that GDAL reads", error)) from error
    with dataset:
        yield dataset


def grid_of(dataset: Any) -> SceneGrid:
    """The grid of an open rasterio dataset."""
    crs = dataset.crs.to_wkt() if dataset.crs else None
    transform = None if dataset.transform.is_identity else tuple(dataset.transform)[:6]
    return SceneGrid(dataset.height, dataset.width, crs, transform)


def _stack_indexes(dataset: Any, path: Path, wanted: tuple[str, ...], order: Order) -> list[int]:
    if wanted == TRUST:
        if dataset.count != 1:
            raise InputError(f"{path} has {dataset.count} bands; expected a trust map of one band, 0 to 1")
        return [1]
    names = stack_names(dataset, wanted, path) if order is None else ordered_bands(order, dataset.count, path)
    return [i + 1 for i in band_positions(names, wanted, path)]


def _band_parts(
    datasets: Sequence[Any], paths: Sequence[Path], wanted: tuple[str, ...], order: Order
) -> list[tuple[Any, list[int], Path]]:
    """One file a band, in the order of ``wanted``."""
    if order is not None and len(order) != len(paths):
        raise InputError(
            f"{len(paths)} files are given and --bands names {len(order)} ({listed(order)}); expected one name a file"
        )
    found: dict[str, tuple[Any, list[int], Path]] = {}
    for position, (dataset, path) in enumerate(zip(datasets, paths, strict=True)):
        if dataset.count != 1:
            raise InputError(
                f"{path} is one of {len(paths)} files and has {dataset.count} bands; expected one band in each file,"
                " or one stack alone"
            )
        name = order[position] if order else band_name(dataset.descriptions[0]) or band_name(path.stem)
        if name is None or name in found:
            raise InputError(
                f"{path} holds {name or 'a band that neither its name nor its description tells'}"
                f"{', as another file does' if name else ''}; expected for example tile_{wanted[0]}.tif, or the names"
                f" in the order of the files: --bands {','.join(wanted)}"
            )
        found[name] = (dataset, [1], path)
    missing = [band for band in wanted if band not in found]
    if missing:
        raise InputError(
            f"{listed(paths)} hold {listed(found)} and lack {listed(missing)}; expected one file for each of"
            f" {listed(wanted)}"
        )
    return [found[band] for band in wanted]


def _array_names(array: DataArray, bands: Sequence[Any]) -> list[str] | None:
    """Names of a stack's bands from its coordinate or its ``long_name``, or None where it has none."""
    texts: Sequence[Any] = []
    if bands and bands[0] in array.coords:
        texts = [str(value) for value in array[bands[0]].values]
    if not any(band_name(text) for text in texts):
        given = array.attrs.get("long_name", ())
        texts = [given] if isinstance(given, str) else list(given)
    names = [band_name(str(text)) for text in texts]
    if len(names) != len(array) or not any(names):
        return None
    return [name or "(unnamed)" for name in names]


def _clip(position: int, length: int) -> int:
    return min(max(position, 0), length)


def _finite(data: FloatArray) -> FloatArray:
    data[np.isinf(data)] = np.nan
    return data
