"""The pixel grid of an image: its size, where it lies on the ground, and which coordinates its noise has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from axs_lib.checks import check_number
from axs_lib.errors import InputError, OutputError, listed
from axs_lib.io.files import check_utf8
from axs_lib.io.formats import LARGEST_SIDE, PathLike, open_raster
from axs_lib.tilegrid import Tile

TILE_SIDE = 256  # px; larger images do not fit the network at once
TOLERANCE_PX = 0.01  # between grids that are taken for one
MOST_PLACE = 1e12  # in any unit of a CRS


@dataclass(frozen=True)
class SceneGrid:
    """Size and georeference."""

    height: int
    width: int
    crs: str | None = None  # coordinate reference system as WKT
    transform: tuple[float, ...] | None = None  # (a, b, c, d, e, f), affine, from pixels to the map

    @classmethod
    def like(cls, path: PathLike) -> SceneGrid:
        """The grid of a raster file. Raises InputError: GDAL cannot open it."""
        with open_raster(path, addresses=True) as dataset:
            return grid_of(dataset)

    @classmethod
    def of(cls, crs: str, resolution: float, bounds: Sequence[float]) -> SceneGrid:
        """A north-up grid whose pixel edges lie on multiples of the resolution, widened to hold the bounds.

        The CRS is anything that PROJ understands, such as ``EPSG:32633``; pixel side and bounds (left, bottom, right,
        top) are in its units. Raises InputError: it is unknown, the resolution not positive or the bounds empty.
        """
        try:
            wkt = CRS.from_user_input(crs).to_wkt()
        except CRSError as error:
            raise InputError(f"the CRS {crs!r} is unknown; expected for example EPSG:32633") from error
        check_number("the resolution", resolution, 1e-9, MOST_PLACE, "a positive pixel side in units of the CRS")
        ordered = len(bounds) == 4 and bounds[0] < bounds[2] and bounds[1] < bounds[3]
        if not (ordered and all(abs(edge) < MOST_PLACE for edge in bounds)):
            raise InputError(f"the bounds are {listed(bounds)}; expected left, bottom, right, top in units of the CRS")
        slack = 1e-6  # of a pixel, so that bounds written in decimals do not grow the grid by a row
        left, bottom = (math.floor(edge / resolution + slack) for edge in bounds[:2])
        right, top = (math.ceil(edge / resolution - slack) for edge in bounds[2:])
        transform = (resolution, 0.0, left * resolution, 0.0, -resolution, top * resolution)
        fix = ": use a larger --res or smaller --bounds"
        return checked_grid("the output grid", top - bottom, right - left, wkt, transform, fix)

    @property
    def located(self) -> bool:
        """Whether it says where it lies."""
        return self.crs is not None and self.transform is not None

    @property
    def affine(self) -> Any:
        """The transform as rasterio takes it; there must be one."""
        assert self.transform is not None
        return Affine(*self.transform)

    @property
    def pixel_metres(self) -> float | None:
        """Height of a pixel in metres, of one in degrees about, or None without georeference."""
        if self.crs is None or self.transform is None:
            return None
        crs, place = CRS.from_wkt(self.crs), self.affine
        return math.hypot(place.b, place.e) * (crs.linear_units_factor[1] if crs.is_projected else 111_320.0)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def whole(self) -> Tile:
        """All of it."""
        return Tile(0, 0, self.height, self.width)

    def strips(self, rows: int = 512) -> Iterator[Tile]:
        """All of it from top to bottom, so many rows at a time."""
        for top in range(0, self.height, rows):
            yield Tile(top, 0, min(top + rows, self.height), self.width)

    @property
    def noise_origin(self) -> tuple[int, int]:
        """(row, column) of the upper left pixel from the CRS's origin; (0, 0) without a georeference, or turned."""
        a, b, c, d, e, f = self.transform or (1, 0, 0, 0, 1, 0)
        if b or d:
            return 0, 0
        # Edges lie on whole, half or quarter pixels: none is near the step of this floor.
        return math.floor(f / e + 0.1), math.floor(c / a + 0.1)

    def offset_in(self, other: SceneGrid) -> tuple[int, int] | None:
        """(row, column) in ``other`` of this grid's upper left pixel, where both are one lattice of pixels.

        Without a transform on either side two grids of one size are taken for the same; without a CRS on one, they
        are where the transforms agree.
        """
        if self.crs and other.crs and self.crs != other.crs and CRS.from_wkt(self.crs) != CRS.from_wkt(other.crs):
            return None
        if self.transform is None or other.transform is None:
            return (0, 0) if self.size == other.size else None
        if self.transform == other.transform:
            return 0, 0
        relative = ~other.affine * self.affine  # from pixels of this grid to those of the other
        reach = max(*self.size, *other.size)
        bent = reach * max(abs(relative.a - 1), abs(relative.b), abs(relative.d), abs(relative.e - 1))
        row, column = round(relative.f), round(relative.c)
        if max(bent, abs(relative.f - row), abs(relative.c - column)) > TOLERANCE_PX:
            return None
        return row, column

    def same_as(self, other: SceneGrid) -> bool:
        """Whether both have one size and lie on one place."""
        return self.size == other.size and self.offset_in(other) == (0, 0)

    def missing_place_note(self, other: SceneGrid) -> str:
        """What to say of an image on this grid that is laid on one of ``other``, where only one says where it lies."""
        if (self.located, self.transform is None) == (other.located, other.transform is None):
            return ""
        which = "the image" if self.located or (self.transform and not other.located) else "it"
        return f"; {which} does not say where it lies, and they are laid on each other pixel by pixel"

    def part(self, tile: Tile) -> SceneGrid:
        """The grid of a window; there must be a transform."""
        return SceneGrid(*tile.shape, self.crs, tuple(self.affine * self.affine.translation(tile.left, tile.top))[:6])

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in units of the CRS."""
        corners = [self.affine * (x, y) for x in (0, self.width) for y in (0, self.height)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def centre_lat_lon(self, tile: Tile | None = None) -> tuple[float, float] | None:
        """Latitude and longitude (degrees) of the middle of the grid, or of a part; None without georeference."""
        if self.crs is None or self.transform is None:
            return None
        part = tile or self.whole
        x, y = self.affine * ((part.left + part.right) / 2, (part.top + part.bottom) / 2)
        try:
            (lon, *_), (lat, *_) = transform_points(self.crs, "EPSG:4326", [x], [y])[:2]
        except Exception:  # a local system, or a point outside the projection: GDAL's errors have no public class
            return None
        return (lat, lon - 360 * round(lon / 360)) if -90 <= lat <= 90 and abs(lon) <= 540 else None

    def points_in(self, other: SceneGrid, points: Sequence[tuple[float, float]]) -> Any:
        """(x, y) in pixels of ``other``, arrays, of points in pixels of this grid; None outside its projection."""
        places = [self.affine * point for point in points]
        try:
            xs, ys = map(np.array, transform_points(self.crs, other.crs, *zip(*places, strict=True))[:2])
        except RasterioError:
            return None
        if CRS.from_wkt(other.crs).is_geographic:  # longitudes of one turn around its middle, as GDAL has it
            middle, _ = other.affine * (other.width / 2, other.height / 2)
            xs = xs + 360 * np.round((middle - xs) / 360)
        return ~other.affine * (xs, ys)

    def new_tiff(self, path: PathLike, count: int, dtype: str, nodata: float, block: int) -> Any:
        """An empty tiled GeoTIFF on this grid, open for writing."""
        check_utf8(path, "the GeoTIFF to write", OutputError)
        profile: dict[str, Any] = {"width": self.width, "height": self.height, "count": count, "dtype": dtype}
        profile |= {"tiled": True, "blockxsize": block, "blockysize": block, "nodata": nodata}
        profile |= {"crs": CRS.from_wkt(self.crs)} if self.crs else {}
        profile |= {"transform": self.affine} if self.transform else {}
        return rasterio.open(path, "w", driver="GTiff", photometric="minisblack", BIGTIFF="IF_SAFER", **profile)

    def __str__(self) -> str:
        crs = self.crs and CRS.from_wkt(self.crs).to_string()[:60]
        place = crs or ("no CRS" if self.transform else "no georeference")
        if self.transform:
            a, _, c, _, e, f = self.transform
            place += f", pixels of {a:g} x {e:g} from ({c:.10g}, {f:.10g})"
        return f"{self.height}x{self.width} px (height x width), {place}"


def grid_of(dataset: Any) -> SceneGrid:
    """The grid of an open rasterio dataset."""
    crs = dataset.crs.to_wkt() if dataset.crs else None
    transform = None if dataset.transform.is_identity else tuple(dataset.transform)[:6]
    return checked_grid(dataset.name, dataset.height, dataset.width, crs, transform)


def checked_grid(
    name: str, height: int, width: int, crs: str | None, transform: tuple[float, ...] | None, fix: str = ""
) -> SceneGrid:
    """A grid of which others wrote the georeference; ``InputError`` where that is none, or no side can be so long."""
    if max(height, width) > LARGEST_SIDE:
        raise InputError(f"{name} is {height}x{width} px; expected at most {LARGEST_SIDE} px a side{fix}")
    a, b, c, d, e, f = transform or (1, 0, 0, 0, 1, 0)
    if not (all(abs(each) < MOST_PLACE for each in (a, b, c, d, e, f)) and abs(a * e - b * d) > 0):
        raise InputError(f"{name} has the transform {transform}; expected one that lays pixels on a map")
    try:
        _ = crs and CRS.from_wkt(crs)
    except CRSError as error:
        raise InputError(f"{name} has a CRS that cannot be read ({str(crs)[:60]!r}); expected WKT") from error
    return SceneGrid(height, width, crs, transform)
