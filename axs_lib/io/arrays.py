"""``xarray`` objects as inputs and results: named bands read by windows, coordinates and CRS kept.

In: a DataArray (band, y, x) in any order of axes, or a Dataset with one variable a band; axes may be called lat and
lon. Out: ``ArrayPixels`` for ``axs_lib.io.products``, and results in the form of the input.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from axs_lib.bands import DN_PER_REFLECTANCE, OPTICAL_BANDS
from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.pixels import TRUST, Order, assumed_bands, band_positions, ordered_bands
from axs_lib.io.raster import FloatArray, band_name, listed
from axs_lib.io.results import Layer
from axs_lib.tilegrid import Tile

if TYPE_CHECKING:
    from xarray import DataArray

_AXES = (("lon", "lat"), ("longitude", "latitude"))


def is_xarray(what: object) -> bool:
    """Whether this is an ``xarray`` object, without importing xarray."""
    xarray = sys.modules.get("xarray")
    return xarray is not None and isinstance(what, (xarray.DataArray, xarray.Dataset))


def times(what: Any) -> int | None:
    """Length of the axis ``time``, or None where there is none."""
    return int(what.sizes["time"]) if is_xarray(what) and "time" in what.dims else None


class ArrayPixels:
    """A DataArray of one band or of a stack, or a Dataset of bands, with the georeference that rioxarray keeps.

    Args:
        array: bands are named by their coordinate, by the attribute ``long_name``, or as variables of a Dataset.
        wanted: the bands.
        order: names of the bands in their order; overrides what the array says.

    Raises:
        InputError: axes or bands that cannot be.
    """

    def __init__(self, array: Any, wanted: tuple[str, ...], order: Order) -> None:
        import rioxarray  # noqa: F401  # gives arrays their georeference

        self.bands, self.tiles, self.batched, self.may_lie = wanted, 1, False, True
        self.label = f"{type(array).__name__} {getattr(array, 'name', None) or ''}".strip()
        self.notes: list[str] = []
        self.is_dataset = hasattr(array, "data_vars")
        array = self._one_array(array)
        if times(array) is not None:
            if times(array) != 1:
                raise InputError(
                    f"{self.label} has {times(array)} times; expected one, or ground_scene, which takes each"
                )
            array = array.squeeze("time", drop=True)
        for x, y in _AXES:
            if {x, y} <= set(array.dims):
                array = array.rio.set_spatial_dims(x, y)
        try:
            y, x = array.rio.y_dim, array.rio.x_dim
            crs, nodata = array.rio.crs, array.rio.nodata
        except Exception as error:  # rioxarray has no class of its own for every case
            raise InputError(
                f"{self.label} has the axes {listed(array.dims)}; expected (band, y, x), or lat and lon: rename"
                " them, or"
                " use array.rio.set_spatial_dims"
            ) from error
        bands = [dim for dim in array.dims if dim not in (y, x)]
        if len(bands) > 1:
            raise InputError(f"{self.label} has the axes {listed(array.dims)}; expected (band, y, x) or (y, x)")
        if array.dtype.kind not in "fiu":
            raise InputError(f"{self.label} holds {array.dtype}; expected real numbers")
        names: Sequence[str | None]
        stacked = array.transpose(*bands, y, x) if bands else array.expand_dims("band")
        if order is not None:
            names = ordered_bands(order, len(stacked), self.label)
        elif wanted == TRUST and len(stacked) == 1:
            names = TRUST
        else:
            found = _names(stacked, bands)
            names, note = (found, "") if found else assumed_bands(len(stacked), wanted, self.label)
            self.notes += [note] if note else []
        self._array = stacked.isel({stacked.dims[0]: band_positions(names, wanted, self.label)})
        self._axes = (y, x)
        self.dtype = self._array.dtype
        self._nodata = nodata
        self._scale = float(array.attrs.get("scale_factor", 1.0)), float(array.attrs.get("add_offset", 0.0))
        self.offset_declared = self._scale[1] != 0
        located = crs is not None and array.sizes[x] > 1 and array.sizes[y] > 1
        self.grid = SceneGrid(
            array.sizes[y],
            array.sizes[x],
            crs.to_wkt() if located else None,
            tuple(array.rio.transform())[:6] if located else None,
        )
        self.tags: Mapping[str, str] = {}
        values, titles = _texts(stacked, bands)
        self.texts: Sequence[str] = [str(n) for n in (array.name, array.attrs.get("units"), *values, *titles) if n]

    def read(self, window: Tile) -> tuple[FloatArray, NDArray[np.bool_]]:
        """See ``axs_lib.io.pixels.Pixels``."""
        y, x = self._axes
        part = {y: slice(window.top, window.bottom), x: slice(window.left, window.right)}
        raw = np.asarray(self._array.isel(part).values)
        with np.errstate(over="ignore"):
            data: FloatArray = raw.astype(np.float32)
        if self._scale != (1.0, 0.0):
            scale, offset = self._scale
            unit = DN_PER_REFLECTANCE if self.bands == OPTICAL_BANDS else 1.0
            data = (raw.astype(np.float64) * (scale * unit) + offset * unit).astype(np.float32)
        if self._nodata is not None and np.isfinite(self._nodata):
            data[raw == self._nodata] = np.nan
        return data, (raw == 0).all(axis=0)

    def dressed(self, data: FloatArray, layer: Layer) -> DataArray:
        """A result (C, H, W) as an array like this one: coordinates, CRS and attributes kept.

        Optical layers are integers with nodata 0 where this array holds integers; everything else is float32 with NaN.
        """
        axis = self._array.dims[0]
        same = len(data) == len(self._array)
        template = self._array if same else self._array.isel({axis: [0]})
        stored = layer.dtype == "uint16" and template.dtype.kind in "iu"
        result = template.copy(data=layer.encode(data) if stored else data)
        names = layer.bands
        if not same:  # the band's coordinate is that of another band
            result, names = result.isel({axis: 0}, drop=True), names[:1]
        for key in ("scale_factor", "add_offset", "_FillValue"):
            result.attrs.pop(key, None)
        result.encoding = {}  # how the input was stored, which need not fit
        result.attrs |= {"long_name": names if len(names) > 1 else names[0], "units": layer.unit}
        if stored and self._scale != (1.0, 0.0):
            result.attrs |= {"scale_factor": layer.scale, "add_offset": 0.0}
        result.name = layer.name
        return result.rio.write_nodata(layer.nodata if stored else np.nan)

    def _one_array(self, array: Any) -> Any:
        """A Dataset as one array: of the variables that are bands wanted, or of its only one."""
        if not hasattr(array, "data_vars"):
            return array
        named = {band_name(str(name)): name for name in array.data_vars}
        if all(band in named for band in self.bands):
            chosen = array[[named[band] for band in self.bands]]
            return chosen.to_array("band").assign_coords(band=list(self.bands))
        if len(array.data_vars) == 1:
            return next(iter(array.data_vars.values()))
        raise InputError(
            f"the Dataset holds {listed(array.data_vars)}; expected a variable for each of {listed(self.bands)}, or one"
            " variable with an axis of bands"
        )


def _texts(array: DataArray, bands: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The values of the axis of bands, and ``long_name``."""
    given = array.attrs.get("long_name", ())
    values = [str(value) for value in array[bands[0]].values] if bands and bands[0] in array.coords else []
    return values, [given] if isinstance(given, str) else [str(name) for name in given]


def _names(array: DataArray, bands: Sequence[Any]) -> list[str | None] | None:
    """Names of a stack's bands from its coordinate or its ``long_name``, or None where it has none."""
    values, titles = _texts(array, bands)
    for texts in (values, titles):
        names: list[str | None] = [band_name(text) for text in texts]
        if len(names) == len(array) and any(names):
            return names
    named = len(values) == len(array) and not all(text.isdigit() for text in values)
    return list(values) if named else None
