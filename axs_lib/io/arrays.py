"""``xarray`` objects as inputs and results: named bands read by windows, coordinates and CRS kept."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from axs_lib.errors import InputError, listed
from axs_lib.io.formats import FloatArray
from axs_lib.io.grid import checked_grid
from axs_lib.io.pixels import TRUST, Order, Pixels, Reading
from axs_lib.io.raster import band_name
from axs_lib.io.results import Layer
from axs_lib.tilegrid import Tile

if TYPE_CHECKING:
    from xarray import DataArray

_AXES = (("lon", "lat"), ("longitude", "latitude"))
_SCALE = {"scale_factor": 1.0, "add_offset": 0.0}  # attributes and what they are where they are not there


def is_xarray(what: object) -> bool:
    """Whether this is an ``xarray`` object, without importing xarray."""
    xarray = sys.modules.get("xarray")
    return xarray is not None and isinstance(what, (xarray.DataArray, xarray.Dataset))


def times(what: Any) -> int | None:
    """Length of the axis ``time``, or None where there is none."""
    return int(what.sizes["time"]) if is_xarray(what) and "time" in what.dims else None


class ArrayPixels(Pixels):
    """A DataArray (band, y, x) in any order of axes, or a Dataset of bands; axes may be called lat and lon.

    Bands are named by ``order``, their coordinate, the attribute ``long_name``, or as variables of a Dataset.
    """

    def __init__(self, array: Any, wanted: tuple[str, ...], order: Order, reading: Reading) -> None:
        import rioxarray  # noqa: F401  # gives arrays their georeference

        super().__init__(wanted, f"{type(array).__name__} {getattr(array, 'name', None) or ''}".strip())
        self.is_dataset = hasattr(array, "data_vars")
        if self.is_dataset:
            array = self._one_array(array)
        if times(array) is not None:
            if times(array) != 1:
                raise InputError(f"{self.label} has {times(array)} times; expected one; ground_scene takes several")
            array = array.squeeze("time", drop=True)
        for x, y in _AXES:
            if {x, y} <= set(array.dims):
                array = array.rio.set_spatial_dims(x, y)
        try:
            y, x = self._axes = array.rio.y_dim, array.rio.x_dim
            crs, self._nodata = array.rio.crs, array.rio.nodata
        except Exception as error:  # rioxarray has no class of its own for every case
            raise InputError(
                f"{self.label} has the axes {listed(array.dims)}; expected (band, y, x), or lat and lon: rename them,"
                " or use array.rio.set_spatial_dims"
            ) from error
        bands = [dim for dim in array.dims if dim not in (y, x)]
        if len(bands) > 1:
            raise InputError(f"{self.label} has the axes {listed(array.dims)}; expected (band, y, x) or (y, x)")
        if array.dtype.kind not in ("fiub" if wanted == TRUST else "fiu"):
            raise InputError(f"{self.label} holds {array.dtype}; expected real numbers")
        stacked = array.transpose(*bands, y, x) if bands else array.expand_dims("band")
        titles = [str(name) for name in np.atleast_1d(array.attrs.get("long_name", ()))]
        values = [str(value) for value in array[bands[0]].values] if bands and bands[0] in array.coords else []
        names = TRUST if wanted == TRUST and len(stacked) == 1 else _names(len(stacked), values, titles)
        self._array = stacked.isel({stacked.dims[0]: self.positions(names, order, len(stacked))})
        self.dtype = self._array.dtype
        numbers = [(self._nodata, math.nan), *((array.attrs.get(k), v) for k, v in _SCALE.items())]
        try:
            nodata, scale, offset = (float(default if given is None else given) for given, default in numbers)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.label} has no number as its nodata, {listed(_SCALE)} ({error})") from error
        self.offset_declared = offset != 0
        self._nodata, self._scale, self._ignore_offset = nodata, (scale, offset), reading.ignores_offset(wanted)
        numbered = all(axis in array.coords and array[axis].dtype.kind in "fiu" for axis in (x, y))
        spaced = array.sizes[x] > 1 and array.sizes[y] > 1 and (crs is not None or numbered)
        place = (crs and crs.to_wkt(), tuple(array.rio.transform())[:6]) if spaced else (None, None)
        self.grid = checked_grid(self.label, array.sizes[y], array.sizes[x], *place)
        self.texts = [str(n) for n in (array.name, array.attrs.get("units"), *values, *titles) if n]

    def read(self, window: Tile) -> tuple[FloatArray, NDArray[np.bool_]]:
        y, x = self._axes
        part = {y: slice(window.top, window.bottom), x: slice(window.left, window.right)}
        raw = np.asarray(self._array.isel(part).values)
        data = self.scaled(raw, *self._scale, ignore_offset=self._ignore_offset)
        if np.isfinite(self._nodata):
            data[raw == self._nodata] = np.nan
        return data, (raw == 0).all(axis=0)

    def as_input(self, data: FloatArray, layer: Layer) -> DataArray:
        """A result (C, H, W) as an array like this one: coordinates, CRS, attributes, and integers for optical DN."""
        axis = self._array.dims[0]
        same = len(data) == len(self._array)
        # Where there are more bands, or fewer, the coordinate is that of others.
        template = self._array if same else self._array.isel({axis: [0] * len(data)}).drop_vars(axis, errors="ignore")
        stored = layer.dtype == "uint16" and template.dtype.kind in "iu"
        result = template.copy(data=layer.encode(data) if stored else data)
        names = layer.bands
        if len(data) == 1:
            result, names = result.isel({axis: 0}, drop=True), names[:1]
        result = result if same or len(data) == 1 else result.assign_coords({axis: list(names)})
        for key in ("scale_factor", "add_offset", "_FillValue"):
            result.attrs.pop(key, None)
        result.encoding = {}  # how the input was stored, which need not fit
        result.attrs |= {"long_name": names if len(names) > 1 else names[0], "units": layer.unit}
        if stored and self._scale != (1.0, 0.0):
            result.attrs |= {"scale_factor": layer.scale, "add_offset": 0.0}
        result.name = layer.name
        return result.rio.write_nodata(layer.nodata if stored else np.nan)

    def _one_array(self, dataset: Any) -> Any:
        """The variables of a Dataset that are bands wanted, or its only one."""
        named = {band_name(str(name)): name for name in dataset.data_vars}
        if all(band in named for band in self.bands):
            chosen = dataset[[named[band] for band in self.bands]]
            return chosen.to_array("band").assign_coords(band=list(self.bands))
        if len(dataset.data_vars) == 1:
            return next(iter(dataset.data_vars.values()))
        raise InputError(
            f"the Dataset holds {listed(dataset.data_vars)}; expected a variable for each of {listed(self.bands)}, or"
            " one variable with an axis of bands"
        )


def _names(count: int, values: Sequence[str], titles: Sequence[str]) -> Sequence[str | None]:
    """Names of a stack's bands from its coordinate or its ``long_name``; [None] where it has none."""
    for texts in (values, titles):
        names = [band_name(text) for text in texts]
        if len(names) == count and any(names):
            return names
    named = len(values) == count and not all(text.isdigit() for text in values)
    return values if named else [None]
