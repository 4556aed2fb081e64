"""Rasters with named bands on a grid: what readers return, what writers take, how bands are recognised.

In: arrays, band names as people write them, georeferences. Out: ``Raster`` and ``TilePair`` (float32, NaN is nodata,
bands in the library's order), and the check that SAR and optical lie on one grid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from axs_lib.errors import InputError

FloatArray = NDArray[np.float32]

TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES = (".npz", ".pt", *TIFF_SUFFIXES)
GRID_TOLERANCE_PX = 0.01

# Band codes outrank colour words, so that "red_field_B02.tif" is the blue band.
_CODES = {
    "vv": "VV",
    "vh": "VH",
    "b8a": "B8A",
    **{f"b{n}": f"B{n:02d}" for n in range(1, 13)},
    **{f"b{n:02d}": f"B{n:02d}" for n in range(1, 10)},
}
_WORDS = {
    "coastal": "B01",
    "blue": "B02",
    "green": "B03",
    "red": "B04",
    "rededge": "B05",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "nir": "B08",
    "nir08": "B8A",
    "nir09": "B09",
    "swir16": "B11",
    "swir22": "B12",
}


@dataclass(frozen=True)
class Raster:
    """Named bands of one tile, or of a batch of tiles, with their georeference.

    Attributes:
        data: float32 (C,H,W) or (N,C,H,W), NaN where there is no data.
        bands: the C band names, in the order of ``data``.
        crs: coordinate reference system as WKT, or None.
        transform: (a, b, c, d, e, f) of the affine pixel-to-map transform, or None.
        nodata: the value that marked nodata in the file, or None.
        tags: the file's own metadata tags.
        source: the file or files it came from, for messages.
    """

    data: FloatArray
    bands: tuple[str, ...]
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    nodata: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    source: str = "array"

    @property
    def batched(self) -> bool:
        """Whether ``data`` has a leading batch axis."""
        return self.data.ndim == 4

    @property
    def batch(self) -> FloatArray:
        """The data as (N,C,H,W), with N = 1 for a single tile."""
        return self.data if self.batched else self.data[None]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.data.shape[-2]), int(self.data.shape[-1])


@dataclass(frozen=True)
class TilePair:
    """What Stage 3 needs of one tile (or batch): SAR and optical estimate on one grid, and optional
    companions.

    Attributes:
        s1: VV, VH in dB.
        opt_v2: B02, B03, B04, B08 in DN.
        truth: the real optical image in DN, where the file holds one.
        trust: float32 (N,1,H,W) in [0,1], how far opt_v2 is to be trusted, where the file holds one.
    """

    s1: Raster
    opt_v2: Raster
    truth: Raster | None = None
    trust: FloatArray | None = None


def band_name(text: str | None) -> str | None:
    """The Sentinel band that a free text names, or None where it names none or several.

    Codes (``B2``, ``S2_B02``, ``Sigma0_VV_db``) and colours (``blue``, ``NIR``, ``NIR_NARROW``) are
    understood in any case.
    """
    tokens = re.findall(r"[a-z0-9]+", (text or "").lower())
    found = {_CODES[t] for t in tokens if t in _CODES}
    if not found:
        found = {_WORDS[t] for t in tokens if t in _WORDS}
        if "edge" in tokens:  # "red edge 1" is not red
            found.discard("B04")
        if "narrow" in tokens and "B08" in found:
            found = found - {"B08"} | {"B8A"}
    return found.pop() if len(found) == 1 else None


def parse_bands(text: str | None) -> tuple[str, ...] | None:
    """The band order written as ``B04,B03,B02,B08`` (or ``red,green,blue,nir``); None for None.

    Raises:
        InputError: a name is not a Sentinel-1 or Sentinel-2 band, or stands twice.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    names = [band_name(word) for word in words]
    unknown = [word for word, name in zip(words, names, strict=True) if name is None]
    if unknown or not names:
        raise InputError(
            f"--bands names {listed(unknown) or 'nothing'}; expected Sentinel band names, for example"
            " --bands B04,B03,B02,B08"
        )
    known = tuple(name for name in names if name is not None)
    if len(set(known)) != len(known):
        raise InputError(f"--bands {text} names a band twice; name every band of the stack once, in its order")
    return known


def check_same_grid(s1: Raster, optical: Raster) -> None:
    """Check that two rasters have one size, batch length, and (where both have one) CRS and transform.

    Raises:
        InputError: they do not; the message says how they differ and how to resample.
    """
    if len(s1.batch) != len(optical.batch):
        raise InputError(
            f"{s1.source} holds {len(s1.batch)} tile(s) and {optical.source} holds {len(optical.batch)};"
            " expected one SAR tile for every optical tile: give files of one batch"
        )
    difference = _grid_difference(s1, optical)
    if difference:
        raise InputError(
            f"the grids of {s1.source} and {optical.source} differ: {difference}; expected the same size,"
            " CRS and"
            " transform. Resample one onto the other, for example:"
            " rio warp S1.tif S1_on_grid.tif --like OPTICAL.tif --resampling bilinear"
        )


def _grid_difference(a: Raster, b: Raster) -> str | None:
    if a.size != b.size:
        return f"{a.size[0]}x{a.size[1]} px against {b.size[0]}x{b.size[1]} px (height x width)"
    if a.crs is not None and b.crs is not None and a.crs != b.crs:
        from rasterio.crs import CRS

        ours, theirs = CRS.from_wkt(a.crs), CRS.from_wkt(b.crs)
        if ours != theirs:
            return f"{ours.to_string()[:60]} against {theirs.to_string()[:60]}"
    if a.transform is not None and b.transform is not None:
        pixel = max(abs(b.transform[0]), abs(b.transform[1]))
        if not np.allclose(a.transform, b.transform, rtol=0, atol=GRID_TOLERANCE_PX * pixel):
            return f"{_transform_label(a.transform)} against {_transform_label(b.transform)}"
    return None


def centre_lat_lon(raster: Raster) -> tuple[float, float] | None:
    """Latitude and longitude (degrees, EPSG:4326) of a raster's centre, or None where it has no georeference."""
    if raster.crs is None or raster.transform is None:
        return None
    from rasterio.transform import Affine
    from rasterio.warp import transform

    height, width = raster.size
    x, y = Affine(*raster.transform) * (width / 2, height / 2)
    try:
        (lon, *_), (lat, *_) = transform(raster.crs, "EPSG:4326", [x], [y])[:2]
    except Exception:  # a local system, or a point outside the projection: GDAL's errors have no public class
        return None
    return (lat, lon) if -90 <= lat <= 90 and -180 <= lon <= 180 else None


def _transform_label(transform: Sequence[float]) -> str:
    a, b, c, d, e, f = transform
    turned = f", turned by ({b:g}, {d:g})" if b or d else ""
    return f"pixels of {a:g} x {e:g} from ({c:.10g}, {f:.10g}){turned}"


def listed(names: Iterable[object]) -> str:
    """Names joined by commas, for messages."""
    return ", ".join(str(name) for name in names)
